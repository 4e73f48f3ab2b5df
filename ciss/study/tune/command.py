"""Chooses coefficients on the hold-out set: `ciss tune METHOD --trials N`. Every method gets as many trials.

The trials are on a seed that is not reported. Everything lies in `tuning/BENCHMARK-sSEED/`, which neither git nor the
pipeline reads: Optuna's storage, the parameter file and the runs of each trial, the table and the figures.
"""

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from ciss import config, paths
from ciss.analysis.tuning import words
from ciss.config import Config, ConfigError
from ciss.data import prepare
from ciss.methods import method_class
from ciss.processor import available_cores
from ciss.ranges import declared
from ciss.runs.check import benchmark_name, check
from ciss.runs.run import index_folder, resolve
from ciss.study import launch
from ciss.study.process import RunFailed
from ciss.study.tune import results, write
from ciss.study.tune.published import coefficients, search_space
from ciss.study.tune.trial import Trainer, attempt_all_steps

if TYPE_CHECKING:  # Optuna is an extra
    from ciss.study.tune.search import Search

FOLDER = "tuning"
TRIALS = 20
STOPPED = """
Stopped. The same command continues the interrupted trials. Without its methods it trains nothing and writes trials.csv
of the finished ones."""
NO_OPTUNA = "ciss tune needs the package optuna. Install it: uv sync --extra tune, or: pip install -e '.[tune]'"


@dataclass
class Request:
    """The arguments of `ciss tune`."""

    methods: list[str]  # none: those with trials; only their table is written
    trials: int | None = None  # None: TRIALS; with `write` no training
    benchmark: str = ""  # none: the first of the file
    seed: int = 9
    jobs: int | None = None
    write: bool = False  # the chosen coefficients into the parameter file
    config: str = "params.yaml"


def main(request: Request) -> None:
    """Trains the trials that are missing, writes table and figures. Exits with a message if it cannot."""
    launch.handle_signals()
    try:
        settings = config.load(request.config)
        check(settings)
        trainer = make_trainer(settings, request)
        searches = make_searches(trainer, request.methods)
        if request.methods and (request.trials or not request.write):
            train(trainer, searches, request.trials or TRIALS)
        if request.write:
            write.require_choice(searches)
        results.write(trainer, searches)
        if request.write:
            write.chosen(request.config, trainer, searches)
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        sys.exit(f"error: {NO_OPTUNA}")
    except (*launch.USER_ERRORS, RunFailed) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(130)
    except storage_errors() as error:
        sys.exit(f"error: {storage_problem(trainer.folder, error)}")


def make_trainer(settings: Config, request: Request) -> Trainer:
    """The trainer of the requested benchmark and seed. Raises ConfigError for those on which nothing can be chosen."""
    name = benchmark_name(settings, request.benchmark)
    place = f"{settings.file}: benchmarks.{name}"
    if not settings.benchmarks[name].holdout:
        remedy = "Set it, for example to a tenth of the training images."
        raise ConfigError(f"{place}.holdout: 0, so there are no images to choose by. {remedy}")
    for run, values in {**settings.joints, **settings.chain}.items():
        if (values.benchmark, values.seed) == (name, request.seed):
            raise ConfigError(f"--seed {request.seed}: {settings.file} reports it ({run}). Tune on another seed.")
    root = (paths.project() / settings.output).resolve()
    devices = launch.gpus(launch.gpus_per_run(settings, None))
    jobs = request.jobs or max(1, len(devices))
    if not torch.cuda.is_available() and (remark := launch.crowded(settings, jobs, available_cores())):
        print(remark, flush=True)
    folder = root / FOLDER / f"{name}-s{request.seed}"
    if file := next((place for place in (folder.parent, folder) if place.exists() and not place.is_dir()), None):
        raise ConfigError(f"{file}: a file, but trials need a folder of this name. Move the file away.")
    trainer = Trainer(settings, name, request.seed, folder, jobs, devices)
    if not trainer.steps:
        raise ConfigError(f"{place}.protocol: there is only the base step, so there is nothing to tune.")
    return trainer


