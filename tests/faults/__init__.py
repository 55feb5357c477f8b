"""What the server does when something around it breaks: one file for each kind of neighbour."""
