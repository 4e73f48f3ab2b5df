"""Figures of images, masks and maps."""

from collections.abc import Iterable
from itertools import repeat

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox
from numpy.lib.stride_tricks import sliding_window_view

from ciss.analysis.figures.families import BACKGROUND, CLASS_COLOURS
from ciss.analysis.figures.style import class_label
from ciss.protocol import Classes

STRIPES = 110  # grey of the hatching of void
OPACITY = 0.65  # of classes over an image
DARKNESS = 0.5  # of the edge of a class: its colour by this factor
PALENESS = 0.7  # of the grey values of an image under its classes; 1: as dark as the image
LEAST = 128  # longer side of a painted mask in pixels, so that lines are fine
LEVEL = 8  # colours of drawn pictures are multiples of it, so that PNG files of noisy photographs are small
DPI = 128  # a power of two, so that sizes in pixels are whole numbers
OVERLAY = (480, 4096)  # smallest and largest longer side of an overlay in pixels


def class_colours(classes: Classes) -> np.ndarray:
    """(C,3) uint8 RGB by position: a bright palette, or the data set's own for more classes than it has."""
    if len(classes) - 1 > len(CLASS_COLOURS):
        return classes.colours
    table = [BACKGROUND, *CLASS_COLOURS][: len(classes)]
    return (np.array([to_rgb(colour) for colour in table]) * 255).round().astype(np.uint8)


