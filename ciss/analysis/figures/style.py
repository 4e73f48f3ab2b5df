"""Settings and layout that all figures share.

Colours come with markers, hatches or numbers, so that a figure can be read in grey and with colour blindness. Those of
methods, steps and classes are in `families.py`.
"""

import json
import textwrap
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from PIL import Image

from ciss.analysis.figures.light_seaborn import sns

# palette of Okabe and Ito, dark and light alternating
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"
FONTS = (  # used after the default font if installed: for class names in other scripts
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans", "Microsoft YaHei",
    "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Devanagari",
)  # fmt: skip

_NOTE_KEY = "Note"  # in a PNG file's metadata
_CAPTION_KEY = "Description"
_ORDER_KEY = "Order"
_NUMBERED_KEY = "Numbered classes"
_NUMBERED: WeakKeyDictionary[Figure, dict[str, str]] = WeakKeyDictionary()
_NOTES: WeakKeyDictionary[Axes, str] = WeakKeyDictionary()


def style() -> None:
    """Matplotlib's settings for every figure of the project."""
    sns.set_theme(context="paper", style="ticks")
    installed = set(font_manager.get_font_names())
    # Matplotlib warns about each letter that no font has, and draws a box.
    warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.formatter.useoffset": False,  # ticks show whole values, also where all are nearly equal
            "font.sans-serif": ["DejaVu Sans", *(name for name in FONTS if name in installed)],
            "text.parse_math": False,  # class names may have any characters
        }
    )


