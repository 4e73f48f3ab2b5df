"""What the tables say, in a paragraph: made from the numbers, so that it is never out of date."""

import numpy as np
import pandas as pd

WORDS = {
    "pixel_share": "the class's share of the pixels",
    "similarity": "its likeness to the nearest new class",
    "gradient": "its gradient before the step",
}
NAMED = 3  # methods or classes with the same value that a sentence names; of more it says how many


def forgetting_findings(
    name: str,
    forgotten: pd.DataFrame,
    summary: pd.DataFrame,
    correlations: pd.DataFrame,
    gradients: pd.DataFrame,
    empty: dict[str, str],
) -> str:
    """Which classes fade fastest, and what goes with it; Markdown.

    `forgotten`: rows of `forgetting_table` for old classes after the last step, `summary`: `forgetting_summary`,
    `correlations`: `rank_correlations`, `gradients`: `imbalance`, `empty`: `empty_reasons`.
    """
    if summary.empty:
        return f"**{name}**: nothing could be forgotten. {empty['steps']}"
    means = summary.groupby("method", sort=False)["forgetting"].mean().dropna().sort_values(kind="stable")
    if means.empty:
        return f"**{name}** ({_seeds(summary)}): no old class has an IoU before and after."
    head, most = f"**{name}** ({_seeds(summary)}): after the last step", _printed(means.iloc[-1])
    if _equal(means):
        said = [f"{head} every method has forgotten {most} IoU (mean over old classes)."]
    else:
        have = "have" if _tied(means, -1) else "has"
        said = [f"{head} {_names(means, -1)} {have} forgotten most ({most} IoU, mean over old classes)"]
        said[0] += f", {_names(means, 0)} least ({_printed(means.iloc[0])})." if len(means) > 1 else "."
    classes = forgotten.groupby("class")["forgetting"].mean().dropna().sort_values(kind="stable")
    if _printed(means.iloc[0]).startswith("-") or (len(classes) > 1 and _printed(classes.iloc[0]).startswith("-")):
        said.append("Below 0 the IoU has risen.")
    if len(classes) > 1:
        over = "all methods" if len(means) > 1 else means.index[0]
        if _equal(classes):
            said.append(f"Over {over}, every old class fades by {_printed(classes.iloc[-1])}.")
        else:
            fade = "fade" if _tied(classes, -1) else "fades"
            said.append(
                f"Over {over}, {_names(classes, -1)} {fade} most ({_printed(classes.iloc[-1])}) and "
                f"{_names(classes, 0)} least ({_printed(classes.iloc[0])})."
            )
        if others := _worst_classes(forgotten, None if _equal(classes) else classes.index[-1]):
            said.append("But " + _join(f"{method} loses most on {chosen}" for method, chosen in others.items()) + ".")
        spread = summary.groupby("method", sort=False)["spread"].mean().dropna().sort_values(kind="stable")
        if _equal(spread):
            said.append(
                f"The standard deviation of forgetting over old classes is {_printed(spread.iloc[-1])} in every method."
            )
        elif len(spread) > 1:
            said.append(
                f"Old classes fade most unevenly in {_names(spread, -1)} (standard deviation over classes "
                f"{_printed(spread.iloc[-1])}), most evenly in {_names(spread, 0)} ({_printed(spread.iloc[0])})."
            )
    return _warned(" ".join([*said, *_correlated(correlations, empty), *_unequal(gradients)]), empty)


def _worst_classes(forgotten: pd.DataFrame, overall: str | None) -> dict[str, str]:
    """The class that each method forgot most, of methods where it is not `overall` to the printed digits. Methods that
    forgot every class equally are left out."""
    lost = forgotten.groupby(["method", "class"], sort=False)["forgetting"].mean().unstack("method")
    classes = {}
    for method, values in lost.items():
        values = values.dropna()
        if len(values) == 0 or _equal(values):
            continue
        worst = values.idxmax()
        if overall not in values or _printed(values[worst]) != _printed(values[overall]):
            classes[method] = worst
    return classes


def _correlated(table: pd.DataFrame, empty: dict[str, str]) -> list[str]:
    if table.empty:
        return [empty["pace"]]
    known = table.dropna(subset=["correlation"])
    if known.empty:
        return ["There are too few old classes to say what the pace within a step goes with."]
    if known["low"].notna().any():
        sure = known[(known["low"] > 0) | (known["high"] < 0)]
        if sure.empty:
            return ["No factor's rank correlation with the pace within a step has an interval (95 %) without zero."]
        rows = [f"{WORDS[r.factor]} for {r.method} ({r.correlation:+.2f} [{r.low:+.2f}, {r.high:+.2f}])"
                for r in sure.itertuples()]  # fmt: skip
        return [f"The pace within a step goes, by rank, with {_join(rows)}; other intervals (95 %) hold zero."]
    each = known.groupby("factor", sort=False)["correlation"]
    ranges = each.agg(["mean", "min", "max"])
    alike = ranges[(ranges["min"] > 0) | (ranges["max"] < 0)]
    caution = f"one seed and {known['classes'].max():.0f} classes: no interval, chance is not excluded"
    if len(alike):
        factor = alike["mean"].abs().idxmax()
        low, high = alike.loc[factor, ["min", "max"]]
        span = f"{low:+.2f} to {high:+.2f}" if f"{low:+.2f}" != f"{high:+.2f}" else f"{low:+.2f}"
        return [f"By rank, the pace within a step goes with {WORDS[factor]} in every method ({span}; {caution})."]
    ends = known.set_index(["factor", "method"])["correlation"]
    if _equal(ends, 2):
        return [f"By rank, nothing goes with the pace within a step: every correlation is 0.00; {caution}."]
    (f0, m0), (f1, m1) = ends.idxmin(), ends.idxmax()
    return [
        f"By rank, nothing goes with the pace within a step in every method alike: from {ends.min():+.2f} "
        f"({WORDS[f0]}, {m0}) to {ends.max():+.2f} ({WORDS[f1]}, {m1}); {caution}."
    ]


def _unequal(table: pd.DataFrame) -> list[str]:
    if table.empty or "compensated" not in table.index.get_level_values("kind"):
        return []
    last = table.index.get_level_values("step").max()
    said = []
    for method in dict.fromkeys(table.index.get_level_values("method")):
        if (method, last, "compensated") in table.index:
            before, after = (table.loc[(method, last, kind), "ratio"] for kind in ("gradient", "compensated"))
            if np.isfinite(before) and np.isfinite(after):
                said.append(
                    f"In {method}'s step {last} the mean gradients of the steps' labels differ by a factor of "
                    f"{before:.1f}, after compensation {after:.1f}."
                )
    return said


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
    lost = rates.groupby("method", sort=False)["old_to_background"].mean().dropna().sort_values(kind="stable")
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
        swallowed = rates.groupby("method", sort=False)["background_to_new"].mean().dropna().sort_values(kind="stable")
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
    old = (
        belief[belief["kind"] == "old"]
        .groupby("method", sort=False)["probability"]
        .mean()
        .dropna()
        .sort_values(kind="stable")
    )
    if len(old):
        said.append(f"On old objects the background gets a probability {_range(old, 2, 'from', 'of')}.")
    wrong = calibration.groupby("method", sort=False)["error_truth"].mean().dropna().sort_values(kind="stable")
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


def _warned(findings: str, empty: dict[str, str]) -> str:
    """Findings, after what makes them void: see `empty_reasons`."""
    return f"{empty['base']}\n\n{findings}" if empty.get("base") else findings


def _range(values: pd.Series, digits: int, several: str = "", one: str = "") -> str:
    """The lowest and the highest of sorted values by method, after the word `several`; after `one` if equal."""
    low, high = (_printed(value, digits) for value in (values.iloc[0], values.iloc[-1]))
    first, last = _names(values, 0, digits), _names(values, -1, digits)
    if len(values) == 1:
        return f"{one} {low} ({values.index[0]})".lstrip()
    if low == high:
        return f"{one} {low} in every method".lstrip()
    return f"{several} {low} ({first}) to {high} ({last})".lstrip()


def _tied(values: pd.Series, end: int, digits: int = 3) -> list[str]:
    """The names whose value has the printed digits of the first (0) or last (-1) one, if there are several."""
    names = [name for name, value in values.items() if _printed(value, digits) == _printed(values.iloc[end], digits)]
    return names if len(names) > 1 else []


def _names(values: pd.Series, end: int, digits: int = 3) -> str:
    """The name of the first (0) or last (-1) of sorted values, with those tied with it to the printed digits."""
    tied = _tied(values, end, digits) or [values.index[end]]
    return _join(tied) if len(tied) <= NAMED else f"{len(tied)} of {len(values)}"


def _equal(values: pd.Series, digits: int = 3) -> bool:
    """Whether several values have the same printed digits."""
    return len(values) > 1 and _printed(values.min(), digits) == _printed(values.max(), digits)


def _printed(value: float, digits: int = 3) -> str:
    """A number with these digits, without the sign of a zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def _seeds(table: pd.DataFrame) -> str:
    seeds = table["seed"].nunique()
    return "one seed" if seeds == 1 else f"means over {seeds} seeds"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _join(parts) -> str:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
