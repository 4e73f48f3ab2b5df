"""Colours, markers and line styles: one table of families for methods, others for steps, classes and groups of pixels.

What a method looks like depends on its name alone, never on its place in a figure or on the other methods there.
Neighbouring colours differ under normal, deuteranope and protanope vision (tests/analysis/test_families.py), and each
colour comes with a marker, a line style or a name, so that figures can be read in grey.
"""

import zlib
from collections.abc import Iterable, Sequence
from itertools import product

import matplotlib as mpl
from matplotlib.colors import to_hex

JOINT = "joint"
# Family: its colour, and the marker of each method. The line style of a method is its number here: append only.
FAMILIES: dict[str, tuple[str, dict[str, str]]] = {
    "all classes at once": ("#000000", {JOINT: "*"}),
    "fine-tuning": ("#D55E00", {"finetune": "o"}),
    "distilled outputs": ("#0072B2", {"mib": "s", "lwf": "h", "ilt": "p", "lwf_mc": "H", "dkd": ">"}),
    "distilled features": ("#009E73", {"plop": "^"}),
    "compensated gradients": ("#CC79A7", {"gsc": "D"}),
    "background shift": ("#E69F00", {"mbs": "v", "gsc_mbs": "P", "select": "<"}),
    "frozen features": (
        "#56B4E9",
        {"frozen": "X", "ssul": "d", "ncm": "8", "ridge": "P", "fixbc": "o", "stage_ridge": "<"},
    ),
}
OTHER = "#882255"  # methods without a family
GREY = "#8C8C8C"
PALE = "#C4C4C4"  # methods that a figure does not single out
MARKERS = "osD^vPX<>dphH8"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
OWN = ("gsc_mbs", "stage_ridge")  # methods of this project, which figures single out before other second ones
SHOWN = 8  # methods that a figure singles out; the others are grey

# Classes by position, from 1. Laid over grey, each is as far as possible from those before it (CIEDE2000), under three
# kinds of vision.
CLASS_COLOURS = (
    "#E69F00", "#8800FF", "#AAAAFF", "#CC0000", "#88FFAA", "#00AA66", "#FF44AA", "#66FFFF", "#AA2288", "#FFEE00",
    "#CC0044", "#EE4422", "#8866FF", "#66CC66", "#CCEE66", "#CC6688", "#EE2244", "#66FFCC", "#FF22CC", "#FF88CC",
    "#EE8888", "#AA00AA", "#CC2266", "#EE6600",
)  # fmt: skip
BACKGROUND = "#E8E8E8"
# Predicted groups of pixels: face and hatch.
GROUPS = {
    "background": ("#C7C7C7", ""),
    "right": ("#35978F", ""),
    "old": ("#DFC27D", "//"),
    "new": ("#8C510A", "xx"),
}
ERRORS = {  # brown: an object is lost to the background; green: background is lost to an object
    "old called background": ("#DFC27D", ""),
    "new called background": ("#8C510A", ""),
    "background called old": ("#80CDC1", "//"),
    "background called new": ("#01665E", "//"),
}


def method_styles(methods: Iterable[str], most: int | None = SHOWN) -> dict[str, dict]:
    """Colour, line style and marker of methods by title, for `Axes.plot`. Variants have hollow markers.

    Args:
        methods: titles of tables, such as "mbs (adapted)" and "gsc-paper".
        most: of more methods than that, those that `chosen` leaves out are thin, grey and without marks. None: all
            have their style, for charts that name each method in a row.
    """
    methods = list(dict.fromkeys(methods))
    shown = methods if most is None else chosen(methods, most)
    styles = {method: {"color": PALE, "ls": "-", "marker": "", "lw": 0.9, "zorder": 1} for method in methods}
    taken: set[tuple] = set()
    for method in sorted(shown, key=_rank):
        colour, marker, line = next(look for look in _looks(method) if (look, _variant(method)) not in taken)
        taken.add(((colour, marker, line), _variant(method)))
        face = "white" if _variant(method) else colour
        edge = colour if _variant(method) else "#333333"
        styles[method] = {"color": colour, "ls": line, "marker": marker, "mfc": face, "mec": edge}
    return styles


