"""Where pixels go, what the background's probability is worth, and labels by several rules: worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from ciss.analysis.background.tables import (
    FLOW_GROUPS,
    background_belief,
    background_errors,
    calibration_errors,
    calibration_table,
    class_rates,
    label_rules,
)
from ciss.analysis.background.words import background_findings
from ciss.protocol import Classes
from tests.helpers.results import AFTER_0, AFTER_1, AFTER_2, CLASSES, result

NAN = np.nan


@pytest.fixture
def ends() -> dict:
    return {"e": [result(0, AFTER_0), result(1, AFTER_1), result(2, AFTER_2)]}


def labels(**rows: list[list[int]]) -> dict[str, np.ndarray]:
    """Truth by label: two old channels (background, a) and ignored. Rules not named call everything background."""
    silent = [[9, 0, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0]]
    return {f"labels_{rule}": np.array(rows.get(rule, silent)) for rule in ("argmax", "plop", "gsc", "mbs")}


# Pixels of background, a (old), b (new) and c (future) by the probability of the background: below and above 1/2
PIXELS = np.array([[1, 9], [6, 2], [4, 0], [0, 2]])
SUMS = np.array([[0.4, 8.1], [0.6, 1.2], [0.4, 0.0], [0.0, 1.5]])


def probe(**changes) -> dict[str, np.ndarray]:
    return {"background": PIXELS, "background_sums": SUMS, **labels(), **changes}


@pytest.fixture
def probes() -> dict:
    return {"r-1": probe(), "r-2": probe()}


def test_where_pixels_of_each_class_go(ends):
    table = class_rates(ends)
    first = table[table["step"] == 1].set_index("class")
    columns = ["right", "background", "old", "new"]
    # [6 1 3 0], [4 2 2 0], [1 0 9 0], [5 1 4 0] with a old, b new, c future
    assert first.loc["background", columns].tolist() == pytest.approx([0.6, 0, 0.1, 0.3])
    assert first.loc["a", columns].tolist() == pytest.approx([0.25, 0.5, 0, 0.25])
    assert first.loc["b", columns].tolist() == pytest.approx([0.9, 0.1, 0, 0])
    assert first.loc["c", columns].tolist() == pytest.approx([0, 0.5, 0.1, 0.4])
    assert first["kind"].tolist() == ["background", "old", "new", "future"] and first["pixels"].tolist() == [
        10,
        8,
        10,
        10,
    ]
    # another class of the same group
    confusion = np.array([[1, 0, 0, 0], [0, 2, 6, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    ends = {"e": [result(1, confusion, classes=Classes([[1, 2], [3]], CLASSES.names))]}
    (_, row) = class_rates(ends).to_dict("records")
    assert (row["class"], row["right"], row["old"]) == ("a", 0.25, 0.75), "b and c have no pixels, and no row"


def test_what_the_errors_of_the_background_are(ends):
    table = background_errors(ends)
    first = table[table["step"] == 1].set_index("error")
    assert first["pixels"].to_dict() == {
        "old called background": 4,
        "new called background": 1,
        "background called old": 1,
        "background called new": 3,
    }
    assert first["share"].tolist() == pytest.approx([4 / 9, 1 / 9, 1 / 9, 3 / 9])
    assert first["future"].tolist() == pytest.approx([5 / 9] * 4)
    second = table[table["step"] == 2].set_index("error")["pixels"]
    assert second.to_dict() == {
        "old called background": 13,
        "new called background": 0,
        "background called old": 0,
        "background called new": 2,
    }
    # without errors there are no shares
    ends = {"e": [result(1, np.diag([5, 5, 5, 0]), after="r-0")]}
    assert background_errors(ends)["share"].isna().all()


def test_calibration_by_hand(ends, probes):
    low, high = calibration_table(ends, probes)[:2].to_dict("records")
    assert (low["low"], low["high"], high["low"], high["high"]) == (0, 0.5, 0.5, 1)
    assert low["pixels"] == 11 and high["pixels"] == 13
    assert low["probability"] == pytest.approx(1.4 / 11) and high["probability"] == pytest.approx(10.8 / 13)
    assert [high[kind] for kind in FLOW_GROUPS] == pytest.approx([9 / 13, 2 / 13, 0, 2 / 13])
    assert [low[kind] for kind in FLOW_GROUPS] == pytest.approx([1 / 11, 6 / 11, 4 / 11, 0])


def test_calibration_error_with_and_without_future_classes(ends, probes):
    row = calibration_errors(calibration_table(ends, probes)).iloc[0]
    # |1 - 1.4| / 24 + |11 - 10.8| / 24, and |1 - 1.4| / 24 + |9 - 10.8| / 24
    assert row["error"] == pytest.approx((0.4 + 0.2) / 24)
    assert row["error_truth"] == pytest.approx((0.4 + 1.8) / 24)
    nothing = calibration_table(ends, probes).assign(pixels=0)
    assert calibration_errors(nothing)[["error", "error_truth"]].isna().all(axis=None), "not a perfect 0"


def test_empty_bins_say_nothing(ends):
    empty = probe(background=PIXELS * [0, 1], background_sums=SUMS * [0, 1])
    table = calibration_table({"e": ends["e"][:2]}, {"r-1": empty})
    assert table.loc[0, ["probability", "background", "future"]].isna().all() and table.loc[0, "pixels"] == 0
    assert calibration_errors(table)["error"].tolist() == pytest.approx([0.2 / 13])


def test_what_the_background_claims_of_each_kind(ends, probes):
    table = background_belief(ends, probes)
    first = table[table["step"] == 1].set_index("kind")["probability"]
    assert first.to_dict() == pytest.approx({"background": 0.85, "old": 1.8 / 8, "new": 0.1, "future": 0.75})
    second = table[table["step"] == 2].set_index("kind")["probability"]
    assert second["old"] == pytest.approx(2.2 / 12) and np.isnan(second["future"])


def test_rules_from_one_teacher(ends):
    gsc = [[6, 2, 1], [1, 3, 0], [0, 0, 0], [1, 1, 0]]
    table = label_rules({"e": ends["e"][:2]}, {"r-1": probe(**labels(gsc=gsc))}).set_index("rule")
    # 3 of 6 labelled as a are a; 3 of 4 pixels of a are labelled so; 6 and 1 of 15
    assert table.loc["gsc", ["precision", "recall", "relabelled", "ignored"]].tolist() == pytest.approx(
        [0.5, 0.75, 6 / 15, 1 / 15]
    )
    assert np.isnan(table.loc["plop", "precision"]) and table.loc["plop", "recall"] == 0
    assert table["method"].unique().tolist() == ["mib"] and table["teacher"].unique().tolist() == ["run-0"]


def test_a_teacher_that_ends_share_has_one_row_a_rule(ends, probes):
    other = [{**each, "run": f"{each['run']}-x", "title": "gsc"} for each in ends["e"]]
    other[2]["after"] = "another"
    both = {**probes, "r-1-x": probes["r-1"], "r-2-x": probes["r-2"]}
    table = label_rules({**ends, "x": other}, both)
    assert len(table) == 4 * 3 and table[table["step"] == 1]["method"].eq("").all()
    assert table[table["step"] == 2].groupby("teacher")["method"].first().to_dict() == {
        "run-1": "mib",
        "another": "gsc",
    }


def test_joint_and_base_runs_are_left_out(ends, probes):
    alone = {"j": [result(2, AFTER_2, method="joint")], "b": ends["e"][:1]}
    for made in (class_rates(alone), background_errors(alone), label_rules(alone, probes)):
        assert made.empty


# --- in words

EMPTY = {"steps": "No step.", "pace": "No hold-out set."}


def rows(column: str, by: str = "method", **values: float) -> pd.DataFrame:
    return pd.DataFrame([{"seed": 0, by: name, column: value} for name, value in values.items()])


def test_words_name_who_loses_most():
    rates = rows("old_to_background", a=0.9, b=0.1).assign(background_to_new=[0.01, 0.2], background_to_old=[0.01, 0.2])
    errors = pd.DataFrame([("a", "old called background", 0.8), ("a", "new called background", 0.2)])
    errors.columns = ["method", "error", "share"]
    belief = rows("probability", a=0.7, b=0.2).assign(kind="old")
    wrong = rows("error_truth", a=0.3, b=0.05)
    rules = rows("precision", by="rule", argmax=0.5, mbs=0.9).assign(recall=[0.8, 0.3])
    text = background_findings("x", rates, errors, belief, wrong, rules, EMPTY)
    assert "old classes that is predicted as background is from 10.0 % (b) to 90.0 % (a)." in text
    assert "background pixels that is predicted as new classes is from 1.0 % (a) to 20.0 % (b)." in text
    assert "background pixels that is predicted as old classes is from 1.0 % (a) to 20.0 % (b)." in text
    error = "80.0 % are pixels of old classes predicted as background."
    assert f"Of the errors of a that involve the background, {error}" in text
    assert "from 20.0 % (b) to 70.0 % (a)" in text
    assert "error of the probability of the background (percentage points) is from 5.0 (b) to 30.0 (a)" in text
    assert "the precision of the pseudo-labels is from 50.0 % (argmax) to 90.0 % (mbs)." in text
    assert "Their recall is from 30.0 % (mbs) to 80.0 % (argmax)." in text
    assert "most" not in text and "highest" not in text and "largest" not in text, "one seed"


def test_words_name_all_that_share_an_extreme():
    """One of several equal methods is not called the worst; a rule without labels is not called as good as the rest."""
    taken = [1.0, 1.0, 0.5, 0.5]
    rates = rows("old_to_background", a=0.9, b=0.1, c=0.9, d=0.1)
    rates = rates.assign(background_to_new=taken, background_to_old=taken)
    errors = rows("share", a=1.0).assign(error="old called background")
    belief = rows("probability", a=0.2, b=0.7, c=0.2, d=0.3).assign(kind="old")
    wrong = rows("error_truth", a=0.1, b=0.1, c=0.1, d=0.3)
    rules = rows("precision", by="rule", argmax=0.0, plop=float("nan"), gsc=0.0, mbs=float("nan")).assign(recall=0.0)
    text = background_findings("x", rates, errors, belief, wrong, rules, EMPTY)
    assert "predicted as background is from 10.0 % (b and d) to 90.0 % (a and c)." in text
    assert "predicted as new classes is from 50.0 % (c and d) to 100.0 % (a and b)." in text
    assert "from 20.0 % (a and c) to 70.0 % (b)" in text and "10.0 (a, b and c) to 30.0 (d)" in text
    assert "is 0.0 % in every rule. Their recall is 0.0 % in every rule. plop and mbs label no pixel" in text


def test_words_say_that_nothing_differs():
    rates = rows("old_to_background", a=0.0, b=0.0001).assign(
        background_to_new=[0.0, 0.0001], background_to_old=[0.0, 0.0001]
    )
    errors = rows("share", a=1.0, b=1.0).assign(error="new called background")
    belief = rows("probability", a=0.001, b=0.002).assign(kind="old")
    wrong = rows("error_truth", a=0.0501, b=0.0502)
    rules = rows("precision", by="rule", argmax=0.0, mbs=0.001).assign(recall=[0.0, 0.0])
    text = background_findings("x", rates, errors, belief, wrong, rules, EMPTY)
    assert "old classes that is predicted as background is 0.0 % in every method." in text
    assert "background pixels that is predicted as new classes is 0.0 % in every method." in text
    assert "the mean probability of the background is from 0.1 % (a) to 0.2 % (b)." in text
    assert "error of the probability of the background (percentage points) is 5.0 in every method." in text
    assert "errors of" not in text, "no method is the worst"
    text = background_findings("x", rates, errors, belief, wrong, rules, {**EMPTY, "base": "No class."})
    assert text.startswith("No class.\n\n**x**")


@pytest.mark.parametrize(
    ("precision", "recall", "words"),
    [
        ([0.5, 0.5], [0.1, 0.2], "is 50.0 % in every rule. Their recall is from 10.0 % (argmax) to 20.0 % (mbs)."),
        ([0.5, 0.6], [0.2, 0.2], "is from 50.0 % (argmax) to 60.0 % (mbs). Their recall is 20.0 % in every rule."),
    ],
)
def test_words_on_rules_that_differ_in_one_number(precision, recall, words):
    rates = rows("old_to_background", a=0.9).assign(background_to_new=0.2, background_to_old=0.2)
    rules = rows("precision", by="rule", argmax=precision[0], mbs=precision[1]).assign(recall=recall)
    nothing = rows("probability", a=0.7).assign(kind="old", error_truth=0.3, error="x", share=NAN)
    text = background_findings("x", rates, nothing, nothing, nothing, rules, EMPTY)
    assert words in text and "that is predicted as new classes is 20.0 % (a)." in text
    assert (
        "the background is 70.0 % (a)." in text
        and "probability of the background (percentage points) is 30.0 (a)." in text
    )


def test_words_without_old_pixels():
    rates = rows("old_to_background", a=NAN).assign(background_to_new=NAN, background_to_old=NAN)
    nothing = rows("probability", a=NAN).assign(kind="old", error_truth=NAN, error="x", share=NAN)
    rules = rows("precision", by="rule", argmax=NAN).assign(recall=NAN)
    text = background_findings("x", rates, nothing, nothing, nothing, rules, EMPTY)
    assert text == "**x** (one seed): no pixel of an old class was scored."
    text = background_findings("x", pd.DataFrame(), *[pd.DataFrame()] * 4, EMPTY)
    assert text == "**x**: there is no background shift. No step."
