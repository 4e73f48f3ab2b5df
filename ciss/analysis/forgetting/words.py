"""Sentences about the results on forgetting."""

import numpy as np
import pandas as pd

from ciss.analysis.words import (
    FACTOR_WORDS,
    all_equal,
    extreme_names,
    join_names,
    rounded,
    seeds_text,
    tied_names,
    with_warning,
)


def forgetting_findings(
    name: str,
    forgotten: pd.DataFrame,
    summary: pd.DataFrame,
    correlations: pd.DataFrame,
    gradients: pd.DataFrame,
    empty: dict[str, str],
) -> str:
    """Which classes are forgotten most, and possible reasons; Markdown.

    Args: `forgotten`: rows of `forgetting_table` for old classes after the last step; then `forgetting_summary`,
    `rank_correlations`, `imbalance` and `empty_reasons`.
    """
    if summary.empty:
        return f"**{name}**: nothing could be forgotten. {empty['steps']}"
    means = summary.groupby("method", sort=False)["forgetting"].mean().dropna().sort_values(kind="stable")
    if means.empty:
        return f"**{name}** ({seeds_text(summary)}): no old class has an IoU before and after."
    sentences = [_most(name, summary, means)]
    classes = forgotten.groupby("class")["forgetting"].mean().dropna().sort_values(kind="stable")
    lowest = [means, classes] if len(classes) > 1 else [means]
    if any(rounded(values.iloc[0]).startswith("-") for values in lowest):
        sentences.append("A negative value means that the IoU increased.")
    if len(classes) > 1:
        over = "Mean over all methods" if len(means) > 1 else f"In {means.index[0]}"
        if all_equal(classes):
            sentences.append(f"{over}: the forgetting of every old class is {rounded(classes.iloc[-1])}.")
        else:
            are = "are" if tied_names(classes, -1) else "is"
            sentences.append(
                f"{over}: {extreme_names(classes, -1)} {are} forgotten most ({rounded(classes.iloc[-1])}), "
                f"{extreme_names(classes, 0)} least ({rounded(classes.iloc[0])})."
            )
        if others := _worst_classes(forgotten, None if all_equal(classes) else classes.index[-1]):
            pairs = join_names(f"{method} forgets {chosen} most" for method, chosen in others.items())
            sentences.append(f"Exception{'s' if len(others) > 1 else ''}: {pairs}.")
        spread = summary.groupby("method", sort=False)["spread"].mean().dropna().sort_values(kind="stable")
        if all_equal(spread):
            deviation = rounded(spread.iloc[-1])
            sentences.append(f"The standard deviation of forgetting over old classes is {deviation} in every method.")
        elif len(spread) > 1:
            sentences.append(
                f"Forgetting differs most between old classes in {extreme_names(spread, -1)} (standard deviation over "
                f"classes {rounded(spread.iloc[-1])}), least in {extreme_names(spread, 0)} ({rounded(spread.iloc[0])})."
            )
    return with_warning(" ".join([*sentences, *_correlated(correlations, empty), *_unequal(gradients)]), empty)


def _most(name: str, summary: pd.DataFrame, means: pd.Series) -> str:
    """Which method has forgotten most and least. `means`: sorted means over old classes by method."""
    head, most = f"**{name}** ({seeds_text(summary)}): after the last step", rounded(means.iloc[-1])
    if all_equal(means):
        return f"{head} every method has forgotten {most} IoU (mean over old classes)."
    have = "have" if tied_names(means, -1) else "has"
    least = f", {extreme_names(means, 0)} least ({rounded(means.iloc[0])})" if len(means) > 1 else ""
    return f"{head} {extreme_names(means, -1)} {have} forgotten most ({most} IoU, mean over old classes){least}."


def _worst_classes(forgotten: pd.DataFrame, overall: str | None) -> dict[str, str]:
    """The class that each method forgot most, for methods where that differs in print from the class `overall`.

    Methods that forgot every class equally are left out.
    """
    forgetting = forgotten.groupby(["method", "class"], sort=False)["forgetting"].mean().unstack("method")
    classes = {}
    for method, values in forgetting.items():
        values = values.dropna()
        if len(values) == 0 or all_equal(values):
            continue
        worst = values.idxmax()
        if overall not in values or rounded(values[worst]) != rounded(values[overall]):
            classes[method] = worst
    return classes


def _correlated(table: pd.DataFrame, empty: dict[str, str]) -> list[str]:
    """What the forgetting rate correlates with."""
    if table.empty:
        return [empty["pace"]]
    known = table.dropna(subset=["correlation"])
    if known.empty:
        return ["There are too few old classes for rank correlations of the forgetting rate within a step."]
    if known["low"].notna().any():
        sure = known[(known["low"] > 0) | (known["high"] < 0)]
        if sure.empty:
            return [
                "For every factor, the 95 % interval of the rank correlation with the forgetting rate within a step "
                "contains zero."
            ]
        rows = [
            f"{FACTOR_WORDS[row.factor]} for {row.method} ({row.correlation:+.2f} [{row.low:+.2f}, {row.high:+.2f}])"
            for row in sure.itertuples()
        ]
        return [
            f"The forgetting rate within a step correlates by rank with {join_names(rows)}.",
            "All other 95 % intervals contain zero.",
        ]
    ranges = known.groupby("factor", sort=False)["correlation"].agg(["mean", "min", "max"])
    same_sign = ranges[(ranges["min"] > 0) | (ranges["max"] < 0)]
    caution = f"With one seed and {known['classes'].max():.0f} classes there is no interval, so chance is not excluded."
    if len(same_sign):
        factor = same_sign["mean"].abs().idxmax()
        low, high = (f"{value:+.2f}" for value in same_sign.loc[factor, ["min", "max"]])
        span = f"{low} to {high}" if low != high else low
        factor = FACTOR_WORDS[factor]
        return [
            f"The forgetting rate within a step correlates by rank with {factor} in every method ({span}).",
            caution,
        ]
    values = known.set_index(["factor", "method"])["correlation"]
    if all_equal(values, 2):
        return ["Every rank correlation with the forgetting rate within a step is 0.00.", caution]
    lowest, highest = (
        f"{values[key]:+.2f} ({FACTOR_WORDS[key[0]]}, {key[1]})" for key in (values.idxmin(), values.idxmax())
    )
    return [
        "No factor has a rank correlation of the same sign with the forgetting rate within a step in every method.",
        f"The correlations are from {lowest} to {highest}.",
        caution,
    ]


def _unequal(table: pd.DataFrame) -> list[str]:
    """What compensation changes at the gradients of the last step."""
    if table.empty or "compensated" not in table.index.get_level_values("kind"):
        return []
    last = table.index.get_level_values("step").max()
    ratios = table["ratio"].unstack("kind", sort=False).xs(last, level="step")[["gradient", "compensated"]]
    return [
        f"In step {last} of {method}, the mean gradients of the steps' labels differ by a factor of {before:.1f}. "
        f"After compensation the factor is {after:.1f}."
        for method, (before, after) in ratios.iterrows()
        if np.isfinite(before) and np.isfinite(after)
    ]
