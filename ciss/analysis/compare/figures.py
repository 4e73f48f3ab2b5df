"""The methods side by side."""

from collections.abc import Iterable
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciss.analysis.compare.cells import signed
from ciss.analysis.compare.paired import paired_differences
from ciss.analysis.figures.charts import grey_note, label_ends
from ciss.analysis.figures.families import bar_styles, chosen, is_joint, method_styles
from ciss.analysis.figures.masks import draw_picture
from ciss.analysis.figures.style import note_in, step_ticks

REFERENCES = ("finetune", "mib")  # differences are to these methods
NOT_MEASURED = {
    "update_seconds": "No update was measured here.",
    "peak_memory_mib": "No peak memory was measured here.",
}


def method_lines(
    ax: Axes, table: pd.DataFrame, x: str, y: str, methods: list[str] | None = None
) -> dict[str, tuple[float, float]]:
    """A line for each method, in percent: mean over seeds and orders, with whiskers of one standard deviation if there
    are several. Of many methods, those that are not `chosen` are grey.

    Returns: the last point of the lines that are not grey, for `label_ends`.
    """
    methods = methods or list(dict.fromkeys(table["method"]))
    styles, named = method_styles(methods), chosen(methods)
    ends = {}
    for k, method in enumerate(methods):
        groups = 100 * table[table["method"] == method].groupby(x)[y].agg(["mean", "std"])
        mean, deviation = groups["mean"], groups["std"].fillna(0)
        several = bool(deviation.any())
        shift = 0.03 * (k - (len(methods) - 1) / 2) if several else 0  # so that whiskers do not overlap
        label = method if method in named else "_"
        options = {"label": label, "ms": 5, "mew": 0.6, "capsize": 2, **styles[method]}
        ax.errorbar(mean.index + shift, mean, yerr=deviation if several and method in named else None, **options)
        if method in named and len(mean := mean.dropna()):
            ends[method] = (mean.index[-1] + shift, mean.iloc[-1])
    ax.set(xlabel=x, ylabel=y)
    return ends


def score_curves(axes: Iterable[Axes], table: pd.DataFrame, title: str = "") -> None:
    """Three axes of one scale: mIoU of all, old and new classes after every step, in percent, named at their ends.
    Joint training is a dashed line.

    `table`: columns method, step, all, old, new; a row for each run and step.
    """
    axes = list(axes)
    names = {"all": "all: every class so far", "old": "old: base classes", "new": "new: later classes"}
    if table[list(names)].isna().all(axis=None):
        for ax in axes:
            note_in(ax, "No score is defined." if len(table) else "No run has a score.")
        return
    methods = [method for method in dict.fromkeys(table["method"]) if not is_joint(method)]
    joint = {name: rows for name, rows in table.groupby("method", sort=False) if is_joint(name)}
    steps = sorted(int(step) for step in table["step"].unique())
    limits = {"ylim": (0, _largest_tick(table[list(names)])), "xlim": (steps[0] - 0.3, steps[-1] + 0.3)}
    styles = method_styles(methods) | method_styles(joint)
    for ax, (score, name) in zip(axes, names.items(), strict=True):
        ends = method_lines(ax, table[table["method"].isin(methods)], "step", score, methods)
        for (method, rows), dash in zip(joint.items(), cycle(("--", ":", "-.")), strict=False):
            if np.isfinite(rows[score]).any():
                ends[method] = (steps[-1] + 0.3, 100 * rows[score].mean())
                ax.axhline(ends[method][1], color="black", ls=dash, lw=1.2)
        if table[score].isna().all():
            _centred(ax, f"no {score} classes")
        first = score == "all"
        ax.set(xlabel="after step", ylabel="mIoU (%)" if first else "", **limits)
        step_ticks(ax, steps)
        ax.set_title(f"{title}: {name}" if title and first else name, fontsize=9, loc="left")
        label_ends(ax, ends, styles)
    grey_note(axes[0], methods)