def painted(
    mask: np.ndarray, classes: Classes, image: np.ndarray | None = None, truth: np.ndarray | None = None
) -> np.ndarray:
    """A mask as an RGB picture, enlarged by a whole factor to at least LEAST pixels. Void is hatched. Over an image,
    the regions of classes have a thin, darker edge: they can be seen in grey, too.

    Args:
        mask: positions (H,W); from the number of classes on: void.
        classes: give the colours.
        image: RGB (H,W,3); classes are laid over its grey values. None: the background is light grey.
        truth: positions (H,W); pixels whose class in `mask` differs from it get an outline, without void ones.
    """
    void = mask >= len(classes)
    table = np.full((256, 3), 255, np.uint8)
    table[: len(classes)] = class_colours(classes)
    picture = table[mask].astype(float)
    if image is not None:
        pale = 255 - PALENESS * (255 - image.mean(axis=2, keepdims=True))
        cover = np.where((mask > 0) & ~void, OPACITY, 0.0)[..., None]
        picture = cover * picture + (1 - cover) * pale
    zoom = max(1, -(-LEAST // max(mask.shape)))
    picture, void, shown = (array.repeat(zoom, 0).repeat(zoom, 1) for array in (picture, void, mask))
    rows, columns = np.indices(void.shape)
    width = max(2, max(void.shape) // 100)  # of lines
    if image is not None:
        edges = (shown > 0) & ~void & ~_alike(shown, width // 2)
        picture[edges] = DARKNESS * table[shown[edges]]
    picture[void & ((rows + columns) % (4 * width) < width)] = STRIPES
    if truth is not None:
        wrong = ((mask != truth) & (truth < len(classes))).repeat(zoom, 0).repeat(zoom, 1)
        inner = wrong & ~_shrunk(wrong, width)
        picture[inner] = 255
        picture[wrong & ~_shrunk(wrong, max(1, width // 2))] = 0
    return picture.round().astype(np.uint8)


def _shrunk(region: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a region (H,W) bool whose neighbours within `width` are all in it. Its edge at the picture's edge
    stays."""
    return region & _alike(region, width)


def _alike(values: np.ndarray, width: int) -> np.ndarray:
    """Where all neighbours (H,W) within `width` have the same value. The picture's edge is none."""
    windows = sliding_window_view(np.pad(values, width, mode="edge"), (2 * width + 1, 2 * width + 1))
    return windows.max(axis=(2, 3)) == windows.min(axis=(2, 3))


def all_painted(masks: Iterable, classes: Classes, images: Iterable, truths: Iterable | None = None) -> list:
    """`painted` for each mask, with its image and ground truth. An image without a mask (None) stays None."""
    triples = zip(masks, images, truths or repeat(None), strict=False)
    return [None if mask is None else painted(mask, classes, image, truth) for mask, image, truth in triples]


def draw_picture(ax: Axes, picture: np.ndarray, **options) -> AxesImage:
    """An RGB picture (H,W,3) uint8 or a map (H,W), drawn so that the PNG file is small. `options`: of `imshow`.

    Colours are rounded to multiples of LEVEL. Small pictures are not interpolated: blended noise does not compress.
    """
    if picture.ndim == 3:
        picture = np.minimum((picture.astype(np.uint16) + LEVEL // 2) // LEVEL * LEVEL, 255).astype(np.uint8)
    return ax.imshow(picture, interpolation="nearest" if max(picture.shape[:2]) <= LEAST else None, **options)


def show(ax: Axes, picture: np.ndarray, title: str = "") -> None:
    """An RGB picture (H,W,3) without axes."""
    draw_picture(ax, picture)
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()


def strips(rows: list[tuple[str, list[np.ndarray]]], size: float = 1.25) -> Figure:
    """Pictures in named rows, one column for each image.

    Args:
        rows: name, and RGB pictures (H,W,3), maps (H,W) or None for an empty cell. Maps of a row share a colour bar,
            from 0 to 1 or to their 99th percentile if that is larger.
        size: width of a cell in inches.
    """
    columns = max(len(pictures) for _, pictures in rows)
    drawn = [picture for _, pictures in rows for picture in pictures if picture is not None]
    tallest = max(picture.shape[0] / picture.shape[1] for picture in drawn)
    bars = 0.6 if any(picture.ndim == 2 for picture in drawn) else 0.0
    width, height = size * columns + 1.2 + bars, size * len(rows) * min(tallest, 1.5)
    figure, axes = plt.subplots(len(rows), columns, figsize=(width, height), squeeze=False)
    margins = {"left": 1.1 / width, "right": 1 - (0.1 + bars) / width, "bottom": 0, "top": 1}
    figure.subplots_adjust(**margins, wspace=0.05, hspace=0.05)
    for ax in axes.flat:
        ax.set_axis_off()
    for line, (name, pictures) in zip(axes, rows, strict=True):
        values = [picture.ravel() for picture in pictures if picture is not None and picture.ndim == 2]
        top = max(1.0, float(np.nanpercentile(np.concatenate(values), 99))) if values else 1.0
        for ax, picture in zip(line, pictures, strict=False):
            if picture is not None:  # of RGB pictures, matplotlib ignores the scale
                image = draw_picture(ax, picture, cmap="cividis", vmin=0, vmax=top)
        if values:
            bar = line[-1].inset_axes((1.06, 0.05, 0.08, 0.9))
            figure.colorbar(image, cax=bar, extend="max" if top > 1 else "neither")
            bar.tick_params(labelsize=6)
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    return figure


def titled_columns(columns: list[tuple[str, list[np.ndarray]]], size: float = 1.35) -> Figure:
    """Pictures in titled columns, a row for each image. `columns`: title and RGB pictures; `size`: cell, inches."""
    first = columns[0][1]
    height = size * max(picture.shape[0] / picture.shape[1] for picture in first)
    shape = (size * len(columns), height * len(first) + 0.25)
    figure, axes = plt.subplots(len(first), len(columns), figsize=shape, squeeze=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.25 / shape[1], wspace=0.05, hspace=0.05)
    for number, (title, pictures) in enumerate(columns):
        for row, picture in enumerate(pictures):
            show(axes[row, number], picture, "" if row else title)
    return figure


def class_patches(figure: Figure, classes: Classes, positions: Iterable[int]) -> list[Patch]:
    """Entries of a legend: names of classes with their colours."""
    colours = class_colours(classes) / 255
    return [Patch(fc=colours[k], ec="#444444", label=class_label(figure, classes.names[k], k)) for k in positions]


def class_legend(figure: Figure, classes: Classes, errors: bool = False) -> None:
    """A legend of all classes and void under a figure of masks. `errors`: wrong pixels have an outline."""
    patches = class_patches(figure, classes, range(1, len(classes)))
    patches.append(Patch(fc="white", ec="#6E6E6E", hatch="////", label="void: not scored"))
    if errors:
        patches.append(Patch(fc="white", ec="black", lw=1.6, label="outline: wrong pixels"))
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=5, fontsize=8, frameon=False)


def overlay(picture: np.ndarray, ids: np.ndarray, names: dict[int, str], palette: np.ndarray) -> Figure:
    """A picture under its half transparent classes, with a legend of ids, names and shares of the pixels.

    Background (0) is transparent. Pictures outside the sizes OVERLAY are scaled by whole factors.

    Args:
        picture: RGB (H,W,3) uint8.
        ids: raw class ids (H,W).
        names: by id.
        palette: colours (256,3) by id.
    """
    longest = max(ids.shape)
    shares = np.bincount(ids.ravel(), minlength=256) / ids.size
    zoom, stride = max(1, OVERLAY[0] // longest), -(-longest // OVERLAY[1])
    picture, ids = (array[::stride, ::stride].repeat(zoom, 0).repeat(zoom, 1) for array in (picture, ids))
    mixed = (picture.astype(np.uint16) + palette[ids] + 1) // 2
    mixed = np.where((ids > 0)[..., None], mixed, picture).astype(np.uint8)

    height, width = ids.shape
    font = 8 * max(1.0, max(height, width) / 640)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    present = [int(c) for c in np.argsort(-shares, kind="stable") if shares[c]]
    patches = []
    for c in present:
        label = f"{c}  {class_label(figure, names.get(c, 'no class'), c)}  {percent(shares[c])}"
        patches.append(Patch(facecolor=palette[c] / 255 if c else "none", edgecolor="#444444", label=label))
    extent = _widest_legend(figure, patches, width, font)
    below, full_width = round(extent.height + 1), max(width, round(extent.width + 1))
    figure.set_size_inches(full_width / DPI, (height + below) / DPI)
    left = (full_width - width) // 2
    figure.figimage(mixed, left, below)
    for c in present:
        if c and (middle := _middle(ids == c)):
            row, column = middle
            figure.text(
                left + column, below + height - row, str(c), transform=None, ha="center", va="center", fontsize=font,
                bbox={"fc": "white", "ec": "none", "pad": 0.15 * font, "alpha": 0.8},
            )  # fmt: skip
    return figure


def _widest_legend(figure: Figure, patches: list[Patch], width: int, font: float) -> Bbox:
    """Adds a legend with as many columns as fit into `width` pixels. Returns its extent in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(min(5, len(patches)), 0, -1):
        legend = figure.legend(
            handles=patches, loc="lower center", ncols=columns, fontsize=font, frameon=False,
            borderaxespad=0, handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip
        extent = legend.get_window_extent(renderer)
        if columns > 1 and extent.width > width:
            legend.remove()
        else:
            return extent


def percent(share: float) -> str:
    """A share in percent with one digit."""
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _middle(region: np.ndarray) -> tuple[int, int] | None:
    """The pixel of a region (H,W) bool nearest to the median of its rows and columns.

    Every n-th pixel is looked at, about 200 a side. None for a region without any of them.
    """
    stride = -(-max(region.shape) // 200)
    pixels = np.argwhere(region[::stride, ::stride])
    if not len(pixels):
        return None
    row, column = pixels[np.abs(pixels - np.median(pixels, axis=0)).sum(axis=1).argmin()] * stride
    return int(row), int(column)
