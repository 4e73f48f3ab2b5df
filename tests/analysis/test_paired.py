"""Differences on the same seed and order of classes: by hand, with gaps, as text and as a figure."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ciss.analysis.compare.cells import about_pairs, all_differences, differences, evidence
from ciss.analysis.compare.figures import paired_points
from ciss.analysis.compare.paired import OVER_ORDERS, holm, paired_table
from ciss.analysis.compare.summary import family_tables
from ciss.analysis.figures.families import method_styles
from tests.helpers.figures import draw, strings
from tests.helpers.results import scored

pytestmark = pytest.mark.filterwarnings("error")

NAN = np.nan
FIRST, SECOND = "1 | 2 | 3", "3 | 1 | 2"


def runs(values: dict, **columns) -> pd.DataFrame:
    """`all` by method, seed and order: {(method, seed, order): all}; old and new half of it."""
    table = pd.DataFrame([(*key, value) for key, value in values.items()], columns=["method", "seed", "order", "all"])
    half = table["all"] / 2
    return table.assign(old=half, new=half, forgetting=NAN).assign(**columns)


def seeds(**values: list[float]) -> pd.DataFrame:
    """`all` of methods by seed, in one order."""
    return runs({(m, k, FIRST): value for m, found in values.items() for k, value in enumerate(found)})


def paired(table: pd.DataFrame) -> pd.DataFrame:
    return paired_table({"b": table}).set_index(["method", "against", "metric"])


def test_three_differences_by_hand():
    row = paired(seeds(mib=[0.5, 0.75, 1.0], finetune=[0.25, 0.25, 0.25])).loc[("mib", "finetune", "all")]
    # 1/4, 2/4, 3/4: mean 1/2, deviation 1/4; t of 97.5 % with 2 degrees of freedom 4.302653, of 3: sqrt(3)
    half = 4.302653 * 0.25 / 3**0.5
    assert (row["pairs"], row["mean"], row["deviation"], row["above"]) == (3, 0.5, 0.25, 3)
    assert [row["low"], row["high"]] == pytest.approx([0.5 - half, 0.5 + half])
    assert row["low"] == pytest.approx(-0.121034, abs=1e-6), "three seeds say little"


def test_pairs_are_of_one_seed_not_of_one_place():
    """What the seeds share is gone: 0.4 each time, however far seeds are apart."""
    row = paired(seeds(mib=[0.5, 0.75, 1.0], plop=[0.1, 0.35, 0.6])).loc[("mib", "plop", "all")]
    assert row["mean"] == pytest.approx(0.4) and row["deviation"] == pytest.approx(0, abs=1e-12)
    assert row["low"] == pytest.approx(0.4) and row["high"] == pytest.approx(0.4)


def test_every_two_methods_both_ways():
    table = paired(seeds(finetune=[0.1, 0.2], mib=[0.3, 0.1], joint=[0.9, 0.9]))
    assert len(table) == 3 * 2 * 3, "forgetting has no score"
    one, other = table.loc[("mib", "finetune", "all")], table.loc[("finetune", "mib", "all")]
    assert one["mean"] == pytest.approx(0.05) and other["mean"] == pytest.approx(-0.05)
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))
    assert (one["above"], other["above"]) == (1, 1)
    assert table.loc[("joint", "mib", "new"), "mean"] == pytest.approx(0.35)


def test_a_seed_that_one_method_lacks_is_left_out():
    table = paired(runs({("a", 0, FIRST): 0.2, ("a", 1, FIRST): 0.4, ("a", 2, FIRST): 0.9,
                         ("b", 2, FIRST): 0.5, ("b", 0, FIRST): 0.1, ("c", 7, FIRST): 0.5}))  # fmt: skip
    row = table.loc[("a", "b", "all")]
    assert row["pairs"] == 2 and row["mean"] == pytest.approx((0.1 + 0.4) / 2)
    assert ("a", "c", "all") not in table.index, "no seed in common"


def test_the_same_seed_in_another_order_is_another_run():
    values = {("a", 0, FIRST): 0.5, ("a", 0, SECOND): 0.7, ("b", 0, SECOND): 0.4, ("b", 0, FIRST): 0.4}
    row = paired(runs(values)).loc[("a", "b", "all")]
    assert (row["pairs"], row["above"]) == (2, 2)
    assert row["mean"] == pytest.approx(0.2) and row["deviation"] == pytest.approx(0.2 / 2**0.5)
    assert paired(runs({k: values[k] for k in list(values)[:3]})).loc[("a", "b", "all"), "mean"] == pytest.approx(0.3)


def test_results_of_a_family():
    other = [[3], [1], [2]]
    ends = {
        "b": {"m0": scored(0.5), "m1": scored(0.6, seed=1), "p0": scored(0.2, method="plop")},
        "b-2": {"o": scored(0.8, order=other), "p": scored(0.4, method="plop", order=other)},
    }
    table = paired_table(family_tables(ends))
    assert set(table["benchmark"]) == {"b"} and set(table["pairs"]) == {2}
    row = table.set_index(["method", "against", "metric"]).loc[("mib", "plop", "all")]
    assert row["mean"] == pytest.approx((0.3 + 0.4) / 2)
    assert table[table["metric"] == "forgetting"]["mean"].tolist() == [0, 0], "the same confusions"


# --- over orders of classes


def orders(**values: list[float]) -> pd.DataFrame:
    """`all` of methods by order of classes, with one seed each."""
    return runs({(m, 0, f"order {k}"): value for m, found in values.items() for k, value in enumerate(found)})


def test_two_orders_by_hand():
    """Student's t with one degree of freedom is the Cauchy distribution: its quantile is a tangent."""
    table = paired(orders(a=[0.3, 0.6], b=[0.2, 0.3], c=[0.0, 0.0]))
    row = table.loc[("a", "b", "all")]  # 0.1 and 0.3: mean 0.2, standard error 0.1, statistic 2
    assert (row["over"], row["pairs"], row["above"]) == ("orders", 2, 2)
    assert row[["mean", "deviation"]].tolist() == pytest.approx([0.2, 0.2 / 2**0.5])
    assert row[["low", "high"]].tolist() == pytest.approx([0.2 - 1.270620, 0.2 + 1.270620])
    assert row[["boot_low", "boot_high"]].tolist() == pytest.approx([0.1, 0.3]), "a quarter of the resamples each"
    wide = 0.1 / np.tan(np.pi * 0.05 / 3 / 2)  # three pairs of methods
    assert row[["together_low", "together_high"]].tolist() == pytest.approx([0.2 - wide, 0.2 + wide])
    assert row["p"] == pytest.approx(1 - 2 / np.pi * np.arctan(2))
    back = table.loc[("b", "a", "all")]
    assert back[["p", "p_holm", "visible"]].tolist() == row[["p", "p_holm", "visible"]].tolist()
    assert back[["boot_low", "together_high"]].tolist() == pytest.approx((-row[["boot_high", "together_low"]]).tolist())


