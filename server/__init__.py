"""A long-poll task server: the status request is held until the task changes."""

__version__ = "0.1.0"
