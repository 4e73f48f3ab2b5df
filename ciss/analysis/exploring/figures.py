"""What the exploring notebooks show: gradients on images and by layer, prototypes, what was re-labelled."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ciss.analysis.figures.masks import colour, show
from ciss.analysis.figures.style import COLOURS, HATCHES, MARKERS, all_classes, class_label, class_labels, note
from ciss.protocol import Classes

MOST = 24  # classes in one figure
# what became of a pixel, as `ciss.analysis.FATES` numbers it; in grey some 45 of 255 apart
FATE_COLOURS = ("#FFFFFF", "#D0D0D0", "#005A8C", "#E69F00", "#D55E00", "#000000")


def picture_row(
    parts: Sequence[tuple],
    classes: Classes | None = None,
    *,
    handles: Sequence[Patch] = (),
    size: float = 1.75,
) -> Figure:
    """Pictures, masks and maps of one image beside each other, at most four in a row.

    `parts`: (title, RGB picture (H,W,3)); (title, mask (H,W) of integers: positions, 255 void); or (title, map (h,w) of
    floats, unit, largest value or None[, outline (H,W) bool]). A map has a bar with its unit, from 0 to the largest
    value (None: its own 99th percentile). Pixels that the outline holds are framed. Below, the `classes` that the
    masks show, and in lines of their own `handles`.
    """
    rows = -(-len(parts) // 4)
    columns = -(-len(parts) // rows)
    tall = min(1.5, max(part[1].shape[0] / part[1].shape[1] for part in parts))
    masks = [part[1] for part in parts if part[1].ndim == 2 and np.issubdtype(part[1].dtype, np.integer)]
    shown = [k for k in np.unique(np.concatenate([m.ravel() for m in masks])) if k < len(classes)] if masks else []
    patches = [Patch(fc=classes.colours[k] / 255, ec="#444444", label=classes.names[k]) for k in shown[:MOST]]
    across = max(1, int((size + 0.75) * columns / 1.65))  # entries of a legend beside each other
    lines = [0.2 * -(-len(entries) // across) for entries in (patches, handles)]  # inches
    width, height = (size + 0.75) * columns, (size * tall + 0.28) * rows + sum(lines) + 0.15
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    for k, patch in zip(shown, patches, strict=False):
        patch.set_label(class_label(figure, classes.names[k], k))
    figure.subplots_adjust(
        left=0.02, right=1 - 0.7 / width, top=1 - 0.26 / height, bottom=(sum(lines) + 0.15) / height,
        wspace=0.7 / size, hspace=0.3 / (size * tall),
    )  # fmt: skip
    for entries, place in ((patches, (sum(lines) + 0.1) / height), (handles, (lines[1] + 0.03) / height)):
        options = {"loc": "upper center", "bbox_to_anchor": (0.5, place), "borderaxespad": 0, "borderpad": 0}
        if entries:
            figure.legend(handles=entries, ncols=min(across, len(entries)), frameon=False, fontsize=8, **options)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, picture, *rest) in zip(axes.flat, parts, strict=False):
        if picture.ndim == 3:
            show(ax, picture, title)
        elif np.issubdtype(picture.dtype, np.integer):
            show(ax, colour(picture, classes.colours), title)
        else:
            _map(ax, title, picture, *rest)
    return figure


def _map(
    ax: Axes,
    title: str,
    values: np.ndarray,
    unit: str = "",
    top: float | None = None,
    outline: np.ndarray | None = None,
) -> None:
    """A map of numbers from 0 with its bar."""
    finite = values[np.isfinite(values)]
    if top is None:
        top = float(np.percentile(finite, 99)) if finite.size else 0.0
    top, (height, width) = top or 1.0, values.shape
    drawn = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, interpolation="nearest", extent=(0, width, height, 0))
    ax.set_title(title, fontsize=9)
    bar = ax.inset_axes((1.03, 0.05, 0.05, 0.9))
    ax.figure.colorbar(drawn, cax=bar, extend="max" if (finite > top).any() else "neither")
    bar.set_ylabel(unit, fontsize=8)
    bar.tick_params(labelsize=7)
    if outline is not None:
        _frame(ax, np.asarray(outline), height, width)


def _frame(ax: Axes, inside: np.ndarray, height: int, width: int) -> None:
    """A white line on black around a region; none where it is empty or everything."""
    if inside.any() and not inside.all():
        rows, columns = (np.arange(n) + 0.5 for n in inside.shape)
        at = columns * width / inside.shape[1], rows * height / inside.shape[0]
        for paint, wide in (("black", 2.2), ("white", 1.0)):
            ax.contour(*at, inside.astype(float), levels=[0.5], colors=paint, linewidths=wide)


def gradient_bars(table: pd.DataFrame) -> Figure:
    """Mean gradient and mean weight of each class's pixels, and the share of all gradients before and after weighing.

    `table`: see `ciss.analysis.gradients_by_class`; classes without pixels are left out, beyond MOST those with fewest.
    """
    table = table[table["pixels"] > 0]
    if table.empty:
        return note("no pixel has a label")
    table = table.loc[sorted(table["pixels"].nlargest(MOST).index)][::-1]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 0.3 * len(table) + 1.4), sharey=True, layout="constrained")
    steps = sorted(set(table["introduced"]))
    looks = [(COLOURS[steps.index(s) % 8], HATCHES[steps.index(s) % len(HATCHES)]) for s in table["introduced"]]
    for ax, column, label in zip(
        axes, ("gradient", "weight", "share"), ("mean gradient |∂CE/∂z|", "mean weight", "share of all gradients"),
        strict=True,
    ):  # fmt: skip
        for k, (value, (paint, hatch)) in enumerate(zip(table[column], looks, strict=True)):
            ax.barh(k, np.nan_to_num(value), color=paint, hatch=hatch, edgecolor="white")
        ax.set(xlabel=label, xlim=(0, None))
        ax.locator_params(axis="x", nbins=4, prune="upper")
    axes[0].set_yticks(range(len(table)), class_labels(axes[0].figure, table["class"], all_classes(table)))
    axes[1].axvline(1, color="black", lw=0.8, ls=":")
    axes[2].plot(table["weighted share"], range(len(table)), "D", color="white", mec="black", ms=6, label="weighted")
    widest = np.nan_to_num(table[["share", "weighted share"]]).max()
    axes[2].set_xlim(0, 1.05 * widest if widest > 0 else 1)
    marks = [Patch(facecolor=COLOURS[k % 8], hatch=HATCHES[k % len(HATCHES)], edgecolor="white", label=f"step {s}")
             for k, s in enumerate(steps)]  # fmt: skip
    figure.legend(
        handles=[*marks, Line2D([], [], ls="", marker="D", color="white", mec="black", label="share, weighted")],
        loc="outside lower center", ncols=6, frameon=False, fontsize=8,
    )  # fmt: skip
    return figure


def conflict_bars(ax: Axes, table: pd.DataFrame, title: str = "") -> None:
    """Cosine of two losses' gradients in every layer, the number beside each bar; below 0 they are in conflict.

    `table`: see `ciss.analysis.gradient_conflict`. A layer that one of them does not reach says so.
    """
    table = table[::-1].reset_index(drop=True)
    for k, row in table.iterrows():
        value = row["cosine"]
        if np.isnan(value):
            ax.text(0, k, " no gradient", va="center", fontsize=7)
            continue
        paint, hatch = (COLOURS[4], "//") if value < 0 else (COLOURS[5], "")
        ax.barh(k, value, color=paint, hatch=hatch, edgecolor="white")
        ax.text(1.04, k, f"{value:+.2f}", va="center", fontsize=7)
    ax.set_yticks(range(len(table)), table["layer"], fontsize=7)
    ax.axvline(0, color="black", lw=0.8)
    ax.set(xlim=(-1, 1), ylim=(-0.6, len(table) - 0.4), xlabel="cosine (−1: against each other)")
    ax.set_title(title, fontsize=9)


def cosine_heatmap(ax: Axes, cosines: pd.DataFrame, title: str = "") -> None:
    """Cosines between the gradients of all losses, each with its number; empty where there is none."""
    values = cosines.to_numpy(float)
    drawn = ax.imshow(values, vmin=-1, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = "black" if value > 0.2 else "white"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=shade)
    places = np.arange(len(cosines))
    ax.set_xticks(places, list(cosines.columns), rotation=40, ha="right", fontsize=8)
    ax.set_yticks(places, list(cosines.index), fontsize=8)
    ax.set_title(title, fontsize=9)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0, 0.04, 1)), ticks=[-1, 0, 1])
    bar.set_label("cosine", fontsize=8)


def conflict_figure(table: pd.DataFrame, cosines: pd.DataFrame, titles: tuple[str, str] = ("", "")) -> Figure:
    """`conflict_bars` beside `cosine_heatmap`."""
    names = max(map(len, table["layer"])), max(map(len, cosines.columns), default=1)
    left, gap = (0.062 * names[0] + 0.15, 0.068 * names[1] + 0.6)  # inches that the names take
    below = max(0.5, 0.05 * names[1] + 0.1)
    inside = max(0.18 * len(table), 0.34 * len(cosines))
    width, height = left + 3.0 + gap + 3.6 + 0.9, inside + below + 0.3
    figure = plt.figure(figsize=(width, height))
    rows = below / height, inside / height
    bars = figure.add_axes((left / width, rows[0], 3.0 / width, rows[1]))
    cells = figure.add_axes(((left + 3.0 + gap) / width, rows[0], 3.6 / width, rows[1]))
    conflict_bars(bars, table, titles[0])
    cosine_heatmap(cells, cosines, titles[1])
    return figure


def look_of(position: int) -> tuple[str, str]:
    """Colour and marker of a class: different for the first 64."""
    return COLOURS[position % 8], MARKERS[(position + position // 8) % 8]


def projection(ax: Axes, table: pd.DataFrame, names: Sequence[str], shares: Sequence[float] = (0, 0)) -> None:
    """Pixels and prototypes in a plane, a colour and marker a class; a line follows a prototype from step to step, and
    the large mark is where it is last.

    `table`, `shares`: see `ciss.analysis.projection_table`.
    """
    for position, mine in table.groupby("position"):
        paint, marker = look_of(position)
        pixels = mine[mine["step"] < 0]
        ax.scatter(pixels["x"], pixels["y"], s=12, color=paint, marker=marker, alpha=0.5, linewidths=0)
        path = mine[mine["step"] >= 0].sort_values("step")
        ax.plot(path["x"], path["y"], color="black", lw=1.2, zorder=3)
        for size, places in ((22, path[:-1]), (95, path[-1:])):
            ax.scatter(places["x"], places["y"], s=size, color=paint, marker=marker, edgecolors="black", zorder=4)
    handles = [
        Line2D(
            [],
            [],
            ls="",
            color=look_of(p)[0],
            marker=look_of(p)[1],
            mec="black",
            ms=7,
            label=class_label(ax.figure, names[p], p),
        )
        for p in sorted(set(table["position"]))[:MOST]
    ]
    if handles:
        ax.legend(handles=handles, frameon=False, bbox_to_anchor=(1, 1), loc="upper left", fontsize=8)
    said = [f"component {k + 1}: {share:.0%} of the variance" for k, share in enumerate(shares)]
    if not any(shares):  # t-SNE's axes mean nothing
        said = ["nearness only: no axis, no unit", ""]
    ax.set(xlabel=said[0], ylabel=said[1], xticks=[], yticks=[])


def drift_heatmap(ax: Axes, table: pd.DataFrame, column: str = "relative") -> None:
    """Drift of every class in every step, with its number; empty where there is none.

    `table`: see `ciss.analysis.drift_table`.
    """
    wide = table.pivot(index="class", columns="step", values=column).reindex(list(dict.fromkeys(table["class"])))
    wide = wide.drop(columns=0, errors="ignore")[:MOST]
    if not wide.notna().to_numpy().any():
        ax.text(0.5, 0.5, "one step: nothing drifts", ha="center", va="center", fontsize=9)
        ax.set_axis_off()
        return
    wide.index = class_labels(ax.figure, wide.index, all_classes(table))
    unit = {"relative": "drift / spread of the class", "drift": "drift (feature units)", "cosine": "cosine"}[column]
    sns.heatmap(
        wide, ax=ax, vmin=0, cmap="cividis", annot=True, fmt=".2f", annot_kws={"fontsize": 7}, linewidths=0.5,
        mask=wide.isna(), cbar_kws={"label": unit},
    )  # fmt: skip
    ax.set(xlabel="in step", ylabel="")
    ax.tick_params(axis="y", rotation=0)


def confusion_bars(ax: Axes, table: pd.DataFrame) -> None:
    """Shares of each class's pixels that are nearest to its own prototype, to the one most of the rest are nearest to,
    which is named, and to others.

    `table`: see `ciss.analysis.nearest_confusions`; classes without pixels are left out.
    """
    table = table[table["pixels"] > 0][:MOST][::-1].reset_index(drop=True)
    if table.empty:
        ax.text(0.5, 0.5, "no pixel has a class", ha="center", va="center", fontsize=9)
        ax.set_axis_off()
        return
    rest = (1 - table["own"] - table["confused"]).clip(lower=0)
    left = np.zeros(len(table))
    for values, paint, hatch, label in (
        (table["own"], COLOURS[2], "", "its own"),
        (table["confused"], COLOURS[4], "xx", "the one named"),
        (rest, "#BBBBBB", "", "others"),
    ):
        ax.barh(range(len(table)), values, left=left, color=paint, hatch=hatch, edgecolor="white", label=label)
        left = left + values.to_numpy(float)
    for k, row in table.iterrows():
        if row["confused with"]:
            (other,) = class_labels(ax.figure, [row["confused with"]], [*all_classes(table), row["confused with"]])
            ax.text(1.02, k, f"{other} {row['confused']:.2f}", va="center", fontsize=8)
    ax.set_yticks(range(len(table)), class_labels(ax.figure, table["class"], all_classes(table)))
    ax.set(xlim=(0, 1), xlabel="share of pixels nearest to the prototype of ...")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)


def fate_picture(fates: np.ndarray) -> np.ndarray:
    """A map (H,W) of `ciss.analysis.FATES` as RGB."""
    table = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in FATE_COLOURS], np.uint8)
    return table[fates]


def fate_handles(names: Sequence[str]) -> list[Patch]:
    """What the colours of `fate_picture` mean, for a legend."""
    return [Patch(facecolor=c, edgecolor="#444444", label=n) for c, n in zip(FATE_COLOURS, names, strict=True)]


def relabel_bars(ax: Axes, table: pd.DataFrame) -> None:
    """What became of the pixels that are told as background, a bar for each true class.

    `table`: see `ciss.analysis.relabel_table`.
    """
    if table.empty:
        ax.text(0.5, 0.5, "no pixel is told as background", ha="center", va="center", fontsize=9)
        ax.set_axis_off()
        return
    table = table[:MOST][::-1].reset_index(drop=True)
    left = np.zeros(len(table))
    for k, name in enumerate(table.columns[2:]):
        hatch = {"old class, missed": "//", "wrong class": "xx"}.get(name, "")
        ax.barh(range(len(table)), table[name], left=left, color=FATE_COLOURS[k + 1], hatch=hatch, edgecolor="white",
                label=name)  # fmt: skip
        left = left + table[name].to_numpy(float)
    ax.set_yticks(range(len(table)), class_labels(ax.figure, table["class"], all_classes(table)))
    ax.set(xlim=(0, 1), xlabel="share of the true class's pixels among what is told as background")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=8)
