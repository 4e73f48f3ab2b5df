"""Differences between methods on the same seeds and orders of classes: what the runs share is subtracted."""

from itertools import permutations

import numpy as np
import pandas as pd

from ciss.analysis.forgetting.pace import interval
from ciss.analysis.rows import table

METRICS = ("all", "old", "new", "forgetting")
LEVEL, POWER = 0.95, 0.8
RESAMPLES = 10_000  # of the bootstrap
OVER_ORDERS = ("boot_low", "boot_high", "together_low", "together_high", "p", "p_holm", "visible")
COLUMNS = {
    **dict.fromkeys(("benchmark", "method", "against", "metric", "over"), str),
    "pairs": int,
    **dict.fromkeys(("mean", "deviation", "low", "high", *OVER_ORDERS), float),
    "above": int,
}


def paired_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Every method of a family against every other one, over the runs of the same seed and order of classes; from
    `family_tables`. One row for each family, two methods and metric; none without a pair.

    Columns: benchmark (the family's first), method, against, metric (all, old, new: mIoU; forgetting); over: what the
    differences are of, `orders` of classes (mean over the seeds of an order), or `seeds` of a family's only order;
    pairs: their number (runs that only one of the two has, and those without a score, are left out); mean: of the
    differences, method minus against; deviation: their sample deviation; low, high: the 95 % interval of the mean
    difference by Student's t, these three NaN for one pair; above: how many pairs differ by more than 0 (of forgetting,
    less is better).

    Over orders also, NaN for one: boot_low, boot_high: the 95 % interval by the percentile bootstrap; together_low,
    together_high: intervals by Student's t that hold for all pairs of methods of the family and metric at once, with
    95 % (Bonferroni); p: of Student's t test that the mean is 0; p_holm: the same for all these pairs at once (Holm);
    visible: the smallest true difference that so many orders with this deviation show with probability 0.8 (t test at
    5 %). One order does not say how the next one ends, so a family of one order has none of these.
    """
    rows = []
    for benchmark, runs in tables.items():
        by_metric = {metric: _compared(runs, metric) for metric in METRICS}
        for method, against in permutations(dict.fromkeys(runs["method"]), 2):
            names = {"benchmark": benchmark, "method": method, "against": against}
            for metric, compared in by_metric.items():
                if (method, against) in compared:
                    rows.append({**names, "metric": metric, **compared[method, against]})
    return table(rows, COLUMNS)


def paired_differences(runs: pd.DataFrame, metric: str) -> dict[tuple[str, str], np.ndarray]:
    """Differences in a metric by (method, against), of orders of classes or of seeds: see `over` of `paired_table`.

    `runs`: columns method, seed, order and the metric. Two methods without a common run are left out.
    """
    scores = runs.pivot(index=["order", "seed"], columns="method", values=metric)
    several = runs["order"].nunique() > 1
    by_pair = {}
    for method, against in permutations(dict.fromkeys(runs["method"]), 2):
        differences = (scores[method] - scores[against]).dropna()
        if several:
            differences = differences.groupby("order").mean()
        if len(differences):
            by_pair[method, against] = differences.to_numpy()
    return by_pair


def _compared(runs: pd.DataFrame, metric: str) -> dict[tuple[str, str], dict]:
    """The columns of a metric by (method, against)."""
    differences = paired_differences(runs, metric)
    over = "orders" if runs["order"].nunique() > 1 else "seeds"
    rows = {}
    for pair, values in differences.items():
        low, high = interval(values, LEVEL)
        row = {"over": over, "pairs": len(values), "mean": values.mean(), "deviation": pd.Series(values).std()}
        rows[pair] = row | {"low": low, "high": high, "above": int((values > 0).sum())}
    tested = [pair for pair, values in differences.items() if over == "orders" and len(values) > 1]
    for pair in tested:
        rows[pair] |= _over_orders(differences[pair], len(tested) // 2)
    once = [pair for pair in tested if tested.index(pair) < tested.index(pair[::-1])]
    for pair, p in zip(once, holm([rows[pair]["p"] for pair in once]), strict=True):
        rows[pair]["p_holm"] = rows[pair[::-1]]["p_holm"] = p
    return rows


def _over_orders(values: np.ndarray, pairs: int) -> dict[str, float]:
    """The columns OVER_ORDERS of some differences but `p_holm`. `pairs`: of methods, shown together."""
    from scipy.special import nctdtrinc, stdtr, stdtrit  # here, because most studies have one order

    free, error = len(values) - 1, values.std(ddof=1) / len(values) ** 0.5
    distance = abs(values.mean())
    statistic = distance / error if error else np.inf if distance else 0.0
    means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    tail = (1 - LEVEL) / 2
    bounds = (*np.quantile(means, [tail, 1 - tail]), *interval(values, 1 - (1 - LEVEL) / pairs))
    row = dict(zip(OVER_ORDERS, (float(bound) for bound in bounds), strict=False))
    # The statistic has a noncentral t distribution. The far tail, below 1e-5 at this power, is left out.
    shift = nctdtrinc(free, 1 - POWER, stdtrit(free, 1 - tail))
    return {**row, "p": float(2 * stdtr(free, -statistic)), "visible": float(shift * error)}


def holm(values: list[float]) -> list[float]:
    """p-values of several tests, corrected by Holm's method: the k-th smallest of m times m - k + 1, never falling."""
    ranks = np.argsort(values, kind="stable")
    factors = len(values) - np.argsort(ranks)
    raised = np.maximum.accumulate((np.asarray(values, float) * factors)[ranks])
    return np.minimum(raised, 1)[np.argsort(ranks)].tolist()
