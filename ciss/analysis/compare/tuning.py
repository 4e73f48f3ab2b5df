"""Which coefficients to take: trials of each method on the hold-out."""

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
    """One row for each trial, an end with some coefficients of a method; by the hold-out alone.

    Columns: benchmark, code (the method), trial (its section under `methods`), seed; coefficients: those that are not
    the method's defaults, as JSON; mean: mIoU of all classes so far on the hold-out at each step's end, mean over the
    incremental steps, by which is chosen; all, old, new: at the end of the last step; chosen: the best of its method
    and seed, the first of equals. Joint training has no trials. NaN without a hold-out.
    """
    rows = []
    for end, results in ends.items():
        steps = [holdout_scores(result) for _, result in increments({end: results})]
        if not steps:  # joint training
            continue
        last = results[-1]
        coefficients = last["identity"]["parameters"]["coefficients"]
        defaults = json.loads(json.dumps(asdict(METHODS[code_of(last["method"])]())))
        rows.append(
            {
                "benchmark": benchmark,
                "code": code_of(last["method"]),
                "trial": last["method"],
                "seed": last["seed"],
                "coefficients": json.dumps({k: v for k, v in coefficients.items() if v != defaults[k]}),
                "mean": np.mean([scores["all"] for scores in steps]),
                **steps[-1],
                "chosen": False,
            }
        )
    trials = table(rows, COLUMNS)
    trials.loc[trials.dropna(subset="mean").groupby(["code", "seed"])["mean"].idxmax(), "chosen"] = True
    return trials
