"""Waiting for facts: a test that sleeps is slow on a quick machine, and fails on a slow one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = 15) -> Any:
    """Wait for a fact: return what the condition returns as soon as that is true; fail if it never is."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)
