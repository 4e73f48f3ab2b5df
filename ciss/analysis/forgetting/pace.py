"""How fast classes fade within a step, and what goes with it."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from ciss.analysis.forgetting.tables import pace_table, pixel_shares
from ciss.analysis.rows import WHOSE_STEP, table

FACTORS = ("pixel_share", "similarity", "gradient")
LEAST = 3  # classes that a rank correlation needs


def pace_factors(ends: dict[str, list[dict]], probes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """One row for each end, incremental step and old class (background left out): its pace, and what might explain it.

    Columns: end, method, seed, step, class, introduced; `before` and `after`: IoU on the hold-out right after growing
    and at the step's end; `pace`: what it lost an epoch, their difference over the epochs; `first_epoch`: what it lost
    in the first epoch; `pixel_share`: of labelled training pixels; `similarity`: the largest cosine of its prototype to
    one of a new class, in the features of the network before the step, and `nearest`, that class; `gradient`: mean
    gradient magnitude of its pixels by that network. Empty without a hold-out.
    `probes` by run: see `ciss probe`.
    """
    rows = []
    for (end, step), curve in pace_table(ends).groupby(["end", "step"], sort=False):
        result = next(result for result in ends[end] if result["step"] == step)
        classes, seen = result["classes"], probes[result["run"]]
        shares = pixel_shares(result)
        cosines = prototype_cosines(seen["prototypes"], seen["counts"])
        new = classes.new(step)
        for name, mine in curve.groupby("class", sort=False):
            position = classes.names.index(name)
            if position not in classes.old(step):
                continue
            iou = mine.set_index("epochs")["iou"]
            near = cosines[position, new]
            known = np.isfinite(near).any()
            rows.append(
                {
                    **mine.iloc[0][["end", "method", "seed", "step", "class", "introduced"]],
                    "before": iou.iloc[0],
                    "after": iou.iloc[-1],
                    "pace": (iou.iloc[0] - iou.iloc[-1]) / iou.index[-1],
                    "first_epoch": iou.iloc[0] - iou.get(1.0, np.nan),
                    "pixel_share": shares[position],
                    "similarity": np.nanmax(near) if known else np.nan,
                    "nearest": classes.names[new[np.nanargmax(near)]] if known else "",
                    "gradient": seen["gradients"][position],
                }
            )
    paces = dict.fromkeys(("before", "after", "pace", "first_epoch", "pixel_share", "similarity"), float)
    return table(rows, {**WHOSE_STEP, "class": str, "introduced": int, **paces, "nearest": str, "gradient": float})


def prototype_cosines(prototypes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(T,T) cosines of class prototypes (T,D); NaN for classes without features (`counts` 0) or of length 0."""
    lengths = np.linalg.norm(prototypes, axis=1)
    there = (counts > 0) & (lengths > 0)
    unit = np.where(there[:, None], prototypes / np.where(there, lengths, 1)[:, None], np.nan)
    return unit @ unit.T


def rank_correlations(paces: pd.DataFrame, value: str = "pace", factors: Iterable[str] = FACTORS) -> pd.DataFrame:
    """Spearman's rank correlation of a value with each factor, over the old classes of a step, by method.

    Columns: method, factor, `correlation`: mean over ends (seeds, class orders) of the mean over steps, weighted by
    their classes; `low`, `high`: its 95 % interval by Student's t over ends, NaN for one; ends; classes: of all steps
    of an end, on average. Steps with fewer than three classes, or where all are equal, say nothing; NaN if none does.
    """
    rows = []
    for method, mine in paces.groupby("method", sort=False):
        for factor in factors:
            found, counts = [], []
            for _, end in mine.groupby("end"):
                pairs = [step[[factor, value]].dropna() for _, step in end.groupby("step")]
                pairs = [pair for pair in pairs if len(pair) >= LEAST and (pair.nunique() > 1).all()]
                if pairs:
                    # rho = correlation of ranks
                    each = [pair.rank().corr().iloc[0, 1] for pair in pairs]
                    found.append(np.average(each, weights=[len(pair) for pair in pairs]))
                    counts.append(sum(map(len, pairs)))
            low, high = interval(found)
            rows.append(
                {
                    "method": method,
                    "factor": factor,
                    "correlation": np.mean(found) if found else np.nan,
                    "low": low,
                    "high": high,
                    "ends": len(found),
                    "classes": np.mean(counts) if counts else 0.0,
                }
            )
    numbers = {"correlation": float, "low": float, "high": float, "ends": int, "classes": float}
    return table(rows, {"method": str, "factor": str, **numbers})


def interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of some values; NaN for fewer than two."""
    values = np.asarray(list(values), float)
    if len(values) < 2:
        return np.nan, np.nan
    # mean +- t_{n-1} s / sqrt(n)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half
