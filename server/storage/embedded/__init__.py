"""A Postgres of one's own, for whoever has none."""
