"""The methods side by side: scores after every step, and what made them."""

from typing import Any

import numpy as np
import pandas as pd

from ciss import documents, metrics
from ciss.analysis.compare.published import ComparedBenchmark
from ciss.analysis.forgetting.tables import iou_by_step
from ciss.analysis.reasons import score_reasons
from ciss.analysis.rows import END_COLUMNS, end_values, table
from ciss.documents import counted
from ciss.runs.run import digest

SCORES = dict.fromkeys(("all", "old", "new", "harmonic"), float)
OVER_STEPS = dict.fromkeys(("forgetting", "backward_transfer", "mean_over_steps"), float)
RUNS = {  # columns of `runs_table`
    "benchmark": str,
    **END_COLUMNS,
    **SCORES,
    **OVER_STEPS,
    **dict.fromkeys(("holdout_all", "holdout_old", "holdout_new"), float),
    **dict.fromkeys(("relabelled", "ignored", "precision", "recall", "token_cosine", "patch_weight"), float),
    "parameters": int,
    "undefined": str,
    **dict.fromkeys(("order", "class_order", "configuration", "code", "data", "weights"), str),
    **dict.fromkeys(("versions", "arithmetic"), str),
    "processes": int,
}


class ProvenanceError(ValueError):
    """Results that must not be compared or averaged. The message names what differs."""


def runs_table(benchmark: str, ends: dict[str, list[dict]]) -> pd.DataFrame:
    """One row for each end: scores after the last step, provenance. Raises ProvenanceError, see `check_equal`.

    benchmark, end, method, seed: what the row is of. all, old, new, harmonic: mIoU, see `metrics.scores`. forgetting:
    the best earlier IoU minus the last, mean over old classes without the background; backward_transfer: the last IoU
    minus that after the step that brought the class, the same mean; mean_over_steps: the mean of `all` after every
    step, the base step included (PLOP's `avg`). NaN for joint. In the domain setting each step is scored on the images
    of its domains and the earlier ones, so these three compare scores of different images.

    holdout_all, holdout_old, holdout_new: the same scores on the hold-out set, by which coefficients may be chosen; NaN
    without one. relabelled, ignored, precision, recall: of the last step's pseudo-labels on the hold-out set (see
    `metrics.label_scores`). token_cosine, patch_weight: means of the last epoch, of new class tokens to the
    background's and of patches.

    parameters: of the last network. undefined: sentences that explain the NaNs of the row.

    order, class_order: raw ids and names of the classes of each step. configuration, code, data: shortened hashes of
    all parameters but order and seed, of the training code, of images and masks; weights: of the last
    checkpoint. versions, arithmetic (precision), processes. `cost.timings_table` has seconds, memory and device.
    """
    rows = []
    for end, results in ends.items():
        last = results[-1]
        labels = last["pseudo_labels"].get("method", {})
        logged = last["log"][-1] if last["log"] else {}  # a step without epochs has no log
        rows.append(
            {
                "benchmark": benchmark,
                **end_values(end, last),
                **{name: last["scores"][name] for name in SCORES},
                **_over_steps(results),
                **{f"holdout_{name}": score for name, score in holdout_scores(last).items()},
                **{name: labels.get(name) for name in ("relabelled", "ignored", "precision", "recall")},
                "token_cosine": logged.get("cosine/background"),
                "patch_weight": logged.get("patch/weight"),
                "parameters": last["parameters"],
                "undefined": " ".join(score_reasons(results)),
                **_provenance(results),
            }
        )
    check_equal(benchmark, ends)
    return table(rows, RUNS)


def check_equal(benchmark: str, ends: dict[str, list[dict]]) -> None:
    """Checks that results can be compared, and those of a method averaged.

    All results need the same settings, data, training code, precision, processes and version of torch. Those of a
    method also need the same coefficients and code, and different seeds within an order of classes. Orders may differ.
    Data are compared within an order only: they are listed by class.

    Raises: ProvenanceError naming what differs.
    """
    results = [(f"{end}, {result['run']}", result) for end, path in ends.items() for result in path]
    orders: dict[str, tuple[str, dict]] = {}
    for name, result in results:
        first, reference = results[0]
        different = documents.differences(_shared(reference), _shared(result))
        if not different:
            first, reference = orders.setdefault(str(result["classes"].groups), (name, result))
            data = ({"data": compared["identity"]["data"]} for compared in (reference, result))
            different = documents.differences(*data)
        if different:
            raise ProvenanceError(
                f"{benchmark}: {first} and {name} cannot share a table: {'; '.join(different)}. "
                "Run: dvc repro. If DVC finds nothing to do, run: dvc repro --force"
            )
    by_method: dict[str, tuple[str, dict]] = {}
    seeds: dict[tuple, str] = {}
    for end, path in ends.items():
        method, seed = path[-1]["method"], path[-1]["seed"]
        first = seeds.setdefault((method, seed, str(path[-1]["classes"].groups)), end)
        if first != end:
            raise ProvenanceError(f"{benchmark}: {first} and {end} are both {method} with seed {seed}. Remove one end.")
        steps = {number: _of_method(result) for number, result in enumerate(path)}
        first, reference = by_method.setdefault(method, (end, steps))
        if different := documents.differences(reference, steps):
            raise ProvenanceError(
                f"{benchmark}: {first} and {end} are both {method}, but cannot be averaged: {'; '.join(different)} "
                "(the number is the step). Run: dvc repro"
            )