def stability_scatter(ax: Axes, runs: pd.DataFrame, title: str = "") -> None:
    """Stability against plasticity, in percent: a large mark for the mean of each method, small marks for its runs if
    there are several. Grey lines have equal harmonic means.

    `runs`: columns method, old, new: mIoU after the last step. Runs without one of the scores are left out.
    """
    runs = runs[np.isfinite(runs["old"]) & np.isfinite(runs["new"])]
    top = _largest_tick(runs[["old", "new"]])
    ticks = np.arange(0, top + 1, 20 if top > 50 else 10 if top > 20 else 5)
    ax.set(xlim=(0, top), ylim=(0, top), xticks=ticks, yticks=ticks, aspect="equal", title=title)
    ax.set_xlabel("stability: mIoU of the base classes (old), %")
    ax.set_ylabel("plasticity: mIoU of the later classes (new), %")
    _harmonic_lines(ax, top)
    if runs.empty:
        _centred(ax, "No method has a score of old and one of new classes.")
        return
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "fontsize": 8}
    ax.annotate("both better ↗", (1, 1), (0, 5), color="#666666", **above)  # above the axes: no mark is there
    methods = list(dict.fromkeys(runs["method"]))
    styles = method_styles(methods)
    grey = {"marker": ".", "zorder": 1}
    for method, rows in runs.groupby("method", sort=False):
        joint, named = is_joint(method), bool(styles[method]["marker"])
        point = {**styles[method], **({} if named else grey), "ls": "", "clip_on": False}
        if len(rows) > 1:
            small = {**point, "mec": "none", "ms": 7 if joint else 5}
            ax.plot(100 * rows["old"], 100 * rows["new"], alpha=0.7, **small)
        label = f"{method} (all classes at once)" if joint else method if named else "_"
        large = {"zorder": 3, **point, "ms": 14 if joint else 10, "label": label}
        ax.plot(100 * rows["old"].mean(), 100 * rows["new"].mean(), **large)
    grey_note(ax, methods)
    ax.legend(frameon=False, fontsize=8, markerscale=0.7, loc="upper left", bbox_to_anchor=(1.12, 1))


def convention_slopes(ax: Axes, means: pd.DataFrame, title: str = "") -> None:
    """`all` of the same predictions under each convention, in percent: a line for each method, named at its end.

    `means`: `convention_means`, indexed by method and convention. A missing point: no class counts.
    """
    scores = 100 * means["all"].unstack("convention", sort=False)
    ax.set_title(title, fontsize=9, loc="left")
    if scores.isna().all(axis=None):
        note_in(ax, "No score is defined." if len(scores) else "No run has a score.")
        return
    styles, named = method_styles(scores.index), chosen(scores.index)
    places = np.arange(len(scores.columns))
    for method, row in scores.iterrows():
        ax.plot(places, row, **{"ms": 5, "mew": 0.6, "lw": 1.4, **styles[method]})
    ax.set_xticks(places, scores.columns)
    ax.set(ylabel="mIoU of all classes (%)", ylim=(0, _largest_tick(scores / 100)), xlim=(-0.2, places[-1] + 0.2))
    ax.set_xlabel("counting rule: of this project (ciss), and of the papers of these methods")
    ax.grid(axis="x", color="#E5E5E5", lw=0.8)
    last = {method: row.dropna() for method, row in scores.loc[named].iterrows()}
    ends = {method: (scores.columns.get_loc(row.index[-1]), row.iloc[-1]) for method, row in last.items() if len(row)}
    label_ends(ax, ends, styles)
    grey_note(ax, scores.index)


def _harmonic_lines(ax: Axes, top: float) -> None:
    """Lines of equal 2 old new / (old + new), with their values at the right edge."""
    for value in np.arange(10, 100, 10 if top > 50 else 5):
        if value < 0.98 * top:  # the line meets the edges of the axes
            # new = h old / (2 old - h): at old = top, and at new = top for the same old
            edge = value * top / (2 * top - value)
            old = np.linspace(edge, top, 100)
            ax.plot(old, value * old / (2 * old - value), color="#BBBBBB", lw=0.7, ls="--", zorder=0)
            _right_of(ax, edge, f"{value:g}", 3, fontsize=7, color="#666666")
    _right_of(ax, top / 2, "harmonic mean", 26, rotation=90, ha="center", color="#666666")


