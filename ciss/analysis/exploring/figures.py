"""Charts of the explore notebooks: gradients by class and layer, prototypes, labels of the background."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ciss.analysis.exploring.pictures import MAX_CLASSES
from ciss.analysis.figures import charts, style
from ciss.analysis.figures.families import GROUPS, class_style, step_styles

# colours of `prototypes.OUTCOMES`; in grey about 45 of 255 apart
OUTCOME_COLOURS = ("#FFFFFF", "#D0D0D0", "#005A8C", "#7FB0C8", "#D55E00", "#000000")
OUTCOME_HATCHES = ("", "", "", "//", "xx", "")


def gradient_bars(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Mean gradient, mean weight and share of all gradients of each class, beside each other for each method.

    Classes without pixels are left out. Of more than MAX_CLASSES classes, those with most pixels are drawn.

    Args:
        tables: of `gradients_by_class`, with the same classes, by the title of the method.
    """
    pixels = sum(table["pixels"] for table in tables.values())
    if not pixels.any():
        return style.note("no pixel has a label")
    drawn = sorted(pixels[pixels > 0].nlargest(MAX_CLASSES).index)[::-1]
    size = (1.4 + (8.2 if len(tables) == 1 else 9.2), 0.3 * len(drawn) + 1.7)
    figure, axes = plt.subplots(1, 3 * len(tables), figsize=size, sharey=True, layout="constrained")
    labels = {"gradient": "mean gradient\n|∂CE/∂z|", "weight": "mean weight", "share": "share of\nall gradients"}
    for number, (title, table) in enumerate(tables.items()):
        own = axes[3 * number : 3 * number + 3]
        _bars_of_steps(own, table.loc[drawn].reset_index(drop=True), list(labels))
        own[1].set_title(title, fontsize=9)
        for ax, first_ax, label in zip(own, axes[:3], labels.values(), strict=True):
            ax.set_xlabel(label, fontsize=8)
            ax.tick_params(axis="x", labelsize=8)
            if ax is not first_ax:
                ax.sharex(first_ax)
    # the axes of the other methods share these limits
    for ax, columns in zip(axes[:3], (["gradient"], ["weight"], ["share", "weighted share"]), strict=True):
        largest = np.nan_to_num([table.loc[drawn, columns] for table in tables.values()]).max()
        ax.set_xlim(0, 1.05 * largest if largest > 0 else 1)
        ax.locator_params(axis="x", nbins=4, prune="upper")
    first = next(iter(tables.values()))
    axes[0].set_yticks(range(len(drawn)), style.table_labels(figure, first, first.loc[drawn, "class"]))
    handles = [
        Patch(facecolor=look["color"], edgecolor="white", label=f"step {step}")
        for step, look in step_styles(first["introduced"]).items()
    ]
    handles.append(Line2D([], [], ls="", marker="D", color="white", mec="black", label="share, weighted"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _bars_of_steps(axes: Sequence[Axes], table: pd.DataFrame, columns: list[str]) -> None:
    """One method of `gradient_bars`."""
    rows = np.arange(len(table))
    for step, look in step_styles(table["introduced"]).items():
        own = table["introduced"] == step
        for ax, column in zip(axes, columns, strict=True):
            ax.barh(rows[own], np.nan_to_num(table[column][own]), facecolor=look["color"], edgecolor="white")
    axes[1].axvline(1, color="black", lw=0.8, ls=":")
    axes[2].plot(table["weighted share"], rows, "D", color="white", mec="black", ms=6)


def conflict_bars(ax: Axes, table: pd.DataFrame) -> None:
    """Cosine of the gradients of two losses in every layer (`gradient_conflict`). Below 0 they are in conflict."""
    table = table[::-1].reset_index(drop=True)
    for row, value in table["cosine"].items():
        if np.isnan(value):
            ax.text(0, row, " no gradient", va="center", fontsize=7)
            continue
        colour, hatch = ("#B35806", "//") if value < 0 else ("#8073AC", "")
        ax.barh(row, value, color=colour, hatch=hatch, edgecolor="white")
        ax.text(1.04, row, f"{value:+.2f}", va="center", fontsize=7)
    ax.set_yticks(table.index, table["layer"], fontsize=7)
    ax.axvline(0, color="black", lw=0.8)
    ax.set(xlim=(-1, 1), ylim=(-0.6, len(table) - 0.4), xlabel="cosine (−1: opposite directions)")
    ax.set_xticks((-1, -0.5, 0, 0.5, 1))


def cosine_map(ax: Axes, cosines: pd.DataFrame) -> None:
    """A heat map of `term_cosines`."""
    charts.diverging_map(ax, cosines, "cosine", 1, cbar_ax=ax.inset_axes((1.03, 0, 0.04, 1)))
    charts.column_ticks(ax, cosines.columns, rotation=40)
    ax.tick_params(labelsize=8)


def side_by_side(
    draw: Callable[[Axes, Any], None], values: Mapping[str, Any], height: float, width: float = 4.6
) -> Figure:
    """`draw(ax, value)` for each method, one beside the other, with one legend for all.

    Args:
        values: what is drawn, by the title of the method.
        height: of the figure, in inches.
        width: of each part, in inches.
    """
    size = (width * len(values) + 0.8, height)
    figure, axes = plt.subplots(1, len(values), figsize=size, squeeze=False, layout="constrained")
    names, legends = [], []
    for ax, (title, value) in zip(axes.flat, values.items(), strict=True):
        draw(ax, value)
        ax.set_title(title, fontsize=9)
        labels = [label.get_text() for label in ax.get_yticklabels()]
        if labels and labels in names:
            ax.tick_params(axis="y", labelleft=False)
        names.append(labels)
        if legend := ax.get_legend():
            legends.append(legend)
            legend.remove()
    if legends:
        entries = legends[0].legend_handles, [text.get_text() for text in legends[0].get_texts()]
        columns = max(1, int(size[0] / 1.7))
        figure.legend(*entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def projection(ax: Axes, table: pd.DataFrame, names: Sequence[str], shares: Sequence[float] = (0, 0)) -> None:
    """Pixels (small) and prototypes (large: the last step) in a plane; lines join the prototypes of a class.

    Args:
        ax: axes.
        table: `projection_table`.
        names: class names by position.
        shares: of the variance, for each axis; 0 for t-SNE.
    """
    handles = []
    for position, rows in table.groupby("position"):
        marker = {key: value for key, value in class_style(position).items() if key != "mec"}
        pixels = rows[rows["step"] < 0]
        ax.scatter(pixels["x"], pixels["y"], s=12, **marker, alpha=0.5, linewidths=0)
        path = rows[rows["step"] >= 0].sort_values("step")
        ax.plot(path["x"], path["y"], color="black", lw=1.2, zorder=3)
        for size, points in ((22, path[:-1]), (95, path[-1:])):
            ax.scatter(points["x"], points["y"], s=size, **marker, edgecolors="black", zorder=4)
        label = style.class_label(ax.figure, names[position], position)
        handles.append(Line2D([], [], ls="", **marker, mec="black", ms=7, label=label))
    if handles:
        handles = handles[:MAX_CLASSES]
        ax.legend(handles=handles, frameon=False, bbox_to_anchor=(1, 1), loc="upper left", fontsize=8)
    labels = [f"component {k + 1}: {share:.0%} of the variance" for k, share in enumerate(shares)]
    if not any(shares):
        labels = ["t-SNE: only neighbourhood has a meaning", ""]
    ax.set(xlabel=labels[0], ylabel=labels[1], xticks=[], yticks=[])


def drift_heatmap(ax: Axes, table: pd.DataFrame, column: str = "relative", top: float | None = None) -> None:
    """Drift of the prototype of every class in every step (`drift_table`).

    Args:
        column: relative, drift or cosine.
        top: the end of the scale, not of cosines; None: the largest value.
    """
    drift = table.pivot(index="class", columns="step", values=column).reindex(list(dict.fromkeys(table["class"])))
    drift = drift.drop(columns=0, errors="ignore")[:MAX_CLASSES]
    if drift.isna().all(axis=None):
        style.note_in(ax, "No step before this one: no prototype has moved.")
        return
    drift.index = style.table_labels(ax.figure, table, drift.index)
    unit = {"relative": "drift / spread of the class", "drift": "drift (feature units)", "cosine": "cosine"}[column]
    if column == "cosine":
        charts.diverging_map(ax, drift, unit, 1)
    else:
        charts.heatmap(ax, drift, unit, vmax=top, fmt=".2f")
    ax.set_xlabel("in step")


def confusion_bars(ax: Axes, table: pd.DataFrame) -> None:
    """Shares of each class's pixels by their nearest prototype (`nearest_confusions`): own, most confused, others.

    The most confused class is named beside the bar. Classes without pixels are left out.
    """
    table = table[table["pixels"] > 0][:MAX_CLASSES].reset_index(drop=True)
    if table.empty:
        style.note_in(ax, "No pixel has a class.")
        return
    shares = pd.DataFrame({"its own": table["own"], "the one named": table["confused"]})
    shares["others"] = (1 - shares.sum(axis=1)).clip(lower=0)
    shares.index = style.table_labels(ax.figure, table, table["class"])
    styles = {"its own": GROUPS["right"], "the one named": GROUPS["new"], "others": GROUPS["background"]}
    charts.stacked_bars(ax, shares, styles)
    for row, (name, share) in enumerate(zip(table["confused with"][::-1], table["confused"][::-1], strict=True)):
        if name:
            (label,) = style.table_labels(ax.figure, table, [name])
            ax.text(102, row, f"{label} {100 * share:.1f} %", va="center", fontsize=8)
    ax.set_xlabel("pixels nearest to the prototype of ... (%)")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)


def outcome_picture(outcomes: np.ndarray) -> np.ndarray:
    """RGB picture (H,W,3) of a map (H,W) of `label_outcomes`."""
    return (np.array([to_rgb(colour) for colour in OUTCOME_COLOURS]) * 255).round().astype(np.uint8)[outcomes]


def outcome_handles(names: Sequence[str]) -> list[Patch]:
    """Entries of a legend for `outcome_picture`."""
    colours = zip(OUTCOME_COLOURS, names, strict=True)
    return [Patch(facecolor=colour, edgecolor="#444444", label=name) for colour, name in colours]


def relabel_bars(ax: Axes, table: pd.DataFrame) -> None:
    """Outcomes of the pixels with the given label background, one bar for each true class (`relabel_table`)."""
    if table.empty:
        style.note_in(ax, "No pixel has the given label background.")
        return
    table = table[:MAX_CLASSES]
    styles = dict(zip(table.columns[2:], list(zip(OUTCOME_COLOURS, OUTCOME_HATCHES, strict=True))[1:], strict=True))
    shares = table[list(styles)].set_axis(style.table_labels(ax.figure, table, table["class"]), axis=0)
    charts.stacked_bars(ax, shares, styles)
    ax.set_xlabel("pixels of the true class with the given label background (%)")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=8)
