"""Where the pixels of background, old and new classes go."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path

from ciss.analysis.compare.figures import method_lines
from ciss.analysis.figures.style import (
    all_classes,
    class_labels,
    legend_below,
    lowest,
    mark,
    method_styles,
    note,
    note_in,
    panels,
    short,
    some,
    step_ticks,
)

MOST_STEPS = 6  # of a figure with a row or column of panels for each step
NO_STEP = "No incremental step: background shift is not measured."
NO_PIXEL = "No pixel of these classes was scored."

FLOWS = {"background": ("#BBBBBB", ""), "right": ("#009E73", ""), "old": ("#56B4E9", "//"), "new": ("#D55E00", "xx")}
CALLED = {"background": "background", "right": "its own class", "old": "another old class", "new": "another new class"}
ERRORS = {
    "old called background": ("#56B4E9", "//"),
    "new called background": ("#D55E00", "xx"),
    "background called old": ("#0072B2", ".."),
    "background called new": ("#E69F00", "\\\\"),
}


def flow_panels(found: list[tuple[str, int, pd.DataFrame]], empty: str = NO_STEP) -> Figure:
    """`flow_ribbons` of several methods (columns) after several steps (rows), at most MOST_STEPS of them; `found`:
    method, step, `flows`; `empty`: why there is none."""
    if not found:
        return note(empty)
    methods, every = (list(dict.fromkeys(each[k] for each in found)) for k in (0, 1))
    steps = some(sorted(every), MOST_STEPS)
    size = (1.55 * len(methods) + 0.8, 2.1 * len(steps) + 0.4)
    widths = {"width_ratios": [1.4] + [1.0] * (len(methods) - 1)}  # the first one has the names
    options = {"squeeze": False, "layout": "constrained", "gridspec_kw": widths}
    figure, axes = plt.subplots(len(steps), len(methods), figsize=size, **options)
    for ax in axes.flat:
        ax.set_axis_off()
    if len(steps) < len(every):
        figure.suptitle(_steps_shown(steps, every), fontsize=9)
    for method, step, table in found:
        if step not in steps:
            continue
        column = methods.index(method)
        flow_ribbons(axes[steps.index(step), column], table, f"{method}, step {step}", names=column == 0)
    handles = [Patch(fc=face, hatch=hatch, ec="white", label=CALLED[part]) for part, (face, hatch) in FLOWS.items()]
    legend_below(figure, handles, "called")
    return figure


def _steps_shown(steps: list[int], every: list[int]) -> str:
    return f"{len(steps)} of {len(every)} incremental steps: {', '.join(map(str, steps))}"


def flow_ribbons(ax: Axes, table: pd.DataFrame, title: str = "", names: bool = True) -> None:
    """Where pixels go: from each group of truth on the left, equally high, to what the network calls them on the right.

    `table`: see `ciss.analysis.flows`; groups without pixels are left out. Numbers: shares of the group, from 0.1.
    """
    table = table.dropna(how="all")
    if table.empty:
        ax.set_title(title, fontsize=9)
        note_in(ax, NO_PIXEL)
        return
    gap = 0.25
    starts = {group: k * (1 + gap) for k, group in enumerate(table.index)}
    height = max(starts.values(), default=0) + 1
    totals = table[list(FLOWS)].sum()
    pad = (height - totals.sum()) / max(1, (totals > 0).sum() - 1)
    tops, at = {}, 0.0
    for part in FLOWS:
        tops[part] = at
        at += totals[part] + (pad if totals[part] > 0 else 0)
    reach = dict(tops)  # how far each name's bar is filled
    for group, start in starts.items():
        ax.add_patch(Rectangle((0, start), 0.05, 1, fc="#444444", ec="none"))
        if names:
            ax.text(-0.03, start + 0.5, group, ha="right", va="center", fontsize=8)
        for part, (face, hatch) in FLOWS.items():
            share = float(table.loc[group, part])
            if share > 0:
                _ribbon(ax, start, reach[part], share, face, hatch)
                if share >= 0.1:
                    box = {"fc": "white", "ec": "none", "pad": 0.4, "alpha": 0.8}
                    ax.text(0.09, start + share / 2, f"{share:.2f}", va="center", fontsize=6.5, bbox=box)
                start, reach[part] = start + share, reach[part] + share
    for part, (face, hatch) in FLOWS.items():
        if totals[part] > 0:
            style = {"fc": face, "hatch": hatch, "ec": "white"}
            ax.add_patch(Rectangle((0.95, tops[part]), 0.05, totals[part], **style))
    ax.set(xlim=(-0.45 if names else -0.02, 1.02), ylim=(height, -0.02))
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()


def _ribbon(ax: Axes, left: float, right: float, width: float, face: str, hatch: str) -> None:
    """A band from (0.05, left) to (0.95, right), `width` high."""
    (a, b), middle = (0.05, 0.95), 0.5
    upper = [(a, left), (middle, left), (middle, right), (b, right)]
    lower = [(b, right + width), (middle, right + width), (middle, left + width), (a, left + width)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    path = Path([*upper, *lower, (a, left)], codes)
    ax.add_patch(PathPatch(path, fc=face, hatch=hatch, ec="white", lw=0.4, alpha=0.65))


def rate_panels(table: pd.DataFrame, empty: str = NO_STEP) -> Figure:
    """The rates of background shift after every step, a panel each; `table`: `ciss.analysis.background_table`, `empty`:
    why it has no rows."""
    if table.empty:
        return note(empty)
    figure, axes = panels(3, (2.5, 2.5))
    for ax, (true, called) in zip(axes, [("old", "background"), ("old", "new"), ("background", "new")], strict=True):
        method_lines(ax, table, "step", f"{true}_to_{called}")
        ax.set(title=f"{true} called {called}", ylabel="", xlabel="after step")
        step_ticks(ax, table["step"])
        if table[f"{true}_to_{called}"].isna().all():
            ax.text(0.5, 0.5, f"no {true} pixels", transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
    axes[0].set_ylabel("share of pixels")
    legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def class_rate_map(ax: Axes, table: pd.DataFrame, column: str, title: str = "", empty: str = NO_STEP) -> None:
    """Share of each class's pixels that goes one way, by method; mean over seeds. `table`: `ciss.analysis.class_rates`
    of one step and the classes wanted, `column`: one of its shares, `empty`: why it has no rows."""
    if table[column].isna().all():
        ax.set_title(title)
        note_in(ax, NO_PIXEL if len(table) else empty)
        return
    shares = table.pivot_table(index="class", columns="method", values=column, sort=False, dropna=False)
    names = [short(name) for name in class_labels(ax.figure, shares.index, all_classes(table))]
    sns.heatmap(
        shares, ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f", annot_kws={"fontsize": 7},
        linewidths=0.5, cbar_kws={"label": "share of the class's pixels"}, yticklabels=names,
    )  # fmt: skip
    ax.set(xlabel="", ylabel="", title=title)
    ax.tick_params(axis="y", rotation=0)
    ax.set_xticks(np.arange(shares.shape[1]) + 0.5, shares.columns, rotation=30, ha="right")


def error_bars(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """What the background's errors consist of: a bar a method, mean over seeds. `table`:
    `ciss.analysis.background_errors` of one step, `empty`: why it has no rows."""
    if table["share"].isna().all():
        note_in(ax, "The background takes part in no error." if len(table) else empty)
        return
    shares = table.pivot_table(index="method", columns="error", values="share", sort=False, dropna=False)[::-1]
    start = np.zeros(len(shares))
    for error, (face, hatch) in ERRORS.items():
        values = np.nan_to_num(shares[error].to_numpy(float))
        ax.barh(shares.index, values, left=start, color=face, hatch=hatch, edgecolor="white", label=error)
        for k, value in enumerate(values):
            if value >= 0.06:
                box = {"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.75}
                ax.text(start[k] + value / 2, k, f"{value:.2f}", ha="center", va="center", fontsize=7, bbox=box)
        start += values
    for k in np.flatnonzero(start == 0):
        ax.text(0.01, k, "no such error", va="center", fontsize=7)
    ax.set(xlim=(0, 1), xlabel="share of the background's errors")
    ax.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=8)


def reliability(ax: Axes, table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> None:
    """Of the pixels that get the background with some probability, the share that is background (or a future class,
    which the step teaches as such). `table`: `ciss.analysis.calibration_table` of one step,
    `empty`: why it has no rows."""
    if not table["pixels"].any():
        note_in(ax, "No pixel with a known class." if len(table) else empty)
        return
    ax.plot([0, 1], [0, 1], color="#888888", lw=1, ls=":", label="calibrated")
    styles = method_styles(methods)
    for method in methods:
        mine = table[(table["method"] == method) & (table["pixels"] > 0)]
        weights = mine["pixels"].groupby(mine["low"]).sum()
        right = ((mine["background"] + mine["future"]) * mine["pixels"]).groupby(mine["low"]).sum() / weights
        believed = (mine["probability"] * mine["pixels"]).groupby(mine["low"]).sum() / weights
        ax.plot(believed, right, **styles[method], ms=4, lw=1.2, label=method, clip_on=False)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the background", ylabel="share that is background")
    ax.set_aspect("equal")


def belief_map(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Mean probability of the background on pixels of each kind, by method; `table`: `ciss.analysis.background_belief`
    of one step, `empty`: why it has no rows. Kinds without pixels are left out."""
    means = table.pivot_table(index="method", columns="kind", values="probability", sort=False)
    if means.isna().all(axis=None):
        note_in(ax, "No pixel with a known class." if len(table) else empty)
        return
    sns.heatmap(
        means, ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f", annot_kws={"fontsize": 7},
        linewidths=0.5, cbar_kws={"label": "mean probability of the background"},
    )  # fmt: skip
    ax.set(xlabel="pixels that are", ylabel="")
    ax.tick_params(axis="y", rotation=0)


