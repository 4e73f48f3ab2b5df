"""Figures of forgetting: which classes lose IoU, and how fast.

Functions draw the table of the same room (`tables.py` and its neighbours). `methods`: titles, in the order of the
panels. `empty`: the sentence shown if the table has no rows.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from ciss.analysis.figures import charts, style

MAX_CLASSES = 24  # classes in one panel of bars or lines
NO_STEP = "No incremental step: forgetting is not measured."
NO_PACE = "No hold-out set: the forgetting rate within a step is not measured."
NO_IOU = "No IoU is defined."

FACTOR_NAMES = {
    "pixel_share": "share of labelled training pixels",
    "similarity": "cosine to the nearest new class",
    "gradient": "gradient magnitude before the step",
}


def iou_heatmaps(table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> Figure:
    """IoU of every class after every step (`forgetting_table`), mean over seeds. Later classes stay empty."""
    if table.empty:
        return style.note(empty)
    names, steps = list(dict.fromkeys(table["class"])), sorted(table["step"].unique())
    width = max(2.2, 0.42 * len(steps)) + 0.06 * max(0, max(len(style.short(name)) for name in names) - 14)  # inches
    figure, axes = style.panels(len(methods), (width, 0.22 * len(names) + 0.6))
    labels = style.table_labels(figure, table, names)
    for ax, method in zip(axes, methods, strict=True):
        rows = table[table["method"] == method]
        ious = rows.pivot_table(index="class", columns="step", values="iou", dropna=False).reindex(names, columns=steps)
        ax.set_title(method)
        if ious.isna().all(axis=None):
            style.note_in(ax, NO_IOU)
        else:
            charts.heatmap(ax, ious, yticklabels=labels)
    for ax in style.lowest(axes):
        ax.set_xlabel("after step")
    if drawn := [ax.collections[0] for ax in axes if ax.collections]:
        figure.colorbar(drawn[0], ax=axes, label="IoU", shrink=0.6, pad=0.02)
    return figure


def forgetting_bars(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Forgetting of each old class by method (columns class, method, forgetting), mean over seeds; see `_largest`."""
    if table["forgetting"].isna().all():
        style.note_in(ax, "No old class has an IoU before and after." if len(table) else empty)
        return
    classes, methods = _largest(table, "forgetting"), list(dict.fromkeys(table["method"]))
    means = table.pivot_table(index="class", columns="method", values="forgetting", dropna=False).reindex(classes)
    styles = style.method_styles(methods)
    colours = [styles[method]["color"] for method in methods]
    means[methods].plot.bar(ax=ax, width=0.8, color=colours, edgecolor="white", legend=False)
    for bars, hatch in zip(ax.containers, style.HATCHES * len(methods), strict=False):
        for bar in bars:
            bar.set_hatch(hatch)
    ax.axhline(0, color="black", lw=0.8)
    charts.slanted_ticks(ax, style.table_labels(ax.figure, table, classes), first=0)
    ax.set(xlabel="", ylabel="forgetting (IoU)")
    if len(classes) < (count := table["class"].nunique()):
        ax.set_xlabel(f"{len(classes)} of {count} old classes: those with the largest forgetting")
    ax.legend(frameon=False, title="method", loc="upper left", bbox_to_anchor=(1, 1))


def _largest(table: pd.DataFrame, column: str) -> list[str]:
    """The classes in the order of the table; of more than MAX_CLASSES those with the largest mean of a column."""
    names = list(dict.fromkeys(table["class"]))
    largest = table.groupby("class")[column].mean().nlargest(MAX_CLASSES).index
    return names if len(names) <= MAX_CLASSES else [name for name in names if name in largest]


def pace_panels(table: pd.DataFrame, methods: list[str], empty: str = NO_PACE) -> Figure:
    """IoU of each class over the epochs of a step (rows of `pace_table`); see `_largest`."""
    if table["iou"].isna().all():
        return style.note("No old class has an IoU on the hold-out set." if len(table) else empty)
    names, count = _largest(table, "iou"), table["class"].nunique()
    figure, axes_by_method = charts.method_panels(
        table, methods, "iou", "epochs into the step", "IoU, hold-out", NO_IOU
    )
    for ax, rows in axes_by_method:
        for k, name in enumerate(names):
            means = rows[rows["class"] == name].groupby("epochs")["iou"].mean()
            ax.plot(means.index, means, **style.mark(k), ms=4, lw=1.2, label=name)
        ax.set_xscale("symlog", linthresh=0.05, base=2)
        ticks = [0, 0.1, 0.5, 2, 8]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set_ylim(0, 1)
    title = f"{len(names)} of {count} classes: those with the largest IoU" if len(names) < count else None
    style.legend_below(figure, _lines(style.table_labels(figure, table, names)), title, columns=4)
    return figure


