"""Figures of background shift: predictions on pixels of background, old and new classes.

Functions draw the table of the same room (`tables.py` and its neighbours). `methods`: titles, in the order of the
panels. `empty`: the sentence shown if the table has no rows.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path

from ciss.analysis.compare.figures import method_lines
from ciss.analysis.figures import charts, style

MAX_STEPS = 6  # steps of a figure with a row or column of panels for each step
NO_STEP = "No incremental step: background shift is not measured."
NO_PIXEL = "No pixel of these classes was scored."
UNKNOWN = "No pixel with a known class."

FLOWS = {"background": ("#BBBBBB", ""), "right": ("#009E73", ""), "old": ("#56B4E9", "//"), "new": ("#D55E00", "xx")}
PREDICTED = ("background", "its own class", "another old class", "another new class")  # names of FLOWS
ERRORS = {
    "old called background": ("#56B4E9", "//"),
    "new called background": ("#D55E00", "xx"),
    "background called old": ("#0072B2", ".."),
    "background called new": ("#E69F00", "\\\\"),
}


def flow_panels(tables: list[tuple[str, int, pd.DataFrame]], empty: str = NO_STEP) -> Figure:
    """`flow_ribbons` of methods (columns) after at most MAX_STEPS steps (rows); `tables`: of `mean_flows`."""
    if not tables:
        return style.note(empty)
    methods = list(dict.fromkeys(method for method, _, _ in tables))
    all_steps = sorted({step for _, step, _ in tables})
    steps = style.some(all_steps, MAX_STEPS)
    size = (1.55 * len(methods) + 0.8, 2.1 * len(steps) + 0.4)
    widths = {"width_ratios": [1.4] + [1.0] * (len(methods) - 1)}  # the first column has the names
    options = {"squeeze": False, "layout": "constrained", "gridspec_kw": widths}
    figure, axes = plt.subplots(len(steps), len(methods), figsize=size, **options)
    for ax in axes.flat:
        ax.set_axis_off()
    _name_steps(figure, steps, all_steps)
    for method, step, table in tables:
        if step in steps:
            column = methods.index(method)
            flow_ribbons(axes[steps.index(step), column], table, f"{method}, step {step}", names=column == 0)
    colours = zip(PREDICTED, FLOWS.values(), strict=True)
    handles = [Patch(fc=face, hatch=hatch, ec="white", label=name) for name, (face, hatch) in colours]
    style.legend_below(figure, handles, "predicted as")
    return figure


def _name_steps(figure: Figure, steps: list[int], all_steps: list[int]) -> None:
    if len(steps) < len(all_steps):
        names = ", ".join(map(str, steps))
        figure.suptitle(f"{len(steps)} of {len(all_steps)} incremental steps: {names}", fontsize=9)


def flow_ribbons(ax: Axes, table: pd.DataFrame, title: str = "", names: bool = True) -> None:
    """Shares of each group's pixels (`flows`): ground truth left, all groups equally high; predictions right.

    Groups without pixels are left out. Shares from 0.1 are printed.
    """
    table = table.dropna(how="all")
    ax.set_title(title, fontsize=9)
    if table.empty:
        style.note_in(ax, NO_PIXEL)
        return
    height = 1.25 * len(table) - 0.25  # with gaps of 0.25 between the groups
    totals = table[list(FLOWS)].sum()
    gap = (height - totals.sum()) / max(1, (totals > 0).sum() - 1)
    tops = (totals + gap * (totals > 0)).cumsum().shift(fill_value=0.0)  # of the bars on the right
    reached = tops.copy()  # how far each bar is filled
    for k, group in enumerate(table.index):
        start = 1.25 * k
        ax.add_patch(Rectangle((0, start), 0.05, 1, fc="#444444", ec="none"))
        if names:
            ax.text(-0.03, start + 0.5, group, ha="right", va="center", fontsize=8)
        for part, (face, hatch) in FLOWS.items():
            share = float(table.loc[group, part])
            if share > 0:
                _ribbon(ax, start, reached[part], share, face, hatch)
            if share >= 0.1:
                box = {"fc": "white", "ec": "none", "pad": 0.4, "alpha": 0.8}
                ax.text(0.09, start + share / 2, f"{share:.2f}", va="center", fontsize=6.5, bbox=box)
            start += share
            reached[part] += share
    for part, (face, hatch) in FLOWS.items():
        if totals[part] > 0:
            ax.add_patch(Rectangle((0.95, tops[part]), 0.05, totals[part], fc=face, hatch=hatch, ec="white"))
    ax.set(xlim=(-0.45 if names else -0.02, 1.02), ylim=(height, -0.02))
    ax.set_axis_off()


def _ribbon(ax: Axes, left: float, right: float, width: float, face: str, hatch: str) -> None:
    """A band from (0.05, left) to (0.95, right), `width` high."""
    a, middle, b = 0.05, 0.5, 0.95
    upper = [(a, left), (middle, left), (middle, right), (b, right)]
    lower = [(b, right + width), (middle, right + width), (middle, left + width), (a, left + width)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    path = Path([*upper, *lower, (a, left)], codes)
    ax.add_patch(PathPatch(path, fc=face, hatch=hatch, ec="white", lw=0.4, alpha=0.65))


def rate_panels(table: pd.DataFrame, empty: str = NO_STEP) -> Figure:
    """The rates of background shift after every step (`background_table`), one panel each."""
    if table.empty:
        return style.note(empty)
    figure, axes = style.panels(3, (2.5, 2.5))
    pairs = [("old", "background"), ("old", "new"), ("background", "new")]
    for ax, (true, predicted) in zip(axes, pairs, strict=True):
        rate = f"{true}_to_{predicted}"
        method_lines(ax, table, "step", rate)
        ax.set(title=f"{true} predicted as {predicted}", ylabel="", xlabel="after step")
        style.step_ticks(ax, table["step"])
        if table[rate].isna().all():
            style.text_in(ax, f"no {true} pixels")
    axes[0].set_ylabel("share of pixels")
    style.legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def class_rate_map(ax: Axes, table: pd.DataFrame, column: str, title: str = "", empty: str = NO_STEP) -> None:
    """One share (`column`) of the pixels of each class by method, mean over seeds (rows of `class_rates`)."""
    ax.set_title(title)
    if table[column].isna().all():
        style.note_in(ax, NO_PIXEL if len(table) else empty)
        return
    shares = table.pivot_table(index="class", columns="method", values=column, sort=False, dropna=False)
    names = style.table_labels(ax.figure, table, shares.index)
    charts.heatmap(ax, shares, "share of the class's pixels", yticklabels=names)
    charts.slanted_ticks(ax, shares.columns)


def error_bars(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Shares of the four errors that involve the background (`background_errors` of one step), mean over seeds."""
    if table["share"].isna().all():
        style.note_in(ax, "The background takes part in no error." if len(table) else empty)
        return
    shares = table.pivot_table(index="method", columns="error", values="share", sort=False, dropna=False)
    charts.stacked_bars(ax, shares, ERRORS, numbers_from=0.06)
    for row in np.flatnonzero(~(shares[::-1].sum(axis=1) > 0)):
        ax.text(0.01, row, "no such error", va="center", fontsize=7)
    ax.set_xlabel("share of the errors that involve the background")
    ax.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=8)


