"""Kinds of charts that several analyses draw."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciss.analysis.figures.families import chosen, class_style, others_note
from ciss.analysis.figures.light_seaborn import sns
from ciss.analysis.figures.style import lowest, panels, text_in

LINE_HEIGHT = 0.13  # of a label in inches
NUMBERED_CELLS = 300  # a heat map with more cells shows no numbers
Styles = Mapping[str, tuple[str, str]]  # name to colour and hatch


def heatmap(ax: Axes, table: pd.DataFrame, label: str = "", **options) -> None:
    """A heat map of a table of values in percent, each with its number; NaN stays empty.

    Args:
        table: index and columns are the tick labels.
        label: of the colour bar; without a label there is no colour bar.
        options: of `seaborn.heatmap`.
    """
    defaults = {"vmin": 0, "vmax": 100, "fmt": ".1f", "cmap": "cividis", "linewidths": 0.5}
    defaults |= {"cbar": bool(label), "cbar_kws": {"label": label}, "annot_kws": {"fontsize": 7}}
    sns.heatmap(table.astype(float), ax=ax, annot=table.size <= NUMBERED_CELLS, **{**defaults, **options})
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(length=0)


def diverging_map(ax: Axes, table: pd.DataFrame, label: str, end: float, middle: float = 0, **options) -> None:
    """`heatmap` of values on both sides of a middle, which is white. Cells without a value are grey.

    `end`: the value at one end of the scale; the other one is as far from the middle.
    """
    limits = {"vmin": 2 * middle - end, "vmax": end, "cmap": "PuOr"}
    scale = {"label": label, "ticks": [limits["vmin"], middle, end]}
    ax.set_facecolor("#DDDDDD")
    heatmap(ax, table, label, **{**limits, "fmt": ".2f", "cbar_kws": scale, **options})


def label_ends(
    ax: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, dict] = MappingProxyType({})
) -> None:
    """The names of lines right of the axes, each at the height of the line's end; near ones are moved apart.

    Args:
        ax: axes with their final limits.
        ends: x and y of the last point by name. Names without a finite one are left out.
        styles: of the lines by name; a thin line of their colour leads to the name.
    """
    ends = {name: end for name, end in sorted(ends.items(), key=lambda item: item[1][1]) if np.isfinite(end).all()}
    if not ends:
        return
    ax.figure.draw_without_rendering()  # settles the layout
    low, high = ax.get_ylim()
    gap = LINE_HEIGHT * (high - low) * ax.figure.dpi / ax.get_window_extent().height
    heights = _apart(np.array([y for _, y in ends.values()]), gap)
    places = gap * np.arange(len(heights))
    heights = np.maximum.accumulate(np.maximum(heights, low) - places) + places  # none is below the axis
    for (name, end), height in zip(ends.items(), heights, strict=True):
        lead = {"arrowstyle": "-", "lw": 0.6, "color": styles.get(name, {}).get("color", "#666666"), "shrinkB": 3}
        lead["relpos"] = (0, 0.5)  # to the middle of the name's left side: a line to its centre crosses other names
        ax.annotate(
            name, end, (1.06, height), textcoords=("axes fraction", "data"), va="center", fontsize=7.5,
            annotation_clip=False, arrowprops=lead,
        )  # fmt: skip


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Sorted numbers, moved until neighbours differ by a gap. Two that are too near move by half of what they lack."""
    for _ in range(300):
        lack = np.maximum(0, gap - np.diff(heights)) / 2
        heights = heights - np.append(lack, 0) + np.append(0, lack)
    return heights


def grey_note(ax: Axes, methods: Iterable[str]) -> None:
    """Says in the lower left corner how many methods are grey, if some are."""
    ax.text(0.02, 0.02, others_note(methods), transform=ax.transAxes, fontsize=7, color="#666666")


def column_ticks(ax: Axes, names: Sequence[str], rotation: int = 30, first: float = 0.5) -> None:
    """Names under the columns of a chart, upright in two lines where they are long: slanted, long names would lie over
    each other. `first`: position of the first column."""
    positions = np.arange(len(names)) + first
    folded, height = upright_names(names)
    if height:
        ax.set_xticks(positions, folded, rotation=90, ha="center")
    else:
        ax.set_xticks(positions, names, rotation=rotation, ha="right")


def upright_names(names: Sequence[str]) -> tuple[list[str], float]:
    """Names folded for `column_ticks`, and the inches that they need below a chart; 0 where they are short enough to
    be slanted."""
    folded = [textwrap.fill(name, 24) for name in names]
    longest = max((len(line) for name in folded for line in name.split("\n")), default=0)
    return folded, 0.06 * longest if longest > 16 else 0.0


def stacked_bars(ax: Axes, shares: pd.DataFrame, styles: Styles, numbers_from: float = np.inf) -> None:
    """Horizontal stacked bars, the first row at the top.

    Args:
        shares: from 0 to 1, one row for each bar, one column for each part; the index has the tick labels.
        styles: colour and hatch of each part, in the order of drawing.
        numbers_from: smallest share that is printed on its part, in percent.
    """
    shares = shares[::-1]
    rows = np.arange(len(shares))
    left = np.zeros(len(shares))
    for part, (colour, hatch) in styles.items():
        values = 100 * np.nan_to_num(shares[part].to_numpy(float))
        ax.barh(rows, values, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
        for row in np.flatnonzero(values >= numbers_from):
            box = {"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.75}
            text = f"{values[row]:.1f}"
            ax.text(left[row] + values[row] / 2, row, text, ha="center", va="center", fontsize=7, bbox=box)
        left += values
    ax.set_yticks(rows, shares.index)
    ax.set(xlim=(0, 100))


def method_panels(
    table: pd.DataFrame, methods: Sequence[str], value: str, xlabel: str, ylabel: str, empty: str
) -> tuple[Figure, Iterator[tuple[Axes, pd.DataFrame]]]:
    """One panel for each method, of many for the `chosen` ones. Returns the figure, and the panels with the rows of
    their methods.

    `value`: the column that is drawn. A panel without any value shows the sentence `empty`.
    """
    figure, axes, methods = chosen_panels(methods)
    for ax in lowest(axes):
        ax.set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize="medium")
    rows = [table[table["method"] == method] for method in methods]
    for ax, method, part in zip(axes, methods, rows, strict=True):
        ax.set_title(method)
        if part[value].isna().all():
            text_in(ax, empty)
    return figure, zip(axes, rows, strict=True)


def class_lines(table: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker by class name, the colour as in masks. `table`: of an analysis, see `table_labels`."""
    classes = list(table.attrs.get("classes") or dict.fromkeys(["", *table["class"]]))
    return {name: class_style(classes.index(name)) for name in names}


def chosen_panels(
    methods: Sequence[str], size: tuple[float, float] = (2.3, 2.1)
) -> tuple[Figure, list[Axes], list[str]]:
    """`panels` for methods, of many for the `chosen` ones, which a line above the panels then says."""
    shown = chosen(methods)
    figure, axes = panels(len(shown), size)
    if len(shown) < len(methods):
        figure.suptitle(f"{len(shown)} of {len(methods)} methods", fontsize=9)
    return figure, axes, shown
