"""The heart: waiting for a change of a task, in pure asyncio. Knows neither HTTP nor Postgres."""