def mark(k: int) -> dict[str, str]:
    """Colour and marker of the k-th line. The first 64 pairs are different."""
    return {"color": COLOURS[k % 8], "marker": MARKERS[(k + k // 8) % 8]}


def panels(count: int, size: tuple[float, float] = (2.3, 2.1), columns: int = 3, **shared) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of `columns`. Three panels of the default `size` (inches) fill a printed page.

    Panels share their axes unless `shared` (options of `plt.subplots`) changes that. `legend_below` fits under them.
    """
    count = max(1, count)
    columns = min(columns, count)
    rows = -(-count // columns)
    options = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained", **shared}
    figure, axes = plt.subplots(rows, columns, figsize=(size[0] * columns + 0.6, size[1] * rows), **options)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for ax in axes.flat[max(0, count - columns) : count]:  # the lowest panel of each column
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure, list(axes.flat[:count])


def lowest(axes: list[Axes]) -> list[Axes]:
    """The lowest panel of each column of `panels`: these show the label of the x axis."""
    return axes[-axes[0].get_gridspec().ncols :]


def legend_below(figure: Figure, handles: list, title: str | None = None, columns: int = 5) -> None:
    """One legend under all panels. The figure grows if the legend has more than two lines."""
    width, height = figure.get_size_inches()
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = min(columns, max(1, int(width / (0.45 + 0.07 * longest))))  # width of an entry in inches
    lines = -(-len(handles) // columns)
    figure.set_size_inches(width, height + 0.2 * max(0, lines - 2))
    columns = min(columns, max(1, len(handles)))
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=columns, frameon=False)


def note(text: str) -> Figure:
    """A figure with one sentence: why there is nothing to plot."""
    figure, ax = plt.subplots(figsize=(6, 0.8))
    note_in(ax, text)
    return figure


def note_in(ax: Axes, text: str) -> None:
    """Shows a sentence instead of an empty plot: the reason why there is nothing to draw. The title stays."""
    width = ax.get_position().width * ax.figure.get_figwidth()  # inches
    lines = textwrap.fill(text, max(12, int(14 * width)))
    ax.text(0.5, 0.5, lines, transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
    ax.set_axis_off()
    _NOTES[ax] = text
    _describe_file(ax.figure)


def text_in(ax: Axes, text: str) -> None:
    """A sentence in the middle of axes that stay visible."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=8.5)


def only_note(figure: Figure | Path) -> str:
    """The sentences of a figure without a plot, or of its PNG file. Empty if the figure has a plot."""
    if isinstance(figure, Path):
        return _metadata(figure).get(_NOTE_KEY, "")
    if any(ax.axison or ax.has_data() for ax in figure.axes if ax not in _NOTES):
        return ""
    return " ".join(dict.fromkeys(_NOTES[ax] for ax in figure.axes if ax in _NOTES))


def class_labels(figure: Figure, names: Iterable[str], classes: Iterable[str]) -> list[str]:
    """Labels of class names in a figure: the name, or "class 3" if no installed font has all of its letters.

    `classes`: all names by position, for the number.
    """
    classes = list(classes)
    return [class_label(figure, name, classes.index(name)) for name in names]


def class_label(figure: Figure, name: str, number: int) -> str:
    """The label of one class name, see `class_labels`. `number`: its position."""
    if name.isascii() or _letters(tuple(plt.rcParams["font.sans-serif"])).issuperset(map(ord, name)):
        return name
    label = f"class {number}"
    _NUMBERED.setdefault(figure, {})[label] = name
    _describe_file(figure)
    return label


def numbered_classes(file: Path) -> dict[str, str]:
    """Classes that the figure in a PNG file names by number: label to name."""
    return json.loads(_metadata(file).get(_NUMBERED_KEY, "{}"))


def table_labels(figure: Figure, table: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Short `class_labels` for classes of an analysis' table, whose `attrs` hold all class names by position."""
    classes = table.attrs.get("classes") or dict.fromkeys(table["class"])
    return [short(label) for label in class_labels(figure, names, classes)]


@cache
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    """Code points in the installed fonts of these families."""
    letters: set[int] = set()
    for family in families:
        try:
            file = font_manager.findfont(family, fallback_to_default=False)
        except ValueError:  # not installed
            continue
        letters.update(FT2Font(file).get_charmap())
    return frozenset(letters)


def _metadata(file: Path) -> dict[str, str]:
    with Image.open(file) as image:
        return dict(image.info)


def _describe_file(figure: Figure) -> None:
    """Writes what `only_note` and `numbered_classes` read into the metadata of the figure's PNG files."""
    if "savefig" in vars(figure):
        return
    save = figure.savefig

    def savefig(target, **options):
        numbered = _NUMBERED.get(figure)
        texts = {_NOTE_KEY: only_note(figure), _NUMBERED_KEY: json.dumps(numbered) if numbered else ""}
        if str(target).endswith(".png"):
            options["metadata"] = {key: text for key, text in texts.items() if text} | options.get("metadata", {})
        save(target, **options)

    figure.savefig = savefig


def save(folder: Path, figures: dict[str, tuple[Figure, str]]) -> None:
    """Writes PNG files. `figures`: file name to figure and caption, in the order of the report page."""
    for number, (name, (figure, caption)) in enumerate(figures.items()):
        figure.savefig(folder / f"{name}.png", metadata={_CAPTION_KEY: caption, _ORDER_KEY: f"{number:03}"})


def saved(folder: Path) -> dict[Path, str]:
    """The PNG files of a folder with their captions, in the order of `save`."""
    texts = {file: _metadata(file) for file in folder.glob("*.png")}
    files = sorted(texts, key=lambda file: (texts[file].get(_ORDER_KEY, "last"), file.stem))
    return {file: texts[file].get(_CAPTION_KEY) or f"{file.stem.replace('_', ' ')}." for file in files}


def short(name: str, most: int = 28) -> str:
    """A name cut to `most` characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def some(names: list, most: int) -> list:
    """At most `most` elements, evenly spaced from the first to the last."""
    if len(names) <= most:
        return names
    return [names[round(k * (len(names) - 1) / (most - 1))] for k in range(most)]


def step_ticks(ax: Axes, steps: Iterable[int]) -> None:
    """Ticks at the steps, at most 8."""
    ax.set_xticks(some(sorted({int(step) for step in steps}), 8))
