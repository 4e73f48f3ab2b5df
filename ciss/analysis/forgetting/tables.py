"""Tables of IoU and forgetting, by class, step and epoch."""

import numpy as np
import pandas as pd

from ciss import metrics
from ciss.analysis.rows import (
    END_COLUMNS,
    STEP_COLUMNS,
    class_names,
    end_values,
    increments,
    step_values,
    table,
    with_classes,
)
from ciss.protocol import Classes


def iou_by_step(confusions: list[np.ndarray], classes: Classes, *, same_pixels: bool = False) -> np.ndarray:
    """(S,T) IoU of every class after every step, from confusion matrices (T,T) of steps 0..S-1.

    NaN for future classes, and for a background without pixels.

    Args:
        same_pixels: pixels of every class that the last step knows count after each step: an old class that is
            predicted there is an error. False: pixels of future classes are ignored until their step.
    """
    ious = np.full((len(confusions), len(classes)), np.nan)
    last = classes.known(len(confusions) - 1)
    for step, confusion in enumerate(confusions):
        known = classes.known(step)
        ious[step, :known] = _ious(confusion, last if same_pixels else known)[:known]
    return ious


def _ious(confusion: np.ndarray, known: int) -> np.ndarray:
    ious = metrics.class_iou(metrics.seen(confusion, known)).numpy()
    if not np.asarray(confusion)[0].any():  # as in CamVid: predicted background is always an error
        ious[0] = np.nan
    return ious


def forgetting_table(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """IoU of each end, class and step, and its distance to the best earlier IoU of the class. Joint runs are left out.

    Columns: end, method, seed, class, introduced (step), step, iou, forgetting (NaN at the step that brings the class),
    relative (forgetting over that best IoU; NaN where it is 0), pixel_share (of labelled training pixels).
    """
    rows = []
    for end, results in ends.items():
        if results[-1]["joint"]:
            continue
        classes, shares = results[-1]["classes"], pixel_shares(results[-1])
        ious = iou_by_step([result["confusion"] for result in results], classes)
        best = np.fmax.accumulate(ious)  # without NaN where there is a number
        for step, position in np.ndindex(ious.shape):
            introduced = int(classes.steps[position])
            if introduced > step or (position == 0 and np.isnan(ious[:, 0]).all()):
                continue
            before = best[step - 1, position] if step > introduced else np.nan
            row = {"class": classes.names[position], "introduced": introduced, "step": step}
            row |= {"iou": ious[step, position], "forgetting": before - ious[step, position]}
            row |= {"relative": row["forgetting"] / (before or np.nan), "pixel_share": shares[position]}
            rows.append({**end_values(end, results[-1]), **row})
    columns = {"class": str, "introduced": int, "step": int}
    columns |= dict.fromkeys(("iou", "forgetting", "relative", "pixel_share"), float)
    return with_classes(table(rows, {**END_COLUMNS, **columns}), class_names(ends))


def pixel_shares(result: dict) -> np.ndarray:
    """(T,) shares of the labelled training pixels; NaN without any."""
    pixels = np.array(result["pixels"], float)
    return pixels / pixels.sum() if pixels.any() else np.full(len(pixels), np.nan)


def pace_table(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """IoU on the hold-out set over the epochs of every incremental step. Empty without a hold-out set.

    Columns: end, method, seed, step, epochs (into the step; 0 is right after the new channels), class, introduced, iou.
    """
    rows = []
    for end, result in increments(ends):
        classes = result["classes"]
        known = classes.known(result["step"])
        for epochs, confusion in zip(result["curve_epochs"], result["curve_confusions"], strict=True):
            for position, iou in enumerate(_ious(confusion, known)):
                if position or not np.isnan(iou):
                    row = {"class": classes.names[position], "introduced": int(classes.steps[position]), "iou": iou}
                    rows.append({**step_values(end, result), "epochs": float(epochs), **row})
    columns = {"epochs": float, "class": str, "introduced": int, "iou": float}
    return with_classes(table(rows, {**STEP_COLUMNS, **columns}), class_names(ends))


def group_table(forgotten: pd.DataFrame) -> pd.DataFrame:
    """Mean IoU of the classes of each step after every step, from `forgetting_table`, without the background.

    Columns: end, method, seed, introduced (the group), step, iou.
    """
    objects = forgotten[forgotten["class"] != "background"]
    keys = ["end", "method", "seed", "introduced", "step"]
    return objects.groupby(keys, sort=False)["iou"].mean().reset_index()


def forgetting_summary(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """Mean forgetting and backward transfer over the old classes of each end, without the background (`ciss.metrics`).

    Columns: end, method, seed, forgetting, same_pixels (forgetting if the pixels of later classes count after every
    step), backward_transfer, worst (the class with the largest forgetting), worst_forgetting, spread (standard
    deviation of forgetting over old classes). Joint runs and ends of one step are left out.
    """
    rows = []
    for end, results in ends.items():
        last = results[-1]
        if last["joint"] or len(results) == 1:
            continue
        confusions = [result["confusion"] for result in results]
        ious = iou_by_step(confusions, last["classes"])
        introduced = last["classes"].steps
        forgetting = metrics.forgetting(ious, introduced).numpy()
        forgetting[0] = np.nan
        row = {"worst": "", "worst_forgetting": np.nan, "spread": np.nan}
        if np.isfinite(forgetting).any():
            worst = np.nanargmax(forgetting)
            row = {"worst": last["classes"].names[worst], "worst_forgetting": forgetting[worst]}
            row["spread"] = np.nanstd(forgetting)
        row["forgetting"] = metrics.mean_forgetting(ious, introduced)
        all_pixels = iou_by_step(confusions, last["classes"], same_pixels=True)
        row["same_pixels"] = metrics.mean_forgetting(all_pixels, introduced)
        row["backward_transfer"] = metrics.mean_backward_transfer(ious, introduced)
        rows.append({**end_values(end, last), **row})
    means = {"forgetting": float, "same_pixels": float, "backward_transfer": float}
    return table(rows, {**END_COLUMNS, **means, "worst": str, "worst_forgetting": float, "spread": float})
