"""The explore notebooks on trained runs: what the control bar offers, and two methods beside each other."""

import inspect
from functools import cache
from types import ModuleType

import matplotlib.pyplot as plt
import pytest

from ciss.analysis.exploring import gradient_views, prototype_views
from ciss.analysis.exploring.views import View, gradient_bar, prototype_bar
from ciss.config import ConfigError
from ciss.inspection import widgets
from ciss.inspection.step import MOMENTS
from tests.helpers.figures import draw, strings

START = {"run": "mib-1", "compared": "tune-1"}


@pytest.fixture(autouse=True)
def shown(finished, monkeypatch):
    """The bar without menus, as in an executed notebook."""
    finished.write()
    monkeypatch.setattr(widgets, "runs_without_person", lambda: True)


def figures(module: ModuleType) -> list:
    """The drawing functions of a notebook."""
    functions = [value for _, value in inspect.getmembers(module, inspect.isfunction)]
    own = [function for function in functions if function.__module__ == module.__name__]
    return [function for function in own if inspect.signature(function).return_annotation is plt.Figure]


NOTEBOOKS = ((gradient_bar, gradient_views), (prototype_bar, prototype_views))
DRAWINGS = [(bar, function) for bar, module in NOTEBOOKS for function in figures(module)]


@cache
def view_of(bar, **chosen) -> View:
    """Opened once: it takes a second."""
    return bar("params.yaml", **chosen).view


def titles(figure) -> list[str]:
    return [text for ax in figure.axes if (text := ax.get_title())] + strings(figure.texts)


def test_the_menus_in_words():
    bar = gradient_bar("params.yaml", **START, moment="start of the step", layer="encoder stage 1", class_name=0)
    offered = {name: [words for words, _ in widgets._pairs(bar.choices[name], bar.values)] for name in bar.choices}
    assert offered["run"][0] == "tiny: mib, step 1, seed 0"
    assert offered["compared"] == ["tiny: finetune, step 1, seed 0", "one run alone"]
    assert offered["step"] == ["step 1", "base step"] and offered["moment"] == list(MOMENTS)
    assert offered["layer"][0] == "before the classifier" and "encoder stage 1" in offered["layer"]
    assert offered["losses"][0] == "new classes and old classes, truth", "finetuning learns no old class"
    assert not [words for menu in offered.values() for words in menu if "_" in words.replace("train_", "")]
    assert (bar.view.layer, bar.view.class_name, bar.view.moment) == ("stage 1", "background", MOMENTS[1])
    assert str(bar.view) == "mib and finetune: 2 steps, 4 images of the hold-out set"


def test_the_first_cell_names_what_is_shown():
    view = prototype_bar("params.yaml", run="tune-2", compared="none", step="step 1", image=3, layer="stage 1").view
    assert [list(view.chains), view.step, view.image, view.layer] == [["finetune"], 1, 3, "stage 1"]
    for name, value in (("run", "tune-7"), ("step", 5), ("class_name", "unicorn"), ("layer", "stage 99")):
        with pytest.raises(ConfigError, match=f"there is no .*{value}"):
            prototype_bar("params.yaml", **{**START, name: value})


@pytest.mark.parametrize(("bar", "function"), DRAWINGS, ids=[function.__name__ for _, function in DRAWINGS])
def test_two_methods_stand_beside_each_other(bar, function):
    view = view_of(bar, **START)
    figure = draw(function(view))
    for method in ("mib", "finetune"):
        assert [text for text in titles(figure) if text.replace("\n", " ").startswith(method)], method
    alone = View({"mib": view.chains["mib"]}, view.step, view.image, view.position, view.layer, losses=view.losses)
    assert not [text for text in titles(draw(function(alone))) if text.startswith("finetune")]
    plt.close("all")


@pytest.mark.parametrize(
    ("bar", "function"),
    [(gradient_bar, gradient_views.pixel_gradients), (prototype_bar, prototype_views.distances)],
)
def test_maps_of_a_column_have_one_scale(bar, function):
    figure = function(view_of(bar, **START))
    scales: dict[float, set] = {}
    for ax in figure.axes:
        for image in (image for image in ax.images if image.get_array().ndim == 2 and True):
            scales.setdefault(round(ax.get_position().x0, 3), set()).add(image.get_clim())
    assert len(scales) >= 2 and {len(limits) for limits in scales.values()} == {1}
    plt.close("all")


@pytest.mark.parametrize(("run", "step"), [("base", 0), ("all", 0), ("mib-1", 0)])
def test_base_step_and_joint_training(run, step):
    """Without a teacher, and with no run beside them."""
    for bar, function in DRAWINGS:
        draw(function(view_of(bar, run=run, compared="none", step=step)))
    for bar, module in NOTEBOOKS:
        assert "False" not in module.checks(view_of(bar, run=run, compared="none", step=step))
    plt.close("all")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("decoder.classifier.groups.1", "classifier, step 1"),
        ("encoder.body.layer1.0.conv1", "encoder body layer1 0 conv1"),
        ("encoder.conv_stem", "encoder conv stem"),
        ("all layers", "all layers"),
    ],
)
def test_layers_in_words(layer, words):
    assert gradient_views.parameter_words(layer) == words
