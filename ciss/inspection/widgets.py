"""Lists of choices above a figure; without ipywidgets, or without a person, the first figure alone."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import Image, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ciss.documents import ConfigError
from ciss.training.progress import runs_without_person

INSTALL = (
    "For drop-down menus, install the widgets: pip install 'ciss[widgets]', or uv sync --extra widgets. Then run this "
    "cell again."
)


def choose(
    draw: Callable[..., Figure], errors: tuple[type[Exception], ...] = (ConfigError,), **options: Iterable | Callable
) -> None:
    """Shows `draw(**values)` and a list of choices for each name in `options`. A new choice draws again.

    Args:
        draw: gets the chosen values by name.
        errors: of `draw`; they are shown as a message.
        options: values, or pairs of label and value; or a function of earlier options that returns them. The first is
            chosen at the start.
    """
    values = {}
    for name, choices in options.items():
        values[name] = _pairs(choices, values)[0][1]
    figure = draw(**values)
    if runs_without_person():  # the choices of an executed copy would do nothing
        _show(figure)
        return
    try:
        import ipywidgets
    except ImportError:
        print(INSTALL)
        _show(figure)
        return
    Panel(ipywidgets, draw, errors, options, values, figure)


class Panel:
    """The lists above one figure. The figure is a normal output, which stays in the executed notebook."""

    def __init__(self, ipywidgets, draw: Callable, errors: tuple, options: dict, values: dict, figure: Figure):
        self.draw, self.errors, self.options, self.values = draw, errors, options, values
        self.lists, self.busy = {}, False
        for name, choices in options.items():
            dropdown = ipywidgets.Dropdown(
                options=_pairs(choices, values), value=values[name], description=name.rstrip("_"),
                layout={"width": "300px"}, style={"description_width": "70px"},
            )  # fmt: skip
            dropdown.observe(self._changed, names="value")
            self.lists[name] = dropdown
        display(ipywidgets.HBox(list(self.lists.values()), layout={"flex_flow": "row wrap"}))
        self.handle = _show(figure)

    def _changed(self, change: dict) -> None:
        if self.busy:  # `_follow` changes dependent lists; the figure is drawn once
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
        """Updates the choices of dependent lists, and the values. A value that is still possible is kept."""
        values: dict[str, Any] = {}
        for name, shown in self.lists.items():
            if callable(self.options[name]):
                pairs = _pairs(self.options[name], values)
                if [tuple(pair) for pair in shown.options] != pairs:
                    kept = shown.value if shown.value in [value for _, value in pairs] else pairs[0][1]
                    shown.options, shown.value = pairs, kept
            values[name] = shown.value
        self.values = values


def _pairs(options: Iterable | Callable, values: dict) -> list[tuple[str, Any]]:
    """Pairs of label and value."""
    if callable(options):
        names = options.__code__.co_varnames[: options.__code__.co_argcount]
        options = options(**{name: values[name] for name in names})
    return [option if isinstance(option, tuple) else (str(option), option) for option in options]


def _show(figure: Figure):
    return display(picture(figure), display_id=True)


def picture(figure: Figure) -> Image:
    """A figure as PNG, drawn once and closed. The display of notebooks draws twice to trim margins."""
    plt.close(figure)  # otherwise the notebook shows it again
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return Image(stream.getvalue())
