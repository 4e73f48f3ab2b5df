"""Lists over a figure, and the same figure without them."""

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
def lists(monkeypatch, shown):
    """choose(...) -> the lists by name, the panel's part that a person turns."""
    stub = SimpleNamespace(Dropdown=Dropdown, HBox=lambda children, layout: children)
    monkeypatch.setitem(sys.modules, "ipywidgets", stub)

    def choose(*arguments, **options):
        widgets.choose(*arguments, **options)
        return {each.description: each for each in shown[0]}

    return choose


@pytest.fixture
def drawing():
    calls = []

    def draw(**values):
        calls.append(values)
        return plt.figure(figsize=(1, 1))

    draw.calls = calls
    return draw


def test_an_executed_notebook_has_the_first_figure_and_no_lists(monkeypatch, shown, lists, drawing, capsys):
    monkeypatch.setattr(widgets, "runs_without_person", lambda: True)
    widgets.choose(drawing, a=["x", "y"])
    assert drawing.calls == [{"a": "x"}] and len(shown) == 1 and capsys.readouterr().out == ""


def test_without_ipywidgets_there_is_the_first_figure(monkeypatch, shown, drawing, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    widgets.choose(drawing, a=["x", "y"], b=lambda a: [(f"{a}!", 1), ("no", 2)])
    assert drawing.calls == [{"a": "x", "b": 1}]
    assert shown[0].data.startswith(b"\x89PNG") and not plt.get_fignums(), "once, as a picture"
    assert "pip install 'ciss[widgets]'" in capsys.readouterr().out


def test_a_choice_draws_anew(lists, shown, drawing):
    found = lists(drawing, run=["x", "y"], class_=[("cat", 1), ("dog", 2)])
    assert list(found) == ["run", "class"] and drawing.calls == [{"run": "x", "class_": 1}]
    found["class"].value = 2
    assert drawing.calls[1:] == [{"run": "x", "class_": 2}]
    assert len(shown) == 3 and shown[2].data.startswith(b"\x89PNG")


def test_lists_follow_those_before_them(lists, drawing):
    steps = {"x": [0, 1, 2], "y": [1], "z": [5, 2]}
    found = lists(drawing, run=list(steps), step=lambda run: steps[run], twice=lambda step, run: [(run, 2 * step)])
    found["step"].value = 1
    found["run"].value = "y"
    assert drawing.calls[-1] == {"run": "y", "step": 1, "twice": 2}, "kept, where it still is"
    found["run"].value = "z"
    assert drawing.calls[-1] == {"run": "z", "step": 5, "twice": 10}
    assert len(drawing.calls) == 4, "once for each choice"


def test_an_error_is_a_sentence_and_the_lists_live_on(lists, shown):
    def draw(run):
        if run == "bad":
            raise ConfigError("there is no run. Train it.")
        if run == "broken":
            raise KeyError("a fault of ours")
        return plt.figure(figsize=(1, 1))

    found = lists(draw, run=["good", "bad", "broken"])
    found["run"].value = "bad"
    assert shown[-1] == {"text/plain": "error: there is no run. Train it."}
    with pytest.raises(KeyError):
        found["run"].value = "broken"
    found["run"].value = "good"
    assert shown[-1].data.startswith(b"\x89PNG")


def test_with_the_real_ones(shown, drawing):
    pytest.importorskip("ipywidgets")
    widgets.choose(drawing, run=["x", "y"], step=lambda run: [1, 2] if run == "x" else [3])
    run, step = shown[0].children
    run.value = "y"
    assert step.value == 3 and drawing.calls == [{"run": "x", "step": 1}, {"run": "y", "step": 3}]
