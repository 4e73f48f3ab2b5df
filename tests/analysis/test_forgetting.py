"""Paces, what goes with them, gradients and angles: values worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from ciss.analysis.forgetting.pace import interval, pace_factors, prototype_cosines, rank_correlations
from ciss.analysis.forgetting.tables import forgetting_summary, forgetting_table, group_table
from ciss.analysis.forgetting.traces import gradient_table, imbalance, token_angles_table
from ciss.analysis.forgetting.words import correlations_by_method, forgetting_findings
from ciss.analysis.reasons import empty_reasons
from ciss.protocol import Classes
from tests.helpers.results import AFTER_0, AFTER_1, AFTER_2, CLASSES, result

NAN = np.nan
PROTOTYPES = np.array([[1.0, 0, 0], [0, 2, 0], [3, 3, 0], [0, 1, 1]])  # background, a, b, c


def probe(**changes) -> dict[str, np.ndarray]:
    return {
        "prototypes": PROTOTYPES,
        "counts": np.array([9, 4, 4, 4]),
        "gradients": np.array([0.1, 0.25, NAN, NAN]),
        **changes,
    }


def curve(*, step: int = 1, **changes) -> dict:
    """Right after growing AFTER_0, and after half an epoch AFTER_0, after one AFTER_1, after two nothing of class a."""
    points = {"curve_epochs": np.array([0.0, 0.5, 1.0, 2.0])}
    points["curve_confusions"] = np.array([AFTER_0, AFTER_0, AFTER_1, AFTER_2 * [1, 1, 1, 0]])
    return result(step, AFTER_1 if step == 1 else AFTER_2, **points, **changes)


@pytest.fixture
def ends() -> dict:
    return {"e": [result(0, AFTER_0), curve()]}


def test_pace_of_an_old_class_and_its_factors(ends):
    (row,) = pace_factors(ends, {"r-1": probe()}).to_dict("records")
    # class a on the hold-out: 6 / 11 after growing, 2 / 9 after an epoch, nothing after two
    assert row["before"] == pytest.approx(6 / 11) and row["after"] == 0
    assert row["pace"] == pytest.approx(6 / 11 / 2)
    assert row["first_epoch"] == pytest.approx(6 / 11 - 2 / 9)
    assert row["pixel_share"] == pytest.approx(0.2)
    # cos((0,2,0), (3,3,0)) = 6 / (2 sqrt 18)
    assert row["similarity"] == pytest.approx(0.5**0.5) and row["nearest"] == "b"
    assert row["gradient"] == 0.25
    assert (row["class"], row["introduced"], row["step"], row["method"]) == ("a", 0, 1, "mib")


def test_the_nearest_of_several_new_classes(ends):
    for each in ends["e"]:
        each["classes"] = Classes([[1], [2, 3]], CLASSES.names)
    (row,) = pace_factors(ends, {"r-1": probe()}).to_dict("records")
    # cos to b: 6 / (2 sqrt 18) = .707, to c: 2 / (2 sqrt 2) = .707; turn c nearer
    nearer = probe(prototypes=PROTOTYPES + np.array([[0], [0], [0], [1]]) * np.array([0, 1, 0]))
    (row,) = pace_factors(ends, {"r-1": nearer}).to_dict("records")
    assert row["nearest"] == "c" and row["similarity"] == pytest.approx(2 / 5**0.5)


def test_factors_of_classes_that_were_not_seen(ends):
    (row,) = pace_factors(ends, {"r-1": probe(counts=np.array([9, 4, 0, 4]))}).to_dict("records")
    assert np.isnan(row["similarity"]) and row["nearest"] == ""


def test_no_hold_out_no_pace(ends):
    for each in ends["e"]:
        each |= {"curve_epochs": np.zeros(0), "curve_confusions": np.zeros((0, 4, 4))}
    assert pace_factors(ends, {"r-1": probe()}).empty


def test_cosines_of_prototypes():
    found = prototype_cosines(np.array([[2.0, 0], [1, 1], [0, 0], [5, 5]]), np.array([1, 1, 1, 0]))
    root = 0.5**0.5
    np.testing.assert_allclose(found[:2, :2], [[1, root], [root, 1]])
    assert np.isnan(found[2:]).all() and np.isnan(found[:, 2:]).all(), "of length 0, or never seen"


def paces(method: str, end: str, step: int, pairs: list[tuple[float, float]]) -> list[dict]:
    return [{"method": method, "end": end, "step": step, "x": x, "pace": pace} for x, pace in pairs]


UP, DOWN = [(1, 1), (2, 5), (3, 6)], [(1, 9), (2, 8), (3, 7), (4, 2)]


def test_rank_correlation_is_weighted_by_classes():
    table = pd.DataFrame([*paces("m", "e", 1, UP), *paces("m", "e", 2, DOWN)])
    (row,) = rank_correlations(table, factors=["x"]).to_dict("records")
    assert row["correlation"] == pytest.approx((3 * 1 + 4 * -1) / 7)
    assert (row["ends"], row["classes"]) == (1, 7) and np.isnan([row["low"], row["high"]]).all()


def test_rank_correlation_over_seeds_has_an_interval():
    swapped = [(1, 5), (2, 1), (3, 6)]  # ranks 2 1 3 against 1 2 3: rho = 1 - 6 * 2 / 24 = 1/2
    table = pd.DataFrame([*paces("m", "e", 1, UP), *paces("m", "f", 1, swapped)])
    (row,) = rank_correlations(table, factors=["x"]).to_dict("records")
    assert row["correlation"] == pytest.approx(0.75) and row["ends"] == 2
    # t(0.975, 1) = 12.706; s = .35355, over sqrt 2 = .25
    assert row["low"] == pytest.approx(0.75 - 12.706 * 0.25, abs=1e-3)
    assert row["high"] == pytest.approx(0.75 + 12.706 * 0.25, abs=1e-3)


@pytest.mark.parametrize(
    "pairs",
    [UP[:2], [(1, 2), (1, 3), (1, 4)], [(1, 2), (2, 2), (3, 2)], [(1, NAN), (2, 5), (3, 6)]],
    ids=["two classes", "one factor", "one pace", "a class without"],
)
def test_too_little_says_nothing(pairs):
    (row,) = rank_correlations(pd.DataFrame(paces("m", "e", 1, pairs)), factors=["x"]).to_dict("records")
    assert np.isnan(row["correlation"]) and row["ends"] == 0


def test_correlations_to_read():
    rows = [("pace", "b", "gradient", 0.5), ("pace", "a", "gradient", -0.1), ("relative_pace", "b", "gradient", NAN)]
    wide = correlations_by_method(pd.DataFrame(rows, columns=["value", "method", "factor", "correlation"]))
    assert wide.columns.tolist() == ["b", "a"], "the order of the methods"
    assert wide.loc[("IoU lost per epoch", "the gradient before the step")].tolist() == [0.5, -0.1]
    assert wide.index[1] == ("the same, relative to the IoU before", "the gradient before the step")


def test_interval_of_three_values():
    low, high = interval([1.0, 2.0, 3.0])
    # mean 2, s = 1, t(0.975, 2) = 4.3027
    assert low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4) and high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert np.isnan(interval([1.0])).all() and np.isnan(interval([])).all()


# --- groups of classes, and a row a method


def test_groups_are_means_without_the_background_and_a_method_has_a_row():
    ends = {"e": [result(0, AFTER_0), result(1, AFTER_1), result(2, AFTER_2)]}
    table = group_table(forgetting_table(ends)).set_index(["introduced", "step"])["iou"]
    assert table[0, 0] == pytest.approx(6 / 9) and table[0, 1] == pytest.approx(2 / 9)
    assert table[1, 1] == pytest.approx(9 / 15) and table[1, 2] == pytest.approx(5 / 10)
    assert len(table) == 3 + 2 + 1
    ends = {
        "e": [result(0, AFTER_0), result(1, AFTER_1), result(2, AFTER_2)],
        "j": [result(2, AFTER_2, method="joint")],
    }
    (row,) = forgetting_summary(ends).to_dict("records")
    # a: 6/9 -> 0; b: 9/15 -> 1/2
    assert row["forgetting"] == pytest.approx((6 / 9 + 0.1) / 2) and row["backward_transfer"] == -row["forgetting"]
    # on the same pixels, those of c included, a: 6 of 8 + 9 - 6 after step 0, then 0; b: 9 of 10 + 18 - 9, then 1/2
    assert row["same_pixels"] == pytest.approx((6 / 11 + 9 / 19 - 1 / 2) / 2)
    assert row["worst"] == "a" and row["worst_forgetting"] == pytest.approx(6 / 9)
    assert row["spread"] == pytest.approx((6 / 9 - 0.1) / 2)


# --- gradients and angles


def test_gradients_are_averaged_over_stretches():
    trace = {
        "loss/cross_entropy": np.ones(6),
        "gradient/background": np.array([0.1, 0.3, 0.2, 0.2, 0.4, 0.6]),
        "gradient/step1": np.array([NAN, 0.8, NAN, NAN, 0.5, 0.7]),
        "compensated/step0": np.full(6, 0.5),
    }
    ends = {"e": [result(0, AFTER_0), result(1, AFTER_1, trace=trace, log=[{"epoch": number} for number in (1, 2, 3)])]}
    table = gradient_table(ends, points=3).set_index(["kind", "group"])
    assert table.loc[("gradient", "background"), "value"].tolist() == pytest.approx([0.2, 0.2, 0.5])
    assert table.loc[("gradient", "background"), "epochs"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(table.loc[("gradient", "step1"), "value"], [0.8, NAN, 0.6])
    assert len(table) == 9 and "cross_entropy" not in table.index.get_level_values("group")
    # fewer batches than points
    trace = {"gradient/background": np.array([0.1, 0.3])}
    ends = {"e": [result(0, AFTER_0), result(1, AFTER_1, trace=trace, log=[{"epoch": 1}])]}
    assert gradient_table(ends)["epochs"].tolist() == [0.5, 1.0]


def test_imbalance_is_the_largest_over_the_smallest():
    rows = [
        ("m", 2, "gradient", group, value) for group, value in (("background", 0.01), ("step0", 0.1), ("step1", 0.4))
    ]
    rows += [
        ("m", 2, "gradient", "step0", 0.3),
        ("m", 2, "compensated", "step0", 0.2),
        ("n", 1, "gradient", "step0", 0.2),
    ]
    table = imbalance(pd.DataFrame(rows, columns=["method", "step", "kind", "group", "value"]))
    assert table.loc[("m", 2, "gradient"), "step0"] == pytest.approx(0.2), "mean over batches"
    assert table.loc[("m", 2, "gradient"), "ratio"] == pytest.approx(2), "the background is no step's"
    assert np.isnan(table.loc[("m", 2, "compensated"), "ratio"]) and np.isnan(table.loc[("n", 1, "gradient"), "ratio"])


def test_angles_of_new_tokens():
    # background (1,0,0), old (0,1,0), new (1,1,0) and (0,0,1); then both new on the background
    tokens = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    unit = torch.nn.functional.normalize(tokens, dim=1)
    turned = torch.stack([(unit[-2:] @ unit.T), torch.tensor([[1.0, 0, 1, 1], [1, 0, 1, 1]])])
    ends = {"e": [result(0, AFTER_0), result(1, AFTER_1, token_epochs=np.array([0, 1]), token_cosines=turned.numpy())]}
    ends["e"][0] |= {"token_epochs": np.zeros(0), "token_cosines": np.zeros((0, 0, 0))}
    table = token_angles_table(ends).set_index(["pair", "epochs"])["angle"]
    assert table["background", 0] == pytest.approx((45 + 90) / 2, abs=1e-4)
    assert table["old", 0] == pytest.approx((45 + 90) / 2, abs=1e-4)
    assert table["new", 0] == pytest.approx(90, abs=1e-4)
    assert table["background", 1] == pytest.approx(0) and table["old", 1] == pytest.approx(90)
    assert table["new", 1] == pytest.approx(0, abs=1e-4)
    # a single new token has no neighbour
    cosines = np.array([[[0.0, 1.0, 1.0]]])
    ends = {"e": [result(1, AFTER_1, token_epochs=np.array([0]), token_cosines=cosines)]}
    table = token_angles_table(ends).set_index("pair")["angle"]
    assert np.isnan(table["new"]) and table["background"] == pytest.approx(90) and table["old"] == 0
    # a step without new classes has no angle
    ends = {"e": [result(1, AFTER_1, token_epochs=np.array([0]), token_cosines=np.zeros((1, 0, 3)))]}
    assert token_angles_table(ends).empty


# --- in words


def summary(**methods: float) -> pd.DataFrame:
    rows = [(method, 0, lost, lost - 0.1, lost / 2) for method, lost in methods.items()]
    return pd.DataFrame(rows, columns=["method", "seed", "forgetting", "same_pixels", "spread"])


def lost(**by_method: dict[str, float]) -> pd.DataFrame:
    """Classes lost these IoUs, of a best one of 0.8."""
    rows = [(m, c, lost, lost / 0.8) for m, found in by_method.items() for c, lost in found.items()]
    return pd.DataFrame(rows, columns=["method", "class", "forgetting", "relative"])


def ranks(*rows: tuple) -> pd.DataFrame:
    columns = ["method", "factor", "correlation", "low", "high", "ends", "classes"]
    return pd.DataFrame([(*row, 1, 10) for row in rows], columns=columns)


NONE = pd.DataFrame()
EMPTY = {"steps": "No step.", "pace": "No hold-out set."}
NEGATIVE = "A negative value means that the IoU increased."


def test_words_say_which_classes_fade():
    text = forgetting_findings(
        "x", lost(a={"cat": 0.5, "dog": 0.1}, b={"cat": 0.2, "dog": 0.3}), summary(a=0.3, b=0.25), NONE, NONE, EMPTY
    )
    assert "(one seed): after the last step the mean forgetting of old classes (percentage points of IoU)" in text
    assert "is from 25.0 (b) to 30.0 (a)." in text
    assert "If they count after every step, the mean forgetting is from 15.0 (b) to 20.0 (a)." in text
    assert "the mean loss is from 31.2 % (b) to 37.5 % (a)." in text
    assert "Mean over all methods: the forgetting of a class is from 20.0 (dog) to 35.0 (cat)." in text
    assert "The standard deviation over the old classes of a method is from 12.5 (b) to 15.0 (a)." in text
    assert "most" not in text and "least" not in text, "one seed"
    assert text.endswith("No hold-out set.")
    assert "nothing could be forgotten. No step." in forgetting_findings("x", NONE, NONE, NONE, NONE, EMPTY)


def test_words_explain_a_forgetting_below_zero():
    def words(a: float, dog: float) -> str:
        lists = lost(a={"cat": 0.5, "dog": dog}, b={"cat": 0.2, "dog": 0.3})
        return forgetting_findings("x", lists, summary(a=a, b=0.25), NONE, NONE, EMPTY)

    assert f"from -0.1 (a) to 25.0 (b). {NEGATIVE}" in words(-0.001, 0.1)
    assert "from -30.0 (dog)" in words(0.3, -0.9) and NEGATIVE in words(0.3, -0.9)
    assert NEGATIVE not in words(-0.0001, 0.1), "printed as 0.0"


def test_words_do_not_choose_among_factors_that_disagree():
    table = ranks(("a", "gradient", 0.5, NAN, NAN), ("b", "gradient", -0.9, NAN, NAN))
    text = forgetting_findings("x", lost(a={"cat": 0.5}), summary(a=0.3), table, NONE, EMPTY)
    assert "No factor has a rank correlation of the same sign with the forgetting rate within a step in every" in text
    assert "The correlations are from -0.90 (the gradient before the step, b) to +0.50" in text
    assert "chance is not excluded" in text
    table = ranks(("a", "similarity", 0.5, NAN, NAN), ("b", "similarity", 0.2, NAN, NAN))
    text = forgetting_findings("x", lost(a={"cat": 0.5}), summary(a=0.3), table, NONE, EMPTY)
    assert "correlates by rank with the similarity to the nearest new class in every method (+0.20 to +0.50)." in text


def test_words_trust_intervals_only():
    table = ranks(("a", "gradient", 0.5, 0.2, 0.8), ("b", "gradient", 0.6, -0.1, 1.0))
    text = forgetting_findings("x", lost(a={"cat": 0.5}), summary(a=0.3), table, NONE, EMPTY)
    assert "for a (+0.50 [+0.20, +0.80])" in text and "for b" not in text
    assert "Of 2 intervals, about 0.1 miss zero by chance alone." in text
    text = forgetting_findings("x", lost(a={"cat": 0.5}), summary(a=0.3), table[1:], NONE, EMPTY)
    assert "For every factor, the 95 % interval of the rank correlation" in text


def test_words_on_compensation():
    rows = [("gsc", 2, "gradient", "step0", 0.1), ("gsc", 2, "gradient", "step2", 0.8)]
    rows += [("gsc", 2, "compensated", "step0", 0.4), ("gsc", 2, "compensated", "step2", 0.8)]
    unequal = imbalance(pd.DataFrame(rows, columns=["method", "step", "kind", "group", "value"]))
    text = forgetting_findings("x", lost(gsc={"cat": 0.5}), summary(gsc=0.3), NONE, unequal, EMPTY)
    assert (
        "In step 2 of gsc, the mean gradients of the steps' labels (step 0 with the background) differ by a factor of "
        "8.0. After compensation the factor is 2.0." in text
    )


def test_words_say_that_nothing_differs():
    same, tied = lost(a={"cat": 0.0, "dog": -0.0001}, b={"cat": 0.0001, "dog": 0.0}), summary(a=0.0001, b=-0.0001)
    text = forgetting_findings("x", same, tied, NONE, NONE, EMPTY)
    assert "the mean forgetting of old classes (percentage points of IoU) is 0.0 in every method." in text
    assert "Mean over all methods: the forgetting of a class is 0.0 in every class." in text
    assert "The standard deviation over the old classes of a method is 0.0 in every method." in text
    assert "-0.0" not in text
    table = ranks(("a", "gradient", 0.0, NAN, NAN), ("b", "gradient", 0.0, NAN, NAN))
    text = forgetting_findings("x", same, tied, table, NONE, EMPTY)
    assert "Every rank correlation with the forgetting rate within a step is 0.00. With one seed" in text
    table = ranks(("a", "gradient", 0.5, NAN, NAN), ("b", "gradient", 0.501, NAN, NAN))
    text = forgetting_findings("x", same, tied, table, NONE, EMPTY)
    assert "the gradient before the step in every method (+0.50). With one seed" in text


def test_words_of_a_base_step_that_learnt_nothing():
    blank = np.array([[9, 0, 0, 0], [9, 0, 0, 0], [9, 0, 0, 0], [9, 0, 0, 0]])
    paths = {"e": [result(0, blank), result(1, blank), result(2, blank)]}
    empty = empty_reasons(paths)
    said = "No class was learnt in the base step: every object class has an IoU of 0. Do not draw conclusions about the"
    table, means = lost(a={"cat": 0.0}), summary(a=0.0)
    assert forgetting_findings("x", table, means, NONE, NONE, empty).startswith(
        f"{said} methods from this benchmark.\n\n**x**"
    )
    assert "base" not in empty_reasons({"e": [result(0, AFTER_0), *paths["e"][1:]]})
    joint = {"j": [result(2, AFTER_0, method="joint")]}
    assert empty_reasons({**paths, **joint})["base"] == empty["base"] and "base" not in empty_reasons(joint)