def cost_bars(axes: Iterable[Axes], table: pd.DataFrame, title: str = "") -> None:
    """Three axes: milliseconds an update, peak memory and parameters of each method. Numbers: the value, and as a
    multiple of finetune's.

    An update's bar is the median over epochs, its whisker the quartiles. Other bars are means; their whiskers are one
    standard deviation, if there are several runs. Where all methods have as many parameters, or nothing was measured, a
    sentence says it. The first axes with bars name the methods.

    `table`: `cost_table`.
    """
    if table.empty:
        for ax in axes:
            note_in(ax, "No run has a cost.")
        return
    panels = (
        ("update_seconds", "update", 1e-3, "one update, ms (median; quartiles)"),
        ("peak_memory_mib", "memory", 1024, "peak memory, GiB"),
        ("parameters", "parameters", 1e6, "parameters, millions"),
    )
    unnamed = True
    for k, (ax, (name, short, unit, label)) in enumerate(zip(axes, panels, strict=True)):
        ax.set_title(title if k == 0 else "", fontsize=9, loc="left")
        if table[name].isna().all():
            note_in(ax, NOT_MEASURED[name])
            continue
        if name == "parameters" and len(table) > 1 and table[name].nunique() == 1:
            note_in(ax, f"All methods have {table[name].iloc[0] / unit:.3g} million parameters.")
            continue
        if name == "update_seconds":
            spread = np.abs(table[["update_low", "update_high"]].sub(table[name], axis=0).to_numpy().T) / unit
        else:
            spread = np.tile(table[f"{name}_std"], (2, 1)) / unit
        _cost_rows(ax, table[name] / unit, np.nan_to_num(spread), table[f"relative_{short}"])
        ax.set_yticks(range(len(table)) if unnamed else [], table.index if unnamed else [])
        ax.set_xlabel(label, fontsize=9)
        unnamed = False