def _lines(names: Sequence[str]) -> list[Line2D]:
    """Entries of a legend of lines with the styles of `mark`."""
    return [Line2D([], [], **style.mark(k), ms=5, label=name) for k, name in enumerate(names)]


def group_panels(table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> Figure:
    """Mean IoU of the classes of each step after every step (`group_table`); whiskers: one standard deviation."""
    if table["iou"].isna().all():
        return style.note("No class has an IoU." if len(table) else empty)
    steps, groups = sorted(table["step"].unique()), sorted(table["introduced"].unique())
    figure, axes_by_method = charts.method_panels(table, methods, "iou", "after step", "mean IoU, validation", NO_IOU)
    for ax, rows in axes_by_method:
        for k, group in enumerate(groups):
            ious = rows[rows["introduced"] == group].groupby("step")["iou"].agg(["mean", "std"])
            whiskers = ious["std"].fillna(0) if ious["std"].notna().any() else None
            ax.errorbar(ious.index, ious["mean"], yerr=whiskers, **style.mark(k), ms=5, capsize=3)
        style.step_ticks(ax, steps)
        ax.set(xlim=(min(steps) - 0.3, max(steps) + 0.3), ylim=(0, 1))
    style.legend_below(figure, _lines([f"step {group}" for group in groups]), "classes of")
    return figure


def pace_scatter(table: pd.DataFrame, correlations: pd.DataFrame, methods: list[str], empty: str = NO_PACE) -> Figure:
    """IoU that each old class lost per epoch (`pace_factors`) against each factor, with their `rank_correlations`."""
    if table["pace"].isna().all():
        return style.note("No old class has an IoU on the hold-out set." if len(table) else empty)
    figure, axes = style.panels(len(FACTOR_NAMES), (2.5, 2.5 + 0.17 * len(methods)), sharex=False)
    below = ScaledTranslation(0, -0.42, figure.dpi_scale_trans)  # inches: room for the label of the axis
    known = correlations.set_index(["method", "factor"])
    styles = style.method_styles(methods)
    for ax, (factor, name) in zip(axes, FACTOR_NAMES.items(), strict=True):
        for method in methods:
            rows = table[table["method"] == method]
            row = (method, factor)
            label = f"{method}: {_correlation(known.loc[row])}" if row in known.index else method
            marker = {key: styles[method][key] for key in ("color", "marker")}
            ax.scatter(rows[factor], rows["pace"], label=label, s=26, lw=0.5, edgecolors="white", **marker)
        ax.axhline(0, color="black", lw=0.6)
        ax.set_xlabel(name)
        values = table.dropna(subset=[factor, "pace"])[factor]
        if values.empty:
            style.text_in(ax, "not measured")
        elif factor == "pixel_share" and values.min() > 0:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.legend(
            frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, 0), title="rank correlation",
            bbox_transform=ax.transAxes + below, title_fontsize=7.5, handletextpad=0.3,
        )  # fmt: skip
    axes[0].set_ylabel("IoU lost per epoch, hold-out")
    return figure


def _correlation(row: pd.Series) -> str:
    if np.isnan(row["correlation"]):
        return "-"
    text = f"{row['correlation']:+.2f}"
    return text if np.isnan(row["low"]) else f"{text} [{row['low']:+.2f}, {row['high']:+.2f}]"


def gradient_panels(
    table: pd.DataFrame, methods: list[str], step: int, empty: str = "No incremental step: no gradient was logged."
) -> Figure:
    """Mean gradient magnitude of the labels of each step within one step (`gradient_table`).

    For methods with pixel weights, the product with the weight is dashed.
    """
    table = table[table["step"] == step]
    if table["value"].isna().all():
        return style.note("No labelled pixel has a gradient in this step." if len(table) else empty)
    table = table.dropna(subset=["value"])  # groups without a pixel
    groups = sorted(table["group"].unique(), key=lambda group: (len(group), group))  # step2 before step10
    labels = ("epochs into step " + str(step), "mean gradient magnitude")
    figure, axes_by_method = charts.method_panels(table, methods, "value", *labels, "no gradient was logged")
    for ax, rows in axes_by_method:
        for (kind, group), values in rows.groupby(["kind", "group"], sort=False):
            means = values.groupby("epochs")["value"].mean()
            line = {"ls": "--", "lw": 1.2} if kind == "compensated" else {"lw": 1.6}
            markers = {**style.mark(groups.index(group)), "ms": 4, "markevery": max(1, len(means) // 5)}
            ax.plot(means.index, means, **line, **markers)
    figure.axes[0].set_ylim(0, 1.05 * table["value"].max() or 1)  # the automatic margin of equal values is 0
    names = {"background": "background", "step0": "step 0, with background"}
    handles = _lines([names.get(group, f"step {group.removeprefix('step')}") for group in groups])
    if (table["kind"] == "compensated").any():
        handles.append(Line2D([], [], color="#555555", ls="--", label="times its weight"))
    style.legend_below(figure, handles, "learnt as")
    return figure
