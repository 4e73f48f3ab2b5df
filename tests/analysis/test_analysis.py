"""Analyses on arrays small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest

from ciss.analysis.background.tables import background_table, class_rates, flows, mean_flows
from ciss.analysis.compare.cells import distinct_values
from ciss.analysis.compare.summary import methods_table, metrics_document
from ciss.analysis.compare.tables import ProvenanceError, conventions_table, curves_table, runs_table
from ciss.analysis.exploring.prototypes import nearest_confusions
from ciss.analysis.forgetting.tables import forgetting_table, iou_by_step, pace_table
from tests.helpers.results import AFTER_0, AFTER_1, AFTER_2, CLASSES, result


@pytest.fixture
def ends() -> dict:
    return {"e": [result(0, AFTER_0), result(1, AFTER_1), result(2, AFTER_2)]}


def test_iou_by_step_ignores_future_pixels():
    ious = iou_by_step([AFTER_0, AFTER_1, AFTER_2], CLASSES)
    # step 0, classes 0 and 1: 9 / (10 + 11 - 9), 6 / (8 + 7 - 6)
    np.testing.assert_allclose(ious[0], [9 / 12, 6 / 9, np.nan, np.nan])
    # step 1: rows 0 to 2 only
    np.testing.assert_allclose(ious[1], [6 / 15, 2 / 9, 9 / 15, np.nan])
    np.testing.assert_allclose(ious[2], [8 / 23, 0, 5 / 10, 10 / 12])


def test_forgetting_is_the_best_earlier_iou_minus_the_present_one(ends):
    table = forgetting_table(ends).set_index(["step", "class"])
    assert np.isnan(table.loc[(0, "a"), "forgetting"])
    assert table.loc[(1, "a"), "forgetting"] == pytest.approx(6 / 9 - 2 / 9)
    assert table.loc[(2, "a"), "forgetting"] == pytest.approx(6 / 9)
    assert table.loc[(2, "b"), "forgetting"] == pytest.approx(0.1)
    assert np.isnan(table.loc[(2, "c"), "forgetting"])
    assert len(table) == 2 + 3 + 4
    assert table.loc[(2, "a"), "pixel_share"] == pytest.approx(0.2)


def test_pace_has_every_point_of_the_incremental_steps(ends):
    table = pace_table(ends)
    assert sorted(table["step"].unique()) == [1, 2]
    first = table[(table["step"] == 1) & (table["class"] == "a")]
    assert first["epochs"].tolist() == [0, 1]
    # the hold-out after growing, three classes known: row b of AFTER_0 counts now
    np.testing.assert_allclose(first["iou"], [6 / 11, 2 / 9])


def test_flows_are_shares_of_each_group():
    table = flows(AFTER_1, CLASSES, step=1)
    expected = {
        "background": [0.6, 0.0, 0.1, 0.3],
        "old": [0.5, 0.25, 0.0, 0.25],
        "new": [0.1, 0.9, 0.0, 0.0],
        "future": [0.5, 0.0, 0.1, 0.4],
    }
    for row, values in expected.items():
        np.testing.assert_allclose(table.loc[row, ["background", "right", "old", "new"]].tolist(), values)
    table = flows(AFTER_2, CLASSES, step=2)
    assert table.loc["future"].isna().all()
    np.testing.assert_allclose(table.loc["old"].tolist(), [13 / 18, 5 / 18, 0, 0])


def test_mean_flows_are_means_over_seeds(ends):
    other = AFTER_1.copy()
    other[0] = [0, 0, 0, other[0].sum()]
    more = {
        **ends,
        "f": [result(0, AFTER_0, seed=1), result(1, other, seed=1)],
        "j": [result(0, AFTER_2, method="joint")],
    }
    found = {(method, step): table for method, step, table in mean_flows(more)}
    assert list(found) == [("mib", 1), ("mib", 2)]
    at_first = [flows(confusion, CLASSES, step=1) for confusion in (AFTER_1, other)]
    np.testing.assert_allclose(found["mib", 1], (at_first[0] + at_first[1]) / 2)
    assert found["mib", 1].loc["background", "background"] == pytest.approx(0.3)
    assert found["mib", 2].loc["future"].isna().all()


def test_background_table_names_rates(ends):
    rates = {"old_to_background": 0.5, "background_to_new": 0.3, "old_to_new": 0.25}
    rates |= {"new_to_background": 0.1, "background_to_old": 0.1}
    assert background_table(ends).iloc[0][list(rates)].to_dict() == rates


def test_methods_table_means_and_deviations(ends):
    other = [
        result(0, AFTER_0, seed=1),
        result(1, AFTER_1, seed=1),
        result(2, AFTER_2, seed=1, scores={"all": 0.7, "old": 0, "new": 0, "harmonic": 0}),
    ]
    joint = [result(0, AFTER_2, method="joint", reached=2)]
    runs = runs_table("b", {**ends, "f": other, "j": joint})
    assert runs["forgetting"].iloc[0] == pytest.approx((6 / 9 + 0.1) / 2)
    first = runs.iloc[0]
    # on the hold-out, which is AFTER_2 here: class 1 is never called; 8 / 23, 0, 5 / 10, 10 / 12
    assert first["holdout_all"] == pytest.approx((8 / 23 + 0 + 5 / 10 + 10 / 12) / 4)
    assert (first["holdout_old"], first["holdout_new"]) == (0, pytest.approx((5 / 10 + 10 / 12) / 2))
    assert first["precision"] == 0.75 and np.isnan(first["recall"])
    assert first["ignored"] == 0 and first["token_cosine"] == 0.25 and np.isnan(first["patch_weight"])
    table = methods_table(runs)
    assert table.loc["mib", "all"] == pytest.approx(0.6)
    assert table.loc["mib", "all_std"] == pytest.approx(0.2 / 2**0.5)
    assert table.loc["mib", "seeds"] == 2
    alone = metrics_document({"b": runs})
    assert alone["b"]["mib"]["all"] == 0.6
    assert alone["b"]["joint"]["forgetting"] is None
    both = metrics_document({"b": runs, "c": runs.assign(all=0.1)})
    assert list(both) == ["b", "c"] and both["b"] == alone["b"] and both["c"]["mib"]["all"] == 0.1
    values = [value for methods in both.values() for scores in methods.values() for value in scores.values()]
    assert all(value is None or isinstance(value, (int, float)) for value in values), "DVC shows each as a metric"


def changed(key: str, value, **changes) -> list[dict]:
    """A path whose results differ in one place."""
    path = [result(step, confusion, **changes) for step, confusion in enumerate((AFTER_0, AFTER_1))]
    for made in path:
        *parents, last = key.split(".")
        for parent in parents:
            made = made[parent]
        made[last] = value
    return path


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("identity.data", "e" * 64, "data"),
        ("identity.code.training", "e" * 64, "code"),
        ("identity.parameters.benchmark.train.base.lr", 0.2, "settings.train.base.lr 0.1, now 0.2"),
        ("versions.torch", "2.11.0", "torch '2.15.0', now '2.11.0'"),
        ("precision", "bfloat16", "precision 'float32', now 'bfloat16'"),
        ("processes", 4, "processes 1, now 4"),
    ],
)
@pytest.mark.parametrize("other", ["mib", "plop"])
def test_results_that_cannot_share_a_table(key, value, words, other):
    """Whether they would be averaged or only stand side by side."""
    ends = {"e": changed("seed", 0), "f": changed(key, value, method=other, seed=1)}
    with pytest.raises(ProvenanceError) as caught:
        runs_table("b", ends)
    assert str(caught.value) == f"b: e, r-0 and f, r-0 cannot share a table: {words}. " + (
        "Run: dvc repro. If DVC finds nothing to do, run: dvc repro --force"
    )
    assert len(runs_table("b", {"f": ends["f"]})) == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("identity.parameters.coefficients", {"distillation": 5.0}, "0.coefficients.distillation 10.0, now 5.0"),
        ("identity.code.method", "n" * 64, "0.code.method"),
    ],
)
def test_results_that_cannot_be_averaged(key, value, words):
    ends = {"e": changed("seed", 0), "f": changed(key, value, seed=1)}
    with pytest.raises(ProvenanceError, match=f"b: e and f are both mib, but cannot be averaged: {words}"):
        runs_table("b", ends)
    ends["f"] = changed(key, value, seed=1, method="plop")
    assert len(runs_table("b", ends)) == 2, "another method may"


def test_a_seed_counts_once():
    with pytest.raises(ProvenanceError, match="e and f are both mib with seed 0. Remove one end"):
        runs_table("b", {"e": changed("seed", 0), "f": changed("seed", 0)})


def test_a_row_says_where_it_comes_from():
    versions = {"python": "3.12.1", "torch": "2.15.0", "numpy": "2"}
    rows = runs_table("b", {"e": changed("seed", 0), "f": changed("versions", versions, seed=1)})
    one, other = rows.to_dict("records")
    assert (one["seed"], other["seed"], one["order"]) == (0, 1, "1 | 2 | 3")
    assert one["data"] == "d" * 12 and one["weights"] == "1" * 12
    assert one["versions"] == "python 3.12.1, torch 2.15.0"
    assert one["arithmetic"] == "float32" and not {"device", "training_seconds"} & set(one), "they differ each time"
    assert one["configuration"] == other["configuration"] and one["code"] == other["code"], "the seed is apart"
    versions = [f"python 3.12.1, torch 2.15.0{more} (1 of 2 runs)" for more in ("", ", numpy 2")]
    assert distinct_values(rows["versions"]) == "; ".join(versions)
    assert distinct_values(rows["versions"][:1]) == "python 3.12.1, torch 2.15.0"
    for key, column in (("parameters.benchmark.train.base.lr", "configuration"), ("code.method", "code")):
        (row,) = runs_table("b", {"e": changed(f"identity.{key}", 7)}).to_dict("records")
        assert [name for name in one if row[name] != one[name] and row[name] == row[name]] == [column]


def test_curves_table_is_one_row_a_step(ends):
    curves = curves_table("b", ends)
    assert curves["step"].tolist() == [0, 1, 2]
    assert isinstance(curves, pd.DataFrame)


def test_every_convention_by_hand(ends):
    """After the last step of `ends`: IoU 8/23, 0, 5/10 and 10/12, the base class being forgotten."""
    table = conventions_table("b", ends).set_index("convention")
    iou = [8 / 23, 0.0, 5 / 10, 10 / 12]
    assert list(table.index) == ["ciss", "mib", "plop", "ssul", "mbs"]
    assert table["all"]["ciss"] == pytest.approx(sum(iou) / 4) == table["all"]["plop"]
    assert table["all"]["mib"] == pytest.approx(sum(iou[1:]) / 3)
    assert table["all"]["mbs"] == pytest.approx((iou[2] + iou[3]) / 2), "the forgotten class drops out"
    assert (table["old"]["ciss"], table["old"]["plop"]) == (0, pytest.approx(iou[0] / 2))
    assert table["old"]["mbs"] == 0 and set(table["new"].round(9)) == {round((iou[2] + iou[3]) / 2, 9)}
    assert "future classes' pixels scored as background" in table["sentence"]["plop"]
    assert "at full resolution" in table["sentence"]["ciss"]


def test_future_pixels_count_after_earlier_steps(ends):
    table = conventions_table("b", ends).set_index("convention")
    last = np.mean([8 / 23, 0, 5 / 10, 10 / 12])
    ignored = np.mean([np.mean([9 / 12, 6 / 9]), np.mean([6 / 15, 2 / 9, 9 / 15]), last])
    # (27 3; 2 6) after the base step, (11 2 7; 4 2 2; 1 0 9) after the next one
    scored = np.mean([np.mean([27 / 32, 6 / 11]), np.mean([11 / 25, 2 / 10, 9 / 19]), last])
    assert table["mean_over_steps"]["ssul"] == pytest.approx(ignored)
    assert table["mean_over_steps"]["plop"] == pytest.approx(scored)


def test_unlabelled_pixels_belong_to_no_class(ends):
    """ADE20K and its like: `all` without position 0; MiB and MBS leave the pixels out, PLOP scores them."""
    without = [{**r, "background": False, "confusion_all": AFTER_2} for r in ends["e"][-1:]]
    table = conventions_table("b", {"e": without}).set_index("convention")
    iou = [0.0, 5 / 10, 10 / 10]  # what was said of unlabelled pixels is nobody's error
    assert table["all"]["ciss"] == pytest.approx(np.mean(iou)) == table["all"]["mib"]
    assert table["all"]["plop"] == pytest.approx(np.mean([8 / 23, 0, 5 / 10, 10 / 12]))
    assert "unlabelled pixels left out" in table["sentence"]["ciss"]


def test_over_steps_by_hand(ends):
    (row,) = runs_table("b", ends).to_dict("records")
    # class 1: 6/9 after the base, 2/9, 0; class 2: 9/15, then 5/10
    assert row["backward_transfer"] == pytest.approx(np.mean([0 - 6 / 9, 5 / 10 - 9 / 15]))
    assert row["mean_over_steps"] == pytest.approx(0.5)


def test_without_a_background_there_is_no_row_of_it(ends):
    """What is called background then is an error of the class that it is."""
    for r in ends["e"]:
        for name in ("confusion", "curve_confusions"):
            r[name] = r[name].copy()
            r[name][..., 0, :] = 0
    ious = iou_by_step([r["confusion"] for r in ends["e"]], CLASSES)
    assert np.isnan(ious[:, 0]).all() and ious[0, 1] == pytest.approx(6 / 8) and ious[2, 1] == 0
    for table in (forgetting_table(ends), pace_table(ends)):
        assert set(table["class"]) == {"a", "b", "c"} and len(table)


def test_a_part_of_a_table_knows_the_positions_of_its_classes(ends):
    """Figures number classes by position, also where rows are missing."""
    for table in (forgetting_table(ends), pace_table(ends), class_rates(ends)):
        rest = table[(table["class"] == "b") & (table["step"] > 0)]
        assert set(rest["class"]) == {"b"} and rest.attrs["classes"] == ["background", "a", "b", "c"]
    confused = nearest_confusions(np.zeros((0, 2)), np.zeros(0, int), np.eye(2), np.array([1, 1]), ["a", "b"])
    assert confused[confused["pixels"] > 0].attrs["classes"] == ["a", "b"]