def bar_styles(methods: Iterable[str]) -> dict[str, dict]:
    """Colour and hatch of the bars of methods by title, for `Axes.bar`. The first method of a family has no hatch."""
    hatches = dict(zip(LINES, ("", "//", "xx", "..", "\\\\", "++"), strict=True))
    styles = method_styles(methods, most=None)
    return {
        method: {
            "color": style["color"],
            "hatch": "oo" * _variant(method) or hatches[style["ls"]],
            "edgecolor": "white",
        }
        for method, style in styles.items()
    }


def chosen(methods: Iterable[str], most: int = SHOWN) -> list[str]:
    """At most `most` methods and all joint trainings, in the given order.

    The first method of each family and those of this project come first, then second ones and so on, then variants
    and unknown methods.
    """
    methods = list(dict.fromkeys(methods))
    incremental = sorted((method for method in methods if not is_joint(method)), key=_rank)[:most]
    return [method for method in methods if is_joint(method) or method in incremental]


def others_note(methods: Iterable[str]) -> str:
    """The sentence on the methods that `method_styles` draws in grey; empty without one."""
    methods = list(dict.fromkeys(methods))
    count = len(methods) - len(chosen(methods))
    return f"Grey: {count} other method{'s' * (count > 1)}." if count else ""


def is_joint(method: str) -> bool:
    """Whether the title of a method in a table is joint training or a variant, such as `joint-long`.

    Runs and results have the property `joint` instead.
    """
    return _code(method) == JOINT


def has_memory(method: str) -> bool:
    """Whether the title of a method in a table is of runs with stored images, such as `mib-M (100 stored images)`."""
    return method.partition(" ")[0].endswith("-M")


def block(method: str) -> int:
    """The block of a method's row in tables: 0, with stored images 1, joint training 2."""
    return 2 if is_joint(method) else int(has_memory(method))


def step_styles(steps: Iterable[int]) -> dict[int, dict[str, str]]:
    """Colour and marker of steps: purple, the later the darker. For `Axes.plot`."""
    steps = sorted(dict.fromkeys(steps))
    shades = mpl.colormaps["BuPu"]
    span = max(1, len(steps) - 1)
    return {
        step: {"color": to_hex(shades(0.4 + 0.6 * k / span)), "marker": MARKERS[k % len(MARKERS)], "mec": "#333333"}
        for k, step in enumerate(steps)
    }


def class_style(position: int) -> dict[str, str]:
    """Colour and marker of the class at a position, the colour as in masks. The first 14 * 24 pairs are different."""
    repetition, number = divmod(position - 1, len(CLASS_COLOURS))
    colour = CLASS_COLOURS[number] if position else BACKGROUND
    return {"color": colour, "marker": MARKERS[(position + repetition) % len(MARKERS)], "mec": "#333333"}


def _code(method: str) -> str:
    return method.partition(" ")[0].partition("-")[0]


def _variant(method: str) -> bool:
    return "-" in method.partition(" ")[0]


def _family_members() -> dict[str, tuple[int, int, str, str]]:
    """Number within its family, number of the family, colour and marker by method."""
    return {
        method: (number, family, colour, marker)
        for family, (colour, markers) in enumerate(FAMILIES.values())
        for number, (method, marker) in enumerate(markers.items())
    }


def _rank(method: str) -> tuple:
    """The order in which methods are singled out."""
    number, family, _, _ = _family_members().get(_code(method), (len(LINES), len(FAMILIES), "", ""))
    return _variant(method), 0 if _code(method) in OWN else number, family, method


def _looks(method: str) -> Iterable[tuple]:
    """Colour, marker and line style of a method, the one of the table first; then others, where that one is taken."""
    members, code = _family_members(), _code(method)
    markers: Sequence[str] = MARKERS
    lines: Sequence = LINES
    if code in members:
        number, _, colour, marker = members[code]
        yield colour, marker, LINES[number]
        markers, lines = [marker, *MARKERS], LINES[number:] + LINES[:number]
    else:
        colour = _base_colour(code)
        start = zlib.crc32(method.encode()) % len(MARKERS)
        markers = MARKERS[start:] + MARKERS[:start]
    yield from ((colour, marker, line) for line, marker in product(lines, markers))


def _base_colour(code: str) -> str:
    """The colour of the family of the method that a new one is derived from; OTHER without one."""
    from ciss.methods import METHODS  # here, because it imports torch, and only new methods need it

    colours = {METHODS[name]: colour for name, (_, _, colour, _) in _family_members().items() if name in METHODS}
    bases = METHODS[code].__mro__ if code in METHODS else ()
    return next((colours[base] for base in bases if base in colours), OTHER)
