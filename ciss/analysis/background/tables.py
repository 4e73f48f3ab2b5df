"""Background shift: where the pixels of background, old, new and future classes go."""

import numpy as np
import pandas as pd

from ciss import metrics
from ciss.analysis.rows import WHOSE_STEP, class_names, increments, table, whose_step, with_classes
from ciss.protocol import Classes

FLOW_GROUPS = ("background", "old", "new", "future")
LABEL_RULES = ("argmax", "plop", "gsc", "mbs")
RATES = {  # true group, and what its pixels are called
    "old_to_background": ("old", "background"),
    "old_to_new": ("old", "new"),
    "background_to_new": ("background", "new"),
    "background_to_old": ("background", "old"),
    "new_to_background": ("new", "background"),
}
SHARES = dict.fromkeys(("right", "background", "old", "new"), float)


def flows(confusion: np.ndarray, classes: Classes, step: int) -> pd.DataFrame:
    """Shares of truth by group: rows background, old, new, future; columns what the network says of their pixels.

    `confusion` (T,T), rows truth. Columns: background, right (the class itself), old, new: other classes of the group
    than the right one. A row sums to 1; a group without pixels is NaN. For the background, `background` is right.
    """
    kinds, confusion = _kinds(classes, step), np.asarray(confusion, float)
    right = np.diag(confusion) * (kinds > 0)
    off = confusion - np.diag(right)
    rows = {}
    for kind, name in enumerate(FLOW_GROUPS):
        mine = kinds == kind
        total = confusion[mine].sum()
        parts = [off[mine][:, kinds == k].sum() for k in (0, 1, 2)]
        shares = {"background": parts[0], "right": right[mine].sum(), "old": parts[1], "new": parts[2]}
        rows[name] = {to: value / total if total else np.nan for to, value in shares.items()}
    return pd.DataFrame(rows).T


def confusion_rates(confusion: np.ndarray, classes: Classes, step: int) -> dict[str, float]:
    """The rates of background shift: old pixels called background, background and old pixels called new."""
    shares = flows(confusion, classes, step)
    return {name: shares.loc[true, called] for name, (true, called) in RATES.items()}


def mean_flows(ends: dict[str, list[dict]]) -> list[tuple[str, int, pd.DataFrame]]:
    """Method, incremental step, and the mean over seeds of its `flows`. Joint runs are left out."""
    found: dict[tuple[str, int], list[pd.DataFrame]] = {}
    for _, result in increments(ends):
        shares = flows(result["confusion"], result["classes"], result["step"])
        found.setdefault((result["title"], result["step"]), []).append(shares)
    return [(*key, sum(tables) / len(tables)) for key, tables in found.items()]


