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

from ciss.viz.look import COLOURS, MARKERS, note
from ciss.viz.pictures import show

MOST = 24  # classes in one figure
HATCHES = ("", "//", "xx", "..", "\\\\", "++")
# what became of a pixel, as `ciss.analysis.FATES` numbers it; from light to dark and back, told apart in grey
FATE_COLOURS = ("#FFFFFF", "#CCCCCC", "#56B4E9", "#E69F00", "#A01030", "#303030")


def panels(parts: Sequence[tuple], size: float = 1.9) -> Figure:
    """Pictures and maps of one image beside each other, four in a row.

    `parts`: (title, RGB picture (H,W,3)), or (title, map (h,w) of numbers, unit, largest value or None[, outline (H,W)
    bool]). A map has a bar with its unit, from 0 to the largest value (None: its own 99th percentile). Pixels that the
    outline holds are framed.
    """
    columns = min(4, max(1, len(parts)))
    rows = -(-len(parts) // columns)
    tall = max([part[1].shape[0] / part[1].shape[1] for part in parts], default=1)
    figure, axes = plt.subplots(
        rows, columns, figsize=((size + 0.75) * columns, (size * min(tall, 1.5) + 0.5) * rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, picture, *rest) in zip(axes.flat, parts, strict=False):
        if picture.ndim == 3:
            show(ax, picture, title)
            continue
        unit, top, outline = (*rest, None, None, None)[:3]
        picture = np.asarray(picture, float)
        if top is None:
            finite = picture[np.isfinite(picture)]
            top = float(np.percentile(finite, 99)) if finite.size else 0.0
        height, width = picture.shape
        drawn = ax.imshow(
            picture, cmap="cividis", vmin=0, vmax=top or 1.0, interpolation="nearest", extent=(0, width, height, 0)
        )
        ax.set_title(title, fontsize=9)
        bar = figure.colorbar(
            drawn, ax=ax, shrink=0.85, extend="max" if np.nanmax(picture, initial=0) > top else "neither"
        )
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        if outline is not None:
            _frame(ax, np.asarray(outline), height, width)
    return figure


def _frame(ax: Axes, inside: np.ndarray, height: int, width: int) -> None:
    """A white line on black around a region; none where it is empty or everything."""
    if inside.any() and not inside.all():
        rows, columns = (np.arange(n) + 0.5 for n in inside.shape)
        at = columns * width / inside.shape[1], rows * height / inside.shape[0]
        for colour, wide in (("black", 2.2), ("white", 1.0)):
            ax.contour(*at, inside.astype(float), levels=[0.5], colors=colour, linewidths=wide)


def gradient_bars(table: pd.DataFrame) -> Figure:
    """Mean gradient and mean weight of each class's pixels, and the share of all gradients before and after weighing.

    `table`: see `ciss.analysis.gradient_table`; classes without pixels are left out, and beyond MOST those with fewest.
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
        for k, (value, (colour, hatch)) in enumerate(zip(table[column], looks, strict=True)):
            ax.barh(k, np.nan_to_num(value), color=colour, hatch=hatch, edgecolor="white")
        ax.set(xlabel=label, xlim=(0, None))
    axes[0].set_yticks(range(len(table)), table["class"])
    axes[1].axvline(1, color="black", lw=0.8, ls=":")
    axes[2].plot(table["weighted share"], range(len(table)), "D", color="white", mec="black", ms=6, label="weighted")
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
        colour, hatch = (COLOURS[4], "//") if value < 0 else (COLOURS[5], "")
        ax.barh(k, value, color=colour, hatch=hatch, edgecolor="white")
        ax.text(1.04, k, f"{value:+.2f}", va="center", fontsize=7)
    ax.set_yticks(range(len(table)), table["layer"], fontsize=7)
    ax.axvline(0, color="black", lw=0.8)
    ax.set(xlim=(-1, 1), ylim=(-0.6, len(table) - 0.4), xlabel="cosine (−1: against each other)")
    ax.set_title(title, fontsize=9)


def cosine_heatmap(ax: Axes, cosines: pd.DataFrame, title: str = "") -> None:
    """Cosines between the gradients of all losses, each with its number; empty where there is none."""
    sns.heatmap(
        cosines, ax=ax, vmin=-1, vmax=1, cmap="cividis", annot=True, fmt=".2f", annot_kws={"fontsize": 7},
        linewidths=0.5, cbar_kws={"label": "cosine", "ticks": [-1, 0, 1]}, mask=cosines.isna(),
    )  # fmt: skip
    places = np.arange(len(cosines)) + 0.5
    ax.set_xticks(places, list(cosines.columns), rotation=40, ha="right", fontsize=8)
    ax.set_yticks(places, list(cosines.index), rotation=0, fontsize=8)
    ax.set_title(title, fontsize=9)


def conflict_figure(table: pd.DataFrame, cosines: pd.DataFrame, titles: tuple[str, str] = ("", "")) -> Figure:
    """`conflict_bars` beside `cosine_heatmap`."""
    tall = max(0.19 * len(table) + 0.9, 0.42 * len(cosines) + 1.6)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, tall), layout="constrained")
    conflict_bars(left, table, titles[0])
    cosine_heatmap(right, cosines, titles[1])
    return figure


def look_of(position: int) -> tuple[str, str]:
    """Colour and marker of a class: different for the first 64."""
    return COLOURS[position % 8], MARKERS[(position + position // 8) % 8]


def projection(ax: Axes, table: pd.DataFrame, names: Sequence[str], axes: tuple[str, str] = ("", "")) -> None:
    """Pixels and prototypes in a plane, a colour and marker a class; a line follows a prototype from step to step, and
    the large mark is where it is last.

    `table`: see `ciss.analysis.projection_table`.
    """
    for position, mine in table.groupby("position"):
        colour, marker = look_of(position)
        pixels = mine[mine["step"] < 0]
        ax.scatter(pixels["x"], pixels["y"], s=9, color=colour, marker=marker, alpha=0.45, linewidths=0)
        path = mine[mine["step"] >= 0].sort_values("step")
        ax.plot(path["x"], path["y"], color="black", lw=1.2, zorder=3)
        ax.scatter(path["x"], path["y"], s=10, color="black", zorder=3)
        if len(path):
            last = path.iloc[-1:]
            ax.scatter(last["x"], last["y"], s=95, color=colour, marker=marker, edgecolors="black", zorder=4)
    handles = [
        Line2D([], [], ls="", color=look_of(p)[0], marker=look_of(p)[1], mec="black", ms=7, label=names[p])
        for p in sorted(set(table["position"]))[:MOST]
    ]
    if handles:
        ax.legend(handles=handles, frameon=False, bbox_to_anchor=(1, 1), loc="upper left", fontsize=8)
    ax.set(xlabel=axes[0], ylabel=axes[1], xticks=[], yticks=[])


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
    for values, colour, hatch, label in (
        (table["own"], COLOURS[2], "", "its own"),
        (table["confused"], COLOURS[4], "xx", "the one named"),
        (rest, "#BBBBBB", "", "others"),
    ):
        ax.barh(range(len(table)), values, left=left, color=colour, hatch=hatch, edgecolor="white", label=label)
        left = left + values.to_numpy(float)
    for k, row in table.iterrows():
        if row["confused with"]:
            ax.text(1.02, k, f"{row['confused with']} {row['confused']:.2f}", va="center", fontsize=8)
    ax.set_yticks(range(len(table)), table["class"])
    ax.set(xlim=(0, 1), xlabel="share of pixels nearest to the prototype of ...")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, fontsize=8)


def fate_picture(fates: np.ndarray) -> np.ndarray:
    """A map (H,W) of `ciss.analysis.FATES` as RGB."""
    table = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in FATE_COLOURS], np.uint8)
    return table[fates]


def fate_legend(figure: Figure, names: Sequence[str]) -> None:
    patches = [Patch(facecolor=c, edgecolor="#444444", label=n) for c, n in zip(FATE_COLOURS, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


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
    ax.set_yticks(range(len(table)), table["class"])
    ax.set(xlim=(0, 1), xlabel="share of the true class's pixels among what is told as background")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3, fontsize=8)
