"""Curves of the trainings on this machine: `live/<benchmark>/<run>/curve.jsonl`, one JSON object a line.

The first line describes the training, each finished epoch adds a line, the last line is the result or says why the
training stopped. Lines are appended in one piece. A line that a killed process left incomplete is skipped.

Curves have seconds and memory, which differ each time, so neither git nor DVC keeps them. Imports no torch.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ciss.store import files

AFFECTS_RESULTS = False  # a change here trains nothing again, see store/code
FOLDER = "live"
CURVE = "curve.jsonl"
HOLDOUT = "mIoU on the hold-out set"
AGREEMENT = "agreement with the given labels"


@dataclass
class Curve:
    """What one training has written so far.

    Args:
        about: its first line: run, method, step, epochs, images, what is scored, process and host.
        epochs: a row for each finished epoch, in order. Epoch 0 has a score only: that before training.
        result: scores and seconds of the finished run; empty before.
        message: the reason why the training stopped; empty while it runs and after its end.
    """

    about: dict
    epochs: list[dict] = field(default_factory=list)
    result: dict = field(default_factory=dict)
    message: str = ""
    time: float = 0.0  # of the last line that has one, in seconds since 1970

    @property
    def trained(self) -> list[dict]:
        """The rows of finished epochs, without epoch 0."""
        return [row for row in self.epochs if row["epoch"]]

    @property
    def last_score(self) -> dict:
        """The newest score of the hold-out set or of the given labels; empty without one."""
        return next((row["score"] for row in reversed(self.epochs) if row.get("score")), {})

    @property
    def update_seconds(self) -> list[float]:
        """Mean seconds of an update in each finished epoch, without scoring and saving."""
        rows = [row for row in self.trained if "seconds" in row and row.get("updates")]
        return [row["seconds"] * row["epoch"] / row["updates"] for row in rows]  # `updates`: since the first epoch


def folder(root: Path, benchmark: str, run: str) -> Path:
    """Where the curve of a run lies. `root`: the folder that holds `runs/` and `results/`."""
    return root / FOLDER / benchmark / run


def remove(root: Path, benchmark: str, run: str) -> None:
    """Removes the curve of a run, if it is there."""
    shutil.rmtree(folder(root, benchmark, run), ignore_errors=True)


def read(place: Path) -> Curve | None:
    """The curve in a folder; None without one. Also while a training writes it, and after it was killed."""
    lines = []
    with suppress(OSError):
        for line in (place / CURVE).read_bytes().split(b"\n"):
            with suppress(ValueError):  # the end of a killed process
                if isinstance(row := json.loads(line), dict):
                    lines.append(row)
    if not lines or "run" not in lines[0]:
        return None
    curve = Curve(lines[0], time=lines[0].get("started", 0.0))
    rows = {}
    for line in lines[1:]:
        if "epoch" in line:
            rows[line["epoch"]] = line
        elif "scores" in line:
            curve.result = line
        curve.message = line.get("message", "")
        curve.time = line.get("time", curve.time)
    curve.epochs = [rows[epoch] for epoch in sorted(rows)]
    return curve


def begin(place: Path, about: dict, rows: list[dict]) -> None:
    """Replaces the curve in a folder by one of the first line and some rows. Raises OSError and CheckpointError."""
    files.write_text(place / CURVE, "".join(map(_line, [about, *rows])))


def add(place: Path, row: dict) -> None:
    """Appends a row to the curve in a folder. Raises OSError."""
    handle = os.open(place / CURVE, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, _line(row).encode())  # in one call, so that no reader sees a part of it
    finally:
        os.close(handle)


def _line(row: dict) -> str:
    return f"{json.dumps(row)}\n"


def sentence(score: dict) -> str:
    """A score in words, in percent: "mIoU 57.4 (old 56.7, new 48.2)"; empty without a score."""
    if "agreement" in score:
        return f"{AGREEMENT} {percent(score['agreement'])}"
    if score.get("all") is None:
        return ""
    parts = [f"{name} {percent(score[name])}" for name in ("old", "new") if score.get(name) is not None]
    return f"mIoU {percent(score['all'])}" + (f" ({', '.join(parts)})" if len(parts) == 2 else "")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def step_title(step: int, last: int, joint: bool) -> str:
    """The step of a run in words. `last`: the last step of its benchmark."""
    if joint:
        return "joint training"
    return f"step {step} of {last}" if step else "base step"
