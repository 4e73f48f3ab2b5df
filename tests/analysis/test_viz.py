"""Figures on degenerate input: drawn without a warning, showing what the arrays hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ciss.analysis.compare.figures import method_lines
from ciss.analysis.figures.masks import VOID, class_legend, colour, strips
from ciss.analysis.figures.training import iou_bars, loss_curve, trace_panels
from ciss.protocol import Classes
from tests.helpers.figures import draw, strings, words

pytestmark = pytest.mark.filterwarnings("error")


def test_masks_take_the_palette_and_void_is_pale():
    colours = np.array([[0, 0, 0], [128, 0, 0]], np.uint8)
    picture = colour(np.array([[0, 1], [255, 1]]), colours)
    assert picture[0, 1].tolist() == [128, 0, 0]
    assert picture[1, 0].tolist() == list(VOID)


def test_strips_of_uneven_rows_and_one_class_legend():
    image = np.zeros((4, 6, 3), np.uint8)
    figure = strips([("image", [image, image]), ("a long name of a row", [image])])
    class_legend(figure, Classes([], ["background"], np.zeros((1, 3), np.uint8)))
    draw(figure)
    assert len(figure.axes) == 4


def test_method_lines_with_one_seed_and_several():
    _, ax = plt.subplots()
    table = pd.DataFrame({"method": ["a", "a", "b"], "step": [0, 0, 0], "all": [0.2, 0.4, 0.5]})
    method_lines(ax, table, "step", "all")
    draw()
    assert [label for label in ax.get_legend_handles_labels()[1]] == ["a", "b"]
    assert ax.containers[0].lines[0].get_ydata().tolist() == pytest.approx([0.3])


def test_loss_and_iou_with_nan():
    _, (left, right) = plt.subplots(1, 2)
    loss_curve(left, [{"epoch": 1, "loss": 1.0, "loss/a": 1.0}])
    iou_bars(right, np.array([0.5, np.nan]), ["a", "b"], before=np.array([0.7]))
    draw()
    assert left.lines[0].get_xydata().tolist() == [[1, 1]] and left.lines[0].get_label() == "a"
    assert [bar.get_height() for bar in right.patches] == [0.5, 0], "an IoU that is not defined has no height"
    assert right.lines[0].get_xydata().tolist() == [[0, 0.7]] and strings(right.get_xticklabels()) == ["a", "b"]


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
