"""Sentences about the results on background shift."""

import pandas as pd

from ciss.analysis.words import (
    all_equal,
    extreme_names,
    join_names,
    percent,
    rounded,
    seeds_text,
    tied_names,
    value_range,
    with_warning,
)

ERRORS = {  # of `background_errors`
    "old called background": "pixels of old classes predicted as background",
    "new called background": "pixels of new classes predicted as background",
    "background called old": "background pixels predicted as old classes",
    "background called new": "background pixels predicted as new classes",
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
    """Which method predicts most old pixels as background, and what its errors are; Markdown.

    Args, after the last step: `background_table`, `background_errors`, `background_belief`, `calibration_errors`; of
    all steps: `label_rules`; `empty_reasons`.
    """
    if rates.empty:
        return f"**{name}**: there is no background shift. {empty['steps']}"
    sentences = _errors(name, rates, errors)
    old = _means(belief[belief["kind"] == "old"], "probability")
    if len(old):
        sentences.append(f"On old classes the mean probability of the background is {value_range(old, 2, 'from')}.")
    wrong = _means(calibration, "error_truth")
    if len(wrong):
        sentences.append(f"The expected calibration error of that probability is {value_range(wrong, 3, 'from')}.")
    means = rules.groupby("rule", sort=False)[["precision", "recall"]].mean()
    scores, unused = means.dropna(), list(means.index[means["precision"].isna()])
    if len(scores) > 1:
        sentences.append(f"With the same teachers, {_rules(scores, join_names(scores.index) if unused else '')}.")
        if unused:
            label = "label" if len(unused) > 1 else "labels"
            sentences.append(f"{join_names(unused)} {label} no pixel as an old class.")
    return with_warning(" ".join(sentences), empty)


def _means(table: pd.DataFrame, column: str) -> pd.Series:
    """Sorted means of a column by method, without NaN."""
    return table.groupby("method", sort=False)[column].mean().dropna().sort_values(kind="stable")


def _errors(name: str, rates: pd.DataFrame, errors: pd.DataFrame) -> list[str]:
    """How many old pixels are predicted as background, and how many background pixels as new classes."""
    lost = 100 * _means(rates, "old_to_background")  # percent
    if lost.empty:
        return [f"**{name}** ({seeds_text(rates)}): no pixel of an old class was scored."]
    head, most = f"**{name}** ({seeds_text(rates)}): after the last step", rounded(lost.iloc[-1], 1)
    if same := all_equal(lost, 1):
        sentences = [f"{head} every method predicts background for {most} % of the pixels of old classes."]
    else:
        predict = "predict" if tied_names(lost, -1, 1) else "predicts"
        highest, lowest = "", ""
        if len(lost) > 1:
            highest = " (highest)"
            lowest = f"; {extreme_names(lost, 0, 1)} for {rounded(lost.iloc[0], 1)} % (lowest)"
        sentences = [
            f"{head} {extreme_names(lost, -1, 1)} {predict} background for {most} % of the pixels of old "
            f"classes{highest}{lowest}."
        ]
    taken = 100 * _means(rates, "background_to_new")
    if len(taken):
        share = rounded(taken.iloc[-1], 1)
        if len(taken) == 1 or all_equal(taken, 1):
            method = taken.index[0] if len(taken) == 1 else "every method"
            sentences.append(f"In {method}, {share} % of the background pixels are predicted as new classes.")
        else:
            methods = extreme_names(taken, -1, 1)
            sentences.append(
                f"The largest share of background pixels predicted as new classes is {share} % ({methods})."
            )
    worst = lost.index[-1]
    shares = errors[errors["method"] == worst].groupby("error")["share"].mean().dropna()
    if len(shares) and not same:
        share = percent(shares.max())
        sentences.append(
            f"Of the errors of {worst} that involve the background, {share} are {ERRORS[shares.idxmax()]}."
        )
    return sentences


def _rules(scores: pd.DataFrame, names: str = "") -> str:
    """Which rule's labels are best. `scores`: precision and recall by rule; `names`: their names, if not all."""
    names = names or "every rule"
    precision, recall = (rounded(scores[score].max(), 2) for score in ("precision", "recall"))
    precise, complete = scores["precision"].idxmax(), scores["recall"].idxmax()
    same_precision, same_recall = (all_equal(scores[score], 2) for score in ("precision", "recall"))
    if same_precision and same_recall:
        return f"the labels of {names} are equally good (precision {precision}, recall {recall})"
    first = f"the labels of {precise} have the highest precision ({precision}"
    if same_recall:
        return f"{first}); the recall of {names} is {recall}"
    best = f"those of {complete} the highest recall ({recall}"
    if same_precision:
        return f"the labels of {names} have a precision of {precision}, {best})"
    return (
        f"{first}, recall {rounded(scores.loc[precise, 'recall'], 2)}), {best}, precision "
        f"{rounded(scores.loc[complete, 'precision'], 2)})"
    )
