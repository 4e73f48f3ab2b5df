"""Sentences about the data of a benchmark, one run, and the methods of a table; Markdown for notebooks."""

import numpy as np
import pandas as pd

from ciss import metrics
from ciss.analysis.figures.families import block
from ciss.analysis.words import percent, rounded, value_range


def data_finding(shares: list[float]) -> str:
    """How many images of each incremental step show objects without a label. `shares`: of the images, by step."""
    later = [f"{percent(share)} of the images of step {step}" for step, share in enumerate(shares) if step]
    if not later:
        return "There is one step, so every object has its label."
    return f"Objects of other steps, which have the label background, are in {', '.join(later)}."


def base_finding(result: dict, names: list[str]) -> str:
    """Scores of a base or joint run, and its range over classes. `names`: of all classes by position."""
    return f"mIoU of all classes: {_score(result, 'all')}. IoU of the classes: {_range(result, names)}."


def step_finding(result: dict, before: dict, names: list[str]) -> str:
    """What a step changed. `before`: result of the run that it continues; `names`: of all classes by position."""
    known = [names[k] for k in range(1, before["classes"].known(before["reached"]))]
    old = [pd.Series(_ious(run)[1 : len(known) + 1], known) for run in (before, result)]
    sentences = [f"mIoU of all classes: {_score(before, 'all')} before the step, {_score(result, 'all')} after it."]
    lost = (100 * (old[0] - old[1])).dropna().sort_values(kind="stable")
    if len(lost):
        losses = value_range(lost, 1, of="class")
        sentences.append(f"Old classes: {_mean(old[0])} before, {_mean(old[1])} after. Points lost: {losses}.")
    new = _ious(result)[len(known) + 1 :]
    if np.isfinite(new).any():
        sentences.append(f"New classes: {_mean(new)}.")
    return " ".join(sentences)


def pseudo_label_table(result: dict) -> pd.DataFrame | str:
    """Scores in percent of the labels that the method gives to the background of the hold-out set, and of the teacher's
    prediction (argmax) as labels; a sentence for a method that gives none."""
    if not result["pseudo_labels"]:
        return "The method learns the given labels."
    return (100 * pd.DataFrame(result["pseudo_labels"]).T.astype(float)).round(1)


def methods_finding(name: str, table: pd.DataFrame) -> str:
    """The range of `all` over incremental methods, and joint training. `table`: `methods_table` of a benchmark."""
    blocks = np.array([block(method) for method in table.index])
    scores = 100 * table["all"].dropna().sort_values(kind="stable")
    methods, joint = (scores[[m for m in scores.index if m in table.index[blocks == k]]] for k in (0, 2))
    if methods.empty:
        return f"**{name}**: no incremental method has a score."
    text = f"**{name}**: mIoU of all classes after the last step is {value_range(methods, 1, ' %')}."
    if len(joint):
        text += f" Joint training, usually the upper bound, has {rounded(joint.iloc[-1], 1)} %."
    if table["runs"].max() < 2:
        text += " Each method has one run: small differences may be chance."
    return text


def _ious(result: dict) -> np.ndarray:
    seen = metrics.seen(result["confusion"], result["classes"].known(result["reached"]))
    return np.asarray(metrics.class_iou(seen), float)


def _range(result: dict, names: list[str]) -> str:
    ious = _ious(result)
    values = pd.Series(100 * ious, names[: len(ious)]).iloc[1:].dropna().sort_values(kind="stable")
    return value_range(values, 1, " %", of="class") if len(values) else "undefined"


def _score(result: dict, name: str) -> str:
    value = result["scores"][name]
    return percent(value) if value is not None and np.isfinite(value) else "undefined"


def _mean(ious: pd.Series | np.ndarray) -> str:
    return percent(np.nanmean(ious))
