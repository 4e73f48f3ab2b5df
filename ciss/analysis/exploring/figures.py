"""Figures of the explore notebooks: gradients on images and by layer, prototypes, labels of the background."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ciss.analysis.figures import charts, style
from ciss.analysis.figures.families import GROUPS, class_style, step_styles
from ciss.analysis.figures.masks import class_patches, painted, show
from ciss.protocol import Classes

MAX_CLASSES = 24  # classes in one figure
# colours of `prototypes.OUTCOMES`; in grey about 45 of 255 apart
OUTCOME_COLOURS = ("#FFFFFF", "#D0D0D0", "#005A8C", "#E69F00", "#D55E00", "#000000")
OUTCOME_HATCHES = ("", "", "", "//", "xx", "")


def picture_row(
    parts: Sequence[tuple], classes: Classes | None = None, *, handles: Sequence[Patch] = (), size: float = 1.75
) -> Figure:
    """Pictures, masks and maps of one image beside each other, at most four in a row.

    Args:
        parts: (title, RGB picture (H,W,3)); (title, mask (H,W) of integer positions, 255 void[, ground
            truth (H,W), from which wrong pixels get an outline]); or (title, map (h,w) of
            floats, unit, largest value or None for the 99th percentile[, region (H,W) bool, which gets a frame]). Masks
            are laid over the first RGB picture.
        classes: of the masks; those in the masks are in the legend.
        handles: a second legend.
        size: width of a picture in inches.
    """
    rows = -(-len(parts) // 4)
    columns = -(-len(parts) // rows)
    tall = min(1.5, max(part[1].shape[0] / part[1].shape[1] for part in parts))
    masks = [part[1].ravel() for part in parts if part[1].ndim == 2 and np.issubdtype(part[1].dtype, np.integer)]
    positions = [k for k in np.unique(np.concatenate(masks)) if k < len(classes)][:MAX_CLASSES] if masks else []
    across = max(1, int((size + 0.75) * columns / 1.65))  # entries in a row of the legends
    lines = [0.2 * -(-len(entries) // across) for entries in (positions, handles)]  # inches
    width, height = (size + 0.75) * columns, (size * tall + 0.28) * rows + sum(lines) + 0.15
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=0.02, right=1 - 0.7 / width, top=1 - 0.26 / height, bottom=(sum(lines) + 0.15) / height,
        wspace=0.7 / size, hspace=0.3 / (size * tall),
    )  # fmt: skip
    patches = class_patches(figure, classes, positions) if positions else []
    for entries, top in ((patches, (sum(lines) + 0.1) / height), (handles, (lines[1] + 0.03) / height)):
        options = {"loc": "upper center", "bbox_to_anchor": (0.5, top), "borderaxespad": 0, "borderpad": 0}
        if entries:
            figure.legend(handles=entries, ncols=min(across, len(entries)), frameon=False, fontsize=8, **options)
    image = next((part[1] for part in parts if part[1].ndim == 3), None)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, picture, *rest) in zip(axes.flat, parts, strict=False):
        if picture.ndim == 2 and not np.issubdtype(picture.dtype, np.integer):
            _map(ax, title, picture, *rest)
        else:
            under = image if image is not None and image.shape[:2] == picture.shape else None
            show(ax, picture if picture.ndim == 3 else painted(picture, classes, under, *rest), title)
    return figure


def _map(
    ax: Axes, title: str, values: np.ndarray, unit: str = "", top: float | None = None, region: np.ndarray | None = None
) -> None:
    """A map of numbers from 0 with its colour bar, and a white line on black around a region (H,W)."""
    finite = values[np.isfinite(values)]
    if top is None:
        top = float(np.percentile(finite, 99)) if finite.size else 0.0
    top, (height, width) = top or 1.0, values.shape
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, interpolation="nearest", extent=(0, width, height, 0))
    ax.set_title(title, fontsize=9)
    bar = ax.inset_axes((1.03, 0.05, 0.05, 0.9))
    ax.figure.colorbar(image, cax=bar, extend="max" if (finite > top).any() else "neither")
    bar.set_ylabel(unit, fontsize=8)
    bar.tick_params(labelsize=7)
    if region is not None and region.any() and not region.all():
        rows, columns = (np.arange(n) + 0.5 for n in region.shape)
        grid = columns * width / region.shape[1], rows * height / region.shape[0]
        for line, thickness in (("black", 2.2), ("white", 1.0)):
            ax.contour(*grid, region.astype(float), levels=[0.5], colors=line, linewidths=thickness)


def gradient_bars(table: pd.DataFrame) -> Figure:
    """Mean gradient, mean weight and share of all gradients of each class (`gradients_by_class`).

    Classes without pixels are left out. Of more than MAX_CLASSES classes, those with most pixels are drawn.
    """
    table = table[table["pixels"] > 0]
    if table.empty:
        return style.note("no pixel has a label")
    table = table.loc[sorted(table["pixels"].nlargest(MAX_CLASSES).index)][::-1]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 0.3 * len(table) + 1.4), sharey=True, layout="constrained")
    rows = np.arange(len(table))
    labels = {"gradient": "mean gradient |∂CE/∂z|", "weight": "mean weight", "share": "share of all gradients"}
    handles = []
    for step, look in step_styles(table["introduced"]).items():
        bars = {"facecolor": look["color"], "edgecolor": "white"}
        own = table["introduced"] == step
        for ax, column in zip(axes, labels, strict=True):
            ax.barh(rows[own], np.nan_to_num(table[column][own]), **bars)
        handles.append(Patch(**bars, label=f"step {step}"))
    for ax, label in zip(axes, labels.values(), strict=True):
        ax.set(xlabel=label, xlim=(0, None))
        ax.locator_params(axis="x", nbins=4, prune="upper")
    axes[0].set_yticks(rows, style.table_labels(figure, table, table["class"]))
    axes[1].axvline(1, color="black", lw=0.8, ls=":")
    axes[2].plot(table["weighted share"], rows, "D", color="white", mec="black", ms=6)
    widest = np.nan_to_num(table[["share", "weighted share"]]).max()
    axes[2].set_xlim(0, 1.05 * widest if widest > 0 else 1)
    handles.append(Line2D([], [], ls="", marker="D", color="white", mec="black", label="share, weighted"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def conflict_bars(ax: Axes, table: pd.DataFrame, title: str = "") -> None:
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
    ax.set_title(title, fontsize=9)


def conflict_figure(table: pd.DataFrame, cosines: pd.DataFrame, titles: tuple[str, str] = ("", "")) -> Figure:
    """`conflict_bars` beside a heat map of `term_cosines`."""
    names = max(map(len, table["layer"])), max(map(len, cosines.columns), default=1)
    left, gap = 0.062 * names[0] + 0.15, 0.068 * names[1] + 0.6  # inches, for the names
    below = max(0.5, 0.05 * names[1] + 0.1)
    inside = max(0.18 * len(table), 0.34 * len(cosines))
    width, height = left + 3.0 + gap + 3.6 + 0.9, inside + below + 0.3
    figure = plt.figure(figsize=(width, height))
    rows = below / height, inside / height
    bars = figure.add_axes((left / width, rows[0], 3.0 / width, rows[1]))
    cells = figure.add_axes(((left + 3.0 + gap) / width, rows[0], 3.6 / width, rows[1]))
    conflict_bars(bars, table, titles[0])
    charts.diverging_map(cells, cosines, "cosine", 1, cbar_ax=cells.inset_axes((1.03, 0, 0.04, 1)))
    charts.column_ticks(cells, cosines.columns, rotation=40)
    cells.tick_params(labelsize=8)
    cells.set_title(titles[1], fontsize=9)
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


def drift_heatmap(ax: Axes, table: pd.DataFrame, column: str = "relative") -> None:
    """Drift of the prototype of every class in every step (`drift_table`). `column`: relative, drift or cosine."""
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
        charts.heatmap(ax, drift, unit, vmax=None, fmt=".2f")
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
