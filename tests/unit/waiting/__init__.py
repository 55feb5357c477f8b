"""The heart, tested without Postgres and without waiting: the clock jumps to the next deadline."""
