"""The methods side by side."""

import pandas as pd
from matplotlib.axes import Axes

from ciss.viz.look import COLOURS, MARKERS


def method_lines(ax: Axes, table: pd.DataFrame, x: str, y: str, methods: list[str] | None = None) -> None:
    """A line a method: mean over seeds, whiskers of one standard deviation where there are several."""
    for k, method in enumerate(methods or list(dict.fromkeys(table["method"]))):
        groups = table[table["method"] == method].groupby(x)[y]
        mean, spread = groups.mean(), groups.std().fillna(0)
        ax.errorbar(
            mean.index,
            mean,
            yerr=spread if spread.any() else None,
            label=method,
            color=COLOURS[k % 8],
            marker=MARKERS[k % 8],
            ms=5,
            capsize=3,
        )
    ax.set(xlabel=x, ylabel=y)
