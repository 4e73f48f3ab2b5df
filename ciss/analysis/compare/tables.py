"""The methods side by side: scores after every step, and what made them."""

from typing import Any

import numpy as np
import pandas as pd

from ciss import documents, metrics
from ciss.analysis.compare import published as compare_published
from ciss.analysis.compare.published import Ours
from ciss.analysis.forgetting.tables import iou_by_step
from ciss.analysis.reasons import score_reasons
from ciss.analysis.rows import WHOSE, table, whose
from ciss.runs.run import digest

SCORES = dict.fromkeys(("all", "old", "new", "harmonic"), float)
OVER_STEPS = dict.fromkeys(("forgetting", "backward_transfer", "mean_over_steps"), float)
RUNS = {  # columns of `runs_table`
    "benchmark": str,
    **WHOSE,
    **SCORES,
    **OVER_STEPS,
    **dict.fromkeys(("holdout_all", "holdout_old", "holdout_new"), float),
    **dict.fromkeys(("relabelled", "ignored", "precision", "recall", "token_cosine", "patch_weight"), float),
    "parameters": int,
    "undefined": str,
    **dict.fromkeys(("order", "configuration", "code", "data", "weights", "versions", "arithmetic"), str),
    "processes": int,
}


class ProvenanceError(ValueError):
    """Results that must not be put beside each other, or averaged; the message names what differs."""


def runs_table(benchmark: str, ends: dict[str, list[dict]]) -> pd.DataFrame:
    """One row for each end: scores after the last step, provenance. Raises ProvenanceError for
    ends that cannot share a table (see `check_equal`).

    benchmark, end, method, seed: whose row it is. all, old, new, harmonic: mIoU, see `metrics.scores`. forgetting: the
    mean over old classes (background apart) of the best earlier IoU minus the last; backward_transfer: of the last IoU
    minus that after the step that brought the class; mean_over_steps: the mean of `all` after every step, the base step
    included (PLOP's `avg`); NaN for joint. In the domain setting each step is scored on the images of its domains and
    the earlier ones, so these three compare scores of different images.

    holdout_all, holdout_old, holdout_new: the same scores on the hold-out, on which coefficients may be chosen; NaN
    without one. relabelled, ignored, precision, recall: of the last step's pseudo labels on the hold-out (see
    `metrics.label_scores`). token_cosine, patch_weight: means of the last epoch, of new class tokens to the
    background's and of patches.

    parameters: of the last network. undefined: sentences that say why numbers of the row are NaN.

    order: raw class ids of each step. configuration, code, data: hashes, shortened, of all parameters but order and
    seed, of the code that trains, of images and masks; weights: the last checkpoint's. versions, arithmetic
    (precision), processes. Seconds, memory and device are apart: see `cost.timings_table`.
    """
    rows = []
    for end, results in ends.items():
        last = results[-1]
        labels = last["pseudo_labels"].get("method", {})
        rows.append(
            {
                "benchmark": benchmark,
                **whose(end, last),
                **{name: _number(last["scores"][name]) for name in ("all", "old", "new", "harmonic")},
                **_over_steps(results),
                **{f"holdout_{name}": score for name, score in holdout_scores(last).items()},
                **{name: _number(labels.get(name)) for name in ("relabelled", "ignored", "precision", "recall")},
                "token_cosine": _number(last["log"][-1].get("cosine/background")),
                "patch_weight": _number(last["log"][-1].get("patch/weight")),
                "parameters": last["parameters"],
                "undefined": " ".join(score_reasons(results)),
                **_provenance(results),
            }
        )
    check_equal(benchmark, ends)
    return table(rows, RUNS)


