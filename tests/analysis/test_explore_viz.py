"""Figures of the exploring notebooks on degenerate input: drawn without a warning, showing what the arrays hold."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from ciss.analysis.exploring.figures import (
    OUTCOME_COLOURS,
    conflict_bars,
    confusion_bars,
    cosine_map,
    drift_heatmap,
    gradient_bars,
    outcome_handles,
    outcome_picture,
    projection,
    relabel_bars,
    side_by_side,
)
from ciss.analysis.exploring.pictures import MAX_CLASSES, method_pictures, picture_row
from ciss.analysis.exploring.prototypes import OUTCOMES, drift_table, relabel_table
from ciss.analysis.figures.masks import LEVEL, painted
from ciss.analysis.figures.style import mark
from ciss.protocol import Classes
from tests.helpers.figures import draw, strings, words

pytestmark = pytest.mark.filterwarnings("error")
NAN = np.nan
COLOURS = np.array([[0, 0, 0], [128, 0, 0]], np.uint8)


def boxes(figure) -> list[tuple]:
    """Every text that is drawn, of all axes and legends, with its place in pixels."""
    renderer = draw(figure).canvas.get_renderer()
    off = [ax for ax in figure.findobj(mpl.axes.Axes) if not ax.axison]
    hidden = {text for ax in off for text in (*ax.get_xticklabels(), *ax.get_yticklabels())}
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text().strip() and text not in hidden]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_visible()]


def clean(figure) -> None:
    """No text lies over another, or over the figure's edge."""
    text_boxes, (width, height) = boxes(figure), figure.canvas.get_width_height()
    small = [(text, box.shrunk(0.95, 0.8)) for text, box in text_boxes]
    assert not [(a, b) for k, (a, one) in enumerate(small) for b, other in small[:k] if one.overlaps(other)]
    assert not [text for text, b in text_boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]


# --- pictures and maps


def test_panels_of_a_picture_a_mask_and_a_map():
    mask, values = np.array([[0, 1], [255, 1]], np.uint8), np.array([[0.0, 0.5], [1.0, 4.0]])
    image, coarse = np.full((2, 2, 3), 90, np.uint8), np.array([[1]])
    panels = [
        ("image", image),
        ("prediction", mask, mask[::-1]),
        ("nearest", coarse),
        ("weight", values, "weight", 2.0),
    ]
    known = Classes([[1]], ["background", "a"], COLOURS)
    figure = picture_row(panels, known, handles=outcome_handles(OUTCOMES))
    clean(figure)
    prediction, nearest, weight = (ax.images[0] for ax in figure.axes[1:4])
    expected = painted(mask, known, image, mask[::-1]), painted(coarse, known)  # the second is too coarse for the image
    for drawn, colours in zip((prediction, nearest), expected, strict=True):
        np.testing.assert_allclose(drawn.get_array().astype(int), colours.astype(int), atol=LEVEL / 2)
    assert weight.get_clim() == (0, 2)
    classes, fates = figure.legends
    assert strings(classes.texts) == ["background", "a"]
    assert strings(fates.texts) == list(OUTCOMES)


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.full((2, 3), NAN), np.array([[NAN, np.inf, 2.0]])])
def test_a_map_of_nothing_or_without_numbers(values):
    figure = picture_row([("map", values, "unit", None, np.ones(values.shape, bool))])
    clean(figure)
    assert np.isfinite(figure.axes[0].images[0].get_clim()).all()


def test_a_frame_on_a_coarser_map():
    inside = np.zeros((8, 8), bool)
    inside[2:4, 4:6] = True
    figure = draw(picture_row([("map", np.ones((2, 2)), "", 1, inside), ("map", np.ones((2, 2)), "", 1, ~inside[:0])]))
    edge = np.concatenate(figure.axes[0].collections[0].get_paths()[0].to_polygons())
    assert edge.mean(axis=0) == pytest.approx([1.25, 0.75], abs=0.05), "in the map's pixels: x, y"
    assert not figure.axes[1].collections, "nothing to frame"


def test_many_panels_and_tall_pictures():
    panels = [(f"panel {k}", np.zeros((30, 10, 3), np.uint8)) for k in range(9)]
    figure = picture_row(panels)
    clean(figure)
    assert len(figure.axes) == 9


# --- gradients


def gradients(pixels: list[int], introduced: list[int]) -> pd.DataFrame:
    values = [0.5 if p else NAN for p in pixels]
    shares = [0.1] * len(pixels)
    names = [f"class {k}" for k in range(len(pixels))]
    table = {"class": names, "introduced": introduced, "pixels": pixels, "gradient": values, "share": shares}
    return pd.DataFrame({**table, "weight": values, "weighted share": [0.4] * len(pixels)})


def test_bars_of_present_classes():
    figure = gradient_bars({"gsc": gradients([5, 0, 3], [0, 0, 1])})
    clean(figure)
    assert strings(figure.axes[0].get_yticklabels()) == ["class 2", "class 0"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.5, 0.5]
    assert len({bar.get_facecolor() for bar in figure.axes[0].patches}) == 2, "steps have a colour"
    assert figure.axes[2].get_xlim()[1] > 0.4, "no mark is cut off"


def test_bars_of_two_methods_share_rows_and_scales():
    other = gradients([5, 4, 0], [0, 0, 1]).assign(gradient=[0.9, 0.5, NAN])
    figure = gradient_bars({"gsc": gradients([5, 0, 0], [0, 0, 1]), "mbs (adapted)": other})
    clean(figure)
    assert strings(figure.axes[0].get_yticklabels()) == ["class 1", "class 0"], "with pixels in one of them"
    assert sorted(bar.get_width() for bar in figure.axes[0].patches) == [0, 0.5]
    assert sorted(bar.get_width() for bar in figure.axes[3].patches) == [0.5, 0.9]
    for one, other in zip(figure.axes[:3], figure.axes[3:6], strict=True):
        assert one.get_xlim() == other.get_xlim() and one.get_ylim() == other.get_ylim()
    assert figure.axes[0].get_xlim()[1] >= 0.9
    assert [ax.get_title() for ax in figure.axes] == ["", "gsc", "", "", "mbs (adapted)", ""]


def test_bars_of_no_class_and_of_very_many():
    assert words(draw(gradient_bars({"gsc": gradients([0, 0], [0, 1])}))) == ["no pixel has a label"]
    shares = draw(gradient_bars({"gsc": gradients([5], [0]).assign(**{"weighted share": NAN})})).axes[2]
    assert shares.patches[0].get_width() == 0.1 and np.isnan(shares.lines[0].get_xdata()).all()
    figure = gradient_bars({"gsc": gradients(list(range(151)), [0] * 101 + [1] * 50)})
    assert len(figure.axes[0].patches) == MAX_CLASSES
    assert figure.axes[0].get_yticklabels()[0].get_text() == "class 150"


def test_conflict_says_the_sign_and_what_has_no_gradient():
    table = pd.DataFrame({"layer": ["a", "b", "c"], "cosine": [-0.5, 0.25, NAN]})
    figure = side_by_side(conflict_bars, {"gsc": table, "mib": table.assign(cosine=[1.0, 1.0, 1.0])}, 2)
    clean(figure)
    bars, other = figure.axes
    assert [bar.get_width() for bar in bars.patches] == [0.25, -0.5]
    assert bars.patches[1].get_hatch() and not bars.patches[0].get_hatch(), "told apart in grey"
    assert {"-0.50", "+0.25", " no gradient"} <= {text.get_text() for text in bars.texts}
    assert bars.get_xlim() == other.get_xlim() == (-1, 1)
    assert [ax.get_title() for ax in figure.axes] == ["gsc", "mib"]


def test_cosines_of_one_loss_and_of_several():
    cosines = pd.DataFrame([[1, NAN], [NAN, NAN]], index=["old", "new"], columns=["old", "new"])
    figure = side_by_side(cosine_map, {"gsc": cosines, "mib": pd.DataFrame([[1.0]], index=["x"], columns=["x"])}, 3)
    clean(figure)
    assert words(figure) == ["1.00", "1.00"]


def test_labels_of_equal_rows_and_legends_are_shown_once():
    def drawn(ax, labels):
        ax.barh(range(2), [1, 2], label="pixels")
        ax.set_yticks(range(2), labels)
        ax.legend()

    figure = draw(side_by_side(drawn, {"a": ["x", "y"], "b": ["x", "y"], "c": ["x", "z"]}, 3))
    visible = [ax.yaxis.get_tick_params()["labelleft"] for ax in figure.axes]
    assert visible == [True, False, True]
    assert len(figure.legends) == 1 and strings(figure.legends[0].texts) == ["pixels"]
    assert not [ax for ax in figure.axes if ax.get_legend()]


# --- two methods


def test_rows_of_methods_share_the_scale_of_a_column():
    mask, image = np.array([[0, 1], [255, 1]], np.uint8), np.full((2, 2, 3), 90, np.uint8)
    known = Classes([[1]], ["background", "a"], COLOURS)
    low, high = np.array([[0.0, 0.5], [1.0, 1.0]]), np.array([[0.0, 4.0], [4.0, 4.0]])
    rows = {
        "gsc": [("learnt labels", mask), ("weight", low, "weight", None), ("gradient", low, "size", 1)],
        "mbs (adapted)": [("learnt labels", mask), ("weight", high, "weight", None), ("own", high, "", None)],
    }
    figure = method_pictures([("image", image), ("ground truth", mask)], rows, known)
    clean(figure)
    limits = {}
    for ax in figure.axes:
        if ax.images and ax.images[0].get_array().ndim == 2:
            limits.setdefault(round(ax.get_position().x0, 3), []).append(ax.images[0].get_clim())
    assert list(limits.values()) == [[(0, 4), (0, 4)], [(0, 1)], [(0, 4)]], "the same scale in a column"
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["image", "ground truth", "learnt labels", "weight", "gradient", "own"]
    assert strings(figure.texts) == ["gsc", "mbs (adapted)"] and strings(figure.legends[0].texts) == ["background", "a"]


def test_one_method_alone_has_one_row():
    image = np.zeros((4, 2, 3), np.uint8)
    known = Classes([[1]], ["background", "a"], COLOURS)
    rows = {"gsc": [("map", np.full((4, 2), NAN), "unit", None)]}
    figure = method_pictures([("image", image), ("ground truth", np.ones((4, 2), int))], rows, known)
    clean(figure)
    assert len({round(ax.get_position().y0, 3) for ax in figure.axes if ax.images}) == 1


# --- prototypes


def test_sixty_four_classes_look_different():
    assert len({tuple(mark(position).values()) for position in range(64)}) == 64


def test_projection_follows_a_prototype():
    table = pd.DataFrame({"x": [0.0, 1, 2, 5], "y": [0.0, 1, 2, 5], "position": [0, 0, 0, 6], "step": [-1, 0, 1, -1]})
    figure, ax = plt.subplots(layout="constrained")
    projection(ax, table, [f"class {k}" for k in range(7)], (0.75, 0.2))
    clean(figure)
    assert ax.get_xlabel() == "component 1: 75% of the variance"
    assert ax.lines[0].get_xydata().tolist() == [[1, 1], [2, 2]]
    assert strings(ax.get_legend().texts) == ["class 0", "class 6"]


def test_projection_of_nothing():
    figure, ax = plt.subplots()
    projection(ax, pd.DataFrame({"x": [], "y": [], "position": [], "step": []}), [])
    assert not words(draw(figure)) and ax.get_legend() is None and not ax.lines
    assert ax.get_xlabel() == "t-SNE: only neighbourhood has a meaning"


@pytest.mark.parametrize("steps", [1, 2])
def test_drift_with_an_absent_class(steps):
    means, counts = np.arange(2 * steps).reshape(steps, 2, 1), np.array([[1, 0]] * steps)
    figure, ax = plt.subplots()
    classes = Classes([[1]], ["a", "absent"])
    drift_heatmap(ax, drift_table(means, counts, np.ones((steps, 2)), classes))
    draw(figure)
    said = [text.replace("\n", " ") for text in strings(ax.texts)]
    assert said == (["No step before this one: no prototype has moved."] if steps == 1 else ["2.00"])


def test_confusions_name_the_other_class():
    table = {"class": ["a", "b", "c"], "pixels": [4, 1, 0], "own": [0.25, 1.0, NAN], "confused": [0.5, 0.0, NAN]}
    figure, ax = plt.subplots(layout="constrained")
    confusion_bars(ax, pd.DataFrame({**table, "confused with": ["b", "", ""]}))
    clean(figure)
    assert strings(ax.texts) == ["b 50.0 %"]
    assert [round(bar.get_width(), 2) for bar in ax.patches] == [100, 25, 0, 50, 0, 25]
    _, empty = plt.subplots()
    confusion_bars(empty, pd.DataFrame({**table, "confused with": [""] * 3}).assign(pixels=0))
    assert strings(empty.texts)[0].replace("\n", " ") == "No pixel has a class." and not empty.patches


# --- labels


def grey(colour: str) -> float:
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def test_fates_are_told_apart_in_grey():
    shades = sorted(grey(colour) for colour in OUTCOME_COLOURS)
    assert min(np.diff(shades)) > 0.15
    picture = outcome_picture(np.arange(len(OUTCOMES)))
    assert picture.shape == (6, 3) and picture[0].tolist() == [255] * 3 and picture[5].tolist() == [0] * 3


def test_relabel_bars_add_up_and_may_be_empty():
    told = np.zeros((1, 2), int)
    table = relabel_table([told], [told], [np.array([[0, 1]])], 2, ["background", "a"])
    figure, ax = plt.subplots(figsize=(7, 2.5), layout="constrained")
    relabel_bars(ax, table)
    clean(figure)
    assert sum(bar.get_width() for bar in ax.patches) == 200
    _, empty = plt.subplots()
    relabel_bars(empty, table[:0])
    assert [text.replace("\n", " ") for text in strings(empty.texts)] == [
        "No pixel has the given label background."
    ] and not empty.patches
