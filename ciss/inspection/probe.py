"""Statistics of teacher and student on images with all labels, for the analyses: `ciss probe`.

A run is probed once, and again only when its weights, the data, the coefficients of the rules or this code change.
"""

import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ciss import config, paths
from ciss.config import Config
from ciss.inspection.trained import OpenedRun
from ciss.labels.patches import patch_labels
from ciss.labels.prototypes import ClassPrototypes
from ciss.losses import gradient_magnitude
from ciss.methods import METHODS
from ciss.models import Output
from ciss.protocol import VOID
from ciss.runs import results as runs_results
from ciss.runs.results import file_hash, save_arrays
from ciss.runs.run import Run, digest, predecessor, resolve
from ciss.store import code as store_code
from ciss.store.files import CheckpointError
from ciss.training.evaluation import judge_labels
from ciss.training.loop import USER_ERRORS

BINS = 10  # of the background's probability, equally wide from 0 to 1
IMAGES = 200  # validation images, without a hold-out set
RULES = ("plop", "gsc", "mbs")  # methods whose pseudo-labels are scored, beside the argmax of the teacher

Probe = dict[str, np.ndarray]


def probe(settings: Config, name: str, judged: dict[tuple, Probe] | None = None) -> Probe:
    """Teacher and student of a finished increment on the hold-out set, or on validation images without one.

    Args:
        judged: keeps the counts of pseudo-labels for other runs with the same teacher and step.

    Returns: arrays by name. T classes of the benchmark, K of the teacher, D features.

    * `background` (T,BINS) int64: pixels by true class and by the student's probability of the background.
      `background_sums` (T,BINS): sums of these probabilities.
    * `gradients`, `gradients_after` (T,): mean gradient magnitude of the softmax cross-entropy with the true labels, by
      class, of the teacher and of the student. The loss of the method may be another one (MiB). NaN for unknown
      classes, for classes without pixels, and for a method whose loss has no softmax (`Method.softmax`).
    * `prototypes`, `prototypes_after` (T,D): mean features before the classifier by true class, of the teacher and of
      the student. `counts` (T,): numbers of these features.
    * `labels_argmax`, `labels_plop`, `labels_gsc`, `labels_mbs` (T,K+1) int64: pixels with the given label background,
      by true class and by pseudo-label of the teacher, the last column ignored.

    Raises ValueError for a run without a teacher.
    """
    run = resolve(settings, name)
    if run.after is None:
        raise ValueError(f"{name} continues no run: there is no teacher. Name an increment.")
    torch.set_num_threads(run.settings.train.threads)
    opened = OpenedRun(run)
    index = opened.index
    split, numbers = ("train", index.holdout) if index.holdout else ("val", index.validation[run.step][:IMAGES])
    sums = Sums(len(run.classes), run.classes.background, opened.device)
    with torch.no_grad(), opened.autocast():
        for batch, truth in opened.given(numbers, split):
            sums.add(opened.teacher(batch.images), opened.student(batch.images), truth)
    arrays = sums.arrays()
    for end, of in (("", run.before), ("_after", run)):
        if not of.build_method().softmax:  # the loss has other gradients
            arrays[f"gradients{end}"][:] = np.nan
    judged = {} if judged is None else judged
    key = (run.benchmark, run.seed, run.after, run.step)
    if key not in judged:
        judged[key] = _judge(settings, opened, numbers, split)
    return arrays | judged[key]


def _judge(settings: Config, opened: OpenedRun, numbers: list[int], split: str) -> Probe:
    """Pseudo-labels of every rule from one teacher against the ground truth, see `probe`."""
    methods = {rule: METHODS[rule](**settings.methods.get(rule, {})) for rule in RULES}
    for method in methods.values():
        opened.prepare(method)
    with torch.no_grad(), opened.autocast():
        counts = judge_labels(opened.run, methods, opened.teacher, opened.given(numbers, split))
    return {f"labels_{rule}": matrix for rule, matrix in counts.items()}


