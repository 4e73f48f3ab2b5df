"""Figures of a tuning: the best trial so far, the score against each coefficient, and which coefficients mattered."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciss.analysis.figures.style import COLOURS, GREY, method_styles, note, note_in, panels
from ciss.ranges import Choices, Range, plain

SCORE = "hold-out mIoU, mean over steps (%)"


def best_so_far(ax: Axes, trials: pd.DataFrame) -> None:
    """A point for each trial, a line for the best complete trial of each method so far. `trials`: `tuning_table`."""
    if trials["mean"].isna().all():
        note_in(ax, "No trial has a score.")
        return
    styles = method_styles(trials["method"])
    for method, rows in trials.groupby("method", sort=False):
        style = styles[method]
        complete = rows["state"] == "complete"
        best = (100 * rows["mean"].where(complete)).cummax().ffill()
        ax.step(rows["trial"], best, where="post", color=style["color"], lw=1.4)
        _points(ax, rows[complete], {**style, "label": f"{method}, {len(rows)} trials"})
        _points(ax, rows[~complete], {**style, "markerfacecolor": "none", "markeredgecolor": style["color"]})
    ax.set(xlabel="trial (0: published values)", ylabel=SCORE)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))


def _points(ax: Axes, rows: pd.DataFrame, style: dict) -> None:
    ax.plot(rows["trial"], 100 * rows["mean"], ls="", ms=4.5, mew=0.7, **style)


def importance_bars(ax: Axes, importances: Mapping[str, float], complete: int, title: str = "") -> None:
    """A bar for each coefficient, the most important one at the top, with its share in percent.

    Args:
        importances: share of the variance by coefficient; empty if it cannot be computed.
        complete: the number of complete trials that they are from.
    """
    ax.set_title(title, fontsize=9, loc="left")
    if not importances:
        note_in(ax, f"{complete} complete trials are too few, or all have the same score.")
        return
    ordered = sorted(importances.items(), key=lambda item: item[1])
    names = [name for name, _ in ordered]
    shares = [100 * share for _, share in ordered]
    ax.barh(names, shares, color=COLOURS[0])
    for row, share in enumerate(shares):
        ax.annotate(f"{share:.0f}", (share, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set(xlim=(0, 110), xlabel=f"importance (%), {complete} complete trials")


def slice_panels(trials: pd.DataFrame, space: Mapping[str, Range | Choices]) -> Figure:
    """A panel for each coefficient: the score of each trial of one method against the value.

    Args:
        trials: the rows of one method in `tuning_table`.
        space: the declared ranges by coefficient; the axes show all of them.
    """
    trials = trials.dropna(subset="mean")  # without those that diverged in the first step
    values = pd.DataFrame([json.loads(text) for text in trials["coefficients"]], index=trials.index)
    names = [name for name in space if name in values]
    if not names:
        return note("No trial has a score.")
    figure, axes = panels(len(names), sharex=False)
    for ax, name in zip(axes, names, strict=True):
        entry = space[name]
        places = (
            _on_range(ax, values[name], entry) if isinstance(entry, Range) else _side_by_side(ax, values[name], entry)
        )
        _scores(ax, trials, places)
        ax.set_xlabel(name)
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
    ax.plot(places[usual], scores[usual], "o", ms=4, color=COLOURS[0], mec="white", mew=0.4)
    ax.plot(places[~complete], scores[~complete], "o", ms=4, mfc="none", mec=GREY)
    ax.plot(places[chosen], scores[chosen], "s", ms=8, mfc="none", mec=COLOURS[4], mew=1.5, zorder=3)
    ax.plot(places[published], scores[published], "*", ms=9, color="black", zorder=4)


def _label(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