def background_table(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """One row for each end and incremental step. Joint runs are left out.

    Columns: end, method, seed, step, and the rates of `confusion_rates`.
    """
    rows = (
        {**whose_step(end, result), **confusion_rates(result["confusion"], result["classes"], result["step"])}
        for end, result in increments(ends)
    )
    return table(rows, {**WHOSE_STEP, **dict.fromkeys(RATES, float)})


def class_rates(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """Where each class's pixels go, one row for each end, incremental step and class of the benchmark that has pixels.

    Columns: end, method, seed, step, class, kind (background, old, new, future), pixels, and shares of them: right,
    background (called so; of the background itself: 0), old, new (called another class of that kind). Joint is left
    out.
    """
    rows = []
    for end, result in increments(ends):
        confusion, kinds = np.asarray(result["confusion"], float), _kinds(result["classes"], result["step"])
        for position, name in enumerate(result["classes"].names):
            line, total = confusion[position], confusion[position].sum()
            if not total:
                continue
            own = line[position]  # none for a future class, which cannot be called by its name
            parts = [line[kinds == k].sum() - own * (kinds[position] == k) for k in range(3)]
            shares = dict(zip(("background", "old", "new"), parts, strict=True))
            rows.append(
                {
                    **whose_step(end, result),
                    "class": name,
                    "kind": FLOW_GROUPS[kinds[position]],
                    "pixels": int(total),
                    **{to: value / total for to, value in {"right": own, **shares}.items()},
                }
            )
    rates = table(rows, {**WHOSE_STEP, "class": str, "kind": str, "pixels": int, **SHARES})
    return with_classes(rates, class_names(ends))


def background_errors(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """What the background's errors consist of, one row for each end, incremental step and kind of error.

    Columns: end, method, seed, step, error (`old called background`, `new called background`, `background called old`,
    `background called new`), pixels, share (of the four; NaN if there is none), and `future`: pixels of future classes
    called background, which the step teaches to be right, over the same four together. Joint is left out.
    """
    rows = []
    for end, result in increments(ends):
        confusion, kinds = np.asarray(result["confusion"], float), _kinds(result["classes"], result["step"])
        errors = {f"{name} called background": confusion[kinds == k, 0].sum() for k, name in ((1, "old"), (2, "new"))}
        errors |= {f"background called {name}": confusion[0, kinds == k].sum() for k, name in ((1, "old"), (2, "new"))}
        total, future = sum(errors.values()), confusion[kinds == 3, 0].sum()
        rows += [
            {
                **whose_step(end, result),
                "error": error,
                "pixels": int(pixels),
                "share": pixels / total if total else np.nan,
                "future": future / total if total else np.nan,
            }
            for error, pixels in errors.items()
        ]
    return table(rows, {**WHOSE_STEP, "error": str, "pixels": int, "share": float, "future": float})


def calibration_table(ends: dict[str, list[dict]], probes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """How far the background's probability can be believed: pixels by that probability, in equal bins.

    Columns: end, method, seed, step, low, high (the bin), pixels, probability (their mean), and shares of them that
    truly are background, old, new, future; NaN in empty bins. Images: those of `ciss probe`.
    """
    rows = []
    for end, result in increments(ends):
        counts, sums = (probes[result["run"]][name] for name in ("background", "background_sums"))
        kinds, bins = _kinds(result["classes"], result["step"]), counts.shape[1]
        for number in range(bins):
            total = counts[:, number].sum()
            shares = {
                name: counts[kinds == k, number].sum() / total if total else np.nan
                for k, name in enumerate(FLOW_GROUPS)
            }
            rows.append(
                {
                    **whose_step(end, result),
                    "low": number / bins,
                    "high": (number + 1) / bins,
                    "pixels": int(total),
                    "probability": sums[:, number].sum() / total if total else np.nan,
                    **shares,
                }
            )
    return table(
        rows,
        {
            **WHOSE_STEP,
            "low": float,
            "high": float,
            "pixels": int,
            "probability": float,
            **dict.fromkeys(FLOW_GROUPS, float),
        },
    )


def calibration_errors(calibration: pd.DataFrame) -> pd.DataFrame:
    """Expected calibration error of the background's probability, from `calibration_table`.

    Columns: end, method, seed, step, `error`: future classes count as background, as the step was taught, and
    `error_truth`: they do not. NaN without pixels.
    """
    rows = []
    for place, mine in calibration.groupby(["end", "method", "seed", "step"], sort=False):
        seen = mine[mine["pixels"] > 0]
        weights, believed = seen["pixels"] / seen["pixels"].sum(), seen["probability"]
        # ECE = sum_b n_b / N |share_b - p_b|   (Guo et al. 2017, eq. 3)
        truly = {"error": seen["background"] + seen["future"], "error_truth": seen["background"]}
        gaps = {name: (weights * (shares - believed).abs()).sum(min_count=1) for name, shares in truly.items()}
        rows.append({**dict(zip(("end", "method", "seed", "step"), place, strict=True)), **gaps})
    return table(rows, {**WHOSE_STEP, "error": float, "error_truth": float})


def background_belief(ends: dict[str, list[dict]], probes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Mean probability that the background gets on pixels of each kind: near 1 on the background, and for a network
    that neither forgets nor shifts near 0 on old and new classes.

    Columns: end, method, seed, step, kind (background, old, new, future), probability; NaN without pixels.
    """
    rows = []
    for end, result in increments(ends):
        counts, sums = (probes[result["run"]][name].sum(axis=1) for name in ("background", "background_sums"))
        kinds = _kinds(result["classes"], result["step"])
        for k, name in enumerate(FLOW_GROUPS):
            total = counts[kinds == k].sum()
            mean = sums[kinds == k].sum() / total if total else np.nan
            rows.append({**whose_step(end, result), "kind": name, "probability": mean})
    return table(rows, {**WHOSE_STEP, "kind": str, "probability": float})


def label_rules(ends: dict[str, list[dict]], probes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Labels for the background by several rules from one teacher, against the truth. Teachers that several ends share
    (that of the first step) have one row a rule.

    Columns: teacher (the run before), step, method (whose teacher; empty if shared), rule (argmax, plop, gsc, mbs),
    precision, recall, relabelled, ignored; see `metrics.label_scores`.
    """
    rows: dict[tuple, dict] = {}
    for _, result in increments(ends):
        place = (result["after"], result["step"])
        shared = (*place, "argmax") in rows
        for rule in LABEL_RULES:
            rows[*place, rule] = {
                "teacher": result["after"],
                "step": result["step"],
                "method": "" if shared else result["title"],
                "rule": rule,
                **metrics.label_scores(probes[result["run"]][f"labels_{rule}"]),
            }
    scores = dict.fromkeys(("precision", "recall", "relabelled", "ignored"), float)
    return table(rows.values(), {"teacher": str, "step": int, "method": str, "rule": str, **scores})


def _kinds(classes: Classes, step: int) -> np.ndarray:
    """(T,) index into FLOW_GROUPS of each position."""
    kinds = 2 + np.sign(classes.steps - step)
    kinds[0] = 0
    return kinds
