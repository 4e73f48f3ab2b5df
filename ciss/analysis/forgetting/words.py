"""Sentences that state the findings of the analysis of forgetting."""

import numpy as np
import pandas as pd

from ciss.analysis.words import WORDS, _equal, _join, _names, _printed, _seeds, _tied, _warned


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
