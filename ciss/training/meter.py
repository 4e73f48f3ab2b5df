"""Seconds and peak memory of a training alone: without scoring, and without what the process did before."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

RESET_PEAK = "5"  # see proc(5), clear_refs: the resident peak becomes the present size


class Meter:
    """Measures while it runs.

    `seconds`: so far. `peak_bytes`: the largest memory so far, on a GPU that of torch's tensors, on the CPU the
    resident size of the process; None where the system does not tell it (other systems than Linux without a GPU).
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = 0.0
        self.peak_bytes: int | None = None

    def start(self) -> None:
        self._resets = reset_peak(self.device)
        self._started = time.perf_counter()

    def stop(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - self._started
        if self._resets:
            self.peak_bytes = max(self.peak_bytes or 0, read_peak(self.device))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is done meanwhile."""
        self.stop()
        yield
        self.start()


def reset_peak(device: torch.device) -> bool:
    """Begins a new peak. Returns whether there is one to read."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        return read_peak(device) > 0
    except (OSError, ValueError):
        return False


def read_peak(device: torch.device) -> int:
    """Bytes since the last `reset_peak`. Raises ValueError where the system has no such number."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])  # "VmHWM:  123 kB"
    raise ValueError("/proc/self/status has no VmHWM")