def check_equal(benchmark: str, ends: dict[str, list[dict]]) -> None:
    """Raises ProvenanceError, naming what differs, for results that cannot stand in one table (other settings, data,
    code that trains, precision, processes or version of torch), or whose mean would mean nothing (other coefficients
    or code of the method; a seed twice in one order of classes). Orders may differ: the same seed in another order is
    another run, and its data are compared with those of its own order alone, since they are listed by classes."""
    results = [(f"{end}, {result['run']}", result) for end, found in ends.items() for result in found]
    orders: dict[str, tuple[str, dict]] = {}
    for name, result in results:
        first, reference = results[0]
        different = documents.differences(_shared(reference), _shared(result))
        if not different:
            first, reference = orders.setdefault(str(result["classes"].groups), (name, result))
            different = documents.differences(*({"data": each["identity"]["data"]} for each in (reference, result)))
        if different:
            raise ProvenanceError(
                f"{benchmark}: {first} and {name} cannot share a table: {'; '.join(different)}. "
                "Run: dvc repro. If DVC finds nothing to do, run: dvc repro --force"
            )
    by_method: dict[str, tuple[str, list[dict]]] = {}
    seen: dict[tuple, str] = {}
    for end, found in ends.items():
        method, seed = found[-1]["method"], found[-1]["seed"]
        first = seen.setdefault((method, seed, str(found[-1]["classes"].groups)), end)
        if first != end:
            raise ProvenanceError(f"{benchmark}: {first} and {end} are both {method} with seed {seed}. Remove one end.")
        first, reference = by_method.setdefault(method, (end, found))
        one, other = ([_own(result) for result in path] for path in (reference, found))
        if different := documents.differences(dict(enumerate(one)), dict(enumerate(other))):
            raise ProvenanceError(
                f"{benchmark}: {first} and {end} are both {method}, but cannot be averaged: {'; '.join(different)} "
                "(the number is the step). Run: dvc repro"
            )


def conventions_table(benchmark: str, ends: dict[str, list[dict]]) -> pd.DataFrame:
    """The last step's scores under every published convention: how much of a difference between two papers may be the
    way of counting.

    Columns: benchmark, end, method, seed, convention, all, old, new, harmonic, mean_over_steps (NaN for joint),
    sentence.
    """
    rows = []
    for end, results in ends.items():
        last, sizes = results[-1], results[-1]["classes"].sizes
        settings = last["identity"]["parameters"]["benchmark"]
        images = metrics.scored_images(settings["setting"], settings["legacy_split"])
        for name, convention in metrics.conventions(last["background"]).items():
            found = [metrics.scores(r["confusion_all"], sizes, r["reached"], convention) for r in results]
            rows.append(
                {
                    "benchmark": benchmark,
                    **whose(end, last),
                    "convention": name,
                    **found[-1],
                    "mean_over_steps": np.mean([scores["all"] for scores in found]) if len(results) > 1 else np.nan,
                    "sentence": convention.sentence(_resolution(last), images),
                }
            )
    scores = {**SCORES, "mean_over_steps": float}
    return table(rows, {"benchmark": str, **WHOSE, "convention": str, **scores, "sentence": str})


def by_convention(counted: pd.DataFrame, benchmark: str) -> dict[str, dict[str, dict[str, float]]]:
    """Of `conventions_table`, means over seeds for `published.beside`: method -> convention -> score."""
    mine = counted[counted["benchmark"] == benchmark].groupby(["method", "convention"])[["all", "old", "new"]].mean()
    found: dict = {}
    for (method, convention), row in mine.iterrows():
        found.setdefault(method, {})[convention] = row.to_dict()
    return found


def ours(ends: dict[str, list[dict]]) -> Ours:
    """What a benchmark's results share, for `published.beside`."""
    last = next(iter(ends.values()))[-1]
    settings = last["identity"]["parameters"]["benchmark"]
    train = settings["train"]
    epochs = " and ".join(str(train[phase]["epochs"]) for phase in ("base", "increment"))
    notes = [f"ours: {epochs} epochs a step (base, later), crops of {train['crop']}, batches of {train['batch']}"]
    if settings["order"]:
        notes.append("our order of classes is another")
    if settings["holdout"]:
        notes.append(f"{settings['holdout']} training images held out")
    return compare_published.Ours(
        dataset=settings["dataset"],
        protocol="groups of one's own" if settings["groups"] else settings["protocol"],
        setting=settings["setting"],
        encoder=settings["model"]["encoder"],
        decoder=settings["model"]["decoder"],
        resolution=_resolution(last),
        notes=tuple(notes),
        comparable=not settings["groups"] and not settings["limit"],
    )


