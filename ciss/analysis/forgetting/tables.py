"""What is forgotten, by class and step, and how fast within a step."""

import numpy as np
import pandas as pd

from ciss import metrics
from ciss.analysis.rows import WHOSE, WHOSE_STEP, class_names, increments, table, whose, whose_step, with_classes
from ciss.protocol import Classes


def iou_by_step(confusions: list[np.ndarray], classes: Classes) -> np.ndarray:
    """(S,T) IoU of every class after every step, from (T,T) confusion matrices of steps 0..S-1.

    NaN before a class exists, and for a background that no pixel is; future classes' pixels are ignored.
    """
    rows = []
    for step, confusion in enumerate(confusions):
        known = classes.known(step)
        row = np.full(len(confusion), np.nan)
        row[:known] = _ious(confusion, known)
        rows.append(row)
    return np.array(rows)


def _ious(confusion: np.ndarray, known: int) -> np.ndarray:
    found = metrics.class_iou(metrics.seen(confusion, known)).numpy()
    if not np.asarray(confusion)[0].any():  # CamVid and its like: what is called background is an error of others
        found[0] = np.nan
    return found


def forgetting_table(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """One row for each end, class and step: IoU, and how far it lies under the class's best earlier one.

    Columns: end, method, seed, class, introduced (step), step, iou, forgetting (NaN at the step that brings the class),
    pixel_share (of labelled training pixels). Joint runs, which learn everything at once, are left out.
    """
    rows = []
    for end, results in ends.items():
        if results[-1]["joint"]:
            continue
        classes, shares = results[-1]["classes"], pixel_shares(results[-1])
        ious = iou_by_step([result["confusion"] for result in results], classes)
        introduced = classes.steps
        for step in range(len(ious)):
            for position, name in enumerate(classes.names):
                if introduced[position] > step or (position == 0 and np.isnan(ious[:, 0]).all()):
                    continue
                earlier = ious[introduced[position] : step, position]
                best = np.nanmax(earlier) if np.isfinite(earlier).any() else np.nan
                rows.append(
                    {
                        **whose(end, results[-1]),
                        "class": name,
                        "introduced": int(introduced[position]),
                        "step": step,
                        "iou": ious[step, position],
                        "forgetting": best - ious[step, position],
                        "pixel_share": shares[position],
                    }
                )
    columns = {"class": str, "introduced": int, "step": int}
    columns |= dict.fromkeys(("iou", "forgetting", "pixel_share"), float)
    return with_classes(table(rows, {**WHOSE, **columns}), class_names(ends))


def pixel_shares(result: dict) -> np.ndarray:
    """(T,) shares of the labelled training pixels; NaN where there are none."""
    pixels = np.array(result["pixels"], float)
    return pixels / pixels.sum() if pixels.any() else np.full(len(pixels), np.nan)


def pace_table(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """IoU on the hold-out within every incremental step: how fast each class falls.

    Columns: end, method, seed, step, epochs (into the step; 0 is right after growing), class, introduced, iou. Empty
    for benchmarks without a hold-out.
    """
    rows = []
    for end, result in increments(ends):
        classes = result["classes"]
        known = classes.known(result["step"])
        for epochs, confusion in zip(result["curve_epochs"], result["curve_confusions"], strict=True):
            ious = _ious(confusion, known)
            rows += [
                {
                    **whose_step(end, result),
                    "epochs": float(epochs),
                    "class": classes.names[position],
                    "introduced": int(classes.steps[position]),
                    "iou": ious[position],
                }
                for position in range(known)
                if position or not np.isnan(ious[0])
            ]
    columns = {"epochs": float, "class": str, "introduced": int, "iou": float}
    return with_classes(table(rows, {**WHOSE_STEP, **columns}), class_names(ends))


def group_table(forgotten: pd.DataFrame) -> pd.DataFrame:
    """Mean IoU of each step's classes after every step, from `forgetting_table`; the background is left out.

    Columns: end, method, seed, introduced (the group), step, iou.
    """
    objects = forgotten[forgotten["class"] != "background"]
    keys = ["end", "method", "seed", "introduced", "step"]
    return objects.groupby(keys, sort=False)["iou"].mean().reset_index()


def forgetting_summary(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """Forgetting and backward transfer of each end over the old classes, background left out (see `ciss.metrics`).

    Columns: end, method, seed, forgetting, backward_transfer, worst (the class that forgot most), worst_forgetting,
    spread (standard deviation of the forgetting over old classes: 0 where all fade alike; it is small, too, where
    little is forgotten or everything at once).
    Joint runs and ends of one step are left out.
    """
    rows = []
    for end, results in ends.items():
        last = results[-1]
        if last["joint"] or len(results) == 1:
            continue
        ious = iou_by_step([result["confusion"] for result in results], last["classes"])
        introduced = last["classes"].steps
        lost = metrics.forgetting(ious, introduced).numpy()
        lost[0] = np.nan
        worst = int(np.nanargmax(lost)) if np.isfinite(lost).any() else None
        rows.append(
            {
                **whose(end, last),
                "forgetting": metrics.mean_forgetting(ious, introduced),
                "backward_transfer": metrics.mean_backward_transfer(ious, introduced),
                "worst": "" if worst is None else last["classes"].names[worst],
                "worst_forgetting": np.nan if worst is None else lost[worst],
                "spread": np.nan if worst is None else np.nanstd(lost),
            }
        )
    means = {"forgetting": float, "backward_transfer": float}
    return table(rows, {**WHOSE, **means, "worst": str, "worst_forgetting": float, "spread": float})
