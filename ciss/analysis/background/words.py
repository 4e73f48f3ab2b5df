"""Sentences that state the findings of the analysis of the background."""

import pandas as pd

from ciss.analysis.words import _equal, _join, _names, _percent, _printed, _range, _seeds, _tied, _warned


def background_findings(
    name: str,
    rates: pd.DataFrame,
    errors: pd.DataFrame,
    belief: pd.DataFrame,
    calibration: pd.DataFrame,
    rules: pd.DataFrame,
    empty: dict[str, str],
) -> str:
    """Which method loses most to the background, and how; Markdown. All after the last step.

    `rates`: of `background_table`, `errors`: of `background_errors`, `belief`: of `background_belief`, `calibration`:
    of `calibration_errors`, `rules`: `label_rules` of all steps, `empty`: `empty_reasons`.
    """
    if rates.empty:
        return f"**{name}**: there is no background shift. {empty['steps']}"
    said = _lost(name, rates, errors)
    old = _means(belief[belief["kind"] == "old"], "probability")
    if len(old):
        said.append(f"On old objects the background gets a probability {_range(old, 2, 'from', 'of')}.")
    wrong = _means(calibration, "error_truth")
    if len(wrong):
        said.append(f"That probability is off by {_range(wrong, 3)} on average (expected calibration error).")
    means = rules.groupby("rule", sort=False)[["precision", "recall"]].mean()
    scores, unused = means.dropna(), list(means.index[means["precision"].isna()])
    if len(scores) > 1:
        said.append(f"From the same teachers, {_rules(scores, _join(scores.index) if unused else '')}.")
        if unused:
            label = "label" if len(unused) > 1 else "labels"
            said.append(f"{_join(unused)} {label} no pixel as an old class.")
    return _warned(" ".join(said), empty)


def _means(table: pd.DataFrame, column: str) -> pd.Series:
    """The mean of a column for each method, from the lowest to the highest; methods without a value are left out."""
    return table.groupby("method", sort=False)[column].mean().dropna().sort_values(kind="stable")


def _lost(name: str, rates: pd.DataFrame, errors: pd.DataFrame) -> list[str]:
    """Which pixels the background and the new classes take after the last step."""
    lost = _means(rates, "old_to_background")
    said = []
    if len(lost):
        head = f"**{name}** ({_seeds(rates)}): after the last step"
        same = _equal(100 * lost, 1)
        if same:
            said.append(
                f"{head} the background takes {_percent(lost.iloc[-1])} of the old classes' pixels in every method."
            )
        else:
            shares = 100 * lost
            lose, their = ("lose", "their") if _tied(shares, -1, 1) else ("loses", "its")
            said.append(
                f"{head} {_names(shares, -1, 1)} {lose} most to the background, which takes {_percent(lost.iloc[-1])} "
                f"of {their} old classes' pixels"
            )
            lose = "lose" if _tied(shares, 0, 1) else "loses"
            said[0] += f"; {_names(shares, 0, 1)} {lose} least, {_percent(lost.iloc[0])}." if len(lost) > 1 else "."
        swallowed = _means(rates, "background_to_new")
        if len(swallowed) == 1 or _equal(100 * swallowed, 1):
            where = "every method" if len(swallowed) > 1 else swallowed.index[0]
            said.append(f"New classes take {_percent(swallowed.iloc[-1])} of the background in {where}.")
        elif len(swallowed):
            most = _names(100 * swallowed, -1, 1)
            said.append(f"New classes take most of the background in {most}: {_percent(swallowed.iloc[-1])}.")
        worst = lost.index[-1]
        shares = errors[errors["method"] == worst].groupby("error")["share"].mean().dropna()
        if len(shares) and not same:
            said.append(f"Of the background's errors in {worst}, {_percent(shares.max())} are {shares.idxmax()}.")
    else:
        said.append(f"**{name}** ({_seeds(rates)}): no pixel of an old class was scored.")
    return said


def _rules(scores: pd.DataFrame, some: str = "") -> str:
    """Which rule's labels are best; `scores`: precision and recall by rule, `some`: their names, if not all."""
    every = some or "every rule"
    precision, recall = (_printed(scores[name].max(), 2) for name in ("precision", "recall"))
    precise, complete = scores["precision"].idxmax(), scores["recall"].idxmax()
    most_precise = f"the labels of {precise} are the most precise ({precision}"
    match _equal(scores["precision"], 2), _equal(scores["recall"], 2):
        case True, True:
            return f"the labels of {every} are equally good (precision {precision}, recall {recall})"
        case True, False:
            return (
                f"the labels of {every} have a precision of {precision}, those of {complete} find most of the old "
                f"classes (recall {recall})"
            )
        case False, True:
            return f"{most_precise}); the recall of {every} is {recall}"
    return (
        f"{most_precise}, recall {_printed(scores.loc[precise, 'recall'], 2)}), those of {complete} find most of the "
        f"old classes (recall {recall}, precision {_printed(scores.loc[complete, 'precision'], 2)})"
    )
