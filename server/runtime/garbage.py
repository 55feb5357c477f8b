"""Keeps the garbage collector from stopping the event loop.

A held poll is many small objects that live for 30 s and make no cycles. With its default thresholds the garbage
collector walks over all of them again and again: at 10,000 polls held by coroutines a full collection stops the loop
for 0.4 s. So it runs rarely, and what has lived for a while is taken out of its sight (`gc.freeze`).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Final

# Young objects are looked at every so many allocations, old ones after so many looks; the defaults are 700, 10, 10.
THRESHOLDS: Final = (50_000, 20, 100)
FREEZE_SECONDS: Final = 2.0
# What is frozen as garbage stays garbage. So now and then, while few polls would have to be walked over, all is looked at.
THAW_SECONDS: Final = 600.0
_FEW_HELD: Final = 1000


def tune_gc() -> None:
    """Freeze all objects that exist now, and raise the thresholds. To be called once, after the start."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


async def keep_gc_tuned(held: Callable[[], int]) -> None:
    """Freeze surviving objects every two seconds; `held` returns the number of held polls."""
    loop = asyncio.get_running_loop()
    thaw_at = loop.time() + THAW_SECONDS
    while True:
        await asyncio.sleep(FREEZE_SECONDS)
        if loop.time() >= thaw_at and held() < _FEW_HELD:
            gc.unfreeze()
            gc.collect()
            thaw_at = loop.time() + THAW_SECONDS
        else:
            gc.collect(0)  # the garbage of the last seconds, which are all that isn't frozen
        gc.freeze()
