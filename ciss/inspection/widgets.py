"""Widgets over a function that draws: the same figure without them, where nobody can turn them."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import Image, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ciss.documents import ConfigError

INSTALL = "To choose with widgets: pip install 'ciss[widgets]', or uv sync --extra widgets; then run this cell again."


def choose(
    draw: Callable[..., Figure], errors: tuple[type[Exception], ...] = (ConfigError,), **options: Iterable | Callable
) -> None:
    """Shows `draw(**values)`, and a list to choose from for each name of `options`, which draws anew.

    Options: values, or pairs of label and value, the first of which is taken at the start; or a function that gives
    them, by the names of earlier options among its arguments. A value that the new options still have is kept. `errors`
    of `draw` are shown in one sentence. Without ipywidgets: the first figure, and how to install them.
    """
    values = {}
    for name, wanted in options.items():
        values[name] = _pairs(wanted, values)[0][1]
    figure = draw(**values)
    try:
        import ipywidgets
    except ImportError:
        print(INSTALL)
        _show(figure)
        return
    Panel(ipywidgets, draw, errors, options, values, figure)


class Panel:
    """The lists over one figure, which is an output like any other: it stays in the executed notebook."""

    def __init__(self, ipywidgets, draw: Callable, errors: tuple, options: dict, values: dict, figure: Figure):
        self.draw, self.errors, self.options, self.values = draw, errors, options, values
        self.lists, self.busy = {}, False
        for name, wanted in options.items():
            found = ipywidgets.Dropdown(
                options=_pairs(wanted, values), value=values[name], description=name.rstrip("_"),
                layout={"width": "300px"}, style={"description_width": "70px"},
            )  # fmt: skip
            found.observe(self._changed, names="value")
            self.lists[name] = found
        display(ipywidgets.HBox(list(self.lists.values()), layout={"flex_flow": "row wrap"}))
        self.handle = _show(figure)

    def _changed(self, change: dict) -> None:
        if self.busy:  # lists that follow another one are set below, and drawn once
            return
        self.busy = True
        try:
            self._follow()
            self.handle.update(picture(self.draw(**self.values)))
        except self.errors as error:
            self.handle.update({"text/plain": f"error: {error}"}, raw=True)
        finally:
            self.busy = False

    def _follow(self) -> None:
        """The values of the lists, after options that depend on others were made anew."""
        found: dict[str, Any] = {}
        for name, shown in self.lists.items():
            if callable(self.options[name]):
                pairs = _pairs(self.options[name], found)
                if [tuple(pair) for pair in shown.options] != pairs:
                    kept = shown.value if shown.value in [value for _, value in pairs] else pairs[0][1]
                    shown.options, shown.value = pairs, kept
            found[name] = shown.value
        self.values = found


def _pairs(options: Iterable | Callable, values: dict) -> list[tuple[str, Any]]:
    """Labels and values."""
    if callable(options):
        names = options.__code__.co_varnames[: options.__code__.co_argcount]
        options = options(**{name: values[name] for name in names})
    return [option if isinstance(option, tuple) else (str(option), option) for option in options]


def _show(figure: Figure):
    return display(picture(figure), display_id=True)


def picture(figure: Figure) -> Image:
    """A figure as PNG, closed; drawn once, where the notebook's own way, which trims its margins, draws it twice."""
    plt.close(figure)  # or the notebook shows it a second time
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return Image(stream.getvalue())
