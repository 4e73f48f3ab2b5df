"""One control bar of menus for all figures of a notebook; without ipywidgets, or without a person, figures alone."""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import Image, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ciss.data import DataError
from ciss.documents import ConfigError, choose
from ciss.store.files import CheckpointError
from ciss.training.progress import runs_without_person

INSTALL = (
    "For menus, install the widgets: pip install 'ciss[widgets]', or uv sync --extra widgets. Then restart the kernel. "
    "Without them, the figures show what the first cell names."
)
ERRORS = (ConfigError, CheckpointError, DataError)  # a message takes the place of the figures
Choices = Iterable | Callable[..., Iterable]  # values, or pairs of words and value; or a function of earlier menus


class ControlBar:
    """Menus at the top of a notebook. A new choice in one of them draws all figures again.

    Args:
        choices: of each menu, by its name. A function gets the values of earlier menus by their names.
        make: what the figures are drawn from, of the values of all menus by name.
        chosen: values at the start, by name, as value or in the words of the menu. None or "": the first choice.
        words: titles of the menus by name.

    Raises ConfigError for a chosen value that the menu does not have.
    """

    def __init__(
        self, choices: Mapping[str, Choices], make: Callable[..., Any], chosen: Mapping[str, Any], words: dict[str, str]
    ):
        self.choices, self.make, self.words = choices, make, words
        self.values: dict[str, Any] = {}
        for name in choices:
            self.values[name] = _value(name, chosen.get(name), _pairs(choices[name], self.values))
        self.view = make(**self.values)
        self.menus: dict[str, Any] = {}
        self._figures: dict[str, tuple[Callable, Any]] = {}  # by the name of the drawing function, with its handle
        self._busy = False
        if not runs_without_person():  # the menus of an executed copy would do nothing
            self._display()

    def show(self, draw: Callable[[Any], Figure]) -> None:
        """Shows the figure `draw(view)` in this cell, now and after each change of a menu."""
        self._figures[draw.__name__] = draw, display(picture(draw(self.view)), display_id=True)

    def _display(self) -> None:
        try:
            import ipywidgets
        except ImportError:
            print(INSTALL)
            return
        values: dict[str, Any] = {}
        for name, choices in self.choices.items():
            pairs, values[name] = _pairs(choices, values), self.values[name]
            menu = ipywidgets.Dropdown(
                options=pairs, value=values[name], description=self.words[name],
                layout={"width": "340px"}, style={"description_width": "90px"},
            )  # fmt: skip
            menu.observe(self._changed, names="value")
            self.menus[name] = menu
        display(ipywidgets.HBox(list(self.menus.values()), layout={"flex_flow": "row wrap"}))

    def _changed(self, change: dict) -> None:
        if self._busy:  # `_follow` changes dependent menus; the figures are drawn once
            return
        self._busy = True
        try:
            self._follow()
            for draw, handle in self._figures.values():
                handle.update(picture(draw(self.view)))
        except ERRORS as error:
            for _, handle in self._figures.values():
                handle.update({"text/plain": f"error: {error}"}, raw=True)
        finally:
            self._busy = False

    def _follow(self) -> None:
        """Updates the choices of dependent menus, the values and the view. A value that is still possible is kept."""
        values: dict[str, Any] = {}
        for name, menu in self.menus.items():
            if callable(self.choices[name]):
                pairs = _pairs(self.choices[name], values)
                if [tuple(pair) for pair in menu.options] != pairs:
                    kept = menu.value if menu.value in [value for _, value in pairs] else pairs[0][1]
                    menu.options, menu.value = pairs, kept
            values[name] = menu.value
        self.values, self.view = values, self.make(**values)


def _pairs(choices: Choices, values: dict) -> list[tuple[str, Any]]:
    """Pairs of words and value."""
    if callable(choices):
        names = choices.__code__.co_varnames[: choices.__code__.co_argcount]
        choices = choices(**{name: values[name] for name in names})
    return [choice if isinstance(choice, tuple) else (str(choice), choice) for choice in choices]


def _value(name: str, chosen: Any, pairs: list[tuple[str, Any]]) -> Any:
    """The chosen value of a menu, given as value or in words. Raises ConfigError."""
    if chosen is None or chosen == "":
        return pairs[0][1]
    for words, value in pairs:
        if chosen in (value, words):
            return value
    raise ConfigError(f"{name}: there is no {chosen!r}. {choose(str(chosen), [words for words, _ in pairs])}")


def picture(figure: Figure) -> Image:
    """A figure as PNG, drawn once and closed. The display of notebooks draws twice to trim margins."""
    plt.close(figure)  # otherwise the notebook shows it again
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return Image(stream.getvalue())
