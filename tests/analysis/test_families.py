"""Colours of methods, steps and classes: by name, and told apart by people with other cones and without colours."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ciss.analysis.figures.families import (
    CLASS_COLOURS,
    ERRORS,
    FAMILIES,
    GROUPS,
    OTHER,
    PALE,
    bar_styles,
    chosen,
    class_style,
    is_joint,
    method_styles,
    others_note,
    step_styles,
)
from ciss.methods import METHODS, finetune

VISION = {  # linear RGB as seen, Machado, Oliveira and Fernandes, IEEE TVCG 2009, severity 1
    "normal": np.eye(3),
    "deuteranope": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "protanope": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0993], [-0.0039, -0.0481, 1.0516]]),
}
TO_XYZ = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8727]])  # over white


def lab(colour: str, vision: str) -> np.ndarray:
    """CIELAB of a hexadecimal colour."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ np.clip(VISION[vision] @ linear, 0, 1), 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(first: str, second: str, vision: str) -> float:
    return float(np.linalg.norm(lab(first, vision) - lab(second, vision)))


@pytest.mark.parametrize("vision", VISION)
def test_neighbouring_colours_differ(vision):
    families = [colour for colour, _ in FAMILIES.values()]
    pairs = [*combinations([*families, OTHER], 2), *combinations(CLASS_COLOURS[:8], 2), *pairwise(CLASS_COLOURS)]
    pairs += [(a, PALE) for a in families]
    pairs += [(a, b) for table in (GROUPS, ERRORS) for a, b in pairwise(face for face, _ in table.values())]
    near = {pair: distance(*pair, vision) for pair in pairs}
    assert min(near.values()) > 12, min(near, key=near.get)


@pytest.mark.parametrize("parts", [GROUPS, ERRORS], ids=["groups", "errors"])
def test_parts_of_a_bar_differ_in_grey(parts):
    """In lightness or in hatch, also where they do not touch."""
    for (face, hatch), (other, other_hatch) in combinations(parts.values(), 2):
        lightness = abs(lab(face, "normal")[0] - lab(other, "normal")[0])
        assert hatch != other_hatch or lightness > 15, (face, other)


def test_methods_that_a_figure_singles_out_differ_in_grey():
    """In marker or line style."""
    styles = method_styles(chosen(METHODS))
    assert len({(style["marker"], style["ls"]) for style in styles.values()}) == len(styles)


def test_every_method_has_a_look_of_its_own():
    styles = method_styles(METHODS, most=None)
    assert len({(s["color"], s["marker"], s["ls"]) for s in styles.values()}) == len(METHODS)
    assert len({(s["facecolor"], s["hatch"]) for s in bars(METHODS)}) == len(METHODS)


def bars(methods) -> list[dict]:
    return [{"facecolor": style["color"], **style} for style in bar_styles(methods).values()]


def test_a_look_does_not_depend_on_the_others():
    everyone = method_styles(METHODS, most=None)
    for method in METHODS:
        assert method_styles([method])[method] == everyone[method]
    assert method_styles(["mbs (adapted)"])["mbs (adapted)"] == everyone["mbs"], "the same method on another decoder"


def test_variants_are_hollow_and_differ():
    styles = method_styles(["gsc", "gsc-paper", "gsc-clamped"])
    assert {style["color"] for style in styles.values()} == {FAMILIES["compensated gradients"][0]}
    assert [style["mfc"] == "white" for style in styles.values()] == [False, True, True]
    assert styles["gsc-paper"] != styles["gsc-clamped"]
    assert method_styles(["gsc-paper"])["gsc-paper"]["color"] == styles["gsc"]["color"]


def test_new_methods_take_the_colour_of_their_base(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", type("Mine", (finetune.Finetune,), {}))
    styles = method_styles(["mine", *(f"m{k}" for k in range(40))], most=None)
    assert styles["mine"]["color"] == FAMILIES["fine-tuning"][0] and styles["m0"]["color"] == OTHER
    assert len({(s["color"], s["marker"], s["ls"]) for s in styles.values()}) == 41


def test_of_many_methods_eight_are_singled_out():
    methods = ["joint", *(f"gsc-{k}" for k in range(5)), "lwf", *("mib", "plop", "gsc", "mbs", "finetune", "ssul")]
    shown = chosen(methods)
    assert shown == ["joint", "gsc-0", "lwf", "mib", "plop", "gsc", "mbs", "finetune", "ssul"], (
        "one of each family first"
    )
    styles = method_styles(methods)
    assert {method for method in methods if styles[method]["color"] == PALE} == set(methods) - set(shown)
    assert others_note(methods) == "Grey: 4 other methods." and not others_note(methods[:5])


def test_joint_training_is_black():
    styles = method_styles(["joint", "joint-long"])
    assert {(style["color"], style["marker"]) for style in styles.values()} == {("#000000", "*")}
    assert styles["joint"] != styles["joint-long"] and is_joint("joint-long") and not is_joint("jointly")


def test_later_steps_are_darker():
    lightness = [lab(style["color"], "normal")[0] for style in step_styles(range(6)).values()]
    assert lightness == sorted(lightness, reverse=True)
    assert step_styles([3]).keys() == {3}


def test_classes_differ():
    assert len({(s["color"], s["marker"]) for s in map(class_style, range(1, 337))}) == 336
