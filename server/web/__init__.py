"""HTTP as the application sees it: requests with a user, handlers, and what the API's description says of them."""