def _resolution(result: dict) -> str:
    settings = result["identity"]["parameters"]["benchmark"]
    return metrics.resolution(settings["evaluation"], settings["train"]["crop"])


def _over_steps(results: list[dict]) -> dict[str, float]:
    last = results[-1]
    if last["joint"] or len(results) == 1:
        return dict.fromkeys(OVER_STEPS, np.nan)
    ious = iou_by_step([result["confusion"] for result in results], last["classes"])
    introduced = last["classes"].steps
    return {
        "forgetting": metrics.mean_forgetting(ious, introduced),
        "backward_transfer": metrics.mean_backward_transfer(ious, introduced),
        "mean_over_steps": float(np.mean([_number(result["scores"]["all"]) for result in results])),
    }


def _own_convention(result: dict) -> metrics.Convention:
    return metrics.conventions(result["background"])["ciss"]


def _shared(result: dict) -> dict:
    made = result["identity"]
    return {
        "settings": {**made["parameters"]["benchmark"], "order": None},
        "code": made["code"]["training"],
        "torch": result["versions"]["torch"],
        **{name: result[name] for name in ("precision", "processes")},
    }


def _own(result: dict) -> dict:
    made = result["identity"]
    return {"coefficients": made["parameters"]["coefficients"], "code": made["code"], "step": result["step"]}


def _provenance(results: list[dict]) -> dict[str, Any]:
    """Where a row comes from."""
    last, made = results[-1], [result["identity"] for result in results]
    parameters = [{**each["parameters"], "seed": None, "groups": None} for each in made]
    for each in parameters:
        each["benchmark"] = {**each["benchmark"], "order": None}
    return {
        "order": " | ".join(" ".join(map(str, group)) for group in last["classes"].groups),
        "configuration": digest(parameters)[:12],
        "code": digest([each["code"] for each in made])[:12],
        "data": made[-1]["data"][:12],
        "weights": last["weights"][:12],
        "versions": ", ".join(f"{name} {number}" for name, number in last["versions"].items()),
        "arithmetic": last["precision"],
        "processes": last["processes"],
    }


def made_with(runs: pd.DataFrame) -> str:
    """Versions of a table's rows, a line each, with the number of rows where they are not all the same."""
    counts = runs["versions"].value_counts(sort=False)
    if len(counts) == 1:
        return counts.index[0]
    return "\n".join(f"{versions} ({count} of {len(runs)} rows)" for versions, count in counts.items())


def curves_table(benchmark: str, ends: dict[str, list[dict]]) -> pd.DataFrame:
    """Scores after every step. Columns: benchmark, end, method, seed, step, all, old, new."""
    scores = ("all", "old", "new")
    rows = (
        {
            "benchmark": benchmark,
            **whose(end, results[-1]),
            "step": result["reached"],
            **{name: _number(result["scores"][name]) for name in scores},
        }
        for end, results in ends.items()
        for result in results
    )
    return table(rows, {"benchmark": str, **WHOSE, "step": int, **dict.fromkeys(scores, float)})


def holdout_scores(result: dict) -> dict[str, float]:
    """all, old, new on the hold-out at a run's end; NaN without one."""
    if not len(result["curve_confusions"]):
        return dict.fromkeys(("all", "old", "new"), np.nan)
    sizes = result["classes"].sizes
    scores = metrics.scores(result["curve_confusions"][-1], sizes, result["reached"], _own_convention(result))
    return {name: float(scores[name]) for name in ("all", "old", "new")}


def _number(value: float | None) -> float:
    return np.nan if value is None else value
