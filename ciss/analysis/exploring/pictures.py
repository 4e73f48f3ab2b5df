"""Pictures, masks and maps of one image beside each other, for the explore notebooks and the tutorial."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from ciss.analysis.figures.masks import class_patches, painted, show
from ciss.protocol import Classes

MAX_CLASSES = 24  # classes in one figure
CELL = 1.4  # inches, the width of a picture beside others


def picture_row(
    panels: Sequence[tuple], classes: Classes | None = None, *, handles: Sequence[Patch] = (), size: float = 1.75
) -> Figure:
    """Pictures, masks and maps of one image beside each other, at most four in a row.

    Args:
        panels: (title, RGB picture (H,W,3)); (title, mask (H,W) of integer positions, 255 void[, ground
            truth (H,W), from which wrong pixels get an outline]); or (title, map (h,w) of
            floats, unit, largest value or None for the 99th percentile[, region (H,W) bool, which gets a frame]). Masks
            are laid over the first RGB picture.
        classes: of the masks; those in the masks are in the legend.
        handles: a second legend.
        size: width of a picture in inches.
    """
    rows = -(-len(panels) // 4)
    columns = -(-len(panels) // rows)
    tall = _height([panel[1] for panel in panels])
    width = (size + 0.75) * columns
    positions = _positions(panels, classes)
    below = _legend_heights(width, positions, handles)
    height = (size * tall + 0.28) * rows + sum(below) + 0.15
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=0.02, right=1 - 0.7 / width, top=1 - 0.26 / height, bottom=(sum(below) + 0.15) / height,
        wspace=0.7 / size, hspace=0.3 / (size * tall),
    )  # fmt: skip
    _legends(figure, classes, positions, handles)
    image = next((panel[1] for panel in panels if panel[1].ndim == 3), None)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, picture, *rest) in zip(axes.flat, panels, strict=False):
        if _is_map(picture):
            _map(ax, title, picture, *rest)
        else:
            _show(ax, title, picture, image, classes, *rest)
    return figure


def method_pictures(
    shared: Sequence[tuple], rows: Mapping[str, Sequence[tuple]], classes: Classes, *, handles: Sequence[Patch] = ()
) -> Figure:
    """Pictures of one image: shared ones at the left, then a row for each method.

    Panels with the same title are in one column. The maps of a column have one scale and one colour bar.

    Args:
        shared: the RGB picture, then masks; panels as in `picture_row`.
        rows: panels as in `picture_row`, by the title of the method.
        classes: of the masks.
        handles: a second legend.
    """
    every = [*shared, *(panel for panels in rows.values() for panel in panels)]
    columns = {title: {} for title in dict.fromkeys(panel[0] for panels in rows.values() for panel in panels)}
    for row, panels in enumerate(rows.values()):
        for title, *panel in panels:
            columns[title][row] = panel
    left, image = -(-len(shared) // len(rows)), shared[0][1]  # columns of shared pictures
    width = (CELL + 0.08) * (left + len(columns)) + 0.5  # inches, as all lengths here
    positions, tall = _positions(every, classes), CELL * _height([panel[1] for panel in shared])
    headings = {title: textwrap.fill(title, 20) for title in columns}
    below = 0.72 + sum(_legend_heights(width, positions, handles))
    height = below + (tall + 0.26) * len(rows) + 0.17 * max(text.count("\n") for text in headings.values())
    figure = plt.figure(figsize=(width, height))

    def axes(row: int, column: int, bar: bool = False) -> Axes:
        x = 0.05 + (CELL + 0.08) * column + 0.4 * (column >= left)
        y = below + (tall + 0.26) * (len(rows) - 1 - row)
        if bar:  # narrower, so that the numbers of neighbours do not touch
            return figure.add_axes(((x + 0.12) / width, (below - 0.14) / height, (CELL - 0.24) / width, 0.08 / height))
        return figure.add_axes((x / width, y / height, CELL / width, tall / height))

    for number, (title, picture, *rest) in enumerate(shared):
        column, row = divmod(number, len(rows))
        _show(axes(row, column), title, picture, image, classes, *rest)
    for column, (title, cells) in enumerate(columns.items(), start=left):
        drawn = {row: axes(row, column) for row in cells}
        for row, ax in drawn.items():
            heading = headings[title] if row == min(drawn) else ""
            if not _is_map(cells[row][0]):
                _show(ax, heading, cells[row][0], image, classes, *cells[row][1:])
            ax.set_axis_off()
            ax.set_title(heading, fontsize=9)
        if all(_is_map(cell[0]) for cell in cells.values()):
            _map_column(drawn, cells, axes(0, column, bar=True))
    for row, method in enumerate(rows):
        x, y = (CELL + 0.08) * left + 0.21, below + (tall + 0.26) * (len(rows) - 1 - row) + tall / 2
        figure.text(x / width, y / height, textwrap.fill(method, 18), rotation=90, ha="center", va="center", fontsize=9)
    _legends(figure, classes, positions, handles)
    return figure


def _map_column(drawn: dict[int, Axes], cells: dict[int, Sequence], bar: Axes) -> None:
    """Maps of one column with one scale. `cells`: map, unit, largest value or None[, region], by row."""
    values = np.concatenate([cell[0].ravel() for cell in cells.values()])
    _, unit, top, *_ = next(iter(cells.values()))
    for row, ax in drawn.items():
        image = _draw_map(ax, cells[row][0], top or _largest(values), *cells[row][3:])
    _colour_bar(image, bar, unit, values, "horizontal")


def _is_map(picture: np.ndarray) -> bool:
    """Whether an array is a map of numbers; otherwise it is an RGB picture or a mask."""
    return picture.ndim == 2 and not np.issubdtype(picture.dtype, np.integer)


def _height(pictures: Sequence[np.ndarray]) -> float:
    """The largest ratio of height and width, at most 1.5."""
    return min(1.5, max(picture.shape[0] / picture.shape[1] for picture in pictures))


def _positions(panels: Sequence[tuple], classes: Classes | None) -> list[int]:
    """Classes in the masks of panels, for the legend."""
    masks = [panel[1].ravel() for panel in panels if panel[1].ndim == 2 and not _is_map(panel[1])]
    return [k for k in np.unique(np.concatenate(masks)) if k < len(classes)][:MAX_CLASSES] if masks else []


def _across(width: float) -> int:
    """Entries in a row of the legends of a figure of this width."""
    return max(1, int(width / 1.65))


def _legend_heights(width: float, *legends: Sequence) -> list[float]:
    """Inches of each legend under a figure of this width."""
    return [0.2 * -(-len(entries) // _across(width)) for entries in legends]


def _legends(figure: Figure, classes: Classes | None, positions: Sequence[int], handles: Sequence[Patch]) -> None:
    """Legends of the classes at these positions and of `handles`, at the lower edge of the figure."""
    width, height = figure.get_size_inches()
    lines = _legend_heights(width, positions, handles)
    patches = class_patches(figure, classes, positions) if positions else []
    for entries, top in ((patches, (sum(lines) + 0.1) / height), (handles, (lines[1] + 0.03) / height)):
        options = {"loc": "upper center", "bbox_to_anchor": (0.5, top), "borderaxespad": 0, "borderpad": 0}
        if entries:
            columns = min(_across(width), len(entries))
            figure.legend(handles=entries, ncols=columns, frameon=False, fontsize=8, **options)


def _show(
    ax: Axes, title: str, picture: np.ndarray, image: np.ndarray | None, classes: Classes, *truth: np.ndarray
) -> None:
    """An RGB picture, or a mask over the image."""
    under = image if image is not None and image.shape[:2] == picture.shape else None
    show(ax, picture if picture.ndim == 3 else painted(picture, classes, under, *truth), title)


def _map(
    ax: Axes, title: str, values: np.ndarray, unit: str = "", top: float | None = None, region: np.ndarray | None = None
) -> None:
    """A map of numbers from 0 with its colour bar, and a white line on black around a region (H,W)."""
    image = _draw_map(ax, values, top or _largest(values), region)
    ax.set_title(title, fontsize=9)
    _colour_bar(image, ax.inset_axes((1.03, 0.05, 0.05, 0.9)), unit, values)


def _largest(values: np.ndarray) -> float:
    """The end of a map's scale: the 99th percentile of its finite numbers."""
    finite = values[np.isfinite(values)]
    return (float(np.percentile(finite, 99)) if finite.size else 0.0) or 1.0


def _draw_map(ax: Axes, values: np.ndarray, top: float, region: np.ndarray | None = None) -> AxesImage:
    """A map of numbers from 0 to `top`, and a white line on black around a region (H,W)."""
    height, width = values.shape
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, interpolation="nearest", extent=(0, width, height, 0))
    if region is not None and region.any() and not region.all():
        rows, columns = (np.arange(n) + 0.5 for n in region.shape)
        grid = columns * width / region.shape[1], rows * height / region.shape[0]
        for line, thickness in (("black", 2.2), ("white", 1.0)):
            ax.contour(*grid, region.astype(float), levels=[0.5], colors=line, linewidths=thickness)
    return image


def _colour_bar(image: AxesImage, ax: Axes, unit: str, values: np.ndarray, orientation: str = "vertical") -> None:
    """The colour bar of a map in its own axes. It has a tip if some of the values are larger than its end."""
    larger = (values[np.isfinite(values)] > image.norm.vmax).any()
    ax.figure.colorbar(image, cax=ax, extend="max" if larger else "neither", orientation=orientation).set_label(
        unit, fontsize=8
    )
    ax.tick_params(labelsize=7)
    if orientation == "horizontal":
        ax.locator_params(axis="x", nbins=3)
