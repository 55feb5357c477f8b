"""What processes cost: memory and CPU, as the kernel counts them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from server.errors import LoadTestError


class Gauge:
    """Reads memory and CPU of some processes of this machine, together."""

    def __init__(self, process_ids: Sequence[int]) -> None:
        """Look at these.

        Raises:
            LoadTestError: there is no such process, or this user may not look at it.
        """
        self._process_ids = tuple(process_ids)
        self.kilobytes()

    def __bool__(self) -> bool:
        return bool(self._process_ids)

    def kilobytes(self) -> int:
        """Return the memory in user space, shared pages by their share (PSS)."""
        return sum(_kilobytes(process_id) for process_id in self._process_ids)

    def cpu_seconds(self) -> float:
        """Return the CPU time that they have taken so far, in user space and in the kernel."""
        return sum(_cpu_seconds(process_id) for process_id in self._process_ids)


def _kilobytes(process_id: int) -> int:
    try:
        for line in Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError as error:
        raise LoadTestError(f"the memory of process {process_id} can't be read: {error.strerror}") from error
    return 0


def _cpu_seconds(process_id: int) -> float:
    """Return nanosecond-exact CPU time: the clock of another process (Linux, clock_getcpuclockid(3)), else its ticks."""
    try:
        return time.clock_gettime((~process_id << 3) | 2)
    except OSError:
        return _ticks(process_id) / os.sysconf("SC_CLK_TCK")


def _ticks(process_id: int) -> int:
    try:
        # Behind the name, which may hold spaces and brackets, come the state and, from 12 on, utime and stime: proc(5).
        behind_name = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError as error:
        raise LoadTestError(f"the CPU time of process {process_id} can't be read: {error.strerror}") from error
    return int(behind_name[11]) + int(behind_name[12])
