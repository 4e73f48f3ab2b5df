"""Which coefficients to take: trials of each method on the hold-out."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd

from ciss.analysis.compare import holdout_scores
from ciss.methods import METHODS, code_of


def tuning_table(benchmark: str, ends: dict[str, list[dict]]) -> pd.DataFrame:
    """One row for each trial, an end with some coefficients of a method; nothing of the validation images is read.

    Columns: benchmark, code (the method), trial (its section under `methods`), seed; coefficients: those that are not
    the method's defaults, as JSON; mean: mIoU of all classes so far on the hold-out at each step's end, mean over the
    incremental steps, by which is chosen; all, old, new: at the end of the last step; chosen: the best of its method
    and seed. Joint training has no trials. Raises ValueError without a hold-out.
    """
    rows = []
    for end, results in ends.items():
        if not results[-1]["after"]:
            continue
        steps = [holdout_scores(result) for result in results if result["after"]]
        if np.isnan(steps[-1]["all"]):
            raise ValueError(f"{end}: there is no hold-out to choose on. Set benchmarks.{benchmark}.holdout.")
        method, parameters = results[-1]["method"], results[-1]["identity"]["parameters"]["coefficients"]
        defaults = json.loads(json.dumps(asdict(METHODS[code_of(method)]())))
        changed = {key: value for key, value in parameters.items() if value != defaults[key]}
        rows.append(
            {
                "benchmark": benchmark,
                "code": code_of(method),
                "trial": method,
                "seed": results[-1]["seed"],
                "coefficients": json.dumps(changed),
                "mean": np.mean([scores["all"] for scores in steps]),
                **{name: steps[-1][name] for name in ("all", "old", "new")},
            }
        )
    table = pd.DataFrame(rows)
    if len(table):
        best = table.groupby(["code", "seed"], sort=False)["mean"].transform("max")
        table["chosen"] = table["mean"] == best
    return table
