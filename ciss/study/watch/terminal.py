"""A line on the terminal while `ciss train` trains several runs: which run, step and epoch, its score, the time left.

All processes write to one pipe, and one thread writes whole lines from it to the terminal, above this line. So lines of
several runs do not mix. If the output is no terminal, nothing changes: each process prints its own lines.
"""

import os
import re
import sys
import threading
from collections.abc import Iterable

from ciss.config import Config
from ciss.runs import live
from ciss.study.watch.overview import DONE, RUNNING, Overview, Row, time_left

SECONDS = 1.0  # from one redrawing to the next
EPOCH = re.compile(rb": epoch \d+/\d+:")  # lines whose content the line on the terminal has
CLEAR = b"\r\x1b[K"


class Terminal:
    """Shows the line between `with` and its end, if the output is a terminal.

    Args:
        names: runs that are trained, in the order of training.
    """

    def __init__(self, settings: Config, names: Iterable[str]):
        self.overview = Overview(settings, names)
        self.shown = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb") and os.name != "nt"

    def __enter__(self) -> "Terminal":
        if not self.shown:
            return self
        sys.stdout.flush()
        self.screen = os.dup(1)
        self.source, sink = os.pipe()
        os.dup2(sink, 1)  # processes that are started from now on inherit it
        os.close(sink)
        self.writing, self.ended, self.line = threading.Lock(), threading.Event(), b""
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._copy, self._redraw)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        if not self.shown:
            return
        sys.stdout.flush()
        self.ended.set()
        os.dup2(self.screen, 1)  # closes the pipe, unless a process still holds it
        self.threads[0].join(timeout=2)
        with self.writing:
            self.line = b""
            _write_all(self.screen, CLEAR)

    def _copy(self) -> None:
        """Writes each line of the pipe above the line of progress."""
        rest = b""
        while data := os.read(self.source, 65536):
            *lines, rest = (rest + data).split(b"\n")
            self._write(b"".join(line + b"\n" for line in lines if not EPOCH.search(line)))
        self._write(rest)
        os.close(self.source)

    def _write(self, lines: bytes) -> None:
        with self.writing:
            _write_all(self.screen, CLEAR + lines + self.line)

    def _redraw(self) -> None:
        while not self.ended.wait(SECONDS):
            columns = os.get_terminal_size(self.screen).columns or 80  # some terminals do not know
            line = status_line(self.overview.rows(), columns - 1).encode()
            with self.writing:
                if line != self.line and not self.ended.is_set():
                    self.line = line
                    _write_all(self.screen, CLEAR + line)


def status_line(rows: list[Row], width: int) -> str:
    """The running runs and the time left, in at most `width` characters: "run 7 of 12: shapes-s0-plop-1, ..."."""
    done = sum(row.state == DONE for row in rows)
    running = [row for row in rows if row.state == RUNNING]
    full, short = [], []
    for number, row in enumerate(running, start=done + 1):
        name = f"run {number} of {len(rows)}: {row.name}"
        epoch = f"epoch {row.epoch}/{row.run.epochs}"
        main_score = live.sentence({"all": row.scores.get("all")})  # the agreement is too long for a line
        score = [main_score] if main_score else []
        full.append(", ".join([name, row.step, epoch, *score]))
        short.append(", ".join([name, epoch, *score]))
    names = ", ".join(f"{row.name} {row.epoch}/{row.run.epochs}" for row in running)
    for parts in (full, short, [f"{done} of {len(rows)} runs done", names]):
        text = "; ".join([*parts, time_left(rows)])
        if len(text) <= width:
            return text
    return text[: max(0, width - 3)] + "..."


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
