"""How long whoever serves the queue may rest when there is nothing to do."""

from __future__ import annotations

from typing import Final

# A lost notification of a new task is made up for after so long.
LONGEST_SECONDS: Final = 5.0
# What is due and can't be had is locked by somebody, or another worker is just taking it: looked for less and less often.
_FIRST_OVERDUE_SECONDS: Final = 0.05
_LONGEST_OVERDUE_SECONDS: Final = 1.0


class QueuePause:
    """Grows while something is due that can't be had."""

    def __init__(self) -> None:
        """Begin with the shortest."""
        self._overdue_seconds = _FIRST_OVERDUE_SECONDS

    def reset(self) -> None:
        """Begin again: there was something to do."""
        self._overdue_seconds = _FIRST_OVERDUE_SECONDS

    def until(self, due: float | None) -> float:
        """Return for how many seconds to rest. `due`: when something falls due without a notification; None: never."""
        if due is None or due > 0:
            self.reset()
            return LONGEST_SECONDS if due is None else min(max(due, self._overdue_seconds), LONGEST_SECONDS)
        pause = self._overdue_seconds
        self._overdue_seconds = min(2 * pause, _LONGEST_OVERDUE_SECONDS)
        return pause
