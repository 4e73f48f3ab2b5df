"""Tables of what a training logged: gradients by step, and angles of new class tokens."""

import numpy as np
import pandas as pd

from ciss.analysis.rows import STEP_COLUMNS, increments, step_values, table

KINDS = ("gradient", "compensated")
POINTS = 40  # of a step


def stretches(values: np.ndarray, points: int = POINTS) -> list[tuple[int, float]]:
    """Ends and means of at most `points` equal stretches of values (N,). NaN: a stretch without a finite value."""
    means, stop = [], 0
    for stretch in np.array_split(np.asarray(values, float), min(points, len(values))) if len(values) else ():
        stop += len(stretch)
        finite = stretch[np.isfinite(stretch)]
        means.append((stop, finite.mean() if len(finite) else np.nan))
    return means


def gradient_table(ends: dict[str, list[dict]], points: int = POINTS) -> pd.DataFrame:
    """Mean gradient magnitudes within every incremental step, in `points` equal stretches of its batches.

    Columns: end, method, seed, step, epochs (into the step, at the end of the stretch), group (`background`: learnt as
    background; `step0`, `step1`, ...: labels of that step's classes, `step0` with the background), kind (`gradient`, or
    `compensated`: times the pixel weight), value (NaN without a pixel).
    """
    rows = []
    for end, result in increments(ends):
        epochs = len(result["log"])
        for name, values in result["trace"].items():
            kind, _, group = name.partition("/")
            if kind not in KINDS:
                continue
            for stop, mean in stretches(values, points):
                row = {"epochs": stop * epochs / len(values), "group": group, "kind": kind}
                rows.append({**step_values(end, result), **row, "value": mean})
    return table(rows, {**STEP_COLUMNS, "epochs": float, "group": str, "kind": str, "value": float})


def imbalance(gradients: pd.DataFrame) -> pd.DataFrame:
    """Mean gradients over a step's batches and seeds, from `gradient_table`, and how unequal they are.

    Index: method, step, kind; columns: the groups, and ratio: the largest mean of a step's labels over the smallest. A
    ratio of 1 is balanced. It is NaN for one group.
    """
    grouped = gradients.groupby(["method", "step", "kind", "group"], sort=False)
    means = grouped["value"].mean().unstack("group", sort=False)
    steps = means[[group for group in means if group != "background"]]
    unequal = (steps.notna().sum(axis=1) > 1) & (steps.min(axis=1) > 0)
    return means.assign(ratio=(steps.max(axis=1) / steps.min(axis=1)).where(unequal))


def token_angles_table(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """Mean angles in degrees of the new class tokens (or classifier rows) over a step.

    Columns: end, method, seed, step, epochs, pair (`background`: to the background's token; `old`: to the nearest old
    class's; `new`: to the nearest other new class's, NaN for a single one), angle.
    """
    rows = []
    for end, result in increments(ends):
        cosines = np.asarray(result["token_cosines"], float)  # (Q,N,C)
        if not cosines.size:
            continue
        angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        new = angles.shape[1]
        others = angles[:, :, -new:] + np.where(np.eye(new, dtype=bool), np.inf, 0)
        pairs = {"background": angles[:, :, 0], "old": angles[:, :, 1:-new].min(axis=2, initial=np.inf)}
        pairs["new"] = others.min(axis=2)
        for pair, values in pairs.items():
            means = np.where(np.isfinite(values), values, np.nan).mean(axis=1)
            rows += [
                {**step_values(end, result), "epochs": float(epochs), "pair": pair, "angle": angle}
                for epochs, angle in zip(result["token_epochs"], means, strict=True)
            ]
    return table(rows, {**STEP_COLUMNS, "epochs": float, "pair": str, "angle": float})