def test_the_smallest_visible_difference():
    """Tables of power: six pairs show 1.4345 deviations with probability 0.8 at 5 %, ten show 0.9960."""
    for count, deviations in ((6, 1.4345), (10, 0.9960)):
        row = paired(orders(a=[0.01 * k**2 for k in range(count)], b=[0.0] * count)).loc[("a", "b", "all")]
        assert row["visible"] / row["deviation"] == pytest.approx(deviations, abs=1e-4)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]), "0.04 may not be below 0.03 times 2"
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_all_pairs_of_methods_are_corrected_together():
    table = paired(orders(a=[0.3, 0.31, 0.3, 0.32], b=[0.2, 0.22, 0.2, 0.2], c=[0.1, 0.3, 0.2, 0.4]))
    rows = [table.loc[(*pair, "all")] for pair in (("a", "b"), ("a", "c"), ("b", "c"))]
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p"])
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))


def test_seeds_of_an_order_are_averaged():
    """Six runs of two orders are two differences: 0.1 and 0.3."""
    values = {("a", k, FIRST): value for k, value in enumerate((0.2, 0.3, 0.4))} | {("a", 0, SECOND): 0.5}
    row = paired(runs({**values, **{("b", seed, order): 0.2 for _, seed, order in values}})).loc[("a", "b", "all")]
    assert (row["over"], row["pairs"]) == ("orders", 2) and row["mean"] == pytest.approx((0.1 + 0.3) / 2)
    assert row["deviation"] == pytest.approx(0.2 / 2**0.5)


def test_nothing_is_told_from_one_order():
    table = paired_table({"b": seeds(finetune=[0.1, 0.1, 0.1], mib=[0.3, 0.31, 0.3])})
    assert set(table["over"]) == {"seeds"} and table[list(OVER_ORDERS)].isna().all(axis=None)
    assert not all_differences(table).map(lambda text: "*" in text).any(axis=None)
    assert evidence(table, "finetune").empty and "no p-value" in about_pairs(table)
    values = {(method, seed, FIRST): 0.1 * seed for method in "ab" for seed in (0, 1)}
    one = paired(runs({**values, ("c", 0, SECOND): 0.5}))
    assert one.loc[("a", "b", "all"), "pairs"] == 1, "two seeds, but one order that both have"


def test_equal_orders_are_no_evidence():
    row = paired(orders(a=[0.25, 0.5], b=[0.25, 0.5])).loc[("a", "b", "all")]
    assert row[["p", "p_holm", "visible", "together_low"]].tolist() == [1, 1, 0, 0]
    assert paired(orders(a=[0.5, 0.75], b=[0.25, 0.5])).loc[("a", "b", "all"), "p"] == 0, "the same difference twice"


