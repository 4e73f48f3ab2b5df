"""What a training took of the machine: seconds on the clock, processor time, and how busy other programs were."""

import os
import time
from pathlib import Path

AFFECTS_RESULTS = False  # a change here trains nothing again, see store/code
SYSTEM = Path("/proc/stat")  # proc(5): ticks of all cores since the start of the machine, by use
IDLE = (3, 4)  # columns of its first line: idle, waiting for input and output
QUIET = 0.1  # cores that other programs use on an idle machine, as a share of all


class Usage:
    """Measures from its creation."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._own, self._busy = own_seconds(), busy_seconds()

    def read(self) -> dict:
        """`wall_seconds`; `processor_seconds` of this process and its children that ended; `other_cores`: cores that
        other programs used on average, None where the system does not report it; `idle_machine`: whether those are few.
        """
        wall, own, busy = time.perf_counter() - self._started, own_seconds() - self._own, busy_seconds()
        other = None if busy is None or self._busy is None else max(0.0, busy - self._busy - own) / max(wall, 1e-9)
        quiet = None if other is None else other <= QUIET * (os.cpu_count() or 1)
        return {"wall_seconds": wall, "processor_seconds": own, "other_cores": other, "idle_machine": quiet}


def own_seconds() -> float:
    """Processor seconds of this process and of its children that ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system  # of this process finer than `times`


def busy_seconds() -> float | None:
    """Processor seconds of all programs since the start of the machine."""
    rate = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else None  # ticks a second
    if rate is None:
        return None
    try:
        ticks = [int(word) for word in SYSTEM.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(tick for column, tick in enumerate(ticks) if column not in IDLE) / rate
