"""Figures of forgetting and background on degenerate input: one class, one step, an absent class, NaN; no warning."""

from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ciss.analysis.background.figures import (
    angle_panels,
    belief_map,
    calibration_figure,
    class_rate_maps,
    error_panels,
    flow_bars,
    flow_panels,
    flow_ribbons,
    rate_panels,
    reliability,
    rule_points,
)
from ciss.analysis.background.tables import flows
from ciss.analysis.figures.families import ERRORS, GROUPS, class_style
from ciss.analysis.figures.masks import class_legend, overlay
from ciss.analysis.figures.style import legend_below, lowest, numbered_classes, panels
from ciss.analysis.forgetting.figures import (
    correlation_forest,
    forgetting_dots,
    gradient_panels,
    group_panels,
    iou_heatmaps,
    pace_panels,
)
from ciss.analysis.forgetting.tables import group_table
from ciss.protocol import Classes
from tests.helpers.figures import draw, legend, strings, words

pytestmark = pytest.mark.filterwarnings("error")
NAN = np.nan


def scores(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["method", "class", "introduced", "step", "iou"]).assign(end="e", seed=0)


ONE = scores(("a", "x", 0, 0, 0.5))
SOME = scores(
    ("a", "background", 0, 0, 0.9), ("a", "x", 0, 0, 0.5), ("a", "x", 0, 1, NAN), ("a", "y", 1, 1, 0.25),
    ("b", "x", 0, 0, 0.5), ("b", "x", 0, 1, NAN),
)  # fmt: skip


# --- panels


@pytest.mark.parametrize(("count", "shape"), [(0, (1, 1)), (1, (1, 1)), (3, (1, 3)), (4, (2, 3)), (7, (3, 3))])
def test_panels_in_rows_of_three(count, shape):
    figure, axes = panels(count)
    draw(figure)
    assert axes[0].get_gridspec().get_geometry() == shape and len(axes) == max(1, count)
    assert len(lowest(axes)) == min(3, max(1, count))
    assert not any(ax.axison for ax in figure.axes[len(axes) :]), "what is left over is empty"


def test_legend_under_the_panels_covers_none_of_them():
    figure, axes = panels(2)
    legend_below(figure, [axes[0].plot([0, 1], [0, 1], label=f"line {k}")[0] for k in range(7)], "title")
    draw(figure)
    below = figure.legends[0].get_window_extent()
    assert all(ax.get_tightbbox().y0 >= below.y1 - 1 for ax in axes)


# --- forgetting


@pytest.mark.parametrize(
    "table", [ONE, SOME, SOME.assign(iou=NAN)], ids=["one class and step", "some", "nothing known"]
)
def test_heatmaps_hold_the_numbers(table):
    methods = list(dict.fromkeys(table["method"]))
    figure = iou_heatmaps(table, methods)
    draw(figure)
    said = ["No IoU is defined."] * len(methods) if table["iou"].isna().all() else []
    assert sorted(words(figure)) == sorted([*said, *(f"{100 * iou:.1f}" for iou in table["iou"].dropna())])
    assert [ax.get_title() for ax in figure.axes[: len(methods)]] == methods


def test_heatmaps_of_many_classes_have_no_numbers():
    table = scores(*(("a", f"class {c}", 0, s, 0.5) for c in range(151) for s in range(2)))
    figure = iou_heatmaps(table, ["a"])
    assert not words(figure) and figure.get_figheight() > 20


def lost(**columns) -> pd.DataFrame:
    known = {"class": ["x", "y"], "method": "m", "forgetting": [NAN, 0.03], "relative": [NAN, 0.75]}
    return pd.DataFrame({**known, "pixel_share": [0.1, 0.2], **columns})


def test_forgetting_absolute_and_relative():
    """The class with more pixels is at the top; of a low IoU, few points are a large share."""
    figure = draw(forgetting_dots(lost()))
    absolute, relative = figure.axes
    assert strings(absolute.get_yticklabels()) == ["y", "x"]
    assert absolute.lines[0].get_xdata()[0] == pytest.approx(3) and relative.lines[0].get_xdata()[0] == pytest.approx(
        75
    )
    assert "points" in absolute.get_xlabel() and "%" in relative.get_xlabel()
    assert words(draw(forgetting_dots(lost()[:0], "why there is none"))) == ["why there is none"]


def test_forgetting_of_ten_methods_singles_out_eight():
    methods = [f"gsc-{k}" for k in range(10)]
    figure = draw(forgetting_dots(lost(**{"class": "x", "forgetting": 0.5}).iloc[[1] * 10].assign(method=methods)))
    named = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert len({(line.get_color(), line.get_marker(), line.get_mfc()) for line in named}) == 8
    assert "Grey: 2 other methods." in words(figure)


@pytest.mark.parametrize("table", [ONE, SOME], ids=["one class and step", "some"])
def test_groups_over_steps(table):
    methods = list(dict.fromkeys(table["method"]))
    figure = group_panels(group_table(table), methods)
    draw(figure)
    assert legend(figure) == [f"step {group}" for group in sorted(table["introduced"].unique())]


def test_groups_over_seeds_have_whiskers():
    table = pd.concat([group_table(ONE.assign(iou=iou, end=str(iou))) for iou in (0.25, 0.75)])
    figure = group_panels(table, ["a"])
    (container,) = figure.axes[0].containers
    assert container.lines[0].get_ydata().tolist() == [50]
    (low, high) = container.lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(200 * 0.125**0.5)


def test_pace_panels_and_their_absence():
    table = pd.DataFrame({"method": ["a", "a"], "class": ["x", "x"], "epochs": [0.0, 1.0], "iou": [0.5, NAN]})
    (ax,) = draw(pace_panels(table, ["a"])).axes
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 50], [1, NAN]])
    assert ax.lines[0].get_color() == class_style(1)["color"], "as in the masks"
    assert ax.get_title() == "a" and legend(ax.figure) == ["x"]
    assert words(draw(pace_panels(table[:0], ["a"], "why there is none"))) == ["why there is none"]


def correlations(*rows: tuple) -> pd.DataFrame:
    columns = ["value", "method", "factor", "correlation", "low", "high", "classes"]
    return pd.DataFrame(rows, columns=columns)


def test_forest_of_correlations():
    table = correlations(
        ("pace", "a", "pixel_share", 0.5, -0.25, 1.0, 10), ("relative_pace", "a", "pixel_share", -0.5, NAN, NAN, 8),
        ("pace", "a", "similarity", NAN, NAN, NAN, 0),
    )  # fmt: skip
    figure = draw(correlation_forest(table, ["a"]))
    mean = "each a mean over steps weighted by classes"
    title = f"2 rank correlations, {mean}, with at most 10 pairs of an old class and a step"
    assert title in figure.get_suptitle(), "those that are not defined are none"
    bar, absolute, _, relative = figure.axes[0].lines[:4]
    assert bar.get_xdata().tolist() == [-0.25, 1.0]
    assert absolute.get_xdata().tolist() == [0.5] and relative.get_xdata().tolist() == [-0.5]
    assert relative.get_mfc() == "white" != absolute.get_mfc()
    assert strings(figure.axes[0].get_yticklabels()) == ["a"]


def test_no_correlation_says_why():
    none = correlations(("pace", "a", "pixel_share", NAN, NAN, NAN, 0))
    assert words(draw(correlation_forest(none, ["a"]))) == ["Too few old classes for rank correlations."]
    assert words(draw(correlation_forest(none[:0], [], "why there is none"))) == ["why there is none"]


def pulls(**columns) -> pd.DataFrame:
    known = {"method": "a", "step": [1, 1], "epochs": [1.0, 2.0], "group": "step0", "kind": "gradient"}
    return pd.DataFrame({**known, "value": [0.5, 0.25], **columns})


def test_gradients_by_step():
    table = pd.concat([pulls(), pulls(kind="compensated", value=[0.6, 0.3]), pulls(group="step1", value=NAN)])
    figure = gradient_panels(table, ["a", "b"], 1)
    draw(figure)
    assert sorted(line.get_linestyle() for line in figure.axes[0].lines) == ["-", "--"], "the weighted one dashed"
    assert legend(figure) == ["step 0, with background", "times the pixel weight"], "no pixel of step 1, no line"
    assert legend(gradient_panels(pulls(), ["a"], 1)) == ["step 0, with background"]
    for empty, step in ((pulls(), 2), (pulls()[:0], 1)):
        assert words(draw(gradient_panels(empty, ["a"], step, "why there is none"))) == ["why there is none"]


def test_equal_gradients_are_below_the_top_of_the_axis():
    table = pulls()
    figure = gradient_panels(table.assign(value=0.9), ["a", "b"], int(table["step"].iloc[0]))
    assert figure.axes[0].get_ylim() == pytest.approx((0, 0.945)), "no marker is cut"


# --- background

MIXED = flows(np.array([[3, 1, 0], [1, 4, 1], [0, 2, 2]]), Classes([[1], [2]]), step=1)
EMPTY = flows(np.array([[3, 0, 0], [0, 0, 0], [0, 0, 0]]), Classes([[1], [2]]), step=1)


@pytest.mark.parametrize("table", [MIXED, EMPTY, MIXED * NAN], ids=["all", "background alone", "nothing"])
def test_flows_of_groups_with_pixels(table):
    figure, ax = plt.subplots()
    flow_ribbons(ax, table, "title")
    draw(figure)
    groups = list(table.dropna(how="all").index)
    shares = table.loc[groups, list(GROUPS)].to_numpy()
    said = [] if groups else ["No pixel of these classes was scored."]
    numbers = [f"{100 * share:.1f}" for share in shares.ravel() if share >= 0.1]
    assert sorted(text.replace("\n", " ") for text in words(figure)) == sorted([*groups, *numbers, *said])
    # a bar a group, a ribbon a flow, a bar for what is called so
    assert len(ax.patches) == len(groups) + (shares > 0).sum() + (shares.sum(axis=0) > 0).sum()


def test_ribbons_fill_both_ends():
    _, ax = plt.subplots()
    flow_ribbons(ax, MIXED)
    bars = [patch for patch in ax.patches if isinstance(patch, mpl.patches.Rectangle)]
    left = sum(bar.get_height() for bar in bars if bar.get_x() < 0.5)
    right = sum(bar.get_height() for bar in bars if bar.get_x() > 0.5)
    assert left == pytest.approx(right) == pytest.approx(3)
    # at either end, ribbons lie side by side, each as high as its share
    ribbons = [patch.get_path().vertices for patch in ax.patches if isinstance(patch, mpl.patches.PathPatch)]
    for end in (0.05, 0.95):
        spans = sorted(tuple(np.unique(path[path[:, 0] == end, 1])) for path in ribbons)
        assert sum(high - low for low, high in spans) == pytest.approx(3)
        assert all(low >= high - 1e-9 for (_, high), (low, _) in pairwise(spans))


def test_flows_of_methods_with_fewer_steps():
    figure = flow_panels([("a", 1, MIXED), ("a", 2, MIXED), ("b", 1, EMPTY)])
    draw(figure)
    assert [ax.get_title() for ax in figure.axes] == ["after step 1", "after step 2"]
    assert figure.get_suptitle().startswith("a: "), "the first method, without finetune"
    assert flow_panels([("a", 1, MIXED), ("finetune", 1, EMPTY)]).get_suptitle().startswith("finetune: ")


def test_flows_of_all_methods_after_the_last_step():
    figure = draw(flow_bars([("a", 1, EMPTY), ("a", 2, MIXED), ("b", 2, MIXED)]))
    background, old, _ = figure.axes
    assert strings(background.get_yticklabels()) == ["b", "a"], "the first one at the top"
    assert "after step 2" in old.get_xlabel() and old.get_title() == "pixels of old classes"
    lengths = [bar.get_width() for bar in old.patches]
    assert sum(lengths) == pytest.approx(200), "100 % for each method"
    assert words(draw(flow_bars([], "why there is none"))) == ["why there is none"]


def test_rates_are_named_at_the_ends_of_their_lines():
    rates = {"old_to_background": [0.1, 0.3], "old_to_new": [0.0, 0.1], "background_to_new": NAN}
    table = pd.DataFrame({"method": "a", "step": [1, 2], **rates})
    figure = draw(rate_panels(table))
    assert words(figure) == ["", "a", "a", "no background pixels"]
    assert figure.axes[0].containers[0].lines[0].get_ydata().tolist() == pytest.approx([10, 30])


def kinds(**columns) -> pd.DataFrame:
    known = {"method": ["a", "a"], "class": ["x", "y"], "kind": ["old", "new"], "background": [0.3, 0.2], "new": 0.0}
    return pd.DataFrame({**known, **columns})


def test_rates_of_classes_share_a_colour_bar():
    figure = draw(class_rate_maps(kinds()))
    assert words(figure) == ["30.0", "20.0", "0.0", "0.0"]
    assert strings(figure.axes[0].get_yticklabels()) == ["x (old)", "y (new)"]
    assert len(figure.axes) == 3, "two maps, one bar"
    empty = draw(class_rate_maps(kinds(background=NAN, new=NAN)))
    assert words(empty) == ["No pixel of these classes was scored."]


def errors(shares: list[float]) -> pd.DataFrame:
    pixels = [1000 * share for share in shares]
    return pd.DataFrame({"method": "a", "error": list(ERRORS), "share": shares, "pixels": pixels})


@pytest.mark.parametrize("shares", [[0.5, 0.3, 0.16, 0.04], [NAN] * 4], ids=["some", "no errors"])
def test_errors_of_the_background(shares):
    figure = draw(error_panels(errors(shares)))
    said = ["The background takes part in no error."] if np.isnan(shares).all() else []
    assert words(figure) == [f"{100 * share:.1f}" for share in shares if share >= 0.1] + said
    if not said:
        pixels = [bar.get_width() for bar in figure.axes[0].patches]
        assert pixels == pytest.approx(shares) and "thousands" in figure.axes[0].get_xlabel()


def bins(**columns) -> pd.DataFrame:
    known = {"method": "a", "low": [0.0, 0.5], "pixels": [0, 10], "probability": [NAN, 0.9], "background": [NAN, 0.5]}
    return pd.DataFrame({**known, "future": [NAN, 0.25], **columns})


def test_calibration_counts_future_classes_as_background():
    figure, ax = plt.subplots()
    reliability(ax, bins(), ["a", "b"])
    draw(figure)
    assert ax.lines[1].get_xdata().tolist() == pytest.approx([90]) and ax.lines[1].get_ydata().tolist() == [75]
    assert not ax.lines[1].get_clip_on(), "marks at 1 are whole"


def test_beliefs_without_future_classes():
    figure, ax = plt.subplots()
    table = pd.DataFrame({"method": "a", "kind": ["background", "old", "future"], "probability": [0.9, 0.2, NAN]})
    belief_map(ax, table)
    draw(figure)
    assert words(figure) == ["90.0", "20.0"]


def test_calibration_and_belief_are_of_the_same_step():
    steps = [bins(step=1), bins(step=2, probability=[NAN, 0.8])]
    belief = pd.DataFrame({"method": "a", "step": [1, 2], "kind": "old", "probability": [0.9, 0.2]})
    figure = draw(calibration_figure(pd.concat(steps), belief, ["a"], 2))
    assert figure.get_suptitle() == "after step 2"
    assert figure.axes[0].lines[1].get_xdata().tolist() == pytest.approx([80])
    assert strings(figure.axes[1].texts) == ["20.0"]


def test_rules_that_label_nothing():
    figure, ax = plt.subplots()
    rule_points(ax, pd.DataFrame({"rule": ["argmax", "mbs"], "precision": [0.5, NAN], "recall": [0.25, 0.0]}))
    draw(figure)
    assert strings(ax.get_legend().get_texts()) == ["argmax", "mbs (undefined)"]