def reliability(ax: Axes, table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> None:
    """Reliability diagram of the background's probability (`calibration_table` of one step).

    Future classes count as background, as in training.
    """
    if not table["pixels"].any():
        style.note_in(ax, UNKNOWN if len(table) else empty)
        return
    ax.plot([0, 1], [0, 1], color="#888888", lw=1, ls=":", label="calibrated")
    table = table[table["pixels"] > 0]
    sums = table[["pixels"]].assign(
        probability=table["probability"] * table["pixels"],
        background=(table["background"] + table["future"]) * table["pixels"],
    )
    sums = sums.groupby([table["method"], table["low"]]).sum()
    means = sums.div(sums["pixels"], axis=0).reset_index()
    styles = style.method_styles(methods)
    for method in methods:
        rows = means[means["method"] == method]
        ax.plot(rows["probability"], rows["background"], **styles[method], ms=4, lw=1.2, label=method, clip_on=False)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the background", ylabel="share that is background")
    ax.set_aspect("equal")


def belief_map(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Mean probability of the background on pixels of each kind (`background_belief` of one step)."""
    means = table.pivot_table(index="method", columns="kind", values="probability", sort=False)
    if means.isna().all(axis=None):
        style.note_in(ax, UNKNOWN if len(table) else empty)
        return
    charts.heatmap(ax, means, "mean probability of the background")
    ax.set_xlabel("ground truth of the pixels")


def rule_points(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Precision and recall of each rule's pseudo-labels (`label_rules`): small marks for teachers, large for means."""
    known = table.dropna(subset=["precision", "recall"])
    if known.empty:
        reason = "No rule has both: no old class is labelled background, or no rule finds one."
        style.note_in(ax, reason if len(table) else empty)
        return
    for k, (rule, rows) in enumerate(table.groupby("rule", sort=False)):
        label = rule if rule in set(known["rule"]) else f"{rule} (undefined)"
        marker = {**style.mark(k), "edgecolors": "white", "clip_on": False}
        ax.scatter(rows["recall"], rows["precision"], s=22, alpha=0.55, lw=0.4, **marker)
        ax.scatter(rows["recall"].mean(), rows["precision"].mean(), s=110, lw=0.8, zorder=3, label=label, **marker)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall of old classes", ylabel="precision")
    ax.set_aspect("equal")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)


def angle_panels(
    table: pd.DataFrame, methods: list[str], empty: str = "No step brings a new class: there are no angles."
) -> Figure:
    """Angles of new class tokens to the background's and the nearest old class's (`token_angles_table`)."""
    if table["angle"].isna().all():
        return style.note("No angle is defined: the class tokens are not finite." if len(table) else empty)
    pairs = {"background": "to the background's", "old": "to the nearest old class's"}
    all_steps = sorted(table["step"].unique())
    steps = style.some(all_steps, MAX_STEPS)
    styles = style.method_styles(methods)
    figure, axes = style.panels(len(pairs) * len(steps), (2.9, 2.1), len(steps), sharey="row")
    _name_steps(figure, steps, all_steps)
    cells = [(pair, step) for pair in pairs for step in steps]
    for ax, (pair, step) in zip(axes, cells, strict=True):
        rows = table[(table["pair"] == pair) & (table["step"] == step)]
        for method in methods:
            means = rows[rows["method"] == method].groupby("epochs")["angle"].mean()
            ax.plot(means.index, means, **styles[method], ms=4, lw=1.2, label=method)
        ax.set(title=f"step {step}: {pairs[pair]}", ylabel="angle (degrees)" if step == steps[0] else "")
    for ax in style.lowest(axes):
        ax.set_xlabel("epochs into the step")
    style.legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure
