"""The choice of coefficients: trials of each method, scored on the hold-out set."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd

from ciss.analysis.compare.tables import holdout_scores
from ciss.analysis.rows import increments, table
from ciss.methods import METHODS, code_of

COLUMNS = {
    **{"benchmark": str, "code": str, "trial": str, "seed": int, "coefficients": str},
    **dict.fromkeys(("mean", "all", "old", "new"), float),
    "chosen": bool,
}


def tuning_table(benchmark: str, ends: dict[str, list[dict]]) -> pd.DataFrame:
    """A row for each trial: an end with some coefficients of a method. All scores are on the hold-out set.

    Columns: benchmark, code (the method), trial (its section under `methods`), seed; coefficients: those that differ
    from the method's defaults, as JSON; mean: mIoU of all classes so far at each step's end, mean over the incremental
    steps, the criterion of the choice; all, old, new: at the end of the last step; chosen: the best trial of its method
    and seed, the first of equal ones. Joint training has no trials. NaN without a hold-out set.
    """
    rows = []
    for end, results in ends.items():
        scores = [holdout_scores(result) for _, result in increments({end: results})]
        if not scores:  # joint training
            continue
        last = results[-1]
        method = code_of(last["method"])
        defaults = json.loads(json.dumps(asdict(METHODS[method]())))
        coefficients = last["identity"]["parameters"]["coefficients"]
        rows.append(
            {
                "benchmark": benchmark,
                "code": method,
                "trial": last["method"],
                "seed": last["seed"],
                "coefficients": json.dumps({k: v for k, v in coefficients.items() if v != defaults[k]}),
                "mean": np.mean([step["all"] for step in scores]),
                **scores[-1],
                "chosen": False,
            }
        )
    trials = table(rows, COLUMNS)
    trials.loc[trials.dropna(subset="mean").groupby(["code", "seed"])["mean"].idxmax(), "chosen"] = True
    return trials
