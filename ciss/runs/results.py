"""The results of a finished run: write, keep and read them."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from torch import nn

from ciss import distributed, documents, metrics
from ciss.config import Config
from ciss.data import Index, stored
from ciss.runs import timings
from ciss.runs.run import Run, digest, resolve
from ciss.runs.state import TrainingState
from ciss.store import files
from ciss.store.weights import save_weights

ARRAYS = ("confusion.npz", "curves.npz", "samples.npz", "trace.npz", "labels.npz", "tokens.npz")  # beside result.json
CODE = "code.txt"  # `Closure.listing` of the code that trained
SHOWN = 5  # definitions in a message
MEASURED = ("training_seconds", "preparation_seconds", "wall_seconds", "processor_seconds", "peak_memory_bytes")
MACHINE = ("other_cores", "idle_machine")
VERSIONS = ("torch", "torchvision", "timm", "numpy")


def file_hash(file: Path) -> str:
    """sha256 of a file; raises CheckpointError when it is missing."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise files.CheckpointError(
            f"{file}: there is no such checkpoint. Train it: ciss train {file.parent.name}"
        ) from None


def finished(run: Run, identity: dict) -> bool:
    """Whether both folders of a run are complete, of one training with this identity."""
    return _complete(run.folder, run.results, identity)


def recover(run: Run, identity: dict) -> bool:
    """Restores what `keep` kept of this training. Returns whether there was something.

    DVC removes outputs that are not in `dvc.lock`, for example if it was stopped between a training and its entry.
    """
    kept = run.resume / "finished"
    if not _complete(kept / "runs", kept / "results", identity):
        return False
    for source, folder in ((kept / "runs", run.folder), (kept / "results", run.results)):
        with _replacing(folder) as fresh:
            _copy(source, fresh)
    return True


def keep(run: Run, identity: dict) -> None:
    """Keeps a finished run where DVC does not remove it, as hard links where possible."""
    kept = run.resume / "finished"
    if not _complete(kept / "runs", kept / "results", identity):
        with _replacing(kept) as fresh:
            for source, name in ((run.folder, "runs"), (run.results, "results")):
                _copy(source, fresh / name)


def _copy(source: Path, target: Path) -> None:
    """Copies the files of a folder, as hard links where possible, without modes and times.

    Some network file systems refuse to set modes and times.
    """
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, copy)
        except OSError:  # not on every file system
            shutil.copyfile(file, copy)


def _complete(trained: Path, scored: Path, identity: dict) -> bool:
    weights = trained / "weights.safetensors"
    try:
        result = json.loads((scored / "result.json").read_text(encoding="utf-8"))
        if "memory" in result and not (trained / stored.FILE).is_file():
            return False
        for name in ARRAYS:  # a missing or truncated file makes the run incomplete
            np.load(scored / name).close()
        return result["key"] == digest(identity) and weights.is_file() and result["weights"] == file_hash(weights)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return False


def outdated(run: Run, identity: dict) -> list[str]:
    """How the training of the stored result differs from this one; empty without a result."""
    stored = _entry(run, "identity")
    if stored is None:
        return []
    with suppress(OSError, ValueError):
        stored["listing"] = (run.results / CODE).read_text(encoding="utf-8")
    return differences(run, stored, identity)


def differences(run: Run, stored: dict, wanted: dict) -> list[str]:
    """How two identities differ, a line each. Of code, names the functions, classes and constants that changed.

    Args:
        stored: an earlier training's `Run.identity`; under `listing`, if known, `Closure.listing` of its code.
        wanted: that of `run` as it is now.
    """
    lines = documents.differences({**stored, "listing": ""}, {**wanted, "listing": ""})
    others = [line for line in lines if not line.startswith("code")]
    if others == lines:
        return lines
    if "listing" not in stored:
        return ["code", *others]
    changed = run.training_code().differences(stored["listing"])
    more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return [f"code: {', '.join([*changed[:SHOWN], *more])}", *others]


def weights_of(run: Run) -> str | None:
    """sha256 of the checkpoint that belongs to a run's results; None without results."""
    return _entry(run, "weights")


