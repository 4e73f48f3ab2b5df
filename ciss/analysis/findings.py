"""What the tables say, in a paragraph: made from the numbers, so that it is never out of date."""

import numpy as np
import pandas as pd

WORDS = {
    "pixel_share": "the class's share of the pixels",
    "similarity": "its likeness to the nearest new class",
    "gradient": "its gradient before the step",
}


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
    means = summary.groupby("method", sort=False)["forgetting"].mean().dropna().sort_values()
    if means.empty:
        return f"**{name}** ({_seeds(summary)}): no old class has an IoU before and after."
    said = [
        f"**{name}** ({_seeds(summary)}): after the last step {means.index[-1]} has forgotten most "
        f"({means.iloc[-1]:.3f} IoU, mean over old classes)"
    ]
    said[0] += f", {means.index[0]} least ({means.iloc[0]:.3f})." if len(means) > 1 else "."
    classes = forgotten.groupby("class")["forgetting"].mean().dropna().sort_values()
    if len(classes) > 1:
        over = "all methods" if len(means) > 1 else means.index[0]
        said.append(
            f"Over {over}, {classes.index[-1]} fades most ({classes.iloc[-1]:.3f}) and {classes.index[0]} least "
            f"({classes.iloc[0]:.3f})."
        )
        lost = forgotten.groupby(["method", "class"], sort=False)["forgetting"].mean().unstack("method")
        worst = lost.dropna(axis="columns", how="all").idxmax()
        others = {method: chosen for method, chosen in worst.items() if chosen != classes.index[-1]}
        if others:
            said.append("But " + _join(f"{method} loses most on {chosen}" for method, chosen in others.items()) + ".")
        spread = summary.groupby("method", sort=False)["spread"].mean().dropna().sort_values()
        if len(spread) > 1:
            said.append(
                f"Old classes fade most unevenly in {spread.index[-1]} (standard deviation over classes "
                f"{spread.iloc[-1]:.3f}), most evenly in {spread.index[0]} ({spread.iloc[0]:.3f})."
            )
    return " ".join([*said, *_correlated(correlations, empty), *_unequal(gradients)])


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
        span = f"{low:+.2f} to {high:+.2f}"
        return [f"By rank, the pace within a step goes with {WORDS[factor]} in every method ({span}; {caution})."]
    ends = known.set_index(["factor", "method"])["correlation"]
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
    lost = rates.groupby("method", sort=False)["old_to_background"].mean().dropna().sort_values()
    said = []
    if len(lost):
        said.append(
            f"**{name}** ({_seeds(rates)}): after the last step {lost.index[-1]} loses most to the background, which "
            f"takes {_percent(lost.iloc[-1])} of its old classes' pixels"
        )
        said[0] += f"; {lost.index[0]} loses least, {_percent(lost.iloc[0])}." if len(lost) > 1 else "."
        swallowed = rates.groupby("method", sort=False)["background_to_new"].mean().dropna().sort_values()
        if len(swallowed):
            most = swallowed.index[-1]
            said.append(f"New classes take most of the background in {most}: {_percent(swallowed.iloc[-1])}.")
        worst = lost.index[-1]
        shares = errors[errors["method"] == worst].groupby("error")["share"].mean().dropna()
        if len(shares):
            said.append(f"Of the background's errors in {worst}, {_percent(shares.max())} are {shares.idxmax()}.")
    else:
        said.append(f"**{name}** ({_seeds(rates)}): no pixel of an old class was scored.")
    old = belief[belief["kind"] == "old"].groupby("method", sort=False)["probability"].mean().dropna().sort_values()
    if len(old):
        said.append(
            f"On old objects the background gets a probability from {old.iloc[0]:.2f} ({old.index[0]}) to "
            f"{old.iloc[-1]:.2f} ({old.index[-1]})."
        )
    wrong = calibration.groupby("method", sort=False)["error_truth"].mean().dropna().sort_values()
    if len(wrong):
        said.append(
            f"That probability is off by {wrong.iloc[0]:.3f} ({wrong.index[0]}) to {wrong.iloc[-1]:.3f} "
            f"({wrong.index[-1]}) on average (expected calibration error)."
        )
    scores = rules.groupby("rule", sort=False)[["precision", "recall"]].mean().dropna()
    if len(scores) > 1:
        precise, complete = scores["precision"].idxmax(), scores["recall"].idxmax()
        said.append(
            f"From the same teachers, the labels of {precise} are the most precise ({scores['precision'].max():.2f}, "
            f"recall {scores.loc[precise, 'recall']:.2f}), those of {complete} find most of the old classes (recall "
            f"{scores['recall'].max():.2f}, precision {scores.loc[complete, 'precision']:.2f})."
        )
    return " ".join(said)


def _seeds(table: pd.DataFrame) -> str:
    seeds = table["seed"].nunique()
    return "one seed" if seeds == 1 else f"means over {seeds} seeds"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _join(parts) -> str:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
