"""One run: its losses, a method's own numbers, scores and tokens."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciss.analysis.figures.style import COLOURS, MARKERS, class_labels, note, short

TRACES = {
    "gradient/": "mean gradient magnitude",
    "compensated/": "gradient times weight",
    "weight/": "weight of old pixels",
    "background/": "share of the background",
    "doubtful/": "share of the doubtful",
    "distance/": "distance weights",
    "patch/": "weight of patches",
    "cosine/": "cosine of new tokens",
}


NAMES = 40  # of classes, that an axis has room for


def loss_curve(ax: Axes, log: list[dict]) -> None:
    """Every loss term over epochs."""
    terms = [name for name in log[0] if name.startswith("loss/")]
    for k, name in enumerate(terms):
        ax.plot(
            [row["epoch"] for row in log],
            [row[name] for row in log],
            color=COLOURS[k % 8],
            marker=MARKERS[k % 8],
            ms=4,
            label=name.removeprefix("loss/"),
        )
    ax.set(xlabel="epoch", ylabel="loss (mean of the epoch)", ylim=(0, None))
    ax.legend(frameon=False)


def trace_panels(trace: dict[str, np.ndarray], window: int = 10) -> Figure:
    """A method's logs by batch, running means over `window` batches, one panel for each of `TRACES` that it logs."""
    kinds = [kind for kind in TRACES if any(name.startswith(kind) for name in trace)]
    if not kinds:
        return note("this method logs nothing but its losses")
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.6 * len(kinds), 3), squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        for k, name in enumerate(name for name in trace if name.startswith(kind)):
            means = pd.Series(trace[name]).rolling(window, min_periods=1).mean()
            style = {"color": COLOURS[k % 8], "ls": ("-", "--", ":", "-.")[k % 4]}
            ax.plot(np.arange(1, len(means) + 1), means, label=name.removeprefix(kind), **style)
        ax.set(xlabel="batch", ylabel=TRACES[kind])
        low, high = (np.nan_to_num(bound, posinf=0, neginf=0) for bound in (ax.dataLim.ymin, ax.dataLim.ymax))
        low = min(0.0, 1.05 * low)
        ax.set_ylim(low, high + 0.05 * (high - low) or 1.0)
        ax.legend(frameon=False)
    figure.tight_layout()
    return figure


def iou_bars(ax: Axes, ious: np.ndarray, names: list[str], before: np.ndarray | None = None) -> None:
    """IoU of each class, and a mark where it was `before` (fewer classes)."""
    ious = np.asarray(ious, float)
    ax.bar(range(len(ious)), np.nan_to_num(ious), color=COLOURS[5], edgecolor="white", label="after")
    if before is not None:
        ax.plot(range(len(before)), np.asarray(before, float), "D", color=COLOURS[4], ms=5, label="before")
        ax.legend(frameon=False)
    between = -(-len(ious) // NAMES)  # of many classes, not every one has room for its name
    places = range(0, len(ious), between)
    labels = class_labels(ax.figure, names, names)
    ax.set_xticks(places, [short(labels[place]) for place in places], rotation=35, ha="right")
    if between > 1:
        ax.set_xlabel(f"one class of {between} is named")
    ax.set(ylabel="IoU, validation", ylim=(0, 1))


def token_angles(ax: Axes, tokens: np.ndarray, names: list[str], new: int) -> None:
    """Angles in degrees between the class tokens (C,D) of the `new` last classes and all others."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
    angles = np.degrees(np.arccos(np.clip(unit[-new:] @ unit.T, -1, 1)))
    names = class_labels(ax.figure, names, names)
    itself = np.eye(new, len(tokens), len(tokens) - new, dtype=bool)
    sns.heatmap(
        pd.DataFrame(angles, index=names[-new:], columns=names),
        ax=ax, vmin=0, vmax=180, cmap="cividis", annot=angles.size <= 300, fmt=".0f", annot_kws={"fontsize": 7},
        linewidths=0.5, mask=itself, cbar_kws={"label": "angle (degrees)", "ticks": [0, 90, 180]},
    )  # fmt: skip
    ax.set_xticks(np.arange(len(names)) + 0.5, names, rotation=35, ha="right")
    ax.tick_params(axis="y", rotation=0)
    ax.set(title="new class tokens against all")
