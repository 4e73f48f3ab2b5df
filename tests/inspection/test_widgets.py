"""Menus for all figures of a notebook, and the same figures without them."""

import sys
from types import SimpleNamespace

import matplotlib as mpl
import pytest

from ciss.documents import ConfigError
from ciss.inspection import widgets

mpl.use("Agg")
import matplotlib.pyplot as plt


class Dropdown:
    """As much of ipywidgets' as is used here: whoever observes `value` hears of every change."""

    def __init__(self, options, value, description, layout, style):
        self._options, self._value, self.description, self.heard = tuple(options), value, description, []

    def observe(self, heard, names):
        assert names == "value"
        self.heard.append(heard)

    @property
    def options(self):
        return self._options

    @options.setter
    def options(self, options):  # the first of them is chosen, as the real one does
        self._options = tuple(options)
        self.value = self._options[0][1]

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        assert value in [each for _, each in self._options]
        changed, self._value = value != self._value, value
        for heard in self.heard if changed else ():
            heard({"new": value})


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, and what replaces it."""
    found = []

    class Handle:
        def update(self, thing, raw=False):
            found.append(thing)

    def display(thing, display_id=False):
        found.append(thing)
        return Handle()

    monkeypatch.setattr(widgets, "display", display)
    return found


@pytest.fixture
def menus(monkeypatch, shown):
    """menus(*drawings, chosen, **choices) -> the menus by name, after the drawings are shown."""
    stub = SimpleNamespace(Dropdown=Dropdown, HBox=lambda children, layout: children)
    monkeypatch.setitem(sys.modules, "ipywidgets", stub)

    def make(*drawings, **choices):
        created = bar(**choices)
        for drawing in drawings:
            created.show(drawing)
        return created.menus

    return make


def bar(chosen=(), **choices) -> widgets.ControlBar:
    return widgets.ControlBar(choices, dict, dict(chosen), {name: f"the {name}" for name in choices})


def drawing(name: str = "draw"):
    """A drawing function of this name, with the views that it was called with."""
    calls = []

    def draw(view):
        calls.append(view)
        return plt.figure(figsize=(1, 1))

    draw.__name__, draw.calls = name, calls
    return draw


def test_an_executed_notebook_has_figures_and_no_menus(monkeypatch, shown, menus, capsys):
    monkeypatch.setattr(widgets, "runs_without_person", lambda: True)
    draw = drawing()
    assert menus(draw, a=["x", "y"]) == {}
    assert draw.calls == [{"a": "x"}] and len(shown) == 1 and capsys.readouterr().out == ""


def test_without_ipywidgets_figures_show_what_is_chosen(monkeypatch, shown, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    draw = drawing()
    chosen = {"a": "y", "b": "y, 2", "c": None, "d": ""}
    made = bar(chosen, a=["x", "y"], b=lambda a: [(f"{a}, {k}", k) for k in range(3)], c=[7, 8], d=[("none", 0)])
    made.show(draw)
    assert draw.calls == [{"a": "y", "b": 2, "c": 7, "d": 0}]
    assert shown[0].data.startswith(b"\x89PNG") and not plt.get_fignums(), "once, as a picture"
    assert "pip install 'ciss[widgets]'" in capsys.readouterr().out


def test_an_unknown_choice_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"class_name: there is no 'cart'. Did you mean 'cat'\?"):
        bar({"class_name": "cart"}, class_name=[("cat", 1), ("dog", 2)])
    with pytest.raises(ConfigError, match=r"step: there is no 3. There are: base step, step 1."):
        bar({"step": 3}, step=[("base step", 0), ("step 1", 1)])
    assert bar({"step": 0}, step=[("step 1", 1), ("base step", 0)]).values == {"step": 0}


def test_one_change_draws_all_figures_anew(menus, shown):
    first, second = drawing("first"), drawing("second")
    found = menus(first, second, run=["x", "y"], class_name=[("cat", 1), ("dog", 2)])
    assert [menu.description for menu in found.values()] == ["the run", "the class_name"]
    assert first.calls == second.calls == [{"run": "x", "class_name": 1}] and len(shown) == 3, "menus and two figures"
    found["class_name"].value = 2
    assert first.calls[1:] == second.calls[1:] == [{"run": "x", "class_name": 2}]
    assert len(shown) == 5 and all(picture.data.startswith(b"\x89PNG") for picture in shown[1:])


def test_a_cell_that_runs_again_is_one_figure(menus):
    draw = drawing()
    found = menus(draw, draw, run=["x", "y"])
    found["run"].value = "y"
    assert draw.calls == [{"run": "x"}, {"run": "x"}, {"run": "y"}]


def test_menus_follow_those_before_them(menus):
    steps, draw = {"x": [0, 1, 2], "y": [1], "z": [5, 2]}, drawing()
    found = menus(draw, run=list(steps), step=lambda run: steps[run], twice=lambda step, run: [(run, 2 * step)])
    found["step"].value = 1
    found["run"].value = "y"
    assert draw.calls[-1] == {"run": "y", "step": 1, "twice": 2}, "kept, where it still is"
    found["run"].value = "z"
    assert draw.calls[-1] == {"run": "z", "step": 5, "twice": 10}
    assert len(draw.calls) == 4, "once for each choice"


def test_an_error_is_a_sentence_and_the_menus_live_on(menus, shown):
    def draw(view):
        if view["run"] == "bad":
            raise ConfigError("there is no run. Train it.")
        if view["run"] == "broken":
            raise KeyError("a fault of ours")
        return plt.figure(figsize=(1, 1))

    found = menus(draw, run=["good", "bad", "broken"])
    found["run"].value = "bad"
    assert shown[-1] == {"text/plain": "error: there is no run. Train it."}
    with pytest.raises(KeyError):
        found["run"].value = "broken"
    found["run"].value = "good"
    assert shown[-1].data.startswith(b"\x89PNG")


def test_with_the_real_ones(shown):
    pytest.importorskip("ipywidgets")
    draw = drawing()
    bar(run=["x", "y"], step=lambda run: [1, 2] if run == "x" else [3]).show(draw)
    run, step = shown[0].children
    run.value = "y"
    assert step.value == 3 and draw.calls == [{"run": "x", "step": 1}, {"run": "y", "step": 3}]
