"""Figures of one run: losses, logged values of the method, scores and class tokens."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciss.analysis.figures.charts import column_ticks, diverging_map
from ciss.analysis.figures.families import step_styles
from ciss.analysis.figures.style import COLOURS, class_labels, mark, note, short

TRACES = {
    "gradient/": "mean gradient magnitude",
    "compensated/": "gradient times weight",
    "weight/": "weight of old pixels",
    "background/": "share of the background",
    "doubtful/": "share of uncertain pixels",
    "distance/": "distance weights",
    "patch/": "weight of patches",
    "cosine/": "cosine of new tokens",
}
STEP = re.compile(r"step(\d+)")  # names of traces by step
MAX_NAMES = 40  # class names under one axis


NO_EPOCHS = "a step without epochs: one pass over the data, no loss"


def log_table(log: list[dict]) -> pd.DataFrame | str:
    """The log of a training by epoch, rounded; a sentence if it has no epoch."""
    return pd.DataFrame(log).set_index("epoch").round(5) if log else NO_EPOCHS


def loss_curve(ax: Axes, log: list[dict]) -> None:
    """Every loss term over epochs. `log`: one row for each epoch."""
    if not log:
        ax.set_axis_off()
        ax.text(0.5, 0.5, NO_EPOCHS, ha="center", va="center", wrap=True)
        return
    table = pd.DataFrame(log).set_index("epoch")
    for k, name in enumerate(name for name in table if name.startswith("loss/")):
        ax.plot(table[name], **mark(k), ms=4, label=name.removeprefix("loss/"))
    ax.set(xlabel="epoch", ylabel="loss (mean of the epoch)", ylim=(0, None))
    ax.legend(frameon=False)


def trace_panels(trace: dict[str, np.ndarray], window: int = 10) -> Figure:
    """Values that a method logged for each batch, running means over `window` batches; a panel for each of TRACES."""
    kinds = [kind for kind in TRACES if any(name.startswith(kind) for name in trace)]
    if not kinds:
        return note("this method logs nothing but its losses")
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.6 * len(kinds), 3), squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        names = [name for name in trace if name.startswith(kind)]
        steps = step_styles(int(step[1]) for name in names if (step := STEP.fullmatch(name.removeprefix(kind))))
        for k, name in enumerate(names):
            means = pd.Series(trace[name]).rolling(window, min_periods=1).mean()
            line = {"color": COLOURS[k % 8], "ls": ("-", "--", ":", "-.")[k % 4]}
            if step := STEP.fullmatch(name.removeprefix(kind)):
                line["color"] = steps[int(step[1])]["color"]
            ax.plot(np.arange(1, len(means) + 1), means, label=name.removeprefix(kind), **line)
        ax.set(xlabel="batch", ylabel=TRACES[kind])
        low, high = (np.nan_to_num(bound, posinf=0, neginf=0) for bound in (ax.dataLim.ymin, ax.dataLim.ymax))
        low = min(0.0, 1.05 * low)
        ax.set_ylim(low, high + 0.05 * (high - low) or 1.0)
        ax.legend(frameon=False)
    figure.tight_layout()
    return figure


def iou_bars(ax: Axes, ious: np.ndarray, names: list[str], before: np.ndarray | None = None) -> None:
    """IoU of each class in percent as bars. `before`: IoU of the (fewer) classes before the step, as marks."""
    ious = 100 * np.asarray(ious, float)
    ax.bar(range(len(ious)), np.nan_to_num(ious), color="#9EBCDA", edgecolor="white", label="after")
    if before is not None:
        ax.plot(range(len(before)), 100 * np.asarray(before, float), "D", color="#4D004B", ms=5, label="before")
        ax.legend(frameon=False)
    stride = -(-len(ious) // MAX_NAMES)
    labels = [short(label) for label in class_labels(ax.figure, names, names)]
    ax.set_xticks(range(0, len(ious), stride), labels[: len(ious) : stride], rotation=35, ha="right")
    if stride > 1:
        ax.set_xlabel(f"one class in {stride} is named")
    ax.set(ylabel="IoU (%), validation", ylim=(0, 100))


def token_angles(ax: Axes, tokens: np.ndarray, names: list[str], new: int) -> None:
    """Angles in degrees between the `new` last class tokens and all class tokens (C,D)."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
    angles = np.degrees(np.arccos(np.clip(unit[-new:] @ unit.T, -1, 1)))
    names = class_labels(ax.figure, names, names)
    same = np.eye(new, len(tokens), len(tokens) - new, dtype=bool)
    table = pd.DataFrame(angles, index=names[-new:], columns=names)
    diverging_map(ax, table, "angle (degrees)", 180, 90, fmt=".0f", mask=same)
    column_ticks(ax, names, rotation=35)
    ax.set_title("angle of new class tokens to all, degrees")