class Sums:
    """Sums over images, see `probe`. `classes`: T. Without `background`, position 0 is left out."""

    def __init__(self, classes: int, background: bool, device: torch.device):
        self.classes, self.first = classes, 0 if background else 1
        self.background = torch.zeros(classes * BINS, dtype=torch.int64, device=device)
        self.background_sums = torch.zeros(classes * BINS, dtype=torch.float64, device=device)
        # for teacher and student: sums and counts by class
        self.gradients = [torch.zeros(2, classes, dtype=torch.float64, device=device) for _ in range(2)]
        self.prototypes: list[ClassPrototypes] = []

    def add(self, teacher: Output, student: Output, truth: Tensor) -> None:
        """`truth` (B,H,W): positions, 255 is left out."""
        size = tuple(truth.shape[-2:])
        labelled = (truth != VOID) & (truth >= self.first)
        probability = student.probabilities(size)[:, 0][labelled].double()
        cell = truth[labelled] * BINS + (probability * BINS).long().clamp(max=BINS - 1)
        self.background += torch.bincount(cell, minlength=len(self.background))
        self.background_sums.index_add_(0, cell, probability)
        self.prototypes = self.prototypes or [
            ClassPrototypes(self.classes, output.features.shape[1], truth.device) for output in (teacher, student)
        ]
        for output, gradients, centres in zip((teacher, student), self.gradients, self.prototypes, strict=True):
            logits = output.upsample(size)
            known = labelled & (truth < logits.shape[1])
            magnitude = gradient_magnitude(logits, torch.where(known, truth, VOID))
            gradients[0].index_add_(0, truth[known], magnitude[known].double())
            gradients[1] += torch.bincount(truth[known], minlength=self.classes)
            grid, covered = output.features.shape[-2:], output.covered_by(size)
            centres.update(output.features, patch_labels(torch.where(labelled, truth, VOID), grid, covered=covered))

    def arrays(self) -> Probe:
        shape = (self.classes, BINS)
        arrays = {
            "background": self.background.view(shape),
            "background_sums": self.background_sums.view(shape),
            "counts": self.prototypes[0].counts,
        }
        for end, gradients, centres in zip(("", "_after"), self.gradients, self.prototypes, strict=True):
            arrays[f"gradients{end}"] = gradients[0] / gradients[1]
            arrays[f"prototypes{end}"] = centres.means.float()
        return {name: value.cpu().numpy() for name, value in arrays.items()}


def read(settings: Config, names: Iterable[str]) -> dict[str, Probe]:
    """Probes of the increments among `names`, by run. With `complete: true` in the file, missing probes are made.

    Those of a study's parts belong to the results beside them; there are no weights, no data and perhaps other code.

    Raises CheckpointError for a probe that is missing, damaged, or made of other weights, data or coefficients.
    """
    probes, judged = {}, {}
    for name in names:
        run = resolve(settings, name)
        if run.after is None:
            continue
        kept = _kept(run, part_key(runs_results.weights_of(run), runs_results.weights_of(run.before)))
        kept = _kept(run, key := _key(settings, run)) if kept is None else kept
        if kept is None and settings.complete:
            kept = probe(settings, name, judged)
            save_arrays(_file(run), **kept, key=np.array(key))
        if kept is None:
            raise CheckpointError(
                f"{_file(run)}: missing, damaged, or made of other weights, data, coefficients or code. "
                f"Make it: ciss probe {run.benchmark}"
            )
        probes[name] = kept
    return probes


def write(settings: Config, benchmark: str, jobs: int = 1) -> None:
    """Updates `probes/<benchmark>/`: one file for each increment that leads to an end, and nothing else.

    `jobs`: processes that share the runs. The files have the same bytes for any number.
    """
    ends = [name for name, end in settings.ends.items() if end.benchmark == benchmark]
    paths = [name for end in ends for name in settings.path(end)]
    increments = [name for name in dict.fromkeys(paths) if name in settings.chain]
    folder = resolve(settings, next(iter(settings.runs()))).root / "probes" / benchmark
    folder.mkdir(parents=True, exist_ok=True)
    for file in set(folder.iterdir()) - {folder / f"{name}.npz" for name in increments}:
        file.unlink()
    if jobs == 1:
        _write_runs(settings, increments)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_write_runs, settings), [increments[number::jobs] for number in range(jobs)]))


def _write_runs(settings: Config, names: Iterable[str]) -> None:
    judged: dict[tuple, Probe] = {}
    for name in names:
        run = resolve(settings, name)
        if _kept(run, key := _key(settings, run)) is None:
            save_arrays(_file(run), **probe(settings, name, judged), key=np.array(key))
            print(f"{name}: probed", flush=True)


def _file(run: Run) -> Path:
    return run.root / "probes" / run.benchmark / f"{run.name}.npz"


def _key(settings: Config, run: Run) -> str:
    """A digest of all that a probe depends on."""
    files = (predecessor(run), run.folder / "weights.safetensors")
    if missing := [file for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{missing[0]}: this run has no weights yet. Train it: ciss train {missing[0].parent.name}"
        )
    rules = {rule: settings.methods.get(rule, {}) for rule in RULES}
    code = store_code.probe_code(store_code.read(paths.project()), RULES, run.settings.dataset).digest
    weights = [file_hash(file) for file in files]
    return digest([weights, run.description(), rules, code, run.index().fingerprint])


def part_key(weights: str | None, teacher: str | None) -> str:
    """The key of a probe in a study's parts: of results with these hashes of weights, see `ciss.study.report.parts`."""
    return digest(["part", weights, teacher])


def _kept(run: Run, key: str) -> Probe | None:
    try:
        with np.load(_file(run)) as arrays:
            probe = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return probe if probe.pop("key", None) == key else None


def main(benchmark: str, config_file: str, jobs: int = 1) -> None:
    """Updates the probes of a benchmark. Exits with a message if it cannot."""
    try:
        settings = config.load(config_file)
        if benchmark not in settings.benchmarks:
            known = ", ".join(settings.benchmarks)
            raise config.ConfigError(f"{config_file}: there is no benchmark {benchmark!r}. Known: {known}.")
        write(settings, benchmark, jobs)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
