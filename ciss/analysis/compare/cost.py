"""What each method takes: seconds, memory and parameters. Imports no torch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ciss.analysis.rows import END_COLUMNS, add_means, table

SECONDS = ("preparation_seconds", "training_seconds", "base_seconds", "processor_seconds")
UPDATE = ("update_seconds", "update_low", "update_high")
ENDS = {  # columns of `timings_table`
    "benchmark": str,
    **END_COLUMNS,
    **dict.fromkeys((*UPDATE, *SECONDS, "peak_memory_mib"), float),
    "parameters": int,
    "device": str,
}
COSTS = (
    *UPDATE, "training_seconds", "preparation_seconds", "base_seconds", "processor_seconds", "peak_memory_mib",
    "parameters",
)  # fmt: skip
RELATIVE = {
    "update_seconds": "update",
    "training_seconds": "time",
    "peak_memory_mib": "memory",
    "parameters": "parameters",
}
REFERENCE = "finetune"
BUSY = 1.5  # upper over lower quartile of an update's seconds, above which other programs were at work


def timings_table(runs: pd.DataFrame, timings: Mapping[str, Sequence[dict | None]]) -> pd.DataFrame:
    """What each end took, a row for each row of `runs_table`.

    Args:
        runs: `runs_table`.
        timings: of each end the `runs.timings` of the runs that lead to it, from the base step on, or of its joint
            training alone, with `update_seconds` of `runs.live`. None where one was not measured here.

    Returns: columns benchmark, end, method, seed; update_seconds: of one update, the median over the epochs of its own
    steps, each epoch's mean; update_low, update_high: its quartiles; preparation_seconds: of passes over the data
    before the steps, part of training_seconds, those of the method's own steps; base_seconds: of the base step that it
    continues; processor_seconds: processor time of its own steps, reading images and scoring included, which other
    programs change less than the clock; peak_memory_mib (MiB): the largest of its own steps; parameters: of the last
    network; device. NaN where one of the runs was not measured here.
    """
    rows = []
    for row in runs[["benchmark", *END_COLUMNS, "parameters"]].to_dict("records"):
        path = timings.get(row["end"]) or [None, None]
        own = path[1:] or path
        rows.append(
            {
                **row,
                **dict(zip(UPDATE, _quartiles(own), strict=True)),
                "preparation_seconds": _sum(own, "preparation_seconds"),
                "training_seconds": _sum(own, "training_seconds"),
                "base_seconds": _sum(path[: len(path) - len(own)], "training_seconds"),
                "processor_seconds": _sum(own, "processor_seconds"),
                "peak_memory_mib": _largest(own, "peak_memory_bytes") / 2**20,
                "device": "; ".join(dict.fromkeys(timing["device"] for timing in path if timing)),
            }
        )
    return table(rows, ENDS)


def _sum(path: Sequence[dict | None], name: str) -> float:
    values = [(timing or {}).get(name) for timing in path]
    return math.nan if None in values else sum(values)


def _quartiles(path: Sequence[dict | None]) -> tuple[float, float, float]:
    """Median and quartiles of the seconds of an update over all epochs of some runs; NaN where one was not measured."""
    epochs = [seconds for timing in path if timing for seconds in timing.get("update_seconds", ())]
    if not all(timing and timing.get("update_seconds") for timing in path):
        return math.nan, math.nan, math.nan
    low, middle, high = np.quantile(epochs, (0.25, 0.5, 0.75)).tolist()
    return middle, low, high


def was_busy(ends: pd.DataFrame) -> bool:
    """Whether the seconds of an update varied so much that other programs were at work. `ends`: `timings_table`."""
    return bool((ends["update_high"] > BUSY * ends["update_low"]).any())


def _largest(path: Sequence[dict | None], name: str) -> float:
    values = [timing and timing[name] for timing in path]
    return math.nan if None in values else max(values)


def cost_table(ends: pd.DataFrame) -> pd.DataFrame:
    """What each method of a family takes, in the order of `timings_table`.

    Index: method. Columns: runs, measured (those with seconds), devices (different ones); mean and `_std` (sample
    deviation; NaN for one run) of update_seconds, update_low, update_high (see `timings_table`), training_seconds (of
    the method's own steps), preparation_seconds (passes over the data before the steps, part of them), base_seconds (of
    the base step that it continues, shared with others; 0 for joint), processor_seconds (processor time of the own
    steps), peak_memory_mib (the GPU's, or the process's on a CPU; largest of its own steps) and parameters (after the
    last step); relative_update, relative_time, relative_memory, relative_parameters: means as multiples of finetune's,
    NaN where it is absent or 0.
    """
    grouped = ends.replace({"device": ""}, np.nan).groupby("method", sort=False)
    costs = pd.DataFrame({"runs": grouped.size(), "measured": grouped["training_seconds"].count()})
    costs["devices"] = grouped["device"].nunique()
    add_means(costs, grouped, COSTS)
    for name, short in RELATIVE.items():
        reference = costs[name].get(REFERENCE, np.nan)
        costs[f"relative_{short}"] = costs[name] / reference if reference else np.nan
    return costs
