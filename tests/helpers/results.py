"""Results of runs whose confusion matrices are small enough to work out by hand."""

from dataclasses import replace
from itertools import chain

import numpy as np

from ciss.protocol import Classes

GROUPS = [[1], [2], [3]]  # background and three steps of one class
CLASSES = Classes(GROUPS, ["background", "a", "b", "c"])
# Rows truth, columns predictions, after step 1: classes 0 to 2 are known, 3 is a future one.
AFTER_1 = np.array([[6, 1, 3, 0], [4, 2, 2, 0], [1, 0, 9, 0], [5, 1, 4, 0]])
AFTER_0 = np.array([[9, 1, 0, 0], [2, 6, 0, 0], [8, 2, 0, 0], [10, 0, 0, 0]])
AFTER_2 = np.array([[8, 0, 0, 2], [8, 0, 0, 0], [5, 0, 5, 0], [0, 0, 0, 10]])


def result(step: int, confusion: np.ndarray, **changes) -> dict:
    return {
        "run": f"r-{step}",
        "method": "mib",
        "title": changes.get("method", "mib"),
        "joint": changes.get("method", "mib").startswith("joint"),
        "seed": 0,
        "step": step,
        "reached": step,
        "after": f"run-{step - 1}" if step else None,
        "classes": CLASSES,
        "pixels": [60, 20, 10, 10],
        "confusion": confusion,
        "confusion_all": confusion,
        "background": True,
        "curve_epochs": np.array([0.0, 1.0]),
        "curve_confusions": np.array([AFTER_0, confusion]),
        "scores": {"all": 0.5, "old": 0.4, "new": 0.3, "harmonic": 0.2},
        "training_seconds": 2.0,
        "preparation_seconds": 0.5,
        "pseudo_labels": {"method": {"precision": 0.75, "recall": None, "relabelled": 0.1, "ignored": 0.0}},
        "log": [{"cosine/background": 0.9}, {"cosine/background": 0.25}],
        "peak_memory_bytes": 2**30,
        "parameters": 7,
        "weights": str(step) * 64,
        "identity": {
            "parameters": {
                "benchmark": {
                    "train": {"base": {"lr": 0.1}, "crop": 64},
                    "evaluation": {"size": "full", "scales": [1.0], "flip": False},
                    "order": None,
                    "setting": "overlapped",
                    "legacy_split": False,
                },
                "coefficients": {"distillation": 10.0},
                "seed": changes.get("seed", 0),
                "groups": GROUPS,
            },
            "code": {"training": "c" * 64, "method": "m" * 64},
            "data": "d" * 64,
        },
        "versions": {"python": "3.12.1", "torch": "2.15.0"},
        "device": "a processor, 2 threads",
        "precision": "float32",
        "processes": 1,
        **changes,
    }


OTHER = [[3], [1], [2]]  # another order of the same classes


def path(*, order: list | None = None, **changes) -> list[dict]:
    """Results of a base step and two increments; `order`: raw ids of the groups of another benchmark."""
    made = [result(step, matrix, **changes) for step, matrix in enumerate((AFTER_0, AFTER_1, AFTER_2))]
    for each in made:
        each["samples"] = {"i": np.zeros((2, 2), np.uint8)}
        if order:
            names = [CLASSES.names[raw] for raw in (0, *chain.from_iterable(order))]
            each["classes"] = replace(each["classes"], groups=order, names=names)
            each["identity"]["parameters"] |= {"groups": order}
            each["identity"]["parameters"]["benchmark"] |= {"order": [c for group in order for c in group]}
            each["identity"]["data"] = "o" * 64  # an index lists its images by class
    return made


def scored(value: float, **changes) -> list[dict]:
    scores = {"all": value, "old": value, "new": value / 2, "harmonic": value}
    return path(scores=scores, **changes)
