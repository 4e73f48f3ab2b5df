"""Tables of background shift: predictions on pixels of background, old, new and future classes."""

import numpy as np
import pandas as pd

from ciss import metrics
from ciss.analysis.rows import STEP_COLUMNS, class_names, increments, step_values, table, with_classes
from ciss.protocol import Classes

FLOW_GROUPS = ("background", "old", "new", "future")
LABEL_RULES = ("argmax", "plop", "gsc", "mbs")
RATES = {  # true group, predicted group
    "old_to_background": ("old", "background"),
    "old_to_new": ("old", "new"),
    "background_to_new": ("background", "new"),
    "background_to_old": ("background", "old"),
    "new_to_background": ("new", "background"),
}
SHARES = dict.fromkeys(("right", "background", "old", "new"), float)


def flows(confusion: np.ndarray, classes: Classes, step: int) -> pd.DataFrame:
    """Predictions on the pixels of each true group: rows background, old, new, future; each sums to 1.

    `confusion`: (T,T), rows are the truth. Columns: background, right (the true class), old, new (another class of that
    group). NaN for a group without pixels. For the group background, the right prediction is in `background`.
    """
    kinds = _kinds(classes, step)
    pixels = _predicted(confusion, kinds).assign(total=np.sum(confusion, axis=1))
    pixels = pixels.groupby(kinds).sum().reindex(range(len(FLOW_GROUPS)), fill_value=0).set_axis(FLOW_GROUPS)
    return pixels[["background", "right", "old", "new"]].div(pixels["total"], axis=0)


def _predicted(confusion: np.ndarray, kinds: np.ndarray) -> pd.DataFrame:
    """Pixels (T rows) of each true class by prediction: right (0 for the background), background, old, new.

    `background`, `old` and `new` are other classes of that group.
    """
    confusion = np.asarray(confusion, float)
    right = np.diag(confusion) * (kinds > 0)
    wrong = confusion - np.diag(right)
    groups = {name: wrong[:, kinds == k].sum(axis=1) for k, name in enumerate(FLOW_GROUPS[:3])}
    return pd.DataFrame({"right": right, **groups})


def confusion_rates(confusion: np.ndarray, classes: Classes, step: int) -> dict[str, float]:
    """The RATES of background shift of one confusion matrix, see `flows`."""
    shares = flows(confusion, classes, step)
    return {name: shares.loc[true, predicted] for name, (true, predicted) in RATES.items()}


def mean_flows(ends: dict[str, list[dict]]) -> list[tuple[str, int, pd.DataFrame]]:
    """Method, incremental step, and its `flows`, mean over seeds. Joint runs are left out."""
    tables: dict[tuple[str, int], list[pd.DataFrame]] = {}
    for _, result in increments(ends):
        shares = flows(result["confusion"], result["classes"], result["step"])
        tables.setdefault((result["title"], result["step"]), []).append(shares)
    return [(*key, sum(seeds) / len(seeds)) for key, seeds in tables.items()]


