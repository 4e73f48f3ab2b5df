"""Seconds and peak memory of a training, without scoring and without earlier work of the process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

RESET_PEAK = "5"  # proc(5), clear_refs: sets the peak of the resident size to the present size


class Meter:
    """Measures between `start` and `stop`.

    Attributes:
        seconds: total.
        peak_bytes: on a GPU the memory of torch's tensors, on the CPU the resident size of the process. None: not
            measured (no GPU and not Linux).
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
        """Does not measure inside the block."""
        self.stop()
        yield
        self.start()


def reset_peak(device: torch.device) -> bool:
    """Begins a new peak. Returns whether `read_peak` works."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        return read_peak(device) > 0
    except (OSError, ValueError):
        return False


def read_peak(device: torch.device) -> int:
    """Bytes since the last `reset_peak`. Raises ValueError where the system does not report them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])  # "VmHWM:  123 kB"
    raise ValueError("/proc/self/status has no VmHWM")
