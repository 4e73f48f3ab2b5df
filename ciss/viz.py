"""Figures: `f(ax, arrays)`. Colours are told apart by the colour-blind and in grey: markers, hatches or numbers go with
them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's colours, dark and light in turn
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"
TRACES = {
    "gradient/": "mean gradient magnitude",
    "weight/": "weight of old pixels",
    "background/": "share of the background",
    "distance/": "distance weights",
    "patch/": "weight of patches",
    "cosine/": "cosine of new tokens",
}
VOID = (224, 224, 192)
DOTS = 128  # per inch; a power of two, so that pixels come out as whole numbers
OVERLAY = (480, 4096)  # pixels of the longer side: smaller pictures are enlarged, larger ones thinned
FLOWS = {"background": ("#BBBBBB", ""), "right": ("#009E73", ""), "old": ("#56B4E9", "//"), "new": ("#D55E00", "xx")}


def style() -> None:
    """Matplotlib's settings for every figure of the project."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.parse_math": False,  # class names may have any characters
        }
    )


def colour(mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A map (H,W) of positions as RGB, `colours` (T,3) by position; void is pale."""
    table = np.full((256, 3), VOID, np.uint8)
    table[: len(colours)] = colours
    return table[mask]


def show(ax: Axes, picture: np.ndarray, title: str = "") -> None:
    """An RGB picture without axes."""
    ax.imshow(picture, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()


def strips(rows: list[tuple[str, list[np.ndarray]]], size: float = 1.25) -> Figure:
    """Pictures in named rows, one column an image; `size` is a cell's width in inches.

    A row of maps (H,W) of numbers has one scale, from 0 to 1 or to their 99th percentile, and a bar beside it.
    """
    columns = max(len(pictures) for _, pictures in rows)
    tallest = max(picture.shape[0] / picture.shape[1] for _, pictures in rows for picture in pictures)
    bars = 0.6 if any(picture.ndim == 2 for _, pictures in rows for picture in pictures) else 0.0
    width, height, names = size * columns + 1.2 + bars, size * len(rows) * min(tallest, 1.5), 1.1
    figure, axes = plt.subplots(len(rows), columns, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=names / width, right=1 - (0.1 + bars) / width, bottom=0, top=1, wspace=0.05, hspace=0.05
    )
    for line, (name, pictures) in zip(axes, rows, strict=True):
        for ax in line:
            ax.set_axis_off()
        numbers = [picture.ravel() for picture in pictures if picture.ndim == 2]
        top = max(1.0, float(np.nanpercentile(np.concatenate(numbers), 99))) if numbers else 1.0
        for ax, picture in zip(line, pictures, strict=False):
            if picture.ndim == 2:
                drawn = ax.imshow(picture, interpolation="nearest", cmap="cividis", vmin=0, vmax=top)
            else:
                show(ax, picture)
        if numbers:
            bar = line[-1].inset_axes((1.06, 0.05, 0.08, 0.9))
            figure.colorbar(drawn, cax=bar, extend="max" if top > 1 else "neither")
            bar.tick_params(labelsize=6)
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    return figure


def class_legend(figure: Figure, names: list[str], colours: np.ndarray) -> None:
    """Names of the classes with their colours, under a figure of masks."""
    patches = [Patch(facecolor=c / 255, edgecolor="#444444", label=n) for n, c in zip(names, colours, strict=True)]
    patches.append(Patch(facecolor=np.array(VOID) / 255, edgecolor="#444444", label="void (ignored)"))
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=5, fontsize=8, frameon=False)


def overlay(picture: np.ndarray, ids: np.ndarray, names: dict[int, str], palette: np.ndarray) -> Figure:
    """A picture (H,W,3) with classes (H,W), raw ids, laid over it half transparent, each with its id on it; below it a
    legend of those that occur: id, name and share of the pixels. Background (0) stays clear.

    `names` by id, `palette` (256,3). A pixel is a pixel, but small pictures are enlarged and large ones thinned by
    whole factors, see OVERLAY.
    """
    longest = max(ids.shape)
    shares = np.bincount(ids.ravel(), minlength=256) / ids.size
    zoom, thin = max(1, OVERLAY[0] // longest), -(-longest // OVERLAY[1])
    picture, ids = (part[::thin, ::thin].repeat(zoom, 0).repeat(zoom, 1) for part in (picture, ids))
    mixed = (picture.astype(np.uint16) + palette[ids] + 1) // 2
    mixed = np.where((ids > 0)[..., None], mixed, picture).astype(np.uint8)

    height, width = ids.shape
    font = 8 * max(1.0, max(height, width) / 640)
    figure = Figure(figsize=(width / DOTS, height / DOTS), dpi=DOTS, facecolor="white")
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = [int(c) for c in np.argsort(-shares, kind="stable") if shares[c]]
    patches = [
        Patch(
            facecolor=palette[c] / 255 if c else "none",
            edgecolor="#444444",
            label=f"{c}  {names.get(c, 'no class')}  {percent(shares[c])}",
        )
        for c in found
    ]
    for columns in range(min(5, len(found)), 0, -1):  # as many as fit beside each other
        legend = figure.legend(
            handles=patches, loc="lower center", ncols=columns, fontsize=font, frameon=False,
            borderaxespad=0, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip
        extent = legend.get_window_extent(renderer)
        if columns == 1 or extent.width <= width:
            break
        legend.remove()
    below, whole = round(extent.height + 1), max(width, round(extent.width + 1))
    figure.set_size_inches(whole / DOTS, (height + below) / DOTS)
    left = (whole - width) // 2
    figure.figimage(mixed, left, below)
    for c in found:
        if c and (place := _middle(ids == c)):
            row, column = place
            figure.text(
                left + column, below + height - row, str(c), transform=None, ha="center", va="center", fontsize=font,
                bbox={"fc": "white", "ec": "none", "pad": 0.15 * font, "alpha": 0.8},
            )  # fmt: skip
    return figure


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _middle(inside: np.ndarray) -> tuple[int, int] | None:
    """The pixel of a region (H,W) bool nearest to the median of its rows and columns; None for one too small to meet a
    grid of some 200 lines."""
    step = -(-max(inside.shape) // 200)
    places = np.argwhere(inside[::step, ::step])
    if not len(places):
        return None
    row, column = places[np.abs(places - np.median(places, axis=0)).sum(axis=1).argmin()] * step
    return int(row), int(column)


def iou_heatmap(ax: Axes, ious: np.ndarray, names: list[str], title: str = "") -> None:
    """IoU (S,T) of every class after every step, with its number; classes that do not exist yet stay empty."""
    sns.heatmap(
        pd.DataFrame(np.asarray(ious, float).T, index=names),
        ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f", annot_kws={"fontsize": 7}, linewidths=0.5,
        cbar_kws={"label": "IoU"},
    )  # fmt: skip
    ax.set(xlabel="after step", title=title)
    ax.tick_params(axis="y", rotation=0)


def method_lines(ax: Axes, table: pd.DataFrame, x: str, y: str, methods: list[str] | None = None) -> None:
    """A line a method: mean over seeds, whiskers of one standard deviation where there are several."""
    for k, method in enumerate(methods or list(dict.fromkeys(table["method"]))):
        groups = table[table["method"] == method].groupby(x)[y]
        mean, spread = groups.mean(), groups.std().fillna(0)
        ax.errorbar(
            mean.index,
            mean,
            yerr=spread if spread.any() else None,
            label=method,
            color=COLOURS[k % 8],
            marker=MARKERS[k % 8],
            ms=5,
            capsize=3,
        )
    ax.set(xlabel=x, ylabel=y)


def forgetting_bars(ax: Axes, table: pd.DataFrame) -> None:
    """Forgetting of each old class after the last step, methods side by side, mean over seeds.

    `table`: columns class, method, forgetting.
    """
    classes, methods = list(dict.fromkeys(table["class"])), list(dict.fromkeys(table["method"]))
    width = 0.8 / max(1, len(methods))
    for k, method in enumerate(methods):
        means = table[table["method"] == method].groupby("class")["forgetting"].mean().reindex(classes)
        positions = np.arange(len(classes)) + (k - (len(methods) - 1) / 2) * width
        ax.bar(
            positions,
            means,
            width,
            label=method,
            color=COLOURS[k % 8],
            hatch=("", "//", "..", "xx", "\\\\", "++")[k % 6],
            edgecolor="white",
        )
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    ax.set(ylabel="forgetting (IoU)")


def flow_bars(ax: Axes, table: pd.DataFrame, title: str = "") -> None:
    """Where pixels go: a bar for each group of truth, its parts what the network calls them.

    `table`: see `ciss.analysis.flows`; groups without pixels are left out.
    """
    table = table.dropna(how="all")[::-1]
    start = np.zeros(len(table))
    for part, (face, hatch) in FLOWS.items():
        values = table[part].to_numpy(float)
        ax.barh(
            table.index,
            values,
            left=start,
            color=face,
            hatch=hatch,
            edgecolor="white",
            label={"right": "its own class", "background": "background"}.get(part, f"another {part} class"),
        )
        for k, value in enumerate(values):
            if value >= 0.06:
                ax.text(
                    start[k] + value / 2,
                    k,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black",
                    bbox={"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.75},
                )
        start += values
    ax.set(xlim=(0, 1), title=title, xlabel="share of the group's pixels")


def flow_legend(figure: Figure, axes: np.ndarray) -> None:
    """One legend under a grid of `flow_bars`."""
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, title="called")


def loss_curve(ax: Axes, log: list[dict]) -> None:
    """Every loss term over epochs."""
    terms = [name for name in log[0] if name.startswith("loss/")]
    for k, name in enumerate(terms):
        ax.plot(
            [row["epoch"] for row in log],
            [row[name] for row in log],
            color=COLOURS[k % 8],
            marker=MARKERS[k % 8],
            ms=4,
            label=name.removeprefix("loss/"),
        )
    ax.set(xlabel="epoch", ylabel="loss (mean of the epoch)", ylim=(0, None))
    ax.legend(frameon=False)


def trace_panels(trace: dict[str, np.ndarray], window: int = 10) -> Figure:
    """A method's logs by batch, running means over `window` batches, one panel for each of `TRACES` that it logs."""
    kinds = [kind for kind in TRACES if any(name.startswith(kind) for name in trace)]
    if not kinds:
        return note("this method logs nothing but its losses")
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.6 * len(kinds), 3), squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        for k, name in enumerate(name for name in trace if name.startswith(kind)):
            means = pd.Series(trace[name]).rolling(window, min_periods=1).mean()
            style = {"color": COLOURS[k % 8], "ls": ("-", "--", ":", "-.")[k % 4]}
            ax.plot(np.arange(1, len(means) + 1), means, label=name.removeprefix(kind), **style)
        ax.set(xlabel="batch", ylabel=TRACES[kind])
        low, high = (np.nan_to_num(bound, posinf=0, neginf=0) for bound in (ax.dataLim.ymin, ax.dataLim.ymax))
        low = min(0.0, 1.05 * low)
        ax.set_ylim(low, high + 0.05 * (high - low) or 1.0)
        ax.legend(frameon=False)
    figure.tight_layout()
    return figure


