"""What fades, and how fast."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciss.viz.look import COLOURS, MARKERS, note


def iou_heatmap(ax: Axes, ious: np.ndarray, names: list[str], title: str = "") -> None:
    """IoU (S,T) of every class after every step, with its number; classes that do not exist yet stay empty."""
    sns.heatmap(
        pd.DataFrame(np.asarray(ious, float).T, index=names),
        ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f", annot_kws={"fontsize": 7}, linewidths=0.5,
        cbar_kws={"label": "IoU"},
    )  # fmt: skip
    ax.set(xlabel="after step", title=title)
    ax.tick_params(axis="y", rotation=0)


def forgetting_bars(ax: Axes, table: pd.DataFrame) -> None:
    """Forgetting of each old class after the last step, methods side by side, mean over seeds.

    `table`: columns class, method, forgetting.
    """
    classes, methods = list(dict.fromkeys(table["class"])), list(dict.fromkeys(table["method"]))
    width = 0.8 / max(1, len(methods))
    for k, method in enumerate(methods):
        means = table[table["method"] == method].groupby("class")["forgetting"].mean().reindex(classes)
        positions = np.arange(len(classes)) + (k - (len(methods) - 1) / 2) * width
        ax.bar(
            positions,
            means,
            width,
            label=method,
            color=COLOURS[k % 8],
            hatch=("", "//", "..", "xx", "\\\\", "++")[k % 6],
            edgecolor="white",
        )
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    ax.set(ylabel="forgetting (IoU)")


def pace_panels(table: pd.DataFrame, methods: list[str]) -> Figure:
    """IoU of each class over a step's epochs, one panel a method; `table` as `ciss.analysis.pace_table` gives it."""
    if table.empty:
        return note("no hold-out: set `holdout` of the benchmark to see the pace within a step")
    figure, axes = plt.subplots(1, len(methods), figsize=(3.8 * len(methods) + 1, 3.2), sharey=True, squeeze=False)
    for ax, method in zip(axes[0], methods, strict=True):
        mine = table[table["method"] == method]
        for k, name in enumerate(dict.fromkeys(mine["class"])):
            means = mine[mine["class"] == name].groupby("epochs")["iou"].mean()
            ax.plot(means.index, means, color=COLOURS[k % 8], marker=MARKERS[k % 8], ms=4, lw=1.2, label=name)
        ax.set_xscale("symlog", linthresh=0.05, base=2)
        ticks = [0, 0.1, 0.5, 2, 8]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set(xlabel="epochs into the step", ylabel="IoU, hold-out", ylim=(0, 1), title=method)
    axes[0, -1].legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left", title="class")
    figure.tight_layout()
    return figure
