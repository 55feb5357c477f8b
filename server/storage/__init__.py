"""All that knows Postgres and files."""
