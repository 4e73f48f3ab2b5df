"""Where the pixels of background, old and new classes go."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FLOWS = {"background": ("#BBBBBB", ""), "right": ("#009E73", ""), "old": ("#56B4E9", "//"), "new": ("#D55E00", "xx")}


def flow_bars(ax: Axes, table: pd.DataFrame, title: str = "") -> None:
    """Where pixels go: a bar for each group of truth, its parts what the network calls them.

    `table`: see `ciss.analysis.flows`; groups without pixels are left out.
    """
    table = table.dropna(how="all")[::-1]
    start = np.zeros(len(table))
    for part, (face, hatch) in FLOWS.items():
        values = table[part].to_numpy(float)
        ax.barh(
            table.index,
            values,
            left=start,
            color=face,
            hatch=hatch,
            edgecolor="white",
            label={"right": "its own class", "background": "background"}.get(part, f"another {part} class"),
        )
        for k, value in enumerate(values):
            if value >= 0.06:
                ax.text(
                    start[k] + value / 2,
                    k,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black",
                    bbox={"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.75},
                )
        start += values
    ax.set(xlim=(0, 1), title=title, xlabel="share of the group's pixels")


def flow_legend(figure: Figure, axes: np.ndarray) -> None:
    """One legend under a grid of `flow_bars`."""
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, title="called")
