"""What all figures share. Colours are told apart by the colour-blind and in grey: markers, hatches or numbers go with
them."""

import json
import textwrap
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from PIL import Image

# Okabe and Ito's colours, dark and light in turn
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
GREY = "#8C8C8C"
MARKERS = "osD^vP*X"
HATCHES = ("", "//", "xx", "..", "\\\\", "++", "oo", "--")
JOINT = "joint"
FONTS = (  # after the default one, where they are installed: for class names in other scripts
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
    # Matplotlib warns at each letter that no font has, and draws a box.
    warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.sans-serif": ["DejaVu Sans", *(name for name in FONTS if name in installed)],
            "text.parse_math": False,  # class names may have any characters
        }
    )


def is_joint(method: str) -> bool:
    """Whether a method of a table is joint training or a variant of it, such as `joint-long`.

    A table has the title of a method alone. Of a run or a result, ask `joint`.
    """
    return method.partition(" ")[0].partition("-")[0] == JOINT


def mark(k: int) -> dict[str, str]:
    """Colour and marker of the k-th line; from the ninth on colours come again, with other markers."""
    return {"color": COLOURS[k % 8], "marker": MARKERS[(k + k // 8) % 8]}


def method_styles(methods: Iterable[str]) -> dict[str, dict]:
    """Colour and marker by method, the same in every figure of the same methods; joint training, the upper bound, is
    a black star, and its variants are grey ones. From the ninth on colours come again, with other markers."""
    methods = list(dict.fromkeys(methods))
    others = [method for method in methods if not is_joint(method)]
    stars = dict.fromkeys([JOINT, *filter(is_joint, methods)])
    colours = [colour for colour in COLOURS if colour != "#000000"] + [GREY]
    markers = MARKERS.replace("*", "") + "<"
    found = {
        method: {"color": colours[k % 8], "marker": markers[(k + k // 8) % 8], "markeredgecolor": "#333333"}
        for k, method in enumerate(others)
    }
    shades = ("#000000", "#777777", "#BBBBBB")
    for k, method in enumerate(stars):
        found[method] = {"color": shades[k % 3], "marker": "*", "markeredgecolor": "#000000"}
    return found


def panels(count: int, size: tuple[float, float] = (2.3, 2.1), columns: int = 3, **shared) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of `columns`, `size` inches each: three are as wide as a printed page.

    Panels share their axes unless told otherwise; room for `legend_below` is made by itself.
    """
    count = max(1, count)
    columns = min(columns, count)
    rows = -(-count // columns)
    options = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained", **shared}
    figure, axes = plt.subplots(rows, columns, figsize=(size[0] * columns + 0.6, size[1] * rows), **options)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for ax in axes.flat[max(0, count - columns) : count]:  # the lowest of each column
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure, list(axes.flat[:count])


def lowest(axes: list[Axes]) -> list[Axes]:
    """Of `panels`, those without another one below: they have the names of the x axes."""
    columns = axes[0].get_gridspec().ncols
    return axes[-columns:]


def legend_below(figure: Figure, handles: list, title: str | None = None, columns: int = 5) -> None:
    """One legend for all panels, under them; the figure grows where it has many lines."""
    width, height = figure.get_size_inches()
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = min(columns, max(1, int(width / (0.45 + 0.07 * longest))))  # inches of an entry
    lines = -(-len(handles) // columns)
    figure.set_size_inches(width, height + 0.2 * max(0, lines - 2))
    figure.legend(
        handles=handles,
        title=title,
        loc="outside lower center",
        ncols=min(columns, max(1, len(handles))),
        frameon=False,
    )


def note(text: str) -> Figure:
    """A figure that says why there is none."""
    figure, ax = plt.subplots(figsize=(6, 0.8))
    note_in(ax, text)
    return figure


def note_in(ax: Axes, text: str) -> None:
    """A sentence in the place of a plot that has nothing to show; the title stays."""
    width = ax.get_position().width * ax.figure.get_figwidth()  # inches
    lines = textwrap.fill(text, max(12, int(14 * width)))
    ax.text(0.5, 0.5, lines, transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
    ax.set_axis_off()
    _NOTES[ax] = text
    _describe_file(ax.figure)


def only_note(figure: Figure | Path) -> str:
    """The sentences of a figure, or of its PNG file, that shows nothing else; empty for every other figure."""
    if isinstance(figure, Path):
        return _metadata(figure).get(_NOTE_KEY, "")
    empty = [ax for ax in figure.axes if ax in _NOTES]
    if any(ax.axison or ax.has_data() for ax in figure.axes if ax not in _NOTES):
        return ""
    return " ".join(dict.fromkeys(_NOTES[ax] for ax in empty))


def class_labels(figure: Figure, names: Iterable[str], classes: Iterable[str]) -> list[str]:
    """What a figure writes for these names: the names, or "class 3" where no font has a letter.

    `classes`: all names by position, of which the number comes.
    """
    numbers: dict[str, int] = {}
    for number, name in enumerate(classes):
        numbers.setdefault(name, number)
    return [class_label(figure, name, numbers[name]) for name in names]


def class_label(figure: Figure, name: str, number: int) -> str:
    """A class name, or its number where no installed font of the figure's has a letter of it."""
    if name.isascii() or _letters(tuple(plt.rcParams["font.sans-serif"])).issuperset(map(ord, name)):
        return name
    label = f"class {number}"
    _NUMBERED.setdefault(figure, {})[label] = name
    _describe_file(figure)
    return label


def numbered_classes(file: Path) -> dict[str, str]:
    """Names of the classes that the figure in a PNG file names by number, by that label."""
    return json.loads(_metadata(file).get(_NUMBERED_KEY, "{}"))


def all_classes(table: pd.DataFrame) -> list[str]:
    """Names by position, as the analysis noted them beside its table; else those of the table, in its order."""
    return table.attrs.get("classes") or list(dict.fromkeys(table["class"]))


@cache
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    """Code points that the installed fonts of these families have."""
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
    """PNG files of the figure have in their metadata what `only_note` and `numbered_classes` read."""
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
    """Writes PNG files. `figures`: by the files' names, in the order of the page, each with its caption."""
    for number, (name, (figure, caption)) in enumerate(figures.items()):
        figure.savefig(folder / f"{name}.png", metadata={_CAPTION_KEY: caption, _ORDER_KEY: f"{number:03}"})


def saved(folder: Path) -> dict[Path, str]:
    """The PNG files of a folder with their captions, in the order in which `save` was given them."""
    texts = {file: _metadata(file) for file in folder.glob("*.png")}
    files = sorted(texts, key=lambda file: (texts[file].get(_ORDER_KEY, "last"), file.stem))
    return {file: texts[file].get(_CAPTION_KEY) or f"{file.stem.replace('_', ' ')}." for file in files}


def short(name: str, most: int = 28) -> str:
    """A name that leaves room for the plot beside it."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def some(names: list, most: int) -> list:
    """At most `most` of them, evenly from the first to the last."""
    if len(names) <= most:
        return names
    return [names[round(k * (len(names) - 1) / (most - 1))] for k in range(most)]


def step_ticks(ax: Axes, steps: Iterable[int]) -> None:
    """Ticks at the steps; at some of them where there are many."""
    ax.set_xticks(some(sorted({int(step) for step in steps}), 8))
