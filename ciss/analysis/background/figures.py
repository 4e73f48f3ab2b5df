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

from ciss.analysis.background.words import ERRORS as SENTENCES
from ciss.analysis.compare.figures import method_lines
from ciss.analysis.figures import charts, style
from ciss.analysis.figures.families import ERRORS, GROUPS, chosen, method_styles

MAX_STEPS = 4  # steps that a figure with a panel for each step shows
NO_STEP = "No incremental step: background shift is not measured."
NO_PIXEL = "No pixel of these classes was scored."
UNKNOWN = "No pixel with a known class."
PREDICTED = ("background", "its own class", "another old class", "another new class")  # names of GROUPS
SHOWN_FLOW = "finetune"  # the method of the flow figure, if it was run


def flow_panels(tables: list[tuple[str, int, pd.DataFrame]], empty: str = NO_STEP) -> Figure:
    """`flow_ribbons` of one method after at most MAX_STEPS steps: of SHOWN_FLOW, or of the first one.

    `tables`: of `mean_flows`. `flow_bars` has all methods.
    """
    if not tables:
        return style.note(empty)
    methods = list(dict.fromkeys(method for method, _, _ in tables))
    method = SHOWN_FLOW if SHOWN_FLOW in methods else methods[0]
    flows = {step: table for name, step, table in tables if name == method}
    steps = style.some(sorted(flows), MAX_STEPS)
    options = {"squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(steps), figsize=(max(4.6, 2.1 * len(steps)), 2.9), **options)
    _name_steps(figure, steps, list(flows), f"{method}: ground truth (left), predicted as (right)")
    for ax, step in zip(axes[0], steps, strict=True):
        flow_ribbons(ax, flows[step], f"after step {step}")
    _predicted_legend(figure)
    return figure


def flow_bars(tables: list[tuple[str, int, pd.DataFrame]], empty: str = NO_STEP) -> Figure:
    """What each method predicts for the pixels of background, old and new classes after the last step, in percent.

    `tables`: of `mean_flows`.
    """
    if not tables:
        return style.note(empty)
    last = max(step for _, step, _ in tables)
    shares = {method: table for method, step, table in tables if step == last}
    groups = ("background", "old", "new")
    figure, axes = style.panels(len(groups), (2.4, 0.26 * len(shares) + 1.2))
    for ax, group in zip(axes, groups, strict=True):
        rows = pd.DataFrame({method: table.loc[group] for method, table in shares.items()}).T
        ax.set_title(f"pixels of {group}" + " classes" * (group != "background"), fontsize=9)
        if rows.isna().all(axis=None):
            style.text_in(ax, "no such pixel")
        charts.stacked_bars(ax, rows, GROUPS, numbers_from=12)
    axes[len(axes) // 2].set_xlabel(f"% of the pixels, after step {last}")
    _predicted_legend(figure)
    return figure


def _predicted_legend(figure: Figure) -> None:
    looks = zip(PREDICTED, GROUPS.values(), strict=True)
    handles = [Patch(fc=face, hatch=hatch, ec="white", label=name) for name, (face, hatch) in looks]
    style.legend_below(figure, handles, "predicted as")


def _name_steps(figure: Figure, steps: list[int], all_steps: list[int], title: str = "") -> None:
    phrases = [title] if title else []
    if len(steps) < len(all_steps):
        phrases.append(f"{len(steps)} of {len(all_steps)} incremental steps: {', '.join(map(str, steps))}")
    if phrases:
        figure.suptitle("; ".join(phrases), fontsize=9)


def flow_ribbons(ax: Axes, table: pd.DataFrame, title: str = "") -> None:
    """Shares of each group's pixels (`flows`): ground truth left, all groups equally high; predictions right.

    Groups without pixels are left out. Shares from 10 % are printed.
    """
    table = table.dropna(how="all")
    ax.set_title(title, fontsize=9)
    if table.empty:
        style.note_in(ax, NO_PIXEL)
        return
    height = 1.25 * len(table) - 0.25  # with gaps of 0.25 between the groups
    totals = table[list(GROUPS)].sum()
    gap = (height - totals.sum()) / max(1, (totals > 0).sum() - 1)
    tops = (totals + gap * (totals > 0)).cumsum().shift(fill_value=0.0)  # of the bars on the right
    reached = tops.copy()  # how far each bar is filled
    for k, group in enumerate(table.index):
        start = 1.25 * k
        ax.add_patch(Rectangle((0, start), 0.05, 1, fc="#444444", ec="none"))
        ax.text(-0.03, start + 0.5, group, ha="right", va="center", fontsize=8)
        for part, (face, hatch) in GROUPS.items():
            share = float(table.loc[group, part])
            if share > 0:
                _ribbon(ax, start, reached[part], share, face, hatch)
            if share >= 0.1:
                box = {"fc": "white", "ec": "none", "pad": 0.4, "alpha": 0.8}
                ax.text(0.09, start + share / 2, f"{100 * share:.1f}", va="center", fontsize=6.5, bbox=box)
            start += share
            reached[part] += share
    for part, (face, hatch) in GROUPS.items():
        if totals[part] > 0:
            ax.add_patch(Rectangle((0.95, tops[part]), 0.05, totals[part], fc=face, hatch=hatch, ec="white"))
    ax.set(xlim=(-0.45, 1.02), ylim=(height, -0.02))
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
    """The rates of background shift in percent after every step (`background_table`), one panel each."""
    if table.empty:
        return style.note(empty)
    figure, axes = style.panels(3, (3.2, 2.5), sharey=False)
    pairs = [("old", "background"), ("old", "new"), ("background", "new")]
    methods = list(dict.fromkeys(table["method"]))
    ends = []
    for ax, (true, predicted) in zip(axes, pairs, strict=True):
        rate = f"{true}_to_{predicted}"
        ends.append(method_lines(ax, table, "step", rate))
        ax.set(title=f"{true} predicted as {predicted}", ylabel="", xlabel="after step")
        style.step_ticks(ax, table["step"])
        if table[rate].isna().all():
            style.text_in(ax, f"no {true} pixels")
    axes[0].set_ylabel("% of the pixels")
    for ax in axes:
        ax.set_ylim(0, max(1.0, ax.get_ylim()[1]))
    charts.grey_note(axes[0], methods)
    for ax, points in zip(axes, ends, strict=True):
        charts.label_ends(ax, points, method_styles(methods))
    return figure


def class_rate_maps(table: pd.DataFrame, empty: str = NO_STEP) -> Figure:
    """Shares of the pixels of each old and new class that are predicted as background, and as a wrong new class, by
    method; in percent, mean over seeds. A gap separates old and new classes.

    `table`: rows of `class_rates` of one step.
    """
    titles = {"background": "predicted as\nbackground", "new": "predicted as a\nwrong new class"}
    if table[list(titles)].isna().all(axis=None):
        return style.note(NO_PIXEL if len(table) else empty)
    names, methods = list(dict.fromkeys(table["class"])), list(dict.fromkeys(table["method"]))
    _, below = charts.upright_names(methods)
    size = (max(2.2, 0.46 * len(methods)), 0.24 * len(names) + 1.0 + below)
    figure, axes = style.panels(len(titles), size, sharex=False)
    kinds = table.groupby("class", sort=False)["kind"].first()
    labels = style.table_labels(figure, table, names)
    labels = [f"{label} ({kind})" for label, kind in zip(labels, kinds, strict=True)]
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        ax.set_title(title, fontsize=9)
        shares = table.pivot_table(index="class", columns="method", values=column, sort=False, dropna=False)
        charts.heatmap(ax, 100 * shares.reindex(names)[methods], yticklabels=labels)
        ax.hlines(
            np.flatnonzero(kinds.to_numpy()[1:] != kinds.to_numpy()[:-1]) + 1, 0, len(methods), color="white", lw=4
        )
        charts.column_ticks(ax, methods)
    figure.colorbar(axes[0].collections[0], ax=axes, label="% of the class's pixels", shrink=0.8, pad=0.02)
    return figure


def error_panels(table: pd.DataFrame, empty: str = NO_STEP) -> Figure:
    """The four errors that involve the background (`background_errors` of one step), mean over seeds: pixels, and
    shares of them in percent."""
    if table["share"].isna().all():
        return style.note("The background takes part in no error." if len(table) else empty)
    pivots = {
        column: table.pivot_table(index="method", columns="error", values=column, sort=False, dropna=False)
        for column in ("pixels", "share")
    }
    figure, axes = style.panels(2, (3.3, 0.3 * len(pivots["share"]) + 1.1), sharex=False)
    thousands = pivots["pixels"] / 1000
    charts.stacked_bars(axes[0], thousands / 100, ERRORS)
    axes[0].set(xlim=(0, 1.05 * thousands.sum(axis=1).max()), xlabel="validation pixels, thousands")
    charts.stacked_bars(axes[1], pivots["share"], ERRORS, numbers_from=10)
    for row in np.flatnonzero(~(pivots["share"][::-1].sum(axis=1) > 0)):
        axes[1].text(1, row, "no such error", va="center", fontsize=7)
    axes[1].set_xlabel("% of these errors")
    handles = [Patch(fc=face, hatch=hatch, ec="white", label=SENTENCES[name]) for name, (face, hatch) in ERRORS.items()]
    style.legend_below(figure, handles, columns=2)
    return figure


def calibration_figure(
    table: pd.DataFrame, belief: pd.DataFrame, methods: list[str], step: int, empty: str = NO_STEP
) -> Figure:
    """`reliability` beside `belief_map`, both after one step. `table`, `belief`: of `calibration_table` and
    `background_belief`, of all steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), width_ratios=(1, 1.1), layout="constrained")
    reliability(left, table[table["step"] == step], methods, empty)
    belief_map(right, belief[belief["step"] == step], empty)
    if left.lines:
        figure.suptitle(f"after step {step}", fontsize=9)
        style.legend_below(figure, left.get_legend_handles_labels()[0], columns=6)
    return figure


def reliability(ax: Axes, table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> None:
    """Reliability diagram of the background's probability (`calibration_table` of one step).

    Future classes count as background, as in training.
    """
    if not table["pixels"].any():
        style.note_in(ax, UNKNOWN if len(table) else empty)
        return
    ax.plot([0, 100], [0, 100], color="#888888", lw=1, ls=":", label="calibrated")
    table = table[table["pixels"] > 0]
    sums = table[["pixels"]].assign(
        probability=table["probability"] * table["pixels"],
        background=(table["background"] + table["future"]) * table["pixels"],
    )
    sums = sums.groupby([table["method"], table["low"]]).sum()
    means = 100 * sums.div(sums["pixels"], axis=0)
    means = means.reset_index()
    styles, named = method_styles(methods), chosen(methods)
    for method in methods:
        rows = means[means["method"] == method]
        look = {"ms": 4, "lw": 1.2, **styles[method]}
        label = method if method in named else "_"
        ax.plot(rows["probability"], rows["background"], **look, label=label, clip_on=False)
    ax.set(xlim=(0, 100), ylim=(0, 100), xlabel="probability of the background (%)")
    ax.set_ylabel("pixels that are background (%)")
    ax.set_aspect("equal")
    charts.grey_note(ax, methods)


def belief_map(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Mean probability of the background on pixels of each kind (`background_belief` of one step)."""
    means = table.pivot_table(index="method", columns="kind", values="probability", sort=False)
    if means.isna().all(axis=None):
        style.note_in(ax, UNKNOWN if len(table) else empty)
        return
    charts.heatmap(ax, 100 * means, "mean probability of the background (%)")
    ax.set_xlabel("ground truth of the pixels")


def rule_points(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Precision and recall of each rule's pseudo-labels in percent (`label_rules`): small marks for teachers, large for
    means. Grey lines have equal F1 scores. A rule has the colour and marker of its method."""
    known = table.dropna(subset=["precision", "recall"])
    if known.empty:
        reason = "No rule has both: no old class is labelled background, or no rule finds one."
        style.note_in(ax, reason if len(table) else empty)
        return
    looks = method_styles(table["rule"])
    low = 10 * np.floor(10 * known[["precision", "recall"]].min().clip(upper=0.9))
    ax.set(xlim=(low["recall"], 102), ylim=(low["precision"], 102))
    for f1 in range(10, 100, 10):
        recall = np.linspace(f1 / 2 + 1, 100, 200)
        # F1 = 2 P R / (P + R)
        ax.plot(recall, f1 * recall / (2 * recall - f1), color="#CCCCCC", lw=0.7, ls="--", zorder=0)
        edge = f1 * 100 / (200 - f1)
        if edge > low["precision"]:
            ax.text(102.5, edge, f"{f1}", fontsize=6.5, color="#666666", va="center")
    for rule, rows in table.groupby("rule", sort=False):
        label = rule if rule in set(known["rule"]) else f"{rule} (undefined)"
        look = {**looks[rule], "ls": "", "clip_on": False}
        ax.plot(100 * rows["recall"], 100 * rows["precision"], **{**look, "ms": 4, "mew": 0.3, "alpha": 0.55})
        means = 100 * rows[["recall", "precision"]].mean()
        ax.plot(means["recall"], means["precision"], **{**look, "ms": 9, "zorder": 3, "label": label})
    ax.set(xlabel="recall of old classes (%)", ylabel="precision (%)")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.12, 0.5), fontsize=8, title="rule", markerscale=0.7)


def angle_panels(
    table: pd.DataFrame, methods: list[str], empty: str = "No step brings a new class: there are no angles."
) -> Figure:
    """Angles of new class tokens, or classifier weights, to those of the background and of the nearest old class
    (`token_angles_table`)."""
    if table["angle"].isna().all():
        return style.note("No angle is defined: the class tokens are not finite." if len(table) else empty)
    pairs = {"background": "new to background", "old": "new to nearest old"}
    all_steps = sorted(table["step"].unique())
    steps = style.some(all_steps, MAX_STEPS)
    styles, named = method_styles(methods), chosen(methods)
    figure, axes = style.panels(len(pairs) * len(steps), (2.9, 2.1), len(steps), sharey="row")
    _name_steps(figure, steps, all_steps, "angle between classifier weights (class tokens), degrees")
    cells = [(pair, step) for pair in pairs for step in steps]
    for ax, (pair, step) in zip(axes, cells, strict=True):
        rows = table[(table["pair"] == pair) & (table["step"] == step)]
        for method in methods:
            means = rows[rows["method"] == method].groupby("epochs")["angle"].mean()
            look = {"ms": 4, "lw": 1.2, **styles[method]}
            ax.plot(means.index, means, **look, label=method if method in named else "_")
        ax.set_title(f"step {step}: {pairs[pair]}", fontsize=9)
    for ax in style.lowest(axes):
        ax.set_xlabel("epochs into the step")
    charts.grey_note(axes[0], methods)
    style.legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure
