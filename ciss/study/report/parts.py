"""Parts of a study: what the tables, figures and pages need of one trained benchmark, in a few small files.

A part is a folder with the name of its benchmark: `ciss report --keep FOLDER`. From a folder of parts alone
`ciss report --redraw FOLDER` makes the analyses, see `ciss.study.report.redraw`. A part needs no other one.

    params.yaml      the benchmark, its methods and runs
    runs.json.xz     result.json of each run: scores, hashes of code, data and weights. Of the log only the last epoch
    arrays.npz.xz    confusion matrices, curves, labels, tokens, probes; gradients as means over stretches of batches
    runs.csv         the table of the ends, to be read
    data.md          the notes of `1_data` on the data, if there are any
    timings.csv      seconds, memory and device of each run, if they were measured here

The same training leaves the same bytes in all but the last. Photographs' predictions are left out.
"""

import csv
import io
import json
import lzma
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ciss import config, documents, paths
from ciss.analysis.compare.tables import check_equal, runs_table
from ciss.analysis.forgetting.traces import KINDS, POINTS, stretches
from ciss.config import Config, ConfigError
from ciss.documents import counted
from ciss.inspection import probe
from ciss.runs import results as runs_results
from ciss.runs.run import Run, resolve
from ciss.store import files
from ciss.study.report import cost
from ciss.training.loop import USER_ERRORS

RUNS, ARRAYS = "runs.json.xz", "arrays.npz.xz"
LEFT_OUT = ("prototypes_after", "gradients_after")  # of a probe: no table reads them
TIMINGS = ("run", "weights", *runs_results.MEASURED, *runs_results.MACHINE, "update_seconds", "device", "python")
SECTIONS = ("bases", "joints", "chain")


def main(config_file: str, folder: str, benchmark: str | None) -> None:
    """Keeps one benchmark, or all of a parameter file, and prints their sizes. Exits with a message if it cannot."""
    try:
        settings = config.load(config_file)
        if benchmark is not None and benchmark not in settings.benchmarks:
            raise ConfigError(
                f"{config_file}: no benchmark {benchmark!r}. {documents.choose(benchmark, settings.benchmarks)}"
            )
        for name in settings.benchmarks if benchmark is None else [benchmark]:
            part = Path(folder) / name
            runs = keep(settings, name, part)
            size = documents.size(sum(file.stat().st_size for file in part.iterdir()))
            print(f"{part}: {counted(len(runs), 'run')}, {size}")
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


def keep(settings: Config, name: str, folder: Path) -> list[str]:
    """Writes the part of a benchmark to a folder. Returns the names of its runs: those that lead to an end.

    Raises CheckpointError for a run, a probe or weights that are missing or do not belong together, ProvenanceError for
    runs of different code or versions, ConfigError for a benchmark without an end.
    """
    ends = runs_results.ends(settings, [name])
    if not ends:
        raise ConfigError(f"{settings.file}: no end is of benchmark {name}, so no table shows it. Plan a method.")
    check_equal(name, ends)
    runs = {result["run"]: resolve(settings, result["run"]) for path in ends.values() for result in path}
    for run in runs.values():
        weights = run.folder / "weights.safetensors"
        if runs_results.file_hash(weights) != runs_results.weights_of(run):
            raise files.CheckpointError(f"{weights}: not those of {run.results}. Train it again: ciss train {run.name}")
    arrays = {}
    for run, measured in probe.read(settings, runs).items():
        arrays |= {f"{run}/probe/{key}": value for key, value in measured.items() if key not in LEFT_OUT}
    for run in runs.values():
        arrays |= {f"{run.name}/{key}": value for key, value in _arrays(run).items()}
    results = {
        run.name: _without_epochs(json.loads((run.results / "result.json").read_text("utf-8"))) for run in runs.values()
    }
    buffer, yaml_text = io.BytesIO(), io.StringIO()
    np.savez(buffer, **dict(sorted(arrays.items())))
    yaml = documents.round_trip_yaml()
    yaml.default_flow_style = None
    yaml.dump(_document(settings, name, runs), yaml_text)
    files.write_text(folder / "params.yaml", yaml_text.getvalue())
    files.write_bytes(folder / ARRAYS, lzma.compress(buffer.getvalue(), preset=9))
    files.write_text(folder / "runs.csv", runs_table(name, ends).round(6).to_csv(index=False))
    _keep_notes(next(iter(runs.values())), folder)
    _keep_timings(runs.values(), folder / "timings.csv")
    files.write_bytes(folder / RUNS, lzma.compress(json.dumps(results, indent=1).encode(), preset=9))
    return list(runs)


def _arrays(run: Run) -> dict[str, np.ndarray]:
    """Arrays of a run by file and name, without the photographs' predictions."""
    arrays = {}
    for file in runs_results.ARRAYS:
        if file != "samples.npz":
            with np.load(run.results / file) as loaded:
                made = thin(**loaded) if file == "trace.npz" else dict(loaded)
            arrays |= {f"{file}/{name}": value for name, value in made.items()}
    return arrays


def thin(columns: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    """The trace of a training, as `gradient_table` sees it: of its columns of gradients the means over stretches.

    Args: columns (C,) names; values (N,C), a row a batch. Returns: columns (G,), means (S,G), rows: N.
    """
    kept = [k for k, name in enumerate(columns.tolist()) if name.partition("/")[0] in KINDS]
    means = [[mean for _, mean in stretches(values[:, k])] for k in kept]
    table = np.array(means, float).reshape(len(kept), min(POINTS, len(values))).T
    return {"columns": columns[kept], "means": table, "rows": np.array(len(values))}


def spread(columns: np.ndarray, means: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The trace that `thin` made short: each of the N batches has the mean of its stretch."""
    lengths = [len(part) for part in np.array_split(np.arange(rows), len(means))] if rows else 0
    return {"columns": columns, "values": np.repeat(means, lengths, axis=0)}


def _without_epochs(result: dict) -> dict:
    """The result with the last epoch of its log; of the others the number alone."""
    log = result["log"]
    return {**result, "log": [{"epoch": entry["epoch"]} for entry in log[:-1]] + log[-1:]}


def _document(settings: Config, name: str, runs: dict[str, Run]) -> dict:
    """The parameters of the part: of the benchmark, of its methods, and of its runs."""
    whole = documents.read_yaml(paths.project() / settings.file)
    chosen = {
        section: {run: entry for run, entry in whole.get(section, {}).items() if run in runs} for section in SECTIONS
    }
    methods = {run.method for run in runs.values()}
    return {
        **({"version": whole["version"]} if whole.get("version") else {}),
        "benchmarks": {name: whole["benchmarks"][name]},
        "methods": {method: values for method, values in whole["methods"].items() if method in methods},
        **chosen,
        "ends": {end: entry for end, entry in whole["ends"].items() if entry["benchmark"] == name},
    }


def _keep_notes(run: Run, folder: Path) -> None:
    notes = run.root / "reports" / "benchmarks" / run.benchmark / "data" / "data.md"
    if notes.is_file():
        files.write_text(folder / "data.md", notes.read_text(encoding="utf-8"))


def _keep_timings(runs: Iterable[Run], file: Path) -> None:
    """Where no run was measured, an earlier table stays."""
    found = {run.name: cost.measured(run.root, run.benchmark, run.name) for run in runs}
    if any(found.values()):
        text = io.StringIO()
        table = csv.DictWriter(text, TIMINGS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for run, timing in found.items():
            if timing:
                plain = {key: value if isinstance(value, str) else json.dumps(value) for key, value in timing.items()}
                table.writerow({"run": run, **plain})
        files.write_text(file, text.getvalue())
