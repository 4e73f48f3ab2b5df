"""How fast classes are forgotten within a step, and rank correlations with possible factors."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ciss.analysis.forgetting.tables import pace_table, pixel_shares
from ciss.analysis.rows import STEP_COLUMNS, table

FACTORS = ("pixel_share", "similarity", "gradient")
MIN_CLASSES = 3  # of a rank correlation


def pace_factors(ends: dict[str, list[dict]], probes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Pace and possible factors of each end, incremental step and old class, without the background.

    Columns: end, method, seed, step, class, introduced; `before` and `after`: IoU on the hold-out set right after the
    new channels and at the end of the step; `pace`: lost IoU per epoch; `relative_pace`: pace over `before`, NaN where
    that is 0 (a class of a low IoU cannot lose much); `first_epoch`: lost IoU in the first epoch; `pixel_share`: of the
    labelled training pixels; `similarity`: largest cosine of the class's prototype to that of a new class (`nearest`),
    in the features of the teacher; `gradient`: mean gradient magnitude of its pixels in the teacher. Empty without a
    hold-out set. `probes`: by run, see `ciss probe`.
    """
    rows = []
    for (end, step), curve in pace_table(ends).groupby(["end", "step"], sort=False):
        result = next(result for result in ends[end] if result["step"] == step)
        classes, probe = result["classes"], probes[result["run"]]
        shares, new = pixel_shares(result), classes.new(step)
        cosines = prototype_cosines(probe["prototypes"], probe["counts"])
        for name, points in curve.groupby("class", sort=False):
            position = classes.names.index(name)
            if position not in classes.old(step):
                continue
            iou = points.set_index("epochs")["iou"]
            if not iou.index[-1]:  # a step without epochs has no pace
                continue
            similarity, nearest = np.nan, ""
            if np.isfinite(cosines[position, new]).any():
                closest = new[np.nanargmax(cosines[position, new])]
                similarity, nearest = cosines[position, closest], classes.names[closest]
            pace = (iou.iloc[0] - iou.iloc[-1]) / iou.index[-1]
            rows.append(
                {
                    **points.iloc[0][["end", "method", "seed", "step", "class", "introduced"]],
                    "before": iou.iloc[0],
                    "after": iou.iloc[-1],
                    "pace": pace,
                    "relative_pace": pace / (iou.iloc[0] or np.nan),
                    "first_epoch": iou.iloc[0] - iou.get(1.0, np.nan),
                    "pixel_share": shares[position],
                    "similarity": similarity,
                    "nearest": nearest,
                    "gradient": probe["gradients"][position],
                }
            )
    paces = dict.fromkeys(
        ("before", "after", "pace", "relative_pace", "first_epoch", "pixel_share", "similarity"), float
    )
    return table(rows, {**STEP_COLUMNS, "class": str, "introduced": int, **paces, "nearest": str, "gradient": float})


def prototype_cosines(prototypes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(T,T) cosines of class prototypes (T,D); NaN for classes without features (`counts` 0) or of length 0."""
    lengths = np.linalg.norm(prototypes, axis=1)
    unit = prototypes / np.where((counts > 0) & (lengths > 0), lengths, np.nan)[:, None]
    return unit @ unit.T


def rank_correlations(paces: pd.DataFrame, value: str = "pace", factors: Iterable[str] = FACTORS) -> pd.DataFrame:
    """Spearman's rank correlation of a value with each factor, over the old classes of a step, by method.

    Columns: value, method, factor; correlation: mean over ends of the mean over steps, weighted by their classes; low,
    high: 95 % interval by Student's t over ends, NaN for one end; ends; classes: of all steps of an end, mean over
    ends.
    Steps with fewer than three classes, or with equal values, are left out.
    """
    rows = []
    for method, own in paces.groupby("method", sort=False):
        for factor in factors:
            correlations, counts = [], []
            for _, end in own.groupby("end"):
                steps = [step[[factor, value]].dropna() for _, step in end.groupby("step")]
                steps = [step for step in steps if len(step) >= MIN_CLASSES and (step.nunique() > 1).all()]
                if steps:
                    # rho = correlation of ranks
                    rho = [step.rank().corr().iloc[0, 1] for step in steps]
                    sizes = [len(step) for step in steps]
                    correlations.append(np.average(rho, weights=sizes))
                    counts.append(sum(sizes))
            low, high = interval(correlations)
            row = {"value": value, "method": method, "factor": factor, "correlation": np.nan, "low": low, "high": high}
            row |= {"ends": len(correlations), "classes": 0.0}
            if correlations:
                row |= {"correlation": np.mean(correlations), "classes": np.mean(counts)}
            rows.append(row)
    numbers = {"correlation": float, "low": float, "high": float, "ends": int, "classes": float}
    return table(rows, {"value": str, "method": str, "factor": str, **numbers})


def interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of some values; NaN for fewer than two."""
    values = np.asarray(list(values), float)
    if len(values) < 2:
        return np.nan, np.nan
    from scipy.special import stdtrit  # here, because most studies have too few runs for an interval

    quantile = stdtrit(len(values) - 1, (1 + level) / 2)
    # mean +- t_{n-1} s / sqrt(n)
    half = quantile * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half
