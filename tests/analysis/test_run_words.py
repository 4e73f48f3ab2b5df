"""Findings of notebooks: sentences with numbers that can be counted by hand."""

import numpy as np
import pandas as pd

from ciss.analysis.run_words import base_finding, data_finding, methods_finding, pseudo_label_table, step_finding
from ciss.protocol import Classes

CLASSES = Classes([[1, 2], [3]], ["background", "a", "b", "c"], np.zeros((4, 3), np.uint8))
NAMES = ["background", "a", "b", "c"]


def result(right: list[int], reached: int, score: float) -> dict:
    """Ten pixels of each class, so many of them predicted right and the others as background."""
    confusion = np.diag(right)
    confusion[1:, 0] = 10 - np.array(right[1:])
    confusion[CLASSES.known(reached) :] = 0
    return {"confusion": confusion, "classes": CLASSES, "reached": reached, "scores": {"all": score}}


def test_of_the_data():
    assert data_finding([0.5]) == "There is one step, so every object has its label."
    finding = "Objects of other steps, which have the label background, are in 25.0 % of the images of step 1."
    assert data_finding([0.5, 0.25]) == finding


def test_of_one_run_and_of_a_step():
    before, after = result([10, 8, 6, 0], 0, 0.7), result([10, 5, 6, 9], 1, 0.65)
    assert (
        base_finding(before, NAMES) == "mIoU of all classes: 70.0 %. IoU of the classes: from 60.0 % (b) to 80.0 % (a)."
    )
    assert step_finding(after, before, NAMES) == (
        "mIoU of all classes: 70.0 % before the step, 65.0 % after it. Old classes: 70.0 % before, 55.0 % after. "
        "Points lost: from 0.0 (b) to 30.0 (a). New classes: 90.0 %."
    )


def test_of_pseudo_labels():
    assert pseudo_label_table({"pseudo_labels": {}}) == "The method learns the given labels."
    table = pseudo_label_table({"pseudo_labels": {"method": {"precision": 0.5, "recall": None}}})
    assert table.loc["method", "precision"] == 50.0 and np.isnan(table.loc["method", "recall"])


def test_of_the_methods():
    table = pd.DataFrame({"all": [0.2, 0.5, 0.8], "runs": [1, 1, 1]}, index=["finetune", "mib", "joint"])
    assert methods_finding("shapes", table) == (
        "**shapes**: mIoU of all classes after the last step is from 20.0 % (finetune) to 50.0 % (mib). Joint "
        "training, usually the upper bound, has 80.0 %. Each method has one run: small differences may be chance."
    )
    assert "chance" not in methods_finding("shapes", table.assign(runs=3))
    assert methods_finding("shapes", table[2:]) == "**shapes**: no incremental method has a score."
