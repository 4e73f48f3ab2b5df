"""Differences between methods on the same seed and order of classes: what the runs share is subtracted."""

from itertools import permutations

import pandas as pd

from ciss.analysis.forgetting.pace import interval
from ciss.analysis.rows import table

METRICS = ("all", "old", "new", "forgetting")
COLUMNS = {
    **dict.fromkeys(("benchmark", "method", "against", "metric"), str),
    "pairs": int,
    **dict.fromkeys(("mean", "deviation", "low", "high"), float),
    "above": int,
}


def paired_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Every method of a family against every other one, over the runs of the same seed and order of classes; from
    `family_tables`. One row for each family, two methods and metric; none without a pair.

    Columns: benchmark (the family's first), method, against, metric (all, old, new: mIoU; forgetting); pairs (runs that
    only one of the two has, and those without a score, are left out); mean: of the differences, method minus against;
    deviation: their sample deviation; low, high: the 95 % interval of the mean difference by Student's t, these three
    NaN for one pair; above: how many pairs differ by more than 0 (of forgetting, less is better).
    """
    rows = []
    for benchmark, runs in tables.items():
        scores = {metric: runs.pivot(index=["order", "seed"], columns="method", values=metric) for metric in METRICS}
        for method, against in permutations(dict.fromkeys(runs["method"]), 2):
            for metric, columns in scores.items():
                found = (columns[method] - columns[against]).dropna()
                if found.empty:
                    continue
                low, high = interval(found)
                row = (len(found), found.mean(), found.std(), low, high, int((found > 0).sum()))
                rows.append(dict(zip(COLUMNS, (benchmark, method, against, metric, *row), strict=True)))
    return table(rows, COLUMNS)
