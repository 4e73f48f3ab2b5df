"""Trains one run of a trial: `python -m ciss.study.tune.training RUN --config FILE`.

As `ciss train RUN`, but without the line of scores at its end: these are on the validation images, by which nothing may
be chosen. Imports no torch, because the command chooses the processor's instructions before torch is imported.
"""

import runpy
import sys
from typing import Any, TextIO


class WithoutLine:
    """A stream that leaves out the lines with a certain start. Each line is written as `print` writes it."""

    def __init__(self, stream: TextIO, start: str):
        self.stream, self.start, self.skips = stream, start, False

    def write(self, text: str) -> int:
        self.skips = self.skips or text.startswith(self.start)
        if not self.skips:
            return self.stream.write(text)
        self.skips = not text.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def main(run: str, *options: str) -> None:
    """Does what `python -m ciss train RUN` does."""
    sys.stdout = WithoutLine(sys.stdout, f"{run}  ")
    sys.argv[1:] = ["train", run, *options]
    runpy.run_module("ciss", run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