def background_table(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """The RATES of each end and incremental step. Joint runs are left out.

    Columns: end, method, seed, step, and the rates.
    """
    rows = (
        {**step_values(end, result), **confusion_rates(result["confusion"], result["classes"], result["step"])}
        for end, result in increments(ends)
    )
    return table(rows, {**STEP_COLUMNS, **dict.fromkeys(RATES, float)})


def class_rates(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """Predictions on the pixels of each class, for each end, incremental step and class with pixels.

    Columns: end, method, seed, step, class, kind (background, old, new, future), pixels, and shares of them by
    prediction: right, background (0 for the background itself), old, new (another class of that kind). Joint runs are
    left out.
    """
    rows = []
    for end, result in increments(ends):
        classes, confusion = result["classes"], np.asarray(result["confusion"], float)
        kinds = _kinds(classes, result["step"])
        predicted = _predicted(confusion, kinds)
        predicted.loc[0, ["right", "background"]] = predicted.loc[0, "background"], 0
        for position in np.flatnonzero(confusion.any(axis=1)):
            pixels = confusion[position].sum()
            row = {"class": classes.names[position], "kind": FLOW_GROUPS[kinds[position]], "pixels": int(pixels)}
            rows.append({**step_values(end, result), **row, **(predicted.loc[position] / pixels)})
    rates = table(rows, {**STEP_COLUMNS, "class": str, "kind": str, "pixels": int, **SHARES})
    return with_classes(rates, class_names(ends))


def background_errors(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """The four kinds of errors that involve the background, for each end and incremental step. Joint runs are left out.

    Columns: end, method, seed, step, error (such as `old called background`), pixels, share (of the four; NaN if there
    is none), and `future`: pixels of future classes predicted as background, as the step teaches them, over the sum
    of the four.
    """
    rows = []
    for end, result in increments(ends):
        confusion, kinds = np.asarray(result["confusion"], float), _kinds(result["classes"], result["step"])
        errors = {f"{name} called background": confusion[kinds == k, 0].sum() for k, name in ((1, "old"), (2, "new"))}
        errors |= {f"background called {name}": confusion[0, kinds == k].sum() for k, name in ((1, "old"), (2, "new"))}
        total = sum(errors.values()) or np.nan
        future = confusion[kinds == 3, 0].sum() / total
        for error, pixels in errors.items():
            row = {"error": error, "pixels": int(pixels), "share": pixels / total, "future": future}
            rows.append({**step_values(end, result), **row})
    return table(rows, {**STEP_COLUMNS, "error": str, "pixels": int, "share": float, "future": float})


def calibration_table(ends: dict[str, list[dict]], probes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Pixels by the background's probability, in equal bins, and their true groups. Images: those of `ciss probe`.

    Columns: end, method, seed, step, low, high (the bin), pixels, probability (mean), and shares of the pixels that
    truly are background, old, new, future. NaN in empty bins.
    """
    columns = {"low": float, "high": float, "pixels": int, "probability": float, **dict.fromkeys(FLOW_GROUPS, float)}
    rows = []
    for end, result in increments(ends):
        counts, sums = (probes[result["run"]][name] for name in ("background", "background_sums"))
        kinds, bins = _kinds(result["classes"], result["step"]), counts.shape[1]
        for number in range(bins):
            pixels = counts[:, number].sum()
            total = pixels or np.nan
            row = {"low": number / bins, "high": (number + 1) / bins, "pixels": int(pixels)}
            row["probability"] = sums[:, number].sum() / total
            row |= {name: counts[kinds == k, number].sum() / total for k, name in enumerate(FLOW_GROUPS)}
            rows.append({**step_values(end, result), **row})
    return table(rows, {**STEP_COLUMNS, **columns})


def calibration_errors(calibration: pd.DataFrame) -> pd.DataFrame:
    """Expected calibration error of the background's probability, from `calibration_table`.

    Columns: end, method, seed, step, `error` (future classes count as background, as the step teaches them) and
    `error_truth` (they do not). NaN without pixels.
    """
    rows = []
    keys = list(STEP_COLUMNS)
    for values, bins in calibration.groupby(keys, sort=False):
        bins = bins[bins["pixels"] > 0]
        weights = bins["pixels"] / bins["pixels"].sum()
        # ECE = sum_b n_b / N |share_b - p_b|   (Guo et al. 2017, eq. 3)
        shares = {"error": bins["background"] + bins["future"], "error_truth": bins["background"]}
        errors = {k: (weights * (share - bins["probability"]).abs()).sum(min_count=1) for k, share in shares.items()}
        rows.append({**dict(zip(keys, values, strict=True)), **errors})
    return table(rows, {**STEP_COLUMNS, "error": float, "error_truth": float})


def background_belief(ends: dict[str, list[dict]], probes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Mean probability of the background on the pixels of each kind: ideally 1 on the background and 0 on the classes.

    Columns: end, method, seed, step, kind (background, old, new, future), probability; NaN without pixels.
    """
    rows = []
    for end, result in increments(ends):
        counts, sums = (probes[result["run"]][name].sum(axis=1) for name in ("background", "background_sums"))
        kinds = _kinds(result["classes"], result["step"])
        for k, name in enumerate(FLOW_GROUPS):
            mean = sums[kinds == k].sum() / (counts[kinds == k].sum() or np.nan)
            rows.append({**step_values(end, result), "kind": name, "probability": mean})
    return table(rows, {**STEP_COLUMNS, "kind": str, "probability": float})


def label_rules(ends: dict[str, list[dict]], probes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Scores of the pseudo-labels that several rules make from one teacher (`metrics.label_scores`).

    Columns: teacher (the run before), step, method (of the teacher; empty if several ends share it), rule (argmax,
    plop, gsc, mbs), precision, recall, relabelled, ignored. A teacher and rule has one row.
    """
    rows: dict[tuple, dict] = {}
    for _, result in increments(ends):
        teacher = {"teacher": result["after"], "step": result["step"]}
        for rule in LABEL_RULES:
            key = (*teacher.values(), rule)
            method = "" if key in rows else result["title"]
            scores = metrics.label_scores(probes[result["run"]][f"labels_{rule}"])
            rows[key] = {**teacher, "method": method, "rule": rule, **scores}
    scores = dict.fromkeys(("precision", "recall", "relabelled", "ignored"), float)
    return table(rows.values(), {"teacher": str, "step": int, "method": str, "rule": str, **scores})


def _kinds(classes: Classes, step: int) -> np.ndarray:
    """(T,) index into FLOW_GROUPS by position."""
    kinds = 2 + np.sign(classes.steps - step)
    kinds[0] = 0
    return kinds
