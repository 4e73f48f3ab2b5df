"""Kinds of charts that several analyses draw."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciss.analysis.figures.light_seaborn import sns
from ciss.analysis.figures.style import lowest, panels, text_in

NUMBERED_CELLS = 300  # a heat map with more cells shows no numbers
Styles = Mapping[str, tuple[str, str]]  # name to colour and hatch


def heatmap(ax: Axes, table: pd.DataFrame, label: str = "", **options) -> None:
    """A heat map of a table of values in [0, 1], each with its number; NaN stays empty.

    Args:
        table: index and columns are the tick labels.
        label: of the colour bar; without a label there is no colour bar.
        options: of `seaborn.heatmap`.
    """
    defaults = {"vmin": 0, "vmax": 1, "fmt": ".2f", "cbar": bool(label), "cbar_kws": {"label": label}}
    sns.heatmap(
        table.astype(float), ax=ax, cmap="cividis", annot=table.size <= NUMBERED_CELLS, annot_kws={"fontsize": 7},
        linewidths=0.5, **{**defaults, **options},
    )  # fmt: skip
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="y", rotation=0)


def slanted_ticks(ax: Axes, names: Sequence[str], rotation: int = 30, first: float = 0.5) -> None:
    """Names under the columns of a chart. `first`: position of the first column."""
    ax.set_xticks(np.arange(len(names)) + first, names, rotation=rotation, ha="right")


def stacked_bars(ax: Axes, shares: pd.DataFrame, styles: Styles, numbers_from: float = np.inf) -> None:
    """Horizontal stacked bars, the first row at the top.

    Args:
        shares: one row for each bar, one column for each part; the index has the tick labels.
        styles: colour and hatch of each part, in the order of drawing.
        numbers_from: smallest share that is printed on its part.
    """
    shares = shares[::-1]
    rows = np.arange(len(shares))
    left = np.zeros(len(shares))
    for part, (colour, hatch) in styles.items():
        values = np.nan_to_num(shares[part].to_numpy(float))
        ax.barh(rows, values, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
        for row in np.flatnonzero(values >= numbers_from):
            box = {"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.75}
            text = f"{values[row]:.2f}"
            ax.text(left[row] + values[row] / 2, row, text, ha="center", va="center", fontsize=7, bbox=box)
        left += values
    ax.set_yticks(rows, shares.index)
    ax.set(xlim=(0, 1))


def method_panels(
    table: pd.DataFrame, methods: Sequence[str], value: str, xlabel: str, ylabel: str, empty: str
) -> tuple[Figure, Iterator[tuple[Axes, pd.DataFrame]]]:
    """One panel for each method. Returns the figure, and the panels with the rows of their methods.

    `value`: the column that is drawn. A panel without any value shows the sentence `empty`.
    """
    figure, axes = panels(len(methods))
    for ax in lowest(axes):
        ax.set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize="medium")
    rows = [table[table["method"] == method] for method in methods]
    for ax, method, part in zip(axes, methods, rows, strict=True):
        ax.set_title(method)
        if part[value].isna().all():
            text_in(ax, empty)
    return figure, zip(axes, rows, strict=True)