def test_evidence_as_text():
    table = paired_table({"b": orders(finetune=[0.2, 0.3], mib=[0.3, 0.6])})
    assert evidence(table, "finetune").loc["mib"].to_dict() == {
        "orders": "2", "difference": "+20.0", "95 % by t": "[-107.1, +147.1]", "by bootstrap": "[+10.0, +30.0]",
        "of all pairs together": "[-107.1, +147.1]", "p (Holm)": "0.295", "smallest visible": "163.3",
    }  # fmt: skip
    assert "averaged" in about_pairs(table)


def test_order_of_rows_does_not_matter():
    table = seeds(a=[0.1, 0.5, 0.3], b=[0.2, 0.2, 0.7], c=[0.3, NAN, 0.6])
    pd.testing.assert_frame_equal(
        paired(table).sort_index(), paired(table.sample(frac=1, random_state=1)).sort_index(), check_exact=True
    )


def test_scores_that_do_not_exist():
    table = seeds(a=[0.1, 0.5, NAN], b=[0.2, NAN, 0.7], joint=[0.9, 0.9, 0.9])
    table["forgetting"] = [0.1, 0.3, 0.2, 0.4, 0.2, NAN, NAN, NAN, NAN]
    made = paired(table)
    assert made.loc[("a", "b", "all"), "pairs"] == 1 and made.loc[("a", "joint", "all"), "pairs"] == 2
    assert made.loc[("a", "b", "forgetting"), ["pairs", "above"]].tolist() == [2, 1], "-0.3 and 0.1"
    assert ("a", "joint", "forgetting") not in made.index


def test_equal_is_not_above():
    row = paired(seeds(a=[0.25, 0.5], b=[0.25, 0.5])).loc[("a", "b", "all")]
    assert (row["above"], row["mean"], row["low"], row["high"]) == (0, 0, 0, 0)


def test_one_seed_has_a_difference_and_no_interval():
    row = paired(seeds(a=[0.5], b=[0.25])).loc[("a", "b", "all")]
    assert (row["pairs"], row["mean"], row["above"]) == (1, 0.25, 1)
    assert row[["deviation", "low", "high"]].isna().all()


def test_one_method_has_columns_and_no_rows():
    made = paired_table({"b": seeds(a=[0.5, 0.4])})
    assert made.empty and list(made.columns)[:4] == ["benchmark", "method", "against", "metric"]
    both = paired_table({"b": seeds(a=[0.5]), "c": seeds(a=[0.5, 0.3], b=[0.2, 0.2])})
    assert set(both["benchmark"]) == {"c"} and both["mean"].dtype == float, "so that it can be rounded"


# --- as text

THREE = seeds(finetune=[0.1, 0.1, 0.1], mib=[0.2, 0.3, 0.4], gsc=[0.1, 0.3, 0.35])


def test_differences_as_text():
    pairs = paired_table({"b": THREE})
    texts = differences(pairs, "finetune")
    # 0.1, 0.2, 0.3: 0.2 +- 4.302653 * 0.1 / sqrt(3)
    half = "+10.0 [-2.4, +22.4] 3/3"
    assert texts.loc["mib"].to_dict() == {"all": "+20.0 [-4.8, +44.8] 3/3", "old": half, "new": half}
    assert list(texts.index) == ["mib", "gsc"]
    assert texts.loc["gsc", "all"].endswith("2/3")
    one = differences(paired_table({"b": THREE[THREE["seed"] == 0]}), "mib")
    assert one["all"].to_dict() == {"finetune": "-10.0", "gsc": "-10.0"}
    assert differences(pairs, "plop").empty


def test_every_difference_as_text():
    table = orders(finetune=[0.1, 0.1, 0.1], mib=[0.3, 0.31, 0.3], gsc=[0.3, 0.3, 0.31])
    texts = all_differences(paired_table({"b": table}))
    assert list(texts.index) == list(texts.columns) == ["finetune", "mib", "gsc"]
    assert texts.loc["mib"].tolist() == ["+20.3*", "", "+0.0"], "a star where all pairs together leave 0 out"
    assert texts.loc["gsc", "mib"] == "+0.0" and texts.loc["finetune", "mib"] == "-20.3*"


# --- the figure


@pytest.fixture
def figure():
    def make(table: pd.DataFrame):
        made, axes = plt.subplots(1, 2, layout="constrained")
        paired_points(axes, table, paired_table({"b": table}), "b")
        draw(made)
        return axes

    return make