def iou_bars(ax: Axes, ious: np.ndarray, names: list[str], before: np.ndarray | None = None) -> None:
    """IoU of each class, and a mark where it was `before` (fewer classes)."""
    ious = np.asarray(ious, float)
    ax.bar(range(len(ious)), np.nan_to_num(ious), color=COLOURS[5], edgecolor="white", label="after")
    if before is not None:
        ax.plot(range(len(before)), np.asarray(before, float), "D", color=COLOURS[4], ms=5, label="before")
        ax.legend(frameon=False)
    ax.set_xticks(range(len(ious)), names, rotation=35, ha="right")
    ax.set(ylabel="IoU, validation", ylim=(0, 1))


def token_angles(ax: Axes, tokens: np.ndarray, names: list[str], new: int) -> None:
    """Angles in degrees between the class tokens (C,D) of the `new` last classes and all others."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
    angles = np.degrees(np.arccos(np.clip(unit[-new:] @ unit.T, -1, 1)))
    itself = np.eye(new, len(tokens), len(tokens) - new, dtype=bool)
    sns.heatmap(
        pd.DataFrame(angles, index=names[-new:], columns=names),
        ax=ax, vmin=0, vmax=180, cmap="cividis", annot=angles.size <= 300, fmt=".0f", annot_kws={"fontsize": 7},
        linewidths=0.5, mask=itself, cbar_kws={"label": "angle (degrees)", "ticks": [0, 90, 180]},
    )  # fmt: skip
    ax.set_xticks(np.arange(len(names)) + 0.5, names, rotation=35, ha="right")
    ax.tick_params(axis="y", rotation=0)
    ax.set(title="new class tokens against all")


def pace_panels(table: pd.DataFrame, methods: list[str]) -> Figure:
    """IoU of each class over a step's epochs, one panel a method; `table` as `ciss.analysis.pace_table` gives it."""
    if table.empty:
        return note("no hold-out: set `holdout` of the benchmark to see the pace within a step")
    figure, axes = plt.subplots(1, len(methods), figsize=(3.8 * len(methods) + 1, 3.2), sharey=True, squeeze=False)
    for ax, method in zip(axes[0], methods, strict=True):
        mine = table[table["method"] == method]
        for k, name in enumerate(dict.fromkeys(mine["class"])):
            means = mine[mine["class"] == name].groupby("epochs")["iou"].mean()
            ax.plot(means.index, means, color=COLOURS[k % 8], marker=MARKERS[k % 8], ms=4, lw=1.2, label=name)
        ax.set_xscale("symlog", linthresh=0.05, base=2)
        ticks = [0, 0.1, 0.5, 2, 8]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set(xlabel="epochs into the step", ylabel="IoU, hold-out", ylim=(0, 1), title=method)
    axes[0, -1].legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left", title="class")
    figure.tight_layout()
    return figure


def note(text: str) -> Figure:
    """A figure that says why there is none."""
    figure, ax = plt.subplots(figsize=(6, 0.8))
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=9)
    ax.set_axis_off()
    return figure
