"""Images and masks."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ciss.analysis.figures.style import class_label, class_labels
from ciss.protocol import Classes

VOID = (224, 224, 192)
DOTS = 128  # per inch; a power of two, so that pixels come out as whole numbers
OVERLAY = (480, 4096)  # pixels of the longer side: smaller pictures are enlarged, larger ones thinned


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


def class_legend(figure: Figure, classes: Classes) -> None:
    """Names of the classes with their colours, under a figure of masks."""
    entries = zip(class_labels(figure, classes.names, classes.names), classes.colours, strict=True)
    patches = [Patch(facecolor=colour / 255, edgecolor="#444444", label=name) for name, colour in entries]
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
            label=f"{c}  {class_label(figure, names.get(c, 'no class'), c)}  {percent(shares[c])}",
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
