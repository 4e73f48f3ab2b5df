"""Checks of a parameter file: its contents, its data, and results that it does not name."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ciss import config, paths
from ciss.config import ConfigError
from ciss.data import data_set
from ciss.data.describe import name_conflicts
from ciss.data.notes import change_notes, list_notes
from ciss.data.pictures import DataError
from ciss.documents import counted
from ciss.runs import check as runs_check
from ciss.runs import live, timings
from ciss.runs.results import outdated
from ciss.runs.run import index_folder, resolve
from ciss.store import files
from ciss.store.files import CheckpointError
from ciss.study import places
from ciss.training.loop import training_identity

NAMES_SHOWN = 5  # runs in one note
MISSING_WEIGHTS = re.compile(
    r"\.model\.(weights: (no such file|.*there is no such weight file)|pretrained: .* cannot be reached)"
)


def check(file: str) -> None:
    """Checks a parameter file and prints notes on its data. It changes no result. Raises ConfigError."""
    settings = config.load(file)
    runs_check.check(settings)
    root = (paths.project() / settings.output).resolve()
    names = [(run.benchmark, name) for name, run in settings.runs().items()]
    if links := list(paths.links(root, names)):
        raise ConfigError("\n".join(f"{problem}: {remedy}" for problem, remedy in links))
    notes = _notes(settings)
    for name, benchmark in settings.benchmarks.items():
        notes += [f"benchmarks.{name}: {note}" for note in change_notes(benchmark, index_folder(root, name))]
    if is_of_pipeline(file):
        _write_checked(settings)
        if unnamed := _unnamed_results(settings):
            first = "/".join(unnamed[0].parts[-2:])
            verb = "is" if len(unnamed) == 1 else "are"
            problem = (
                f"{counted(len(unnamed), 'folder')} in results/ {verb} ignored, because {file} does not name their runs"
            )
            notes.append(f"{problem} (first: {first}). Remove them with: ciss plan --clean")
    if again := list(_trained_again(settings)):
        more = f", and {len(again) - NAMES_SHOWN} more" if len(again) > NAMES_SHOWN else ""
        first = ", ".join(again[:NAMES_SHOWN])
        notes.append(f"trained again, with the runs that continue them: {first}{more}.")
    contents = f"{counted(len(settings.benchmarks), 'benchmark')}, {counted(len(settings.runs()), 'run')}"
    print(f"{file}: {contents}, no error found. The first stage of `dvc repro` reads images and masks.")
    print_notes(notes)


def _trained_again(settings: config.Config) -> Iterator[str]:
    """Names of the runs whose results are of other code, data or parameters, with what differs."""
    for name in settings.runs():
        run = resolve(settings, name)
        with suppress(DataError, CheckpointError, OSError):  # missing data and predecessors have messages of their own
            if different := outdated(run, training_identity(run, run.index())):
                yield f"{name} ({'; '.join(different)})"


def check_planned(settings: config.Config) -> list[str]:
    """Checks a plan before it is written. Returns notes: weights and data that are missing may come later.

    Raises ConfigError for all other mistakes.
    """
    lines: list[str] = []
    try:
        runs_check.check(settings)
    except ConfigError as error:
        lines = str(error).splitlines()
    if errors := [line for line in lines if not MISSING_WEIGHTS.search(line)]:
        raise ConfigError("\n".join(errors))
    return lines + _notes(settings)


def clean(file: str) -> None:
    """Removes the results of runs that `params.yaml` does not name. Raises ConfigError."""
    settings = config.load(file)
    if not is_of_pipeline(file):
        raise ConfigError(f"--clean: {file} is not the pipeline's file. Leave --output out.")
    unnamed = _unnamed_results(settings)
    root = (paths.project() / settings.output).resolve()
    for folder in unnamed:
        print(f"removing results/{'/'.join(folder.parts[-2:])}")
        shutil.rmtree(folder)
        for kept in (timings, live):
            kept.remove(root, *folder.parts[-2:])
    if not unnamed:
        print(f"results/ holds no runs that {file} does not name.")


def main(file: str, action: Callable[[str], None]) -> None:
    """Runs `check` or `clean`. Exits with a message if it fails."""
    try:
        places.require_file(file, "--output")
        action(file)
    except (ConfigError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _write_checked(settings: config.Config) -> None:
    """Writes the output of the stage `check`, always the same bytes. Removes the content hashes of other benchmarks.
    Raises ConfigError for a list `own` with which DVC would not see that images changed."""
    own = [name for name, benchmark in settings.benchmarks.items() if data_set(benchmark.dataset).description]
    if own != settings.own:
        problem = f"found {settings.own}, but the benchmarks on data of your own are {own}"
        raise ConfigError(f"{settings.file}: own: {problem}. Write `own: [{', '.join(own)}]`.")
    folder = paths.project() / paths.content_file("")
    for file in folder.glob("*"):
        if file.name not in own:
            file.unlink()
    files.write_text(folder / "checked", "params.yaml was checked.\n")


def is_of_pipeline(file: str) -> bool:
    """Whether a parameter file is the `params.yaml` of the project."""
    return (paths.project() / file).resolve() == (paths.project() / "params.yaml").resolve()


def _unnamed_results(settings: config.Config) -> list[Path]:
    """Folders of results of runs that the file does not name; no analysis reads them."""
    root = (paths.project() / settings.output).resolve()
    named = {(run.benchmark, name) for name, run in settings.runs().items()}
    folders = sorted((root / "results").glob("[!.]*/[!.]*"))
    return [folder for folder in folders if folder.is_dir() and (folder.parent.name, folder.name) not in named]


def _notes(settings: config.Config) -> list[str]:
    """Notes on the data and methods of every benchmark. Raises ConfigError for a hold-out set that is larger than the
    data, and for own data under the name of a known data set."""
    errors = name_conflicts()
    notes = []
    for name, benchmark in settings.benchmarks.items():
        benchmark_errors, benchmark_notes = list_notes(benchmark)
        errors += [f"{settings.file}: benchmarks.{name}.{error}" for error in benchmark_errors]
        notes += [f"benchmarks.{name}: {note}" for note in benchmark_notes]
    if errors:
        raise ConfigError("\n".join(errors))
    return notes + list(runs_check.notices(settings))


def print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}")
