"""Why tables and figures are empty and cells of tables undefined: sentences computed from the results."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ciss.analysis.forgetting.tables import iou_by_step
from ciss.analysis.rows import increments
from ciss.data.stored import BREAKS_PROTOCOL

NAMES_SHOWN = 8  # class names in one sentence
NOT_LEARNT = (
    "No class was learnt in the base step: every object class has an IoU of 0. Do not draw conclusions about the "
    "methods from this benchmark."
)
NO_HOLDOUT = "No hold-out set: {} not measured."


def empty_reasons(ends: dict[str, list[dict]]) -> dict[str, str]:
    """Why a benchmark's tables are empty: a sentence for each input that tables need.

    Keys: `steps`: tables over incremental steps; `pace`: IoU within a step; `tokens`: angles of new class tokens. Show
    a sentence only where the table is empty. `base`, only if no class was learnt in the base step: a warning that the
    findings are void. `memory`, only if a method has stored images: what its rows are.
    """
    if not ends:
        steps = "No run of this benchmark leads to a result."
    elif all(results[-1]["joint"] for results in ends.values()):
        steps = "Joint training only: it has no incremental step."
    else:
        steps = "No incremental step follows the base step."
    if not any(increments(ends)):
        return dict.fromkeys(("steps", "pace", "tokens"), steps)
    reasons = {
        "steps": steps,
        "pace": NO_HOLDOUT.format("the forgetting rate within a step is"),
        "tokens": "No step brings a new class: there are no angles of new class tokens.",
    }
    bases = [results[0] for results in _incremental(ends)]
    ious = np.concatenate([iou_by_step([base["confusion"]], base["classes"])[0, 1:] for base in bases])
    scored = ious[np.isfinite(ious)]
    if len(scored) and not scored.any():
        reasons["base"] = NOT_LEARNT
    if any("memory" in result for _, result in increments(ends)):
        reasons["memory"] = f"{BREAKS_PROTOCOL}."
    return reasons


def score_reasons(results: list[dict]) -> list[str]:
    """Why scores of an end are undefined in `runs_table`: a sentence each. `results`: of the runs that lead to it."""
    last, sentences = results[-1], []
    if last["joint"]:
        sentences.append("Joint training has no steps: no forgetting, backward transfer or mean over steps.")
    elif len(results) == 1:
        sentences.append("The base step alone: no forgetting, backward transfer or mean over steps.")
    old, known = last["classes"].known(0), last["classes"].known(last["reached"])
    if known == old:
        sentences.append("No class counts as new, so new and harmonic are undefined.")
    pixels = np.asarray(last["confusion"]).sum(axis=1)
    for name, positions in (("old", slice(1, old)), ("new", slice(old, known))):
        if len(pixels[positions]) and not pixels[positions].any():
            sentences.append(f"No pixel of the validation set is a class that counts as {name}.")
    labels = last["pseudo_labels"].get("method", {})
    if labels and pd.isna(labels["recall"]):
        sentences.append("No pixel of an old class is labelled background in the hold-out set, so recall is undefined.")
    if labels and pd.isna(labels["precision"]):
        sentences.append("No background pixel of the hold-out set takes an old class, so precision is undefined.")
    return [*sentences, *_without_pixels([results])]


def forgetting_reasons(ends: dict[str, list[dict]], correlations: pd.DataFrame) -> list[str]:
    """Why cells of the tables on forgetting are undefined: a sentence each. `correlations`: `rank_correlations`."""
    paths = _incremental(ends)
    sentences = _joint(ends)
    if any(len(results) > 1 for results in paths):
        sentences.append("A class has no forgetting in the step that brings it; in step 0 no class is old.")
    sentences += [*_without_pixels(paths), *_background(paths)]
    titles = [results[-1]["title"] for results in paths]
    if any(titles.count(title) == 1 for title in titles):
        sentences.append("A method with one run has no standard deviation.")
    if any(increments(ends)) and not any(len(result["curve_confusions"]) for _, result in increments(ends)):
        sentences.append(NO_HOLDOUT.format("the forgetting rate within a step and what it correlates with are"))
    elif correlations["correlation"].isna().any():
        sentences.append("A rank correlation needs a step with at least three old classes whose values differ.")
    elif correlations["low"].isna().any():
        sentences.append("One seed and order of classes: a rank correlation has no interval.")
    return sentences


def background_reasons(ends: dict[str, list[dict]], rules: pd.DataFrame) -> list[str]:
    """Why cells of the tables on background shift are undefined: a sentence each. `rules`: `label_rules`."""
    paths = _incremental(ends)
    sentences = [*_joint(ends), *_without_pixels(paths), *_background(paths)]
    new = [len(result["classes"].new(result["step"])) for _, result in increments(ends)]
    if new and not any(new):
        sentences.append("No step brings a new class, so nothing can be confused with one.")
    elif 1 in new:
        sentences.append("A step with a single new class has no angle between new class tokens.")
    if rules["recall"].isna().any():
        sentences.append("Recall needs a pixel of an old class that is labelled background.")
    if rules["precision"].isna().any():
        sentences.append("Precision needs a pixel that a rule labels as an old class.")
    return sentences


def undefined(sentences: list[str]) -> str:
    """The reasons as a paragraph of Markdown; empty without one."""
    return f"\n\nEmpty places and undefined values: {' '.join(sentences)}" if sentences else ""


def _incremental(ends: dict[str, list[dict]]) -> list[list[dict]]:
    """The results of all ends but joint training."""
    return [results for results in ends.values() if not results[-1]["joint"]]


def _joint(ends: dict[str, list[dict]]) -> list[str]:
    left_out = len(_incremental(ends)) < len(ends)
    return ["Joint training has no steps, so it is left out."] if left_out else []


def _without_pixels(paths: Iterable[list[dict]]) -> list[str]:
    """Classes that the network knows and the scored images lack, in any step of the paths."""
    always: dict[str, None] = {}
    sometimes: dict[str, None] = {}
    steps: set[int] = set()
    for results in paths:
        in_last = np.asarray(results[-1]["confusion"]).sum(axis=1)
        for result in results:
            known = result["classes"].known(result["reached"])
            pixels = np.asarray(result["confusion"]).sum(axis=1)
            for position in np.flatnonzero(pixels[1:known] == 0) + 1:  # `_background` is about position 0
                if in_last[position]:
                    sometimes[result["classes"].names[position]] = None
                    steps.add(result["reached"])
                else:
                    always[result["classes"].names[position]] = None
    sentences = []
    if always:
        sentences.append(
            f"Not in the scored part of the validation set: {listed(always)}. Without ground truth the IoU is "
            "undefined, or 0 where the class is predicted."
        )
    if sometimes:
        numbers = ", ".join(map(str, sorted(steps)))
        sentences.append(f"Not in the images that are scored after some steps ({numbers}): {listed(sometimes)}.")
    return sentences


def _background(paths: Iterable[list[dict]]) -> list[str]:
    if any(not np.asarray(results[-1]["confusion"])[0].any() for results in paths):
        return ["No pixel that is scored is background, so the background has no IoU and no rates."]
    return []


def listed(names: Iterable[str]) -> str:
    """Some names, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
