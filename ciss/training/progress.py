"""Progress of a training: a bar on a terminal, curves in a notebook that a person runs, else one line per epoch."""

import sys
import time

from tqdm import tqdm

from ciss.distributed import print_line
from ciss.runs import charts, live
from ciss.runs.live import Curve

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
        self.draws = enabled and runs_by_hand()
        self.figure = None  # IPython's handle of the curves
        terminal = enabled and sys.stderr.isatty()
        self.bar = tqdm(total=epochs * updates, initial=first * updates, desc=name, unit="update", disable=not terminal)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self, about: dict) -> None:
        """Names the step. `about`: the first line of a curve."""
        self.bar.set_description_str(
            f"{self.name}, {live.step_title(about['step'], about['last_step'], about['joint'])}"
        )

    def close(self) -> None:
        self.bar.close()

    def update(self) -> None:
        self.bar.update()

    def epoch(self, row: dict, seconds: float, score: dict | None = None, curve: Curve | None = None) -> None:
        """Shows the losses of one row of the log, the score, the seconds of the epoch, and the remaining seconds.

        Args:
            curve: what to draw in a notebook; None: draw nothing.
        """
        if not self.enabled:
            return
        losses = [f"{name.removeprefix('loss/')} {row[name]:.3f}" for name in row if name.startswith("loss/")]
        scored = [text] if (text := live.sentence(score or {})) else []
        if not self.bar.disable:
            self.bar.set_postfix_str(", ".join([*scored, *losses]))
            return
        per_epoch = (time.perf_counter() - self.started) / (row["epoch"] - self.first)
        left = per_epoch * (self.epochs - row["epoch"])
        times = f"{seconds:.1f} s, {left:.0f} s left"
        line = f"{self.name}: epoch {row['epoch']}/{self.epochs}: {'; '.join([', '.join(losses), *scored, times])}"
        if curve is None:
            print_line(line)
        else:
            self._draw(line, curve)

    def _draw(self, line: str, curve: Curve) -> None:
        """Replaces the curves in the notebook's cell."""
        from IPython.display import HTML, display

        style = "display:inline-block;width:min(30rem,100%)"
        parts = "".join(f'<div style="{style}">{part}</div>' for part in (charts.losses(curve), charts.scores(curve)))
        content = HTML(f"<div>{line}</div>{parts}")
        if self.figure is None:
            self.figure = display(content, display_id=True)
        else:
            self.figure.update(content)


def runs_by_hand() -> bool:
    """Whether this is a notebook's kernel, and a person runs the cell.

    Jupyter, VS Code and Colab allow a cell to ask for input. papermill, nbconvert and nbval, which execute notebooks
    without a person, do not.
    """
    try:
        return bool(_kernel().get_parent()["content"]["allow_stdin"])
    except (KeyError, TypeError, AttributeError):
        return False


def runs_without_person() -> bool:
    """Whether this is a notebook's kernel, and a program executes the notebook."""
    return _kernel() is not None and not runs_by_hand()


def _kernel() -> object | None:
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None)
