"""Fixtures of the tests of generators."""

from __future__ import annotations

import pytest

from server.config import Config
from server.telemetry import logs


@pytest.fixture(autouse=True)
def logged_by_default() -> None:
    """Log what is logged by default: structlog's settings are global, and a test before this one may have changed them."""
    logs.configure(Config().logging)
