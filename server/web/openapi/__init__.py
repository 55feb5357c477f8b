"""The API described by itself (OpenAPI 3.1): what `/openapi.json` gives and `/docs` shows.

Bounds and names come from the code that enforces them; tests hold every reply of the server against it.
"""