def make_searches(trainer: Trainer, methods: list[str]) -> list["Search"]:
    """The trials of each method; of those that have some, if no method is named.

    Prepares the data. Raises ConfigError for an unknown method, and for one that cannot be tuned on this benchmark.
    """
    from ciss.study.tune.search import Search, stored_methods

    if not methods:
        methods = stored_methods(trainer.folder)
        if not methods:
            raise ConfigError(f"{trainer.folder}: no trials yet. Name a method: ciss tune mib --trials 20")
    benchmark = trainer.settings.benchmarks[trainer.benchmark]
    spaces = {method: search_space(method, benchmark) for method in dict.fromkeys(methods)}
    for method in spaces:
        write_published(trainer, method)
    with FileLock(trainer.folder / "base.lock"):
        prepare(benchmark, index_folder(trainer.folder, trainer.benchmark), progress=False)
    searches = []
    for method, published in spaces.items():
        space = {name: declared(method_class(method))[name] for name in published}
        searches.append(Search(trainer.folder, method, space, published, identity(trainer, method)))
    return searches


def write_published(trainer: Trainer, method: str) -> None:
    """Writes the parameter file of trial 0. Raises ConfigError with the keys of `params.yaml`."""
    section, file = f"{method}-0", trainer.settings.file
    try:
        trainer.write(method, 0, coefficients(method, trainer.settings.benchmarks[trainer.benchmark]))
    except ConfigError as error:
        lines = []
        for line in str(error).splitlines():
            text = re.sub(rf"^.*?/{re.escape(section)}\.yaml: (line \d+: )?", "", line)
            text = re.sub(rf"\b{re.escape(section)}(?![\w-])", method, text)
            published = text.startswith("methods.")  # `params.yaml` does not have these values
            lines.append(f"ciss tune {method}: its published values: {text}" if published else f"{file}: {text}")
        raise ConfigError("\n".join(lines)) from None


def storage_errors() -> tuple[type[Exception], ...]:
    """What a storage raises that cannot be read or written; nothing before one was opened."""
    module = sys.modules.get("ciss.study.tune.search")
    return module.STORAGE_ERRORS if module else ()


def storage_problem(folder: Path, error: Exception) -> str:
    """A message for an error of the storage in a folder."""
    from ciss.study.tune.search import DATABASE, is_damaged, reason

    if is_damaged(error):
        advice = f"Put back a copy of the file, or move {folder} away to start again"
        return f"{folder / DATABASE}: damaged ({reason(error)}). {advice}."
    return f"{folder / DATABASE}: {reason(error)}. Check the disk and permissions, then start the same command again."


def identity(trainer: Trainer, method: str) -> dict[str, Any]:
    """What all trials of a method have in common: other parameters, code, data, version of torch, device."""
    run = resolve(trainer.files[trainer.run(method, 0, 1)], trainer.run(method, 0, 1))
    values = run.identity(run.index().fingerprint, None)
    parameters = dict(values["parameters"])
    del parameters["method"], parameters["coefficients"]
    return {**values, "parameters": parameters}


def train(trainer: Trainer, searches: list["Search"], trials: int) -> None:
    """Trains the base step, then the trials that are missing, `trainer.jobs` at a time. Raises RunFailed."""
    with FileLock(trainer.folder / "base.lock"):  # a second command waits
        bases = trainer.bases(search.method for search in searches)
        in_threads(trainer, [partial(trainer.train, base) for base in bases])
    in_threads(trainer, [partial(work, trainer, searches, trials)] * trainer.jobs)


def in_threads(trainer: Trainer, functions: list[Callable[[], None]]) -> None:
    """Calls functions that train, `trainer.jobs` at a time. The first error and Ctrl-C stop all of them."""
    with ThreadPoolExecutor(trainer.jobs) as pool:
        jobs = [pool.submit(function) for function in functions]
        with trainer.crew.stopping(jobs):
            for job in as_completed(jobs):
                job.result()


def work(trainer: Trainer, searches: list["Search"], trials: int) -> None:
    """Trains trials until there are enough of every method, or other workers have the rest."""
    benchmark = trainer.settings.benchmarks[trainer.benchmark]
    for search in searches:
        while True:
            with search.claim(trials) as attempt:
                if attempt is None:
                    break
                values = coefficients(search.method, benchmark, attempt.coefficients)
                attempt_all_steps(trainer, search.method, attempt, values)
            print(words.trial_line(results.row(trainer, search, attempt.number), trials), flush=True)
