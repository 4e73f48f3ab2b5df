"""Figures of forgetting: which classes lose IoU, and how fast.

Functions draw the table of the same room (`tables.py` and its neighbours). `methods`: titles, in the order of the
panels. `empty`: the sentence shown if the table has no rows.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ciss.analysis.figures import charts, style
from ciss.analysis.figures.families import chosen, method_styles, step_styles

MAX_CLASSES = 24  # classes in one panel of bars or lines
NO_STEP = "No incremental step: forgetting is not measured."
NO_PACE = "No hold-out set: the forgetting rate within a step is not measured."
NO_IOU = "No IoU is defined."

FACTOR_NAMES = {
    "pixel_share": "share of labelled\ntraining pixels",
    "similarity": "cosine to the\nnearest new class",
    "gradient": "gradient magnitude\nbefore the step",
}
RELATIVE = "IoU lost per epoch, relative to the IoU before"
LOSSES = {"forgetting": "absolute: points of IoU lost", "relative": "relative: share of the best IoU lost (%)"}


def iou_heatmaps(table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> Figure:
    """IoU in percent of every class after every step (`forgetting_table`), mean over seeds. A gap separates the classes
    of different steps. Later classes stay empty."""
    if table.empty:
        return style.note(empty)
    names, steps = list(dict.fromkeys(table["class"])), sorted(table["step"].unique())
    width = max(2.2, 0.46 * len(steps)) + 0.06 * max(0, max(len(style.short(name)) for name in names) - 14)  # inches
    figure, axes, methods = charts.chosen_panels(methods, (width, 0.22 * len(names) + 0.6))
    labels = style.table_labels(figure, table, names)
    introduced = table.groupby("class", sort=False)["introduced"].first()
    for ax, method in zip(axes, methods, strict=True):
        rows = table[table["method"] == method]
        ious = rows.pivot_table(index="class", columns="step", values="iou", dropna=False).reindex(names, columns=steps)
        ax.set_title(method)
        if ious.isna().all(axis=None):
            style.note_in(ax, NO_IOU)
        else:
            charts.heatmap(ax, 100 * ious, yticklabels=labels)
            ax.hlines(np.flatnonzero(np.diff(introduced)) + 1, 0, len(steps), color="white", lw=4)
    for ax in style.lowest(axes):
        ax.set_xlabel("after step")
    if drawn := [ax.collections[0] for ax in axes if ax.collections]:
        figure.colorbar(drawn[0], ax=axes, label="IoU (%)", shrink=0.6, pad=0.02)
    return figure


def forgetting_dots(table: pd.DataFrame, empty: str = NO_STEP) -> Figure:
    """Forgetting of each old class by method (rows of `forgetting_table`), mean over seeds: absolute, and relative to
    the best earlier IoU. Classes with most labelled training pixels are at the top; see `_largest`."""
    if table["forgetting"].isna().all():
        return style.note("No old class has an IoU before and after." if len(table) else empty)
    classes, methods = _largest(table, "forgetting"), list(dict.fromkeys(table["method"]))
    sizes = table.groupby("class")["pixel_share"].mean()
    classes = sorted(classes, key=lambda name: -np.nan_to_num(sizes[name]))
    size = (7, 0.32 * len(classes) + 1.3 + 0.1 * len(methods) // 5)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    styles, named = method_styles(methods), chosen(methods)
    rows = np.arange(len(classes))
    for ax, (column, label) in zip(axes, LOSSES.items(), strict=True):
        means = table.pivot_table(index="class", columns="method", values=column, dropna=False).reindex(classes)
        for k, method in enumerate(methods):
            shift = 0.5 * (k / max(1, len(methods) - 1) - 0.5)  # equal values lie side by side
            point = {**styles[method], "ls": "", "ms": 5.5, "mew": 0.5, "marker": styles[method]["marker"] or "."}
            ax.plot(100 * means[method], rows + shift, label=method if method in named else "_", **point)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_xlabel(label)
        ax.hlines(rows[:-1] + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color="#E5E5E5", lw=0.8)
    axes[0].set_yticks(rows, style.table_labels(figure, table, classes))
    axes[0].set_ylim(len(classes) - 0.4, -0.6)
    if len(classes) < (count := table["class"].nunique()):
        figure.suptitle(f"{len(classes)} of {count} old classes: those with the largest forgetting", fontsize=9)
    charts.grey_note(axes[0], methods)
    style.legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def _largest(table: pd.DataFrame, column: str) -> list[str]:
    """The classes in the order of the table; of more than MAX_CLASSES those with the largest mean of a column."""
    names = list(dict.fromkeys(table["class"]))
    largest = table.groupby("class")[column].mean().nlargest(MAX_CLASSES).index
    return names if len(names) <= MAX_CLASSES else [name for name in names if name in largest]


def pace_panels(table: pd.DataFrame, methods: list[str], empty: str = NO_PACE) -> Figure:
    """IoU of each class in percent over the epochs of a step (rows of `pace_table`); see `_largest`. The colours of
    classes are those of the masks."""
    if table["iou"].isna().all():
        return style.note("No old class has an IoU on the hold-out set." if len(table) else empty)
    names, count = _largest(table, "iou"), table["class"].nunique()
    xlabel = "epochs (log axis from 0.05)"
    figure, axes_by_method = charts.method_panels(table, methods, "iou", xlabel, "IoU (%), hold-out set", NO_IOU)
    styles = charts.class_lines(table, names)
    dark = [withStroke(linewidth=2.4, foreground="#555555")]  # light colours are seen on white
    for ax, rows in axes_by_method:
        for name in names:
            means = 100 * rows[rows["class"] == name].groupby("epochs")["iou"].mean()
            ax.plot(means.index, means, **styles[name], ms=4, mew=0.6, lw=1.6, label=name, path_effects=dark)
        ax.set_xscale("symlog", linthresh=0.05, base=2)
        ticks = [0, 0.1, 0.5, 2, 8]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set_ylim(0, 100)
    title = f"{len(names)} of {count} classes: those with the largest IoU" if len(names) < count else None
    labels = style.table_labels(figure, table, names)
    handles = [Line2D([], [], **styles[name], ms=5, label=label) for name, label in zip(names, labels, strict=True)]
    style.legend_below(figure, handles, title, columns=4)
    return figure


def group_panels(table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> Figure:
    """Mean IoU in percent of the classes of each step after every step (`group_table`); whiskers: one standard
    deviation."""
    if table["iou"].isna().all():
        return style.note("No class has an IoU." if len(table) else empty)
    steps, groups = sorted(table["step"].unique()), sorted(table["introduced"].unique())
    figure, axes_by_method = charts.method_panels(
        table, methods, "iou", "after step", "mean IoU (%), validation", NO_IOU
    )
    styles = step_styles(groups)
    for ax, rows in axes_by_method:
        for group in groups:
            ious = 100 * rows[rows["introduced"] == group].groupby("step")["iou"].agg(["mean", "std"])
            whiskers = ious["std"].fillna(0) if ious["std"].notna().any() else None
            ax.errorbar(ious.index, ious["mean"], yerr=whiskers, **styles[group], ms=5, capsize=3)
        style.step_ticks(ax, steps)
        ax.set(xlim=(min(steps) - 0.3, max(steps) + 0.3), ylim=(0, 100))
    handles = [Line2D([], [], **styles[group], ms=5, label=f"step {group}") for group in groups]
    style.legend_below(figure, handles, "classes of")
    return figure


def correlation_forest(table: pd.DataFrame, methods: list[str], empty: str = NO_PACE) -> Figure:
    """Rank correlations of the forgetting rate with each factor: a row for each method, a panel for each factor.

    Filled: of the absolute rate; hollow, below: of the rate relative to the IoU before the step. Bars are 95 %
    intervals over runs, if there are several. The title has the number of correlations.

    Args:
        table: `rank_correlations` of the values pace and relative_pace.
        methods: titles in the order of the rows.
        empty: the sentence shown without a correlation.
    """
    known = table.dropna(subset=["correlation"])
    if known.empty:
        return style.note("Too few old classes for rank correlations." if len(table) else empty)
    figure, axes = style.panels(len(FACTOR_NAMES), (2.2, 0.3 * len(methods) + 1.4))
    styles = method_styles(methods, most=None)
    for ax, (factor, name) in zip(axes, FACTOR_NAMES.items(), strict=True):
        for row, method in enumerate(methods):
            for value, shift in (("pace", -0.15), ("relative_pace", 0.2)):
                own = known[(known["method"] == method) & (known["factor"] == factor) & (known["value"] == value)]
                _interval(ax, row + shift, own, styles[method], hollow=value == "relative_pace")
        ax.axvline(0, color="black", lw=0.8, zorder=0)
        ax.set_title(name, fontsize=9)
        ax.set(xlim=(-1.08, 1.08), xticks=[-1, -0.5, 0, 0.5, 1], ylim=(len(methods) - 0.4, -0.6))
        ax.set_xticklabels(["−1", "", "0", "", "1"])
    axes[0].set_yticks(range(len(methods)), methods)
    pairs = known["classes"].max()
    pairs = f"{pairs:.0f} pairs of an old class and a step"
    title = f"{len(known)} rank correlations, each a mean over steps weighted by classes, with at most {pairs}"
    figure.suptitle(title, fontsize=9)
    axes[len(axes) // 2].set_xlabel("Spearman's rank correlation with the forgetting rate")
    look = {"ls": "", "marker": "o", "color": "#555555", "ms": 5}
    handles = [Line2D([], [], **look, label="IoU lost per epoch"), Line2D([], [], **look, mfc="white", label=RELATIVE)]
    style.legend_below(figure, handles)
    return figure


def _interval(ax: Axes, height: float, rows: pd.DataFrame, look: dict, hollow: bool) -> None:
    """A correlation and its interval at a height of the axes. `rows`: one or none."""
    for row in rows.itertuples():
        ax.plot([row.low, row.high], [height, height], color=look["color"], lw=1.6, zorder=2)
        face = "white" if hollow else look["color"]
        point = {**look, "ls": "", "ms": 5, "mew": 0.8, "mfc": face, "mec": look["color"] if hollow else "#333333"}
        ax.plot(row.correlation, height, **point, zorder=3, clip_on=False)


def gradient_panels(
    table: pd.DataFrame,
    methods: list[str],
    step: int,
    empty: str = "No gradient was logged: there is no incremental step, or no method with a softmax.",
) -> Figure:
    """Mean gradient magnitude of the labels of each step within one step (`gradient_table`).

    For methods with pixel weights, the product with the weight is dashed. The background counts with step 0.
    """
    table = table[(table["step"] == step) & (table["group"] != "background")]
    if table["value"].isna().all():
        return style.note("No labelled pixel has a gradient in this step." if len(table) else empty)
    table = table.dropna(subset=["value"])  # groups without a pixel
    groups = sorted(table["group"].unique(), key=lambda group: (len(group), group))  # step2 before step10
    labels = ("epochs into step " + str(step), "mean gradient magnitude |1 − p|")
    styles = dict(zip(groups, step_styles(range(len(groups))).values(), strict=True))
    figure, axes_by_method = charts.method_panels(table, methods, "value", *labels, "no gradient was logged")
    for ax, rows in axes_by_method:
        for (kind, group), values in rows.groupby(["kind", "group"], sort=False):
            means = values.groupby("epochs")["value"].mean()
            line = {"ls": "--", "lw": 1.2} if kind == "compensated" else {"lw": 1.6}
            markers = {**styles[group], "ms": 4, "markevery": max(1, len(means) // 5)}
            ax.plot(means.index, means, **line, **markers)
    figure.axes[0].set_ylim(0, 1.05 * table["value"].max() or 1)  # the automatic margin of equal values is 0
    names = {"step0": "step 0, with background"}
    labels = [names.get(group, f"step {group.removeprefix('step')}") for group in groups]
    handles = [Line2D([], [], **styles[group], ms=5, label=label) for group, label in zip(groups, labels, strict=True)]
    if (table["kind"] == "compensated").any():
        handles.append(Line2D([], [], color="#555555", ls="--", label="times the pixel weight"))
    style.legend_below(figure, handles, "step of the label")
    return figure
