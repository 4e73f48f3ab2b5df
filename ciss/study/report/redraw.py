"""Tables, figures and page from the parts of a study, without weights and data: `ciss report --redraw FOLDER`."""

import contextlib
import csv
import io
import json
import lzma
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import ciss
from ciss import documents, paths
from ciss.config import Config, ConfigError, parse
from ciss.inspection.probe import part_key
from ciss.runs import results as runs_results
from ciss.runs import timings
from ciss.store import files
from ciss.study import execute
from ciss.study.report import command
from ciss.study.report.parts import ARRAYS, RUNS, spread

BY_BENCHMARK = ("4_forgetting", "5_background")
MIXED = "mixed"  # stands for the hash of code that parts do not share


def main(folder: str, out: str | None, mixed: bool) -> None:
    """Executes the analyses on the parts in a folder, and writes what `reports/` of a study has to another folder.

    Exits with a message if it cannot.

    Args:
        folder: has a folder for each part, see `ciss.study.report.parts`.
        out: where to write; None: `reports` in the folder.
        mixed: whether parts may be of different code.
    """
    target = (Path(folder) / "reports" if out is None else Path(out)).absolute()
    project = paths.project()
    package = str(Path(ciss.__file__).parents[1])
    # for the notebooks' processes, which start in another folder
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            shutil.copytree(project / "notebooks", root / "notebooks")  # beside `reports`, for relative links
            settings = unpack(find(Path(folder)), root, mixed)
            with contextlib.chdir(root):
                for name in settings.benchmarks:
                    for notebook in BY_BENCHMARK:
                        _execute(f"{notebook}.ipynb", Path("reports", name), benchmark=name)
                _execute("6_compare.ipynb", Path("reports"))
                command.main("params.yaml")
            if target.is_relative_to(project):
                for file in (root / "reports").rglob("*.ipynb"):
                    folder = file.parent.relative_to(root / "reports")
                    execute.move_links(file, project / "reports" / folder, target / folder)
            shutil.copytree(root / "reports", target, dirs_exist_ok=True)
            for file in (root / timings.FOLDER).glob("*.*"):
                shutil.copy(file, target / file.name)
    except (ConfigError, files.CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{target}: tables, figures and report.html of {len(settings.benchmarks)} parts")


def _execute(notebook: str, folder: Path, **parameters: str) -> None:
    execute.main(Path("notebooks", notebook), folder / notebook, {"config": "params.yaml", **parameters})


def find(folder: Path) -> list[Path]:
    """The parts in a folder, `x-2` before `x-10`. Raises ConfigError without one."""
    parts = [file.parent for file in folder.glob(f"*/{RUNS}")]
    if not parts:
        raise ConfigError(f"{folder}: no part of a study is in this folder. Keep one: ciss report --keep {folder}")
    return sorted(parts, key=lambda part: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", part.name)])


def unpack(parts: list[Path], root: Path, mixed: bool = False) -> Config:
    """Makes an empty folder a project with the results, probes and timings of some parts.

    Returns: its parameters. Raises ConfigError for parts that do not fit together, CheckpointError for a damaged one.
    """
    document = merged(parts)
    results = {part: _read_results(part) for part in parts}
    different = different_code(results)
    if different and not mixed:
        equal = sorted({r["method"] for by_run in results.values() for r in by_run.values()} - set(different))
        raise ConfigError(
            f"{parts[0].parent}: the parts are of different code. {' '.join(different.values())} Equal: "
            f"{', '.join(equal) or 'no method'}. Train a part again, move it away, or add --mixed."
        )
    (root / "dvc.yaml").touch()
    with open(root / "params.yaml", "w", encoding="utf-8") as stream:
        documents.round_trip_yaml().dump(document, stream)
    for part, by_run in results.items():
        _unpack(part, by_run, root, different)
    return parse(document)


def merged(parts: Iterable[Path]) -> dict:
    """The parameters of several parts as one document. Raises ConfigError for values that they have in common and that
    differ."""
    whole: dict = {}
    for part in parts:
        document = documents.read_yaml(part / "params.yaml")
        for section, entries in document.items():
            present = whole.setdefault(section, type(entries)())
            if not isinstance(entries, dict):
                whole[section] = entries
                continue
            for name, value in entries.items():
                if different := documents.differences(present.setdefault(name, value), value, f"{section}.{name}"):
                    raise ConfigError(f"{part}: differs from an earlier part: {'; '.join(different)}.")
    return whole


def different_code(results: dict[Path, dict[str, dict]]) -> dict[str, str]:
    """Methods whose code differs between parts, each with a sentence. `results`: result.json by part and run."""
    found: dict[str, dict[str, list[str]]] = {}
    for part, by_run in results.items():
        for result in by_run.values():
            names = found.setdefault(result["method"], {}).setdefault(result["identity"]["code"]["method"], [])
            if part.name not in names:
                names.append(part.name)
    sentences = {}
    for method, codes in found.items():
        if len(codes) > 1:
            listed = (f"{code[:12]} in {', '.join(names)}" for code, names in codes.items())
            sentences[method] = f"{method}: {'; '.join(listed)}."
    return sentences


def _read_results(part: Path) -> dict[str, dict]:
    return json.loads(_decompressed(part / RUNS))


def _decompressed(file: Path) -> bytes:
    try:
        return lzma.decompress(file.read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise files.CheckpointError(f"{file}: missing or damaged ({error}). Keep this part again.") from None


def _unpack(part: Path, results: dict[str, dict], root: Path, different: dict[str, str]) -> None:
    """Writes what the runs of a part left, as their trainings did."""
    (benchmark,) = documents.read_yaml(part / "params.yaml")["benchmarks"]
    arrays: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    with np.load(io.BytesIO(_decompressed(part / ARRAYS))) as kept:
        for key in kept.files:
            run, file, name = key.split("/", 2)
            arrays.setdefault(run, {}).setdefault(file, {})[name] = kept[key]
    for run, result in results.items():
        folder = root / "results" / benchmark / run
        if different:
            result["identity"]["code"]["training"] = MIXED
        if result["method"] in different:
            result["identity"]["code"]["method"] = MIXED
        files.write_text(folder / "result.json", json.dumps(result))
        for file in runs_results.ARRAYS:
            values = arrays[run].get(file, {})
            np.savez(folder / file, **(spread(**values) if file == "trace.npz" else values))
        if measured := arrays[run].get("probe"):
            probes = root / "probes" / benchmark
            probes.mkdir(parents=True, exist_ok=True)
            key = part_key(result["weights"], result["identity"]["teacher"])
            np.savez(probes / f"{run}.npz", **measured, key=np.array(key))
    kept = part / "data.md"
    notes = [kept.read_text(encoding="utf-8").strip()] if kept.is_file() else []
    if different:
        notes.append(f"Parts of different code (--mixed): {' '.join(different.values())}")
    if notes:
        files.write_text(root / "reports" / "benchmarks" / benchmark / "data" / kept.name, "\n\n".join(notes) + "\n")
    _unpack_timings(part / "timings.csv", root / timings.FOLDER / benchmark)


def _unpack_timings(file: Path, folder: Path) -> None:
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                run, texts = row.pop("run"), ("weights", "device", "python")
                values = {name: text if name in texts else json.loads(text or "null") for name, text in row.items()}
                files.write_text(folder / f"{run}.json", json.dumps(values))