def dots(ax: plt.Axes) -> list[list[float]]:
    """Of each row with marks."""
    rows = [line for line in ax.lines if line.get_ls() == "None" and line.get_marker() not in ("|", "<", ">")]
    return [line.get_xdata().tolist() for line in rows]


def test_a_dot_a_seed_and_a_bar_for_the_interval(figure):
    left, right = figure(THREE)
    assert dots(left) == [pytest.approx([10, 20, 30]), pytest.approx([0, 20, 25])]
    assert strings(left.get_yticklabels()) == ["finetune", "mib", "gsc"]
    assert strings(left.texts) == ["the reference", "+20.0  3/3", "+15.0  2/3"]
    assert strings(right.texts) == ["-20.0  0/3", "the reference", "-5.0  0/3"]
    bar, half = left.patches[0], 4.302653 * 10 / 3**0.5
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((20 - half, 20 + half))
    assert [line.get_xdata()[0] for line in left.lines if line.get_marker() == "|"] == pytest.approx([20, 15])
    styles = method_styles(["finetune", "mib", "gsc"])
    assert mpl.colors.to_hex(bar.get_facecolor()).upper() == styles["mib"]["color"]
    assert [0, 0] in [list(line.get_xdata()) for line in left.lines], "a line at zero"
    assert left.get_xlabel() == "difference in mIoU (percentage points), same seed"
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("b: all, against finetune", "all, against mib")


def test_orders_are_said_and_joint_training_is_left_out(figure):
    values = {("joint", 0, FIRST): 0.9, ("finetune", 0, FIRST): 0.1, ("mib", 0, FIRST): 0.3}
    values |= {(method, 0, SECOND): value + 0.01 for (method, _, _), value in values.items()}
    left, _ = figure(runs(values))
    assert left.get_xlabel() == "difference in mIoU (percentage points), same seed and order"
    assert strings(left.get_yticklabels()) == ["finetune", "mib"] and left.get_xlim()[1] < 30


def test_an_interval_broader_than_the_axis_ends_in_arrows(figure):
    left, _ = figure(seeds(finetune=[0.1, 0.1], mib=[0.2, 0.3]))  # 0.15 +- 12.7 * 0.05
    assert [line.get_marker() for line in left.lines if line.get_marker() in "<>"] == ["<", ">"]
    low, high = left.get_xlim()
    assert low < 0 and high > 20 and high - low < 50, "made for the dots"
    narrow, _ = figure(seeds(finetune=[0.1, 0.1], mib=[0.2, 0.201]))
    assert not [line for line in narrow.lines if line.get_marker() in "<>"]


def test_one_seed_is_dots_alone(figure):
    left, right = figure(seeds(finetune=[0.1], mib=[0.3], plop=[0.2]))
    assert dots(left) == [pytest.approx([20]), pytest.approx([10])] and not left.patches
    assert strings(right.texts) == ["-20.0", "the reference", "-10.0"]


ALONE = "No other method has a score\nand a seed that {} has."


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (seeds(plop=[0.1, 0.2], gsc=[0.2, 0.2]), ["finetune was not run.", "mib was not run."]),
        (seeds(finetune=[0.1, 0.2]), ["the reference", ALONE.format("finetune"), "mib was not run."]),
        (seeds(joint=[0.1, 0.2]), ["finetune was not run.", "mib was not run."]),
        (
            seeds(finetune=[NAN, NAN], mib=[0.2, 0.2]),
            ["the reference", ALONE.format("finetune"), "the reference", ALONE.format("mib")],
        ),
        (
            seeds(finetune=[0.2, 0.2], mib=[0.2, 0.2 - 1e-5]),
            ["the reference", "+0.0  0/2", "+0.0  1/2", "the reference"],
        ),
    ],
    ids=["no reference", "one method", "joint alone", "no score", "hardly apart"],
)
def test_little_to_show(figure, table, said):
    axes = figure(table)
    assert [text for ax in axes for text in strings(ax.texts)] == said


def test_many_methods_of_long_names_stay_apart(figure):
    names = ["finetune", "mib", *(f"gsc-tuned-no-compensation-{k}" for k in range(10))]
    table = seeds(**{name: [0.1 * k, 0.1 * k + 0.02, 0.1 * k + 0.01] for k, name in enumerate(names)})
    made, axes = plt.subplots(1, 2, figsize=(9.4, 0.9 + 0.3 * len(names)), layout="constrained")
    paired_points(axes, table, paired_table({"b": table}))
    draw(made)
    boxes = [text.get_window_extent() for text in (*axes[0].get_yticklabels(), *axes[0].texts, *axes[1].texts)]
    assert len(boxes) == 3 * len(names)
    assert not any(box.overlaps(other) for k, box in enumerate(boxes) for other in boxes[:k])
    assert axes[0].texts[0].get_window_extent().x1 < axes[1].get_window_extent().x0