def _entry(run: Run, key: str) -> Any:
    """A value of result.json; None where the file is missing or damaged."""
    try:
        return json.loads((run.results / "result.json").read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(run: Run, network: nn.Module, identity: dict, index: Index, state: TrainingState) -> None:
    """Writes both folders of a run. Older ones stay until the new ones are complete.

    `runs/`: weights.safetensors, log.json, with memory memory.json (`stored.record`). `results/`: result.json (scores,
    provenance), code.txt (the definitions that the training depends on), confusion.npz (T,T), curves.npz (epochs (P,),
    confusions (P,T,T) on the hold-out), samples.npz (predictions by image id), trace.npz (columns, values (N,columns),
    a row a batch), labels.npz (pseudo labels against the truth), tokens.npz (epochs (Q,), cosines (Q,N,C) of the N new
    class tokens to all).

    The same training leaves the same bytes in both: seconds, memory and machine go to `timings/`.
    """
    confusion = state.confusion
    convention = metrics.conventions(run.classes.background)["ciss"]
    result = {
        "run": run.name,
        **run.description(),
        "after": run.after,
        "reached": run.last_known_step,
        "scores": _plain(metrics.scores(confusion, run.classes.sizes, run.last_known_step, convention)),
        "convention": convention.sentence(
            metrics.resolution(asdict(run.settings.evaluation), run.settings.train.crop),
            metrics.scored_images(run.settings.setting, run.settings.legacy_split),
        ),
        "background": run.classes.background,
        "classes": run.classes.names,
        "pixels": [index.pixels.get(str(raw), 0) for raw in run.classes.raw],
        "images": len(run.images(index)),
        "pseudo_labels": {name: _plain(metrics.label_scores(matrix)) for name, matrix in state.label_counts.items()},
        "parameters": sum(p.numel() for p in network.parameters()),
        "log": state.log,
        "identity": identity,
        "key": digest(identity),
        "versions": {name: version(name) for name in VERSIONS},
        "precision": state.precision,
        "processes": distributed.world(),
    }
    if run.memory:
        result["memory"] = stored.record(run.memory, state.stored, state.draws)
    epochs = np.array([epoch for epoch, _ in state.curve])
    matrices = np.array([matrix.numpy() for _, matrix in state.curve], np.int64).reshape(-1, *confusion.shape)
    with _replacing(run.folder) as trained, _replacing(run.results) as scored:
        save_weights(trained / "weights.safetensors", network, run.description())
        files.write_text(trained / "log.json", json.dumps(state.log, indent=1))
        if run.memory:
            files.write_text(trained / stored.FILE, json.dumps(result["memory"], indent=1))
        result["weights"] = file_hash(trained / "weights.safetensors")
        timing = {name: getattr(state, name) for name in (*MEASURED, *MACHINE)}
        timings.write(run.root, run.benchmark, run.name, {"weights": result["weights"], **timing})
        files.write_text(scored / "result.json", json.dumps(result, indent=1))
        files.write_text(scored / CODE, run.training_code().listing())
        save_arrays(scored / "confusion.npz", confusion=confusion.numpy())
        save_arrays(scored / "curves.npz", epochs=epochs, confusions=matrices)
        save_arrays(
            scored / "tokens.npz",
            epochs=np.array([epoch for epoch, _ in state.cosines]),
            cosines=np.array([cosines.numpy() for _, cosines in state.cosines], np.float32),
        )
        save_arrays(scored / "samples.npz", **state.samples)
        save_arrays(scored / "trace.npz", **_trace(state.trace))
        save_arrays(scored / "labels.npz", **state.label_counts)


def _trace(epochs: list[dict]) -> dict[str, np.ndarray]:
    """The rows of all epochs in one array, NaN where an epoch lacks a column."""
    columns = list(dict.fromkeys(name for part in epochs for name in part["columns"]))
    values = np.full((sum(len(part["values"]) for part in epochs), len(columns)), np.nan, np.float32)
    start = 0
    for part in epochs:
        stop = start + len(part["values"])
        values[start:stop, [columns.index(name) for name in part["columns"]]] = part["values"]
        start = stop
    return {"columns": np.array(columns), "values": values}


def read(run: Run) -> dict:
    """result.json, the method's title, `joint`, the benchmark's `Classes`, and the arrays of `TrainingState`.

    Arrays: confusion, curve_epochs, curve_confusions, token_epochs, token_cosines, samples, trace (by column) and
    labels (by name). If the data set has no background class, the matrices leave out unlabelled pixels (true position
    0); `confusion_all` has them.

    Raises CheckpointError for missing or damaged results, and for those of other parameters.
    """
    file = run.results / "result.json"
    if not file.is_file():
        raise files.CheckpointError(f"{file}: this run has no result yet. Train it: ciss train {run.name}")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        different = documents.differences(result["identity"]["parameters"], run.description())
        confusion, curves, samples, trace, labels, tokens = (_load_arrays(run.results / name) for name in ARRAYS)
        result |= {"title": run.title, "joint": run.joint, "classes": run.classes, "samples": samples, "labels": labels}
        result |= {"confusion_all": confusion["confusion"], "confusion": confusion["confusion"].copy()}
        result |= {"curve_epochs": curves["epochs"], "curve_confusions": curves["confusions"]}
        result |= {"token_epochs": tokens["epochs"], "token_cosines": tokens["cosines"]}
        result["trace"] = dict(zip(trace["columns"].tolist(), trace["values"].T, strict=True))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise files.CheckpointError(
            f"{run.results}: damaged ({error}). Train it again: ciss train {run.name}"
        ) from None
    if not result["background"]:
        result["confusion"][0] = 0
        result["curve_confusions"][:, 0] = 0
    if different:
        raise files.CheckpointError(
            f"{run.results}: made with other parameters ({'; '.join(different)}). Restore them, or train it again: "
            f"ciss train {run.name}"
        )
    return result


def _load_arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def read_end(config: Config, end: str) -> list[dict]:
    """Results of every run that leads to an end, from the base step to the last.

    Raises CheckpointError, also for a run whose teacher is another training than the one whose results are there.
    """
    results = [read(resolve(config, name)) for name in config.path(end)]
    for before, after in pairwise(results):
        if after["identity"]["teacher"] != before["weights"]:
            raise files.CheckpointError(
                f"{after['run']}: continues another training of {before['run']} than the one whose results are there. "
                f"Train it again: ciss train {after['run']}"
            )
    return results


def ends(config: Config, benchmarks: Iterable[str]) -> dict[str, list[dict]]:
    """Results by end, for the ends of some benchmarks."""
    chosen = set(benchmarks)
    return {name: read_end(config, name) for name, end in config.ends.items() if end.benchmark in chosen}


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that replaces the old one if the block ends without an error."""
    fresh, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    for remains in (fresh, old):  # of a killed process
        shutil.rmtree(remains, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    files.sync_folder(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    files.sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Writes a compressed `.npz` in one step."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_bytes(file, buffer.getvalue())


def _plain(scores: dict) -> dict:
    """NaN becomes None, because JSON has no NaN."""
    return {name: None if value != value else float(value) for name, value in scores.items()}
