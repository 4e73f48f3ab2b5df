"""What a finished run leaves behind, and how the analyses read it back."""

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
from ciss.data import Index
from ciss.runs import timings
from ciss.runs.run import Run, digest, resolve
from ciss.runs.state import TrainingState
from ciss.store import files
from ciss.store.weights import save_weights

ARRAYS = ("confusion.npz", "curves.npz", "samples.npz", "trace.npz", "labels.npz", "tokens.npz")  # beside result.json
CODE = "code.txt"  # which code a training depends on, a line for each definition
SHOWN = 5  # definitions in a message
MEASURED = ("training_seconds", "preparation_seconds", "wall_seconds", "peak_memory_bytes")
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
    """Whether both folders are there, of one training, by this configuration, code, data and teacher."""
    return _complete(run.folder, run.results, identity)


def recover(run: Run, identity: dict) -> bool:
    """Whether `keep` has this training; then it is in its place again. A pipeline that was stopped between the end of a
    training and its entry in `dvc.lock` removes what it does not know before it goes on."""
    kept = run.resume / "finished"
    if not _complete(kept / "runs", kept / "results", identity):
        return False
    for source, folder in ((kept / "runs", run.folder), (kept / "results", run.results)):
        with _replacing(folder) as fresh:
            _copy(source, fresh)
    return True


def keep(run: Run, identity: dict) -> None:
    """Keeps a finished run where no pipeline removes it, as links to the same files where that is possible."""
    kept = run.resume / "finished"
    if not _complete(kept / "runs", kept / "results", identity):
        with _replacing(kept) as fresh:
            for source, name in ((run.folder, "runs"), (run.results, "results")):
                _copy(source, fresh / name)


def _copy(source: Path, target: Path) -> None:
    """Copies the files of a folder, as links to the same files where the file system has them. No modes and times:
    some network file systems refuse to set them."""
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
        for name in ARRAYS:  # one that is gone or cut off would be asked for again, and this run named as trained
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
    """Puts both folders in place, each whole, where older ones stay until then.

    `runs/`: weights.safetensors and log.json. `results/`: result.json (scores, provenance), code.txt (the definitions
    that the training depends on), confusion.npz (T,T), curves.npz (epochs (P,), confusions (P,T,T) on the hold-out),
    samples.npz (predictions by image id), trace.npz (columns, values (N,columns), a row a batch), labels.npz (pseudo
    labels against the truth), tokens.npz (epochs (Q,), cosines (Q,N,C) of the N new class tokens to all).

    The same training leaves the same bytes in both: seconds, memory and machine go to `timings/`.
    """
    confusion = state.confusion
    convention = metrics.conventions(run.classes.background)["ciss"]
    result = {
        "run": run.name,
        **run.description(),
        "after": run.after,
        "reached": run.reached,
        "scores": _plain(metrics.scores(confusion, run.classes.sizes, run.reached, convention)),
        "convention": convention.sentence(
            metrics.resolution(asdict(run.settings.evaluation), run.settings.train.crop),
            metrics.scored(run.settings.setting, run.settings.legacy_split),
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
    epochs = np.array([epoch for epoch, _ in state.curve])
    matrices = np.array([matrix.numpy() for _, matrix in state.curve], np.int64).reshape(-1, *confusion.shape)
    with _replacing(run.folder) as trained, _replacing(run.results) as scored:
        save_weights(trained / "weights.safetensors", network, run.description())
        files.write_text(trained / "log.json", json.dumps(state.log, indent=1))
        result["weights"] = file_hash(trained / "weights.safetensors")
        timing = {name: getattr(state, name) for name in MEASURED}
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
    """The epochs' numbers in one array, NaN where a column does not exist."""
    columns = list(dict.fromkeys(name for part in epochs for name in part["columns"]))
    values = np.full((sum(len(part["values"]) for part in epochs), len(columns)), np.nan, np.float32)
    start = 0
    for part in epochs:
        stop = start + len(part["values"])
        values[start:stop, [columns.index(name) for name in part["columns"]]] = part["values"]
        start = stop
    return {"columns": np.array(columns), "values": values}


def read(run: Run) -> dict:
    """result.json with the method's title, whether it sees all classes at once (`joint`), the benchmark's `Classes` and
    the arrays confusion, curve_epochs, curve_confusions, token_epochs, token_cosines, samples, trace (by column) and
    labels (by name) added. See `TrainingState`. Raises CheckpointError.

    Of a data set without a background class, the matrices leave unlabelled pixels (true position 0) out;
    `confusion_all` has them, for conventions that score them."""
    file = run.results / "result.json"
    if not file.is_file():
        raise files.CheckpointError(f"{file}: this run has no result yet. Train it: ciss train {run.name}")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        result |= {"title": run.title, "joint": run.joint, "classes": run.classes}
        different = documents.differences(result["identity"]["parameters"], run.description())
        with np.load(run.results / "confusion.npz") as arrays:
            result["confusion_all"] = arrays["confusion"]
        with np.load(run.results / "curves.npz") as arrays:
            result["curve_epochs"], result["curve_confusions"] = arrays["epochs"], arrays["confusions"]
        with np.load(run.results / "tokens.npz") as arrays:
            result["token_epochs"], result["token_cosines"] = arrays["epochs"], arrays["cosines"]
        with np.load(run.results / "samples.npz") as arrays:
            result["samples"] = {name: arrays[name] for name in arrays.files}
        with np.load(run.results / "trace.npz") as arrays:
            columns = arrays["columns"].tolist()
            result["trace"] = dict(zip(columns, arrays["values"].T, strict=True))
        with np.load(run.results / "labels.npz") as arrays:
            result["labels"] = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise files.CheckpointError(
            f"{run.results}: damaged ({error}). Train it again: ciss train {run.name}"
        ) from None
    result["confusion"] = result["confusion_all"].copy()
    if not result["background"]:
        result["confusion"][0] = 0
        result["curve_confusions"][:, 0] = 0
    if different:
        raise files.CheckpointError(
            f"{run.results}: made with other parameters ({'; '.join(different)}). Restore them, or train it again: "
            f"ciss train {run.name}"
        )
    return result


def read_end(config: Config, end: str) -> list[dict]:
    """Results of every run that leads to an end, from the base step to the last. Raises CheckpointError, also for a run
    that continues another training of its predecessor than the one that is there."""
    found = [read(resolve(config, name)) for name in config.path(end)]
    for before, after in pairwise(found):
        if after["identity"]["teacher"] != before["weights"]:
            raise files.CheckpointError(
                f"{after['run']}: continues another training of {before['run']} than the one whose results are there. "
                f"Train it again: ciss train {after['run']}"
            )
    return found


def ends(config: Config, benchmarks: Iterable[str]) -> dict[str, list[dict]]:
    """Results by end, for the ends of some benchmarks."""
    chosen = set(benchmarks)
    return {name: read_end(config, name) for name, end in config.ends.items() if end.benchmark in chosen}


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of the old one only when the block ends well."""
    fresh, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    for left in (fresh, old):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
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
    """A compressed `.npz`, in place only when it is whole."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_bytes(file, buffer.getvalue())


def _plain(scores: dict) -> dict:
    """NaN has no place in JSON: null."""
    return {name: None if value != value else float(value) for name, value in scores.items()}