def conventions_table(benchmark: str, ends: dict[str, list[dict]]) -> pd.DataFrame:
    """The last step's scores under every published convention. The differences between these scores are no differences
    between methods.

    Columns: benchmark, end, method, seed, convention, all, old, new, harmonic, mean_over_steps (NaN for joint),
    sentence.
    """
    rows = []
    for end, results in ends.items():
        last = results[-1]
        settings = _settings(last)
        images = metrics.scored_images(settings["setting"], settings["legacy_split"])
        for name, convention in metrics.conventions(last["background"]).items():
            sizes = last["classes"].sizes
            scores = [metrics.scores(r["confusion_all"], sizes, r["reached"], convention) for r in results]
            rows.append(
                {
                    "benchmark": benchmark,
                    **end_values(end, last),
                    "convention": name,
                    **scores[-1],
                    "mean_over_steps": np.mean([s["all"] for s in scores]) if len(results) > 1 else np.nan,
                    "sentence": convention.sentence(_resolution(settings), images),
                }
            )
    columns = {**SCORES, "mean_over_steps": float}
    return table(rows, {"benchmark": str, **END_COLUMNS, "convention": str, **columns, "sentence": str})


def scores_by_convention(conventions: pd.DataFrame, benchmark: str) -> dict[str, dict[str, dict[str, float]]]:
    """Means over seeds for `published_table`: method -> convention -> score. `conventions`: `conventions_table`."""
    rows = conventions[conventions["benchmark"] == benchmark]
    means = rows.groupby(["method", "convention"])[["all", "old", "new"]].mean()
    return {method: means.loc[method].to_dict("index") for method in means.index.unique("method")}


def compared_benchmark(ends: dict[str, list[dict]]) -> ComparedBenchmark:
    """What the results of a benchmark share, for `published_table`."""
    settings = _settings(next(iter(ends.values()))[-1])
    train = settings["train"]
    epochs = " and ".join(str(train[phase]["epochs"]) for phase in ("base", "increment"))
    notes = [f"ours: {epochs} epochs a step (base, later), crops of {train['crop']}, batches of {train['batch']}"]
    if settings["order"]:
        notes.append("our order of classes is another")
    if settings["holdout"]:
        notes.append(f"{counted(settings['holdout'], 'training image')} held out")
    return ComparedBenchmark(
        dataset=settings["dataset"],
        protocol=settings["protocol"],
        setting=settings["setting"],
        encoder=settings["model"]["encoder"],
        decoder=settings["model"]["decoder"],
        resolution=_resolution(settings),
        notes=tuple(notes),
        comparable=not settings["groups"] and not settings["limit"],
    )


def curves_table(benchmark: str, ends: dict[str, list[dict]]) -> pd.DataFrame:
    """Scores after every step. Columns: benchmark, end, method, seed, step, all, old, new."""
    names = ("all", "old", "new")
    rows = [
        {
            "benchmark": benchmark,
            **end_values(end, results[-1]),
            "step": result["reached"],
            **{name: result["scores"][name] for name in names},
        }
        for end, results in ends.items()
        for result in results
    ]
    return table(rows, {"benchmark": str, **END_COLUMNS, "step": int, **dict.fromkeys(names, float)})


def holdout_scores(result: dict) -> dict[str, float]:
    """all, old, new on the hold-out set at a run's end; NaN without one."""
    names = ("all", "old", "new")
    if not len(result["curve_confusions"]):
        return dict.fromkeys(names, np.nan)
    convention = metrics.conventions(result["background"])["ciss"]
    sizes = result["classes"].sizes
    scores = metrics.scores(result["curve_confusions"][-1], sizes, result["reached"], convention)
    return {name: float(scores[name]) for name in names}


def _settings(result: dict) -> dict:
    """The settings of the benchmark that a result is of."""
    return result["identity"]["parameters"]["benchmark"]


def _resolution(settings: dict) -> str:
    return metrics.resolution(settings["evaluation"], settings["train"]["crop"])


def _over_steps(results: list[dict]) -> dict[str, float]:
    last = results[-1]
    if last["joint"] or len(results) == 1:
        return dict.fromkeys(OVER_STEPS, np.nan)
    ious = iou_by_step([result["confusion"] for result in results], last["classes"])
    scores = np.array([result["scores"]["all"] for result in results], float)
    return {
        "forgetting": metrics.mean_forgetting(ious, last["classes"].steps),
        "backward_transfer": metrics.mean_backward_transfer(ious, last["classes"].steps),
        "mean_over_steps": float(np.mean(scores)),
    }


def _shared(result: dict) -> dict:
    """What all results of a table have in common."""
    return {
        "settings": {**_settings(result), "order": None},
        "code": result["identity"]["code"]["training"],
        "torch": result["versions"]["torch"],
        **{name: result[name] for name in ("precision", "processes")},
    }


def _of_method(result: dict) -> dict:
    """What the results of a step have in common that are averaged."""
    identity = result["identity"]
    coefficients = identity["parameters"]["coefficients"]
    return {"coefficients": coefficients, "code": identity["code"], "step": result["step"]}


def _provenance(results: list[dict]) -> dict[str, Any]:
    last, classes = results[-1], results[-1]["classes"]
    steps = [classes.new(step) for step in range(len(classes.groups))]
    identities = [result["identity"] for result in results]
    parameters = [
        {**identity["parameters"], "seed": None, "groups": None, "benchmark": {**_settings(result), "order": None}}
        for identity, result in zip(identities, results, strict=True)
    ]
    return {
        "order": " | ".join(" ".join(map(str, group)) for group in classes.groups),
        "class_order": " | ".join(", ".join(classes.names[c] for c in new) for new in steps),
        "configuration": digest(parameters)[:12],
        "code": digest([identity["code"] for identity in identities])[:12],
        "data": identities[-1]["data"][:12],
        "weights": last["weights"][:12],
        "versions": ", ".join(f"{name} {number}" for name, number in last["versions"].items()),
        "arithmetic": last["precision"],
        "processes": last["processes"],
    }
