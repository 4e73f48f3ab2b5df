"""Figures of a tuning: the best trial so far, the score against each coefficient, and which coefficients mattered."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ciss.analysis.figures.families import GREY, method_styles
from ciss.analysis.figures.style import COLOURS, legend_below, note, note_in, panels
from ciss.analysis.tuning.tables import UNFINISHED, finished_trials
from ciss.documents import counted
from ciss.ranges import Choices, Range, plain

NONE = "No trial is complete."
EARLY = "pruned, diverged or refused"
KEYS = {  # legend of the slices
    "complete trial": {"marker": "o", "ms": 4, "color": COLOURS[0], "mec": "white", "mew": 0.4},
    "published values": {"marker": "*", "ms": 9, "color": "black", "zorder": 4},
    "chosen trial": {"marker": "s", "ms": 8, "mfc": "none", "mec": COLOURS[4], "mew": 1.5, "zorder": 3},
    EARLY: {"marker": "o", "ms": 3.5, "mfc": "none", "mec": GREY, "mew": 0.7},
}
SCORE = "hold-out mIoU, mean over steps (%)"


def best_so_far(ax: Axes, trials: pd.DataFrame) -> None:
    """A point for each trial, a line for the best complete trial of each method so far. `trials`: `tuning_table`.

    Trials that ended early have no score of all steps. They are marks at the bottom, without a height.
    """
    if not (trials["state"] == "complete").any():
        note_in(ax, NONE)
        return
    styles, counts = method_styles(trials["method"], most=None), finished_trials(trials)
    for number, (method, rows) in enumerate(trials.groupby("method", sort=False)):
        style = styles[method]
        complete = rows["state"] == "complete"
        best = (100 * rows["mean"].where(complete)).cummax().ffill()
        ax.step(rows["trial"], best, where="post", color=style["color"], lw=1.4)
        label = f"{method}, {counted(counts[method], 'trial')}"
        ax.plot(
            rows["trial"][complete],
            100 * rows["mean"][complete],
            **{**style, "ls": "", "ms": 4.5, "mew": 0.7, "label": label},
        )
        hollow = {"marker": style["marker"], "mfc": "none", "mec": style["color"]}
        _at_the_bottom(ax, rows["trial"][_ended_early(rows)], 0.03 + 0.05 * number, **hollow)
    _free_the_bottom([ax], 0.03 + 0.05 * len(counts))
    ax.set(xlabel="trial (0: published values)", ylabel=SCORE)
    ax.xaxis.get_major_locator().set_params(integer=True)
    line = Line2D([], [], color=GREY, lw=1.4, label="best complete trial so far")
    handles = [*ax.get_legend_handles_labels()[0], line, _key("o", EARLY, ms=3.5, mfc="none", mec=GREY)]
    ax.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))


def _ended_early(trials: pd.DataFrame) -> pd.Series:
    """Whether a trial is pruned, diverged or refused."""
    return ~trials["state"].isin(("complete", UNFINISHED))


def _at_the_bottom(ax: Axes, places: pd.Series, height: float, **style) -> None:
    """Small marks. `height`: above the axis, as a share of its length."""
    ax.plot(places, np.full(len(places), height), ls="", ms=3.5, mew=0.7, transform=ax.get_xaxis_transform(), **style)


def _free_the_bottom(axes: list[Axes], share: float) -> None:
    """Moves the scores above a line, under which the marks of trials that ended early are. The axes share y."""
    low, high = axes[0].get_ylim()
    for ax in axes:
        ax.axhline(low, color=GREY, lw=0.5)
    span = high - low
    axes[0].set_ylim(high - span / (1 - share), high + 0.08 * span)  # large marks at the top need space


def _key(marker: str, label: str, **style) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], ls="", marker=marker, label=label, **style)


def importance_bars(ax: Axes, importances: Mapping[str, float], complete: int, title: str = "") -> None:
    """A bar for each coefficient, the most important one at the top, with its share in percent.

    Args:
        importances: share of the variance by coefficient; empty if it cannot be computed.
        complete: the number of complete trials that they are from.
    """
    ax.set_title(title, fontsize=9, loc="left")
    if not importances:
        note_in(ax, f"Too few complete trials ({complete}), or all have the same score.")
        return
    ordered = sorted(importances.items(), key=lambda item: item[1])
    names = [name for name, _ in ordered]
    shares = [100 * share for _, share in ordered]
    ax.barh(names, shares, color=COLOURS[0])
    for row, share in enumerate(shares):
        ax.annotate(f"{share:.0f}", (share, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set(xlim=(0, 110), xlabel=f"importance (%), {counted(complete, 'complete trial')}")


def slice_panels(trials: pd.DataFrame, space: Mapping[str, Range | Choices]) -> Figure:
    """A panel for each coefficient: the score of each trial of one method against the value.

    Args:
        trials: the rows of one method in `tuning_table`.
        space: the declared ranges by coefficient; the axes show all of them.
    """
    if not (trials["state"] == "complete").any():
        return note(NONE)
    trials = trials[trials["state"] != UNFINISHED]
    values = pd.DataFrame([json.loads(text) for text in trials["coefficients"]], index=trials.index)
    names = [name for name in space if name in values]
    figure, axes = panels(len(names), sharex=False)
    for ax, name in zip(axes, names, strict=True):
        entry = space[name]
        places = (
            _on_range(ax, values[name], entry) if isinstance(entry, Range) else _side_by_side(ax, values[name], entry)
        )
        _scores(ax, trials, places)
        ax.set_xlabel(name)
    _free_the_bottom(axes, 0.1)
    legend_below(figure, [_key(label=label, **style) for label, style in KEYS.items()], columns=2)
    figure.supylabel(SCORE, fontsize="medium")
    return figure


def _on_range(ax: Axes, values: pd.Series, entry: Range) -> pd.Series:
    """Positions of numbers, on an axis with ticks at the ends and in the middle of the range."""
    middle = math.sqrt(entry.low * entry.high) if entry.log else (entry.low + entry.high) / 2
    margin = (entry.high / entry.low) ** 0.06 if entry.log else 0.06 * (entry.high - entry.low)
    limits = (entry.low / margin, entry.high * margin) if entry.log else (entry.low - margin, entry.high + margin)
    ax.set_xscale("log" if entry.log else "linear")
    ax.set_xlim(*limits)
    ticks = (entry.low, middle, entry.high)
    ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    return values.astype(float)


def _side_by_side(ax: Axes, values: pd.Series, entry: Choices) -> pd.Series:
    """Positions of choices: points of one value lie side by side, in the order of the trials."""
    known = [_label(plain(value)) for value in entry.values]
    labels = values.map(_label)
    ax.set_xticks(range(len(known)), known, fontsize=7)
    ax.set_xlim(-0.5, len(known) - 0.5)
    return labels.map(known.index) + 0.3 * np.linspace(-1, 1, len(labels))


def _scores(ax: Axes, trials: pd.DataFrame, places: pd.Series) -> None:
    scores = 100 * trials["mean"]
    complete = trials["state"] == "complete"
    published, chosen = trials["trial"] == 0, trials["chosen"]
    usual = complete & ~published
    row_masks = (usual, published & complete, chosen)
    for rows, style in zip(row_masks, KEYS.values(), strict=False):
        ax.plot(places[rows], scores[rows], ls="", **style)
    _at_the_bottom(ax, places[_ended_early(trials)], 0.05, marker="o", mfc="none", mec=GREY)


def _label(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
