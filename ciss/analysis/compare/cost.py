"""What each method takes: seconds, memory and parameters. Imports no torch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ciss.analysis.rows import END_COLUMNS, add_means, table

SECONDS = ("preparation_seconds", "training_seconds", "base_seconds")
ENDS = {  # columns of `timings_table`
    "benchmark": str,
    **END_COLUMNS,
    **dict.fromkeys((*SECONDS, "peak_memory_mib"), float),
    "parameters": int,
    "device": str,
}
COSTS = ("training_seconds", "preparation_seconds", "base_seconds", "peak_memory_mib", "parameters")
RELATIVE = {"training_seconds": "time", "peak_memory_mib": "memory", "parameters": "parameters"}
REFERENCE = "finetune"


def timings_table(runs: pd.DataFrame, timings: Mapping[str, Sequence[dict | None]]) -> pd.DataFrame:
    """What each end took, a row for each row of `runs_table`.

    Args:
        runs: `runs_table`.
        timings: of each end the `runs.timings` of the runs that lead to it, from the base step on, or of its joint
            training alone. None where one was not measured here.

    Returns: columns benchmark, end, method, seed; preparation_seconds: of passes over the data before the steps, part
    of training_seconds, those of the method's own steps; base_seconds: of the base step that it continues;
    peak_memory_mib (MiB): the largest of its own steps; parameters: of the last network; device. NaN where one of the
    runs was not measured here.
    """
    rows = []
    for row in runs[["benchmark", *END_COLUMNS, "parameters"]].to_dict("records"):
        path = timings.get(row["end"]) or [None, None]
        own = path[1:] or path
        rows.append(
            {
                **row,
                "preparation_seconds": _sum(own, "preparation_seconds"),
                "training_seconds": _sum(own, "training_seconds"),
                "base_seconds": _sum(path[: len(path) - len(own)], "training_seconds"),
                "peak_memory_mib": _largest(own, "peak_memory_bytes") / 2**20,
                "device": "; ".join(dict.fromkeys(timing["device"] for timing in path if timing)),
            }
        )
    return table(rows, ENDS)


def _sum(path: Sequence[dict | None], name: str) -> float:
    return sum(timing[name] for timing in path) if all(path) else math.nan


def _largest(path: Sequence[dict | None], name: str) -> float:
    values = [timing and timing[name] for timing in path]
    return math.nan if None in values else max(values)


def cost_table(ends: pd.DataFrame) -> pd.DataFrame:
    """What each method of a family takes, in the order of `timings_table`.

    Index: method. Columns: runs, measured (those with seconds), devices (different ones); mean and `_std` (sample
    deviation; NaN for one run) of training_seconds (of the method's own steps), preparation_seconds (passes over the
    data before the steps, part of them), base_seconds (of the base step that it continues, shared with others; 0 for
    joint), peak_memory_mib (the GPU's, or the process's on a CPU; largest of its own steps) and parameters (after the
    last step); relative_time, relative_memory, relative_parameters: means as multiples of finetune's, NaN where it is
    absent or 0.
    """
    grouped = ends.replace({"device": ""}, np.nan).groupby("method", sort=False)
    costs = pd.DataFrame({"runs": grouped.size(), "measured": grouped["training_seconds"].count()})
    costs["devices"] = grouped["device"].nunique()
    add_means(costs, grouped, COSTS)
    for name, short in RELATIVE.items():
        reference = costs[name].get(REFERENCE, np.nan)
        costs[f"relative_{short}"] = costs[name] / reference if reference else np.nan
    return costs
