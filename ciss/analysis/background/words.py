"""Sentences about the results on background shift."""

import pandas as pd

from ciss.analysis.words import (
    all_equal,
    join_names,
    percent,
    seeds_text,
    value_range,
    with_warning,
)

ERRORS = {  # of `background_errors`
    "old called background": "pixels of old classes predicted as background",
    "new called background": "pixels of new classes predicted as background",
    "background called old": "background pixels predicted as old classes",
    "background called new": "background pixels predicted as new classes",
}

CAPTIONS = {
    "background": (
        "Predictions of one method on the pixels of background, old, new and future classes: ground truth left, all "
        "groups equally high; prediction right. Numbers: percent of the group, from 10 on. Grey ribbons from old "
        "classes are background shift."
    ),
    "background_shares": (
        "Predictions of all methods on the pixels of each group after the last step, in percent. Grey in the middle: "
        "old pixels predicted as background. Brown: pixels predicted as a wrong new class."
    ),
    "background_rates": (
        "Rates of background shift after every step, in percent of the pixels of the first group. The scales of the "
        "panels differ."
    ),
    "background_classes": (
        "Pixels of each class that are predicted as background or as a wrong new class, after the last step, in "
        "percent of the class's pixels."
    ),
    "background_errors": (
        "Errors that involve the background, after the last step: number of validation pixels (left) and shares "
        "(right). Brown: pixels of classes predicted as background; green: background pixels predicted as classes."
    ),
    "calibration": (
        "Probability of the background after the last step, hold-out set. Left: of the pixels with a probability, how "
        "many are background; below the dotted line the probability is too high. Future classes count as background, "
        "as in training. Right: mean probability by ground truth, ideally 100 for background and 0 elsewhere."
    ),
    "label_rules": (
        "Pseudo-labels of the background by four rules with the same teachers, hold-out set. A rule has the name and "
        "colour of its method. Small marks: one teacher; large marks: means. Dashed: equal F1 score, in percent."
    ),
    "token_angles": (
        "Mean angle of the classifier weights (class tokens) of new classes to those of the background and of the "
        "nearest old class, during each step, in degrees. 90: nothing in common."
    ),
}


def background_findings(
    name: str,
    rates: pd.DataFrame,
    errors: pd.DataFrame,
    belief: pd.DataFrame,
    calibration: pd.DataFrame,
    rules: pd.DataFrame,
    empty: dict[str, str],
) -> str:
    """Shares of pixels that are predicted as background or as new classes, as ranges, and kinds of errors; Markdown.

    Args, after the last step: `background_table`, `background_errors`, `background_belief`, `calibration_errors`; of
    all steps: `label_rules`; `empty_reasons`.
    """
    if rates.empty:
        return f"**{name}**: there is no background shift. {empty['steps']}"
    sentences = _errors(name, rates, errors)
    old = 100 * _means(belief[belief["kind"] == "old"], "probability")
    if len(old):
        sentences.append(f"On old classes the mean probability of the background is {value_range(old, 1, ' %')}.")
    wrong = 100 * _means(calibration, "error_truth")
    if len(wrong):
        error = value_range(wrong, 1)
        sentences.append(
            "Over all pixels of the hold-out set, the expected calibration error of the probability of the background "
            f"(percentage points) is {error}."
        )
    means = 100 * rules.groupby("rule", sort=False)[["precision", "recall"]].mean()
    scores, unused = means.dropna(), list(means.index[means["precision"].isna()])
    if len(scores) > 1:
        precision, recall = (
            value_range(scores[score].sort_values(kind="stable"), 1, " %", of="rule") for score in scores
        )
        sentences.append(
            f"With the same teachers, the precision of the pseudo-labels is {precision}. Their recall is {recall}."
        )
        if unused:
            label = "label" if len(unused) > 1 else "labels"
            sentences.append(f"{join_names(unused)} {label} no pixel as an old class.")
    return with_warning(" ".join(sentences), empty)


def _means(table: pd.DataFrame, column: str) -> pd.Series:
    """Sorted means of a column by method, without NaN."""
    return table.groupby("method", sort=False)[column].mean().dropna().sort_values(kind="stable")


def _errors(name: str, rates: pd.DataFrame, errors: pd.DataFrame) -> list[str]:
    """How many old pixels are predicted as background, and how many background pixels as new and old classes."""
    lost = 100 * _means(rates, "old_to_background")  # percent
    if lost.empty:
        return [f"**{name}** ({seeds_text(rates)}): no pixel of an old class was scored."]
    head = f"**{name}** ({seeds_text(rates)}): after the last step"
    share = value_range(lost, 1, " %")
    sentences = [f"{head} the share of pixels of old classes that is predicted as background is {share}."]
    for kind in ("new", "old"):
        taken = 100 * _means(rates, f"background_to_{kind}")
        if len(taken):
            share = value_range(taken, 1, " %")
            sentences.append(f"The share of background pixels that is predicted as {kind} classes is {share}.")
    worst = lost.index[-1]
    shares = errors[errors["method"] == worst].groupby("error")["share"].mean().dropna()
    if len(shares) and not all_equal(lost, 1):
        share = percent(shares.max())
        sentences.append(
            f"Of the errors of {worst} that involve the background, {share} are {ERRORS[shares.idxmax()]}."
        )
    return sentences
