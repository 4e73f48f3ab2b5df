"""Why a table or figure is empty, and why cells of a table are undefined: sentences computed from the results."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ciss.analysis.forgetting.tables import iou_by_step
from ciss.analysis.rows import increments

NAMES_SHOWN = 8  # class names in one sentence
NOT_LEARNT = (
    "No class was learnt in the base step: IoU is 0 for every object. The findings below say nothing about the methods."
)
NO_HOLDOUT = "No hold-out set: {} not measured."


def empty_reasons(ends: dict[str, list[dict]]) -> dict[str, str]:
    """Why a benchmark's tables are empty, one sentence for each thing that its tables need.

    Keys: `steps`: tables over incremental steps; `pace`: IoU within a step; `tokens`: angles of new class tokens. A
    sentence is right where the table is empty, and is not meant to be shown elsewhere. `base`: there only where no
    class was learnt in the base step; says that the findings are void.
    """
    if not ends:
        steps = "No run of this benchmark leads to a result."
    elif all(results[-1]["joint"] for results in ends.values()):
        steps = "Joint training only: it has no incremental step."
    else:
        steps = "No incremental step follows the base step."
    if not any(increments(ends)):
        return dict.fromkeys(("steps", "pace", "tokens"), steps)
    return {
        "steps": steps,
        "pace": NO_HOLDOUT.format("the forgetting rate within a step is"),
        "tokens": "No step brings a new class: there are no angles of new class tokens.",
        **({"base": NOT_LEARNT} if _nothing_learnt(ends) else {}),
    }


def _nothing_learnt(ends: dict[str, list[dict]]) -> bool:
    """Whether every class that was scored after a base step has an IoU of 0; joint training, which has none, apart."""
    bases = [results[0] for results in ends.values() if not results[-1]["joint"]]
    ious = [iou_by_step([base["confusion"]], base["classes"])[0, 1:] for base in bases]
    scored = np.concatenate([row[np.isfinite(row)] for row in ious] or [np.empty(0)])
    return bool(len(scored)) and not scored.any()


def score_reasons(results: list[dict]) -> list[str]:
    """Why scores of an end are undefined in `runs_table`, a sentence each. `results`: of the runs that lead to it."""
    last, sentences = results[-1], []
    if last["joint"]:
        sentences.append("Joint training has no steps: no forgetting, backward transfer or mean over steps.")
    elif len(results) == 1:
        sentences.append("The base step alone: no forgetting, backward transfer or mean over steps.")
    classes = last["classes"]
    old, known = classes.known(0), classes.known(last["reached"])
    if known == old:
        sentences.append("No class counts as new, so new and harmonic are undefined.")
    truth = np.asarray(last["confusion"]).sum(axis=1) > 0
    for name, positions in (("old", range(1, old)), ("new", range(old, known))):
        if positions and not truth[list(positions)].any():
            sentences.append(f"No pixel of the validation set is a class that counts as {name}.")
    labels = last["pseudo_labels"].get("method", {})
    if labels and _undefined(labels["recall"]):
        sentences.append("No pixel of an old class is labelled background in the hold-out set, so recall is undefined.")
    if labels and _undefined(labels["precision"]):
        sentences.append("No background pixel of the hold-out set takes an old class, so precision is undefined.")
    return [*sentences, *_unseen([results])]


def _undefined(value: float | None) -> bool:
    return value is None or value != value


def forgetting_reasons(ends: dict[str, list[dict]], correlations: pd.DataFrame) -> list[str]:
    """Why cells of the tables on forgetting are undefined, a sentence each.

    `correlations`: of `rank_correlations`.
    """
    sentences = []
    if any(results[-1]["joint"] for results in ends.values()):
        sentences.append("Joint training has no steps, so it is left out.")
    paths = [results for results in ends.values() if not results[-1]["joint"]]
    if any(len(results) > 1 for results in paths):
        sentences.append("A class has no forgetting in the step that brings it; in step 0 no class is old.")
    sentences += [*_unseen(paths), *_background(paths), *_one_run(paths)]
    if any(increments(ends)) and not any(len(result["curve_confusions"]) for _, result in increments(ends)):
        sentences.append(NO_HOLDOUT.format("the forgetting rate within a step and what it correlates with are"))
    elif correlations["correlation"].isna().any():
        sentences.append("A rank correlation needs a step with at least three old classes whose values differ.")
    elif correlations["low"].isna().any():
        sentences.append("One seed and order of classes: a rank correlation has no interval.")
    return sentences


def background_reasons(ends: dict[str, list[dict]], rules: pd.DataFrame) -> list[str]:
    """Why cells of the tables on background shift are undefined, a sentence each. `rules`: of `label_rules`."""
    sentences = []
    if any(results[-1]["joint"] for results in ends.values()):
        sentences.append("Joint training has no steps, so it is left out.")
    steps = [result for _, result in increments(ends)]
    paths = [results for results in ends.values() if not results[-1]["joint"]]
    sentences += [*_unseen(paths), *_background(paths)]
    new = [len(result["classes"].new(result["step"])) for result in steps]
    if steps and not any(new):
        sentences.append("No step brings a new class, so nothing can be confused with one.")
    elif 1 in new:
        sentences.append("A step with a single new class has no angle between new class tokens.")
    if rules["recall"].isna().any():
        sentences.append("Recall needs a pixel of an old class that is labelled background.")
    if rules["precision"].isna().any():
        sentences.append("Precision needs a pixel that a rule labels as an old class.")
    return sentences


def undefined(sentences: list[str]) -> str:
    """The reasons as a paragraph of Markdown; nothing without one."""
    return f"\n\nEmpty places and undefined values: {' '.join(sentences)}" if sentences else ""


def _unseen(paths: Iterable[list[dict]]) -> list[str]:
    """Classes that the network knows and the scored images lack, in any step of the paths."""
    always: dict[str, None] = {}
    steps: dict[str, set[int]] = {}
    for results in paths:
        for result in results:
            known = result["classes"].known(result["reached"])
            pixels = np.asarray(result["confusion"]).sum(axis=1)
            last = np.asarray(results[-1]["confusion"]).sum(axis=1)
            for position in np.flatnonzero(pixels[:known] == 0):
                if position == 0:  # said by `_background`
                    continue
                name = result["classes"].names[position]
                if last[position]:
                    steps.setdefault(name, set()).add(result["reached"])
                else:
                    always[name] = None
    sentences = []
    if always:
        sentences.append(
            f"Not in the scored part of the validation set: {listed(always)}. Without ground truth the IoU is "
            "undefined, or 0 where the class is predicted."
        )
    if steps:
        numbers = ", ".join(str(step) for step in sorted(set().union(*steps.values())))
        sentences.append(f"Not in the images that are scored after some steps ({numbers}): {listed(steps)}.")
    return sentences


def _background(paths: Iterable[list[dict]]) -> list[str]:
    if any(not np.asarray(results[-1]["confusion"])[0].any() for results in paths):
        return ["No pixel that is scored is background, so the background has no IoU and no rates."]
    return []


def _one_run(paths: list[list[dict]]) -> list[str]:
    titles = [results[-1]["title"] for results in paths]
    if any(titles.count(title) == 1 for title in titles):
        return ["A method with one run has no standard deviation."]
    return []


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
