"""What all figures share. Colours are told apart by the colour-blind and in grey: markers, hatches or numbers go with
them."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, dark and light in turn
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
GREY = "#8C8C8C"
MARKERS = "osD^vP*X"
HATCHES = ("", "//", "xx", "..", "\\\\", "++", "oo", "--")
JOINT = "joint"


def style() -> None:
    """Matplotlib's settings for every figure of the project."""
    sns.set_theme(context="paper", style="ticks")
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


def mark(k: int) -> dict[str, str]:
    """Colour and marker of the k-th line; from the ninth on colours come again, with other markers."""
    return {"color": COLOURS[k % 8], "marker": MARKERS[(k + k // 8) % 8]}


def method_styles(methods: Iterable[str]) -> dict[str, dict]:
    """Colour and marker by method, the same in every figure of the same methods; joint training, the upper bound, is
    a black star. From the ninth on colours come again, with other markers."""
    others = [method for method in dict.fromkeys(methods) if method != JOINT]
    colours = [colour for colour in COLOURS if colour != "#000000"] + [GREY]
    markers = MARKERS.replace("*", "") + "<"
    found = {
        method: {"color": colours[k % 8], "marker": markers[(k + k // 8) % 8], "markeredgecolor": "#333333"}
        for k, method in enumerate(others)
    }
    return {**found, JOINT: {"color": "#000000", "marker": "*", "markeredgecolor": "#000000"}}


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
    """One legend for all panels, under them."""
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
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=9)
    ax.set_axis_off()
    return figure
