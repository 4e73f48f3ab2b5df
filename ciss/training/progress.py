"""Progress of a training: a bar on a terminal, otherwise one line per epoch."""

import sys
import time

from tqdm import tqdm

AFFECTS_RESULTS = False  # changes here do not outdate results, see store/code


class Progress:
    """Shows updates and epochs.

    Args:
        updates: in one epoch.
        first: epochs that an earlier process finished.
        enabled: True in one process only.
    """

    def __init__(self, name: str, epochs: int, updates: int, first: int, enabled: bool = True):
        self.name = name
        self.epochs = epochs
        self.first = first
        self.enabled = enabled
        self.started = time.perf_counter()
        terminal = enabled and sys.stderr.isatty()
        self.bar = tqdm(total=epochs * updates, initial=first * updates, desc=name, unit="update", disable=not terminal)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def update(self) -> None:
        self.bar.update()

    def epoch(self, row: dict, seconds: float) -> None:
        """Shows the losses of one row of the log, the seconds of the epoch, and the remaining seconds."""
        losses = [f"{name.removeprefix('loss/')} {row[name]:.3f}" for name in row if name.startswith("loss/")]
        if not self.enabled:
            return
        if not self.bar.disable:
            self.bar.set_postfix_str(", ".join(losses))
            return
        per_epoch = (time.perf_counter() - self.started) / (row["epoch"] - self.first)
        left = per_epoch * (self.epochs - row["epoch"])
        times = f"{seconds:.1f} s, {left:.0f} s left"
        print(f"{self.name}: epoch {row['epoch']}/{self.epochs}: {', '.join(losses)}; {times}", flush=True)
