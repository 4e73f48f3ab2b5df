"""The trials of coefficients as a table. All scores are on the hold-out set."""

import json
from collections.abc import Iterable

import pandas as pd

from ciss.analysis.rows import table

COLUMNS = {
    **{"benchmark": str, "method": str, "seed": int, "trial": int, "state": str, "steps": int},
    **dict.fromkeys(("mean", "all", "old", "new"), float),
    **{"coefficients": str, "chosen": bool, "comparable": bool},
}
UNFINISHED = "unfinished"  # the state of a trial that was interrupted


def tuning_table(trials: Iterable[dict]) -> pd.DataFrame:
    """A row for each trial.

    Args:
        trials: with benchmark, method, seed, trial, state, steps, coefficients (dict), and `scores`: all, old and new
            after each incremental step that was trained.

    Columns: benchmark, method, seed; trial: its number, 0 has the published values; state: complete, pruned (stopped
    after a step below the median of the other trials), diverged (a loss was not finite), refused (the benchmark does
    not allow these values) or unfinished; steps: incremental steps trained; mean: mIoU of all classes so far at each
    step's end, mean over these steps, the criterion of the choice; all, old, new: mIoU after the last of them;
    coefficients: those that are tuned, as JSON; chosen: the best complete trial of its method, the first of equal ones;
    comparable: every method of the table has as many finished trials as this one.
    """
    rows = [_row(trial) for trial in trials]
    result = table(rows, COLUMNS)
    complete = result[result["state"] == "complete"].dropna(subset="mean")
    result.loc[complete.groupby("method")["mean"].idxmax(), "chosen"] = True
    counts = finished_trials(result)
    result["comparable"] = len(set(counts.values())) == 1
    return result


def finished_trials(trials: pd.DataFrame) -> dict[str, int]:
    """The number of finished trials by method. `trials`: `tuning_table`."""
    finished = trials["state"] != UNFINISHED
    return {method: int(part.sum()) for method, part in finished.groupby(trials["method"], sort=False)}


def _row(trial: dict) -> dict:
    scores = trial["scores"]
    last = scores[-1] if scores else dict.fromkeys(("all", "old", "new"), float("nan"))
    return {
        **{name: trial[name] for name in ("benchmark", "method", "seed", "trial", "state", "steps")},
        "mean": sum(step["all"] for step in scores) / len(scores) if scores else float("nan"),
        **{name: last[name] for name in ("all", "old", "new")},
        "coefficients": json.dumps(trial["coefficients"]),
        "chosen": False,
        "comparable": False,
    }