def rule_points(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Precision and recall of each rule's labels for the background: small, of one teacher; large, their mean.

    `table`: `ciss.analysis.label_rules`; `empty`: why it has no rows. Teachers that lack one of the two are not drawn.
    """
    drawn = table.dropna(subset=["precision", "recall"])
    if drawn.empty:
        words = "No rule has both: no old class is labelled background, or no rule finds one."
        note_in(ax, words if len(table) else empty)
        return
    for k, (rule, mine) in enumerate(table.groupby("rule", sort=False)):
        label = rule if rule in set(drawn["rule"]) else f"{rule} (undefined)"
        look = {**mark(k), "edgecolors": "white", "clip_on": False}
        ax.scatter(mine["recall"], mine["precision"], s=22, alpha=0.55, lw=0.4, **look)
        ax.scatter(mine["recall"].mean(), mine["precision"].mean(), s=110, lw=0.8, zorder=3, label=label, **look)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall of old classes", ylabel="precision")
    ax.set_aspect("equal")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)


def angle_panels(
    table: pd.DataFrame, methods: list[str], empty: str = "No step brings a new class: there are no angles."
) -> Figure:
    """Angles of new class tokens, or classifier rows, over each step (at most MOST_STEPS of them): to the background's
    and the nearest old class's.

    `table`: `ciss.analysis.token_angles_table`; mean over seeds. `empty`: why it has no rows.
    """
    if table["angle"].isna().all():
        return note("No angle is defined: the class tokens are not finite." if len(table) else empty)
    pairs = {"background": "to the background's", "old": "to the nearest old class's"}
    every = sorted(table["step"].unique())
    steps = some(every, MOST_STEPS)
    styles = method_styles(methods)
    figure, axes = panels(len(pairs) * len(steps), (2.9, 2.1), len(steps), sharey="row")
    if len(steps) < len(every):
        figure.suptitle(_steps_shown(steps, every), fontsize=9)
    for line, (pair, name) in zip(np.reshape(axes, (len(pairs), -1)), pairs.items(), strict=True):
        for ax, step in zip(line, steps, strict=True):
            mine = table[(table["pair"] == pair) & (table["step"] == step)]
            for method in methods:
                means = mine[mine["method"] == method].groupby("epochs")["angle"].mean()
                ax.plot(means.index, means, **styles[method], ms=4, lw=1.2, label=method)
            ax.set(title=f"step {step}: {name}")
        line[0].set_ylabel("angle (degrees)")
    for ax in lowest(axes):
        ax.set_xlabel("epochs into the step")
    legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure
