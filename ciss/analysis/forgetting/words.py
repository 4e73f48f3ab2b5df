"""Sentences about the results on forgetting."""

import numpy as np
import pandas as pd

from ciss.analysis.words import (
    FACTOR_WORDS,
    all_equal,
    join_names,
    rounded,
    seeds_text,
    value_range,
    with_warning,
)

CAPTIONS = {
    "forgetting": (
        "IoU of every class (row) after every step (column), in percent, validation images. Read along a row: a class "
        "is forgotten where its numbers fall. A fall can also come from pixels of new classes, which are ignored until "
        "their step and count from then on. Gaps separate the classes of different steps; before its step a class "
        "is empty."
    ),
    "forgetting_groups": (
        "Mean IoU of the classes of each step after every step, in percent. The darker a line, the later its classes "
        "came; a falling line is forgetting. Whiskers: one standard deviation over runs, if there are several."
    ),
    "forgetting_classes": (
        "Forgetting of each old class after the last step, a mark for each method: best earlier IoU minus the last, "
        "in points (left), and relative to that best IoU (right). A class that never had a high IoU cannot lose many "
        "points. Classes with most labelled training pixels are at the top."
    ),
    "pace": (
        "IoU of the old classes within the first incremental step, in percent, on the hold-out set. Each class has "
        "its colour in the masks. At 0 are the networks right after the new rows of the classifier were added, which "
        "methods start in different ways; pixels of the new classes count already. The hold-out set is small: a "
        "single small dent may be chance."
    ),
    "pace_factors": (
        "Spearman's rank correlations of the forgetting rate within a step with three factors, by method: the mean "
        "over steps, weighted by their old classes. Above 0: classes with more of the factor are forgotten faster. "
        "Where a method loses every class at once (fine-tuning), the rate only says how high the IoU was before, and "
        "its correlations say nothing about forgetting. Filled: IoU lost per epoch; hollow: the same relative to the "
        "IoU before the step, because a class of a low IoU cannot lose much (no mark: all classes lost the same "
        "share). Bars: 95 % intervals over runs, if there are several: of 20, one misses zero by chance. Without "
        "bars, chance is not excluded."
    ),
    "gradients": (
        "Mean gradient magnitude of pixels (1 minus the probability of their label) by the step of the label, within "
        "the last step. Step 0 has the background; methods without labels of old classes have nothing else in it. "
        "Dashed: times the pixel weight of the method."
    ),
}


RATES = {"pace": "IoU lost per epoch", "relative_pace": "the same, relative to the IoU before"}


def correlations_by_method(table: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations (`rank_correlations`) as a table to read: a row for each rate and factor, a column for each
    method."""
    words = table.assign(rate=table["value"].map(RATES), factor=table["factor"].map(FACTOR_WORDS))
    return words.set_index(["rate", "factor", "method"])["correlation"].unstack("method", sort=False)


def forgetting_findings(
    name: str,
    forgotten: pd.DataFrame,
    summary: pd.DataFrame,
    correlations: pd.DataFrame,
    gradients: pd.DataFrame,
    empty: dict[str, str],
) -> str:
    """How much methods and classes are forgotten, as ranges, and possible reasons; Markdown.

    Args: `forgotten`: rows of `forgetting_table` for old classes after the last step; then `forgetting_summary`,
    `rank_correlations`, `imbalance` and `empty_reasons`.
    """
    if summary.empty:
        return f"**{name}**: nothing could be forgotten. {empty['steps']}"
    means = _means(summary, "method", "forgetting")
    if means.empty:
        return f"**{name}** ({seeds_text(summary)}): no old class has an IoU before and after."
    head = f"**{name}** ({seeds_text(summary)}): after the last step"
    sentences = [
        f"{head} the mean forgetting of old classes (percentage points of IoU) is {value_range(100 * means, 1)}."
    ]
    classes = _means(forgotten, "class", "forgetting")
    lowest = [means, classes] if len(classes) > 1 else [means]
    if any(rounded(100 * values.iloc[0], 1).startswith("-") for values in lowest):
        sentences.append("A negative value means that the IoU increased.")
    same = _means(summary, "method", "same_pixels")
    if len(same):
        sentences.append(
            "Part of it is a change of what is counted: pixels of a later class are ignored until its step, and an old "
            "class that was predicted there all along becomes an error then. If they count after every step, the mean "
            f"forgetting is {value_range(100 * same, 1)}."
        )
    relative = _means(forgotten, "method", "relative")
    if len(relative):
        share = value_range(100 * relative, 1, " %")
        sentences.append(f"Relative to the best earlier IoU of each class, the mean loss is {share}.")
    if len(classes) > 1:
        over = "Mean over all methods" if len(means) > 1 else f"In {means.index[0]}"
        sentences.append(f"{over}: the forgetting of a class is {value_range(100 * classes, 1, of='class')}.")
        spread = _means(summary, "method", "spread")
        if len(spread):
            deviation = value_range(100 * spread, 1)
            sentences.append(f"The standard deviation over the old classes of a method is {deviation}.")
    return with_warning(" ".join([*sentences, *_correlated(correlations, empty), *_unequal(gradients)]), empty)


def _means(table: pd.DataFrame, by: str, column: str) -> pd.Series:
    """Sorted means of a column by method or class, without NaN."""
    return table.groupby(by, sort=False)[column].mean().dropna().sort_values(kind="stable")


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
            f"All other 95 % intervals contain zero. Of {len(known)} intervals, about {0.05 * len(known):.1f} miss "
            "zero by chance alone.",
        ]
    ranges = known.groupby("factor", sort=False)["correlation"].agg(["mean", "min", "max"])
    same_sign = ranges[(ranges["min"] > 0) | (ranges["max"] < 0)]
    pairs = f"{known['classes'].max():.0f} pairs of an old class and a step"
    caution = f"With one seed and {pairs} there is no interval, so chance is not excluded."
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
        f"In step {last} of {method}, the mean gradients of the steps' labels (step 0 with the background) differ by a "
        f"factor of {before:.1f}. After compensation the factor is {after:.1f}."
        for method, (before, after) in ratios.iterrows()
        if np.isfinite(before) and np.isfinite(after)
    ]
