"""Progress of a training: a bar with the remaining time on a terminal, one line an epoch elsewhere."""

import sys
import time

from tqdm import tqdm

AFFECTS_RESULTS = False  # a change here trains nothing again, see store/code


class Progress:
    """Counts updates; `enabled` in one process only."""

    def __init__(self, name: str, epochs: int, updates: int, first: int, enabled: bool = True):
        self.name, self.epochs, self.enabled = name, epochs, enabled
        self.first, self.started = first, time.perf_counter()
        terminal = enabled and sys.stderr.isatty()
        self.bar = tqdm(total=epochs * updates, initial=first * updates, desc=name, unit="update", disable=not terminal)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def update(self) -> None:
        self.bar.update()

    def epoch(self, row: dict, seconds: float) -> None:
        """One line: epoch, losses, its seconds and those that remain."""
        terms = ", ".join(
            f"{name.removeprefix('loss/')} {value:.3f}" for name, value in row.items() if name.startswith("loss/")
        )
        if not self.enabled:
            return
        if not self.bar.disable:
            self.bar.set_postfix_str(terms)
            return
        done = row["epoch"] - self.first
        left = (time.perf_counter() - self.started) / done * (self.epochs - row["epoch"])
        print(
            f"{self.name}: epoch {row['epoch']}/{self.epochs}: {terms}; {seconds:.1f} s, {left:.0f} s left", flush=True
        )
