"""What fades, and how fast."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from ciss.viz.look import (
    HATCHES,
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
    step_ticks,
)

MOST = 24  # classes in one panel of bars or lines
NO_STEP = "No incremental step: forgetting is not measured."
NO_PACE = "No hold-out set: the forgetting rate within a step is not measured."

FACTOR_NAMES = {
    "pixel_share": "share of labelled training pixels",
    "similarity": "cosine to the nearest new class",
    "gradient": "gradient magnitude before the step",
}


def iou_heatmaps(table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> Figure:
    """IoU of every class after every step, with its number, one panel a method; mean over seeds. Classes that do not
    exist yet stay empty. `table`: `ciss.analysis.forgetting_table`; `empty`: why it has no rows."""
    if table.empty:
        return note(empty)
    names, steps = list(dict.fromkeys(table["class"])), sorted(table["step"].unique())
    wide = max(2.2, 0.42 * len(steps)) + 0.06 * max(0, max(len(short(name)) for name in names) - 14)  # inches
    figure, axes = panels(len(methods), (wide, 0.22 * len(names) + 0.6))
    for ax, method in zip(axes, methods, strict=True):
        mine = table[table["method"] == method]
        ious = mine.pivot_table(index="class", columns="step", values="iou", dropna=False).reindex(names, columns=steps)
        ax.set_title(method)
        if ious.isna().all(axis=None):
            note_in(ax, "No IoU is defined.")
            continue
        sns.heatmap(
            ious.astype(float), ax=ax, vmin=0, vmax=1, cmap="cividis", annot=ious.size <= 300, fmt=".2f",
            annot_kws={"fontsize": 7}, linewidths=0.5, cbar=False,
            yticklabels=[short(name) for name in class_labels(figure, names, all_classes(table))],
        )  # fmt: skip
        ax.set(xlabel="", ylabel="")
        ax.tick_params(axis="y", rotation=0)
    for ax in lowest(axes):
        ax.set_xlabel("after step")
    if drawn := [ax.collections[0] for ax in axes if ax.collections]:
        figure.colorbar(drawn[0], ax=axes, label="IoU", shrink=0.6, pad=0.02)
    return figure


def forgetting_bars(ax: Axes, table: pd.DataFrame, empty: str = NO_STEP) -> None:
    """Forgetting of each old class after the last step, methods side by side, mean over seeds; of more than MOST
    classes those that are forgotten most.

    `table`: columns class, method, forgetting; `empty`: why it has no rows.
    """
    if table["forgetting"].isna().all():
        note_in(ax, "No old class has an IoU before and after." if len(table) else empty)
        return
    classes, methods = _largest(table, table["forgetting"]), list(dict.fromkeys(table["method"]))
    width = 0.8 / max(1, len(methods))
    styles = method_styles(methods)
    for k, method in enumerate(methods):
        means = table[table["method"] == method].groupby("class")["forgetting"].mean().reindex(classes)
        positions = np.arange(len(classes)) + (k - (len(methods) - 1) / 2) * width
        ax.bar(
            positions,
            means,
            width,
            label=method,
            color=styles[method]["color"],
            hatch=HATCHES[k % len(HATCHES)],
            edgecolor="white",
        )
    ax.axhline(0, color="black", lw=0.8)
    labels = [short(name) for name in class_labels(ax.figure, classes, all_classes(table))]
    ax.set_xticks(range(len(classes)), labels, rotation=30, ha="right")
    ax.set(ylabel="forgetting (IoU)")
    if len(classes) < (count := table["class"].nunique()):
        ax.set_xlabel(f"{len(classes)} of {count} old classes: those forgotten most")
    ax.legend(frameon=False, title="method", loc="upper left", bbox_to_anchor=(1, 1))


def _largest(table: pd.DataFrame, values: pd.Series) -> list[str]:
    """The classes of a table in its order; of more than MOST those with the largest mean of `values`."""
    names = list(dict.fromkeys(table["class"]))
    largest = values.groupby(table["class"]).mean().nlargest(MOST).index
    return names if len(names) <= MOST else [name for name in names if name in set(largest)]


def pace_panels(table: pd.DataFrame, methods: list[str], empty: str = NO_PACE) -> Figure:
    """IoU of each class over a step's epochs, one panel a method; of more than MOST classes those with the largest.

    `table`: as `ciss.analysis.pace_table` gives it; `empty`: why it has no rows.
    """
    if table["iou"].isna().all():
        return note("No old class has an IoU on the hold-out set." if len(table) else empty)
    figure, axes = panels(len(methods))
    names, count = _largest(table, table["iou"]), table["class"].nunique()
    for ax, method in zip(axes, methods, strict=True):
        mine = table[table["method"] == method]
        if mine["iou"].isna().all():
            ax.text(0.5, 0.5, "No IoU is defined.", transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
        for k, name in enumerate(names):
            means = mine[mine["class"] == name].groupby("epochs")["iou"].mean()
            ax.plot(means.index, means, **mark(k), ms=4, lw=1.2, label=name)
        ax.set_xscale("symlog", linthresh=0.05, base=2)
        ticks = [0, 0.1, 0.5, 2, 8]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set(ylim=(0, 1), title=method)
    for ax in lowest(axes):
        ax.set_xlabel("epochs into the step")
    figure.supylabel("IoU, hold-out", fontsize="medium")
    title = f"{len(names)} of {count} classes: those with the largest IoU" if len(names) < count else None
    labels = class_labels(figure, names, all_classes(table))
    legend_below(figure, [_line(k, name) for k, name in enumerate(labels)], title, columns=4)
    return figure


def _line(k: int, name: str) -> Line2D:
    return Line2D([], [], **mark(k), ms=5, label=short(name))


def group_panels(table: pd.DataFrame, methods: list[str], empty: str = NO_STEP) -> Figure:
    """Mean IoU of each step's classes after every step, one panel a method; `table`: `ciss.analysis.group_table`,
    `empty`: why it has no rows."""
    if table["iou"].isna().all():
        return note("No class has an IoU." if len(table) else empty)
    figure, axes = panels(len(methods))
    steps, groups = sorted(table["step"].unique()), sorted(table["introduced"].unique())
    for ax, method in zip(axes, methods, strict=True):
        mine = table[table["method"] == method]
        for k, group in enumerate(groups):
            found = mine[mine["introduced"] == group].groupby("step")["iou"]
            means, spread = found.mean(), found.std()
            look = {**mark(k), "ms": 5, "capsize": 3}
            bars = spread.fillna(0) if spread.notna().any() else None
            ax.errorbar(means.index, means, yerr=bars, **look)
        if mine["iou"].isna().all():
            ax.text(0.5, 0.5, "No IoU is defined.", transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
        ax.set(ylim=(0, 1), title=method)
        step_ticks(ax, steps)
        ax.set_xlim(min(steps) - 0.3, max(steps) + 0.3)
    for ax in lowest(axes):
        ax.set_xlabel("after step")
    figure.supylabel("mean IoU, validation", fontsize="medium")
    legend_below(figure, [_line(k, f"step {group}") for k, group in enumerate(groups)], "classes of")
    return figure


def pace_scatter(table: pd.DataFrame, correlations: pd.DataFrame, methods: list[str], empty: str = NO_PACE) -> Figure:
    """What each old class lost an epoch against what might explain it; a panel a factor, a marker a method.

    `table`: `ciss.analysis.pace_factors`; `correlations`: its `rank_correlations`, said in the legends; `empty`:
    why there are no rows.
    """
    if table["pace"].isna().all():
        return note("No old class has an IoU on the hold-out set." if len(table) else empty)
    styles = method_styles(methods)
    figure, axes = panels(len(FACTOR_NAMES), (2.5, 2.5 + 0.17 * len(methods)), sharex=False)  # legends grow by a line
    below = ScaledTranslation(0, -0.42, figure.dpi_scale_trans)  # inches: room for the axis' name
    for ax, (factor, name) in zip(axes, FACTOR_NAMES.items(), strict=True):
        for method in methods:
            mine = table[table["method"] == method]
            found = correlations[(correlations["method"] == method) & (correlations["factor"] == factor)]
            label = f"{method}: {_said(found.iloc[0])}" if len(found) else method
            look = {key: styles[method][key] for key in ("color", "marker")}
            ax.scatter(mine[factor], mine["pace"], label=label, s=26, lw=0.5, edgecolors="white", **look)
        ax.axhline(0, color="black", lw=0.6)
        ax.set_xlabel(name)
        drawn = table.dropna(subset=[factor, "pace"])[factor]
        if drawn.empty:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
        if factor == "pixel_share" and len(drawn) and drawn.min() > 0:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.legend(
            frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, 0), title="rank correlation",
            bbox_transform=ax.transAxes + below, title_fontsize=7.5, handletextpad=0.3,
        )  # fmt: skip
    axes[0].set_ylabel("IoU lost an epoch, hold-out")
    return figure


def _said(row: pd.Series) -> str:
    if np.isnan(row["correlation"]):
        return "-"
    text = f"{row['correlation']:+.2f}"
    return text if np.isnan(row["low"]) else f"{text} [{row['low']:+.2f}, {row['high']:+.2f}]"


def gradient_panels(
    table: pd.DataFrame, methods: list[str], step: int, empty: str = "No incremental step: no gradient was logged."
) -> Figure:
    """Mean gradient magnitude of each step's labels over a step, one panel a method; of methods that weigh their pixels
    also times the weight (dashed). `table`: `ciss.analysis.gradient_table`; `empty`: why it has no rows."""
    mine = table[table["step"] == step]
    if mine["value"].isna().all():
        return note("No labelled pixel has a gradient in this step." if len(mine) else empty)
    mine = mine.dropna(subset=["value"])  # groups without a pixel
    groups = sorted(mine["group"].unique(), key=lambda group: (len(group), group))  # step2 before step10
    figure, axes = panels(len(methods))
    for ax, method in zip(axes, methods, strict=True):
        for (kind, group), line in mine[mine["method"] == method].groupby(["kind", "group"], sort=False):
            means, k = line.groupby("epochs")["value"].mean().dropna(), groups.index(group)
            dashed = {"ls": "--", "lw": 1.2} if kind == "compensated" else {"lw": 1.6}
            ends = {**mark(k), "ms": 4, "markevery": max(1, len(means) // 5)}
            ax.plot(means.index, means, **dashed, **ends)
        ax.set(title=method)
        if mine[mine["method"] == method]["value"].isna().all():
            ax.text(0.5, 0.5, "no gradient was logged", transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
    for ax in lowest(axes):
        ax.set_xlabel(f"epochs into step {step}")
    axes[0].set_ylim(0, 1.05 * mine["value"].max() or 1)  # a margin of equal values would be none
    figure.supylabel("mean gradient magnitude", fontsize="medium")
    names = {"background": "background", "step0": "step 0, with background"}
    handles = [_line(k, names.get(group, f"step {group.removeprefix('step')}")) for k, group in enumerate(groups)]
    if (mine["kind"] == "compensated").any():
        handles.append(Line2D([], [], color="#555555", ls="--", label="times its weight"))
    legend_below(figure, handles, "learnt as")
    return figure
