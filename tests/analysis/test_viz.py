"""Figures on degenerate input: drawn without a warning, showing what the arrays hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from ciss.analysis.compare.figures import method_lines
from ciss.analysis.figures.charts import label_ends
from ciss.analysis.figures.masks import (
    DARKNESS,
    STRIPES,
    all_painted,
    class_colours,
    class_legend,
    draw_picture,
    painted,
    strips,
)
from ciss.analysis.figures.training import iou_bars, loss_curve, trace_panels
from ciss.protocol import Classes
from tests.helpers.figures import draw, strings, words

pytestmark = pytest.mark.filterwarnings("error")


TWO = Classes([[1]], ["background", "a"], np.array([[0, 0, 0], [128, 0, 0]], np.uint8))


def quarters(picture: np.ndarray) -> list[set]:
    """The colours in each quarter of an enlarged picture of 2x2 pixels."""
    half = len(picture) // 2
    parts = [picture[a : a + half, b : b + half].reshape(-1, 3) for a in (0, half) for b in (0, half)]
    return [set(map(tuple, part.tolist())) for part in parts]


def test_masks_are_bright_and_void_is_hatched():
    background, one = (tuple(colour) for colour in class_colours(TWO).tolist())
    picture = painted(np.array([[0, 1], [255, 1]]), TWO)
    assert picture.shape == (128, 128, 3)
    assert quarters(picture) == [{background}, {one}, {(255, 255, 255), (STRIPES,) * 3}, {one}]
    assert max(one) > 200, "not the dark red of the data set"


def test_masks_of_more_classes_than_the_palette_keep_their_own_colours():
    colours = np.arange(3 * 40, dtype=np.uint8).reshape(40, 3)
    assert class_colours(Classes([list(range(1, 40))], colours=colours)) is colours


def test_masks_lie_over_the_grey_image_and_wrong_pixels_have_an_outline():
    image = np.array([[[90, 0, 0], [0, 90, 0]], [[0, 0, 90], [30, 30, 30]]], np.uint8)
    mask, truth = np.array([[0, 1], [1, 0]]), np.array([[0, 1], [0, 255]])
    shown = quarters(painted(mask, TWO, image))
    own = tuple(class_colours(TWO)[1].tolist())
    edge = tuple(round(DARKNESS * value) for value in own)
    (grey,), (one,) = shown[0], shown[1] - {edge}
    assert len(set(grey)) == 1 and grey[0] > 30, "paler than the image, without its colour"
    assert one != own and shown[1] == shown[2] == {one, edge}, "a class has a darker edge, the background none"
    with_errors = quarters(painted(mask, TWO, image, truth))
    assert with_errors[:2] == shown[:2] and with_errors[3] == shown[3], "right, and void in the ground truth"
    assert with_errors[2] == {one, (0, 0, 0), (255, 255, 255)}, "the outline lies over the edge"
    assert all_painted([mask, None], TWO, [image, image], [truth, truth])[1] is None


def test_strips_of_uneven_rows_and_one_class_legend():
    image = np.zeros((4, 6, 3), np.uint8)
    figure = strips([("image", [image, image]), ("a long name of a row", [image, None])])
    class_legend(figure, Classes([], ["background"], np.zeros((1, 3), np.uint8)))
    draw(figure)
    assert len(figure.axes) == 4


def test_drawn_pictures_make_small_files():
    """Noise is rounded and not blended: otherwise executed notebooks in git have megabytes."""
    _, (left, right) = plt.subplots(1, 2)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    drawn = draw_picture(left, noise)
    assert drawn.get_interpolation() == "nearest"
    assert set(np.unique(drawn.get_array())) == {*range(0, 256, 8), 255}
    assert np.abs(drawn.get_array().astype(int) - noise).max() <= 4
    assert draw_picture(right, noise.repeat(4, 0).repeat(4, 1)).get_interpolation() != "nearest", "reduced: blended"


def test_method_lines_with_one_seed_and_several():
    _, ax = plt.subplots()
    table = pd.DataFrame({"method": ["a", "a", "b"], "step": [0, 0, 0], "all": [0.2, 0.4, 0.5]})
    ends = method_lines(ax, table, "step", "all")
    draw()
    assert [label for label in ax.get_legend_handles_labels()[1]] == ["a", "b"]
    assert ax.containers[0].lines[0].get_ydata().tolist() == pytest.approx([30])
    assert {name: y for name, (_, y) in ends.items()} == pytest.approx({"a": 30, "b": 50})


def test_names_at_line_ends_do_not_overlap():
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.set_ylim(0, 100)
    label_ends(ax, {"a": (1, 0.0), "b": (1, 1.0), "c": (1, 1.5), "d": (1, 90.0), "e": (1, np.nan)})
    draw(figure)
    boxes = {text.get_text(): Text.get_window_extent(text) for text in ax.texts}
    assert list(boxes) == ["a", "b", "c", "d"], "from below, and only what has an end"
    lower, upper = zip(*((box.y0, box.y1) for box in boxes.values()), strict=True)
    assert all(top <= bottom + 1 for top, bottom in zip(upper, lower[1:], strict=False))
    assert ax.texts[3].xyann[1] == pytest.approx(90), "a name that is alone stays at its line"


def test_loss_and_iou_with_nan():
    _, (left, right) = plt.subplots(1, 2)
    loss_curve(left, [{"epoch": 1, "loss": 1.0, "loss/a": 1.0}])
    iou_bars(right, np.array([0.5, np.nan]), ["a", "b"], before=np.array([0.7]))
    draw()
    assert left.lines[0].get_xydata().tolist() == [[1, 1]] and left.lines[0].get_label() == "a"
    assert [bar.get_height() for bar in right.patches] == [50, 0], "an IoU that is not defined has no height"
    assert right.lines[0].get_xydata().tolist() == [[0, 70]] and strings(right.get_xticklabels()) == ["a", "b"]


def test_strips_of_maps_share_a_scale_in_their_row():
    image, weights = np.zeros((4, 6, 3), np.uint8), np.full((2, 3), 0.5)
    figure = strips([("image", [image, image]), ("weight", [weights, 4 * weights]), ("share", [weights])])
    draw(figure)
    scales = {ax.images[0].get_clim() for ax in figure.axes if ax.images and ax.images[0].get_array().ndim == 2}
    assert (0.0, 2.0) in scales and (0.0, 1.0) in scales, "to the largest values, or to 1"


def test_trace_panels_of_what_was_logged():
    trace = {"loss/a": np.ones(3), "gradient/step0": np.array([1.0, np.nan, 3.0]), "weight/largest": np.ones(3)}
    figure = trace_panels(trace, window=1)
    draw(figure)
    assert [ax.get_ylabel() for ax in figure.axes] == ["mean gradient magnitude", "weight of old pixels"]
    assert figure.axes[0].lines[0].get_ydata()[[0, 2]].tolist() == [1, 3]
    assert words(draw(trace_panels({"loss/a": np.ones(3)}))) == ["this method logs nothing but its losses"]