def test_angles_over_steps():
    rows = [
        ("a", step, epochs, pair, 45.0) for step in (1, 2) for epochs in (0, 1) for pair in ("background", "old", "new")
    ]
    table = pd.DataFrame(rows, columns=["method", "step", "epochs", "pair", "angle"])
    figure = angle_panels(table.assign(angle=table["angle"].where(table["pair"] != "old")), ["a"])
    draw(figure)
    assert len(figure.axes) == 4 and legend(figure) == ["a"]
    assert words(draw(angle_panels(table[:0], ["a"], "why there is none"))) == ["why there is none"]


def test_nearly_equal_angles_have_ticks_without_an_offset():
    rows = [("a", 1, epochs, "old", 29 + 1e-4 * epochs) for epochs in (0, 1, 2)]
    figure = angle_panels(pd.DataFrame(rows, columns=["method", "step", "epochs", "pair", "angle"]), ["a"])
    draw(figure)
    assert not any(ax.yaxis.get_offset_text().get_text() for ax in figure.axes)


CHINESE = ["background", "cat", "\u732b", "\u72d7"]


def test_classes_in_letters_without_a_font_are_numbered(tmp_path, monkeypatch):
    monkeypatch.setitem(plt.rcParams, "font.sans-serif", ["DejaVu Sans", "Not Installed"])
    rows = pd.DataFrame(
        [("m", name, 1, 0.5, 0.1) for name in CHINESE], columns=["method", "class", "step", "iou", "forgetting"]
    )
    rows.attrs["classes"] = CHINESE
    figure = forgetting_dots(rows[2:].assign(relative=0.5, pixel_share=0.1), "")
    assert strings(figure.axes[0].get_yticklabels()) == ["class 2", "class 3"]
    figure = iou_heatmaps(rows.assign(introduced=0), ["m"])
    assert strings(figure.axes[0].get_yticklabels()) == ["background", "cat", "class 2", "class 3"]
    figure = pace_panels(rows.assign(epochs=1.0)[1:], ["m"])
    assert legend(figure) == ["cat", "class 2", "class 3"]
    figure = class_rate_maps(rows.assign(background=0.5, new=0.5, kind="old")[3:])
    assert strings(figure.axes[0].get_yticklabels()) == ["class 3 (old)"]
    strip = plt.figure()
    class_legend(strip, Classes([[1, 2, 3]], CHINESE, np.zeros((4, 3), np.uint8)))
    assert legend(strip)[:3] == ["cat", "class 2", "class 3"]
    strip.savefig(tmp_path / "a.png")
    assert numbered_classes(tmp_path / "a.png") == {"class 2": "\u732b", "class 3": "\u72d7"}
    over = overlay(np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 7), {7: "\u732b"}, np.zeros((256, 3), np.uint8))
    assert over.legends[0].get_texts()[0].get_text() == "7  class 7  100.0 %"


def test_names_that_a_font_has_stay(tmp_path):
    names = ["background", "stra\u00dfe", "\u043a\u043e\u0442"]
    figure = plt.figure()
    class_legend(figure, Classes([[1, 2]], names, np.zeros((3, 3), np.uint8)))
    assert legend(figure)[:2] == names[1:]
    figure.savefig(tmp_path / "a.png")
    assert numbered_classes(tmp_path / "a.png") == {}


def test_long_names_of_methods_leave_room_for_the_rates_of_classes():
    names = ["fixbc (own base, number of classes known)", "ssul (own base, no saliency maps)", "finetune"]
    rows = [
        {"class": name, "kind": kind, "method": method, "background": 0.5, "new": 0.25}
        for name, kind in (("leaf", "old"), ("fruit", "new"))
        for method in names
    ]
    figure = draw(class_rate_maps(pd.DataFrame(rows)))
    assert all(ax.get_window_extent().width > 60 for ax in figure.axes[:2])