def _cost_rows(ax: Axes, values: pd.Series, spread: np.ndarray, multiples: pd.Series) -> None:
    """A bar for each method with its numbers. `spread`: lengths (2,N) of the whiskers to both sides."""
    rows, styles = np.arange(len(values)), bar_styles(values.index)
    ends = values.fillna(0) + spread[1]
    for row, (method, value) in enumerate(values.items()):
        ax.barh(row, value, 0.62, **styles[method])
    if spread.any():
        ax.errorbar(values, rows, xerr=spread, ls="", color="#333333", capsize=2, lw=1)
    for row, (value, end, multiple) in enumerate(zip(values, ends, multiples, strict=True)):
        number = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        text = number + (f"  (×{multiple:.2f})" if np.isfinite(multiple) else "")
        if np.isfinite(value):
            ax.annotate(text, (end, row), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
    ax.set(xlim=(0, 1.5 * (ends.max() or 1)), ylim=(len(values) - 0.4, -0.6))
    ax.locator_params(axis="x", nbins=5)
    ax.tick_params(axis="x", labelsize=8)


def paired_points(axes: Iterable[Axes], runs: pd.DataFrame, pairs: pd.DataFrame, title: str = "") -> None:
    """Differences in `all` in percentage points, one of the axes for each of REFERENCES: a row for each method without
    joint training.

    A dot is a seed, or an order of classes (mean over its seeds) if there are several. If there are several dots, a bar
    is the 95 % interval of their mean, which is the line in it. An arrow: the interval is wider than the axis, which is
    made for the dots. Right of the axes: the mean, and how many pairs are above 0.

    Args:
        axes: two.
        runs: columns method, seed, order, all.
        pairs: `paired_table` of the same runs.
    """
    methods = [method for method in dict.fromkeys(runs["method"]) if not is_joint(method)]
    styles = method_styles(methods, most=None)
    differences = paired_differences(runs, "all")
    same = "same seed and order" if runs["order"].nunique() > 1 else "same seed"
    for k, (ax, against) in enumerate(zip(axes, REFERENCES, strict=True)):
        rows = pairs[(pairs["metric"] == "all") & (pairs["against"] == against)].set_index("method")
        rows[["mean", "low", "high"]] *= 100
        dots = {m: 100 * differences[m, against] for m in methods if m in rows.index}
        ax.set_xlim(*_limits(np.concatenate([[0.0], *dots.values()]), rows.loc[list(dots), ["low", "high"]]))
        ax.set(ylim=(len(methods) - 0.4, -0.6), xlabel=f"difference in mIoU (percentage points), {same}")
        ax.set_yticks(range(len(methods)), methods if k == 0 else [])
        ax.set_title(f"{title}: all, against {against}" if title and k == 0 else f"all, against {against}", loc="left")
        ax.locator_params(axis="x", nbins=5)
        ax.grid(axis="y", color="#E5E5E5", lw=0.6)
        ax.set_axisbelow(True)
        for y, method in enumerate(methods):
            if method in dots:
                _difference_row(ax, y, dots[method], rows.loc[method], styles[method])
            elif method == against:
                _right_of(ax, y, "the reference", color="#666666")
        if dots:
            ax.axvline(0, color="#666666", lw=1, zorder=0)
        else:
            alone = f"No other method has a score\nand a seed that {against} has."
            _centred(ax, alone if against in methods else f"{against} was not run.")
            ax.set_xticks([])


def _limits(dots: np.ndarray, intervals: pd.DataFrame) -> tuple[float, float]:
    """Limits of an axis that holds all dots. Intervals may take at most half of its width."""
    width = float(np.ptp(dots)) or 10
    low = max(np.nanmin([dots.min(), *intervals["low"]]), dots.min() - width / 2)
    high = min(np.nanmax([dots.max(), *intervals["high"]]), dots.max() + width / 2)
    return low - 0.05 * width, high + 0.05 * width


def _difference_row(ax: Axes, y: int, dots: np.ndarray, row: pd.Series, style: dict) -> None:
    """A row of `paired_points`."""
    several = len(dots) > 1
    ax.plot(dots, np.full(len(dots), y + 0.27 * several), **{**style, "ls": "", "ms": 4.5, "mew": 0.5, "zorder": 3})
    if several:
        left, right = ax.get_xlim()
        dark = {"color": "#222222", "ls": "", "zorder": 3}
        bar = {"color": style["color"], "edgecolor": "#333333", "lw": 0.5, "zorder": 2}
        ax.barh(y, row["high"] - row["low"], 0.26, left=row["low"], **bar)
        ax.plot(row["mean"], y, marker="|", ms=10, mew=1.8, **dark)
        if row["low"] < left:
            ax.plot(left, y, marker="<", ms=6, clip_on=False, **dark)
        if row["high"] > right:
            ax.plot(right, y, marker=">", ms=6, clip_on=False, **dark)
    _right_of(ax, y, signed(row["mean"] / 100) + (f"  {row['above']}/{row['pairs']}" if several else ""))


def step_strips(blocks: list[dict], steps: list[int], size: float = 1.0) -> Figure:
    """The same images after every step. A block for each image has a column for each step, the image in the first row,
    then the truth as it is scored after the step and the prediction of each method.

    Args:
        blocks: `image` (H,W,3), `rows`: name -> pictures (H,W,3) by step. A step that a row lacks stays empty.
        steps: those that have a column.
        size: of a cell, inches.
    """
    names = ["image", *dict.fromkeys(name for block in blocks for name in block["rows"])]
    height = size * min(1.5, max(block["image"].shape[0] / block["image"].shape[1] for block in blocks))
    block_width = len(steps) * (size + 0.05)
    width = 1.15 + len(blocks) * (block_width + 0.25)  # the names, then the blocks
    heights = [height + 0.31, *[height + 0.05] * (len(names) - 1)]  # "after step 0" is below the image
    figure = plt.figure(figsize=(width, sum(heights)))
    columns = figure.add_gridspec(
        1, len(blocks), left=1.15 / width, right=1, bottom=0, top=1, wspace=0.25 / block_width
    )
    for number, block in enumerate(blocks):
        grid = columns[number].subgridspec(len(names), len(steps), height_ratios=heights, wspace=0.05, hspace=0.06)
        axes = grid.subplots(squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        draw_picture(axes[0, len(steps) // 2], block["image"])
        axes[0, len(steps) // 2].set_anchor("N")
        for column, step in enumerate(steps):
            axes[1, column].set_title(f"after step {step}", fontsize=8, pad=2)
            for ax, name in zip(axes[1:, column], names[1:], strict=True):
                if (picture := block["rows"].get(name, {}).get(step)) is not None:
                    draw_picture(ax, picture)
        for ax, name in zip(axes[:, 0], () if number else names, strict=False):
            ax.text(-0.08, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=9)
    return figure


def _largest_tick(scores: pd.DataFrame) -> float:
    """The end of an axis of mIoU in percent: the next ten above the largest of scores from 0 to 1, with some room."""
    largest = np.nanmax(scores.to_numpy(float), initial=0)
    return float(min(100, max(10, 10 * np.ceil(10.6 * largest))))


def _centred(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=8.5)


def _right_of(ax: Axes, y: float, text: str, distance: float = 6, **options) -> None:
    """Text right of the axes at a height of its data. `distance`: points."""
    annotation = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
    ax.annotate(text, (1, y), (distance, 0), va="center", **{"fontsize": 7.5, **annotation, **options})
