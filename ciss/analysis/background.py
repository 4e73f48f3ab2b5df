"""Background shift: where the pixels of background, old, new and future classes go."""

import numpy as np
import pandas as pd

from ciss import protocol

FLOW_GROUPS = ("background", "old", "new", "future")


def flows(confusion: np.ndarray, groups: list[list[int]], step: int) -> pd.DataFrame:
    """Shares of truth by group: rows background, old, new, future; columns what the network says of their pixels.

    `confusion` (T,T), rows truth. Columns: background, right (the class itself), old, new: other classes of the group
    than the right one. A row sums to 1; a group without pixels is NaN. For the background, `background` is right.
    """
    introduced = protocol.class_steps(groups)
    kinds = np.where(introduced < step, 1, np.where(introduced == step, 2, 3))
    kinds[0] = 0
    confusion = np.asarray(confusion, float)
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


def confusion_rates(confusion: np.ndarray, groups: list[list[int]], step: int) -> dict[str, float]:
    """The rates of background shift: old pixels called background, background and old pixels called new."""
    table = flows(confusion, groups, step)
    return {
        "old_to_background": table.loc["old", "background"],
        "old_to_new": table.loc["old", "new"],
        "background_to_new": table.loc["background", "new"],
        "background_to_old": table.loc["background", "old"],
        "new_to_background": table.loc["new", "background"],
    }


def background_table(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """One row for each end and incremental step with the rates of `confusion_rates`. Joint runs are left out."""
    rows = []
    for end, results in ends.items():
        for result in results:
            if result["method"] == "joint" or result["after"] is None:
                continue
            rates = confusion_rates(result["confusion"], result["groups"], result["step"])
            rows.append(
                {"end": end, "method": result["title"], "seed": result["seed"], "step": result["step"], **rates}
            )
    return pd.DataFrame(rows)
