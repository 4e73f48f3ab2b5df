"""One trial: its parameter file, the training of its steps, and their scores on the hold-out set."""

import io
import json
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ciss import config, documents
from ciss.analysis.compare.tables import holdout_scores
from ciss.config import Config, ConfigError
from ciss.runs import run as runs_run
from ciss.runs.check import check
from ciss.runs.results import read
from ciss.runs.run import Run, resolve
from ciss.store import files
from ciss.store.files import Locked
from ciss.study import launch, plan_runs, process
from ciss.study.crew import Crew
from ciss.study.process import RunFailed
from ciss.study.tune import published, training

# The messages of `training.log.DivergenceError`.
DIVERGED = re.compile(r"the loss is not finite after|weights are not after this epoch")
POLL = 1.0  # seconds between two looks at a run that an orphan of a killed command trains


@dataclass
class Trainer:
    """Trains the runs of trials, each in a process of its own. Every trial has a parameter file.

    Args:
        settings: the parameter file of the benchmark.
        benchmark, seed: what the trials are of.
        folder: where trials, runs and results of this benchmark and seed go.
        jobs, devices: see `Crew`.
    """

    settings: Config
    benchmark: str
    seed: int
    folder: Path
    jobs: int = 1
    devices: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.files: dict[str, Config] = {}  # the parameter file of each run
        self.crew = Crew(self.jobs, self.devices, {}, self._finished, lambda name: self._command(name))
        place = f"{self.settings.file}: benchmarks.{self.benchmark}"
        self.steps = runs_run.steps(self.settings.benchmarks[self.benchmark], place) - 1

    def write(self, method: str, number: int, coefficients: dict[str, Any]) -> Config:
        """Writes and checks the parameter file of a trial. Raises ConfigError for what its benchmark does not allow.

        A base step of the method's own has the published coefficients, so that all trials share it.
        """
        section = f"{method}-{number}"
        benchmark = self.settings.benchmarks[self.benchmark]
        methods = {"finetune": {}, section: coefficients}
        if own := plan_runs.own_base(methods, section):
            methods[own] = published.coefficients(own, benchmark)
        document = {
            "benchmarks": {self.benchmark: json.loads(json.dumps(asdict(benchmark)))},
            **{"methods": methods, "bases": {}, "joints": {}, "chain": {}, "ends": {}},
            "output": str(self.folder),
        }
        plan_runs.add_runs(document, self.benchmark, self.seed, self.steps + 1, [section], joint=False)
        file = self.folder / "trials" / f"{section}.yaml"
        text = _yaml(document)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            files.write_text(file, text)
        settings = config.load(file)
        check(settings)
        self.files |= dict.fromkeys(settings.runs(), settings)
        return settings

    def run(self, method: str, number: int, step: int) -> str:
        return f"{self.benchmark}-s{self.seed}-{method}-{number}-{step}"

    def bases(self, methods: Iterable[str]) -> list[str]:
        """The base steps that the trials of methods continue; most methods share one. Trial 0 of each was written."""
        return list(dict.fromkeys(self._run(self.run(method, 0, 1)).after for method in methods))

    def train(self, name: str) -> None:
        """Trains a run that is missing. Raises RunFailed, also if the command is being stopped."""
        self.crew.train_one(name)
        if self.crew.stopped:
            raise RunFailed("stopped")

    def scores(self, name: str) -> dict[str, float]:
        """all, old and new on the hold-out set at the end of a run."""
        return holdout_scores(read(self._run(name)))

    def remove_checkpoints(self, method: str, number: int) -> None:
        """Removes the checkpoints of a finished trial. Its results stay."""
        for step in range(1, self.steps + 1):
            run = self._run(self.run(method, number, step))
            for folder in (run.folder, run.resume):
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, name: str) -> Run:
        return resolve(self.files[name], name)

    def _command(self, name: str) -> list[str]:
        arguments = process.command(self.files[name].file, name)
        start = arguments.index("ciss")
        return [*arguments[:start], training.__name__, *arguments[start + 2 :]]  # instead of `ciss train`

    def _finished(self, name: str) -> bool:
        """Whether a run is trained. Waits for a process of a killed command that still trains it."""
        waiting = False
        while not self.crew.stopped:
            try:
                return launch.finished(self._run(name))
            except Locked as error:
                if not waiting:
                    print(f"{name}: {error}", flush=True)
                waiting = True
                time.sleep(POLL)
            except launch.USER_ERRORS:
                return False  # its process says why
        return False


def _yaml(document: dict) -> str:
    buffer = io.StringIO()
    documents.round_trip_yaml().dump(document, buffer)
    return buffer.getvalue()


def diverged(message: str) -> bool:
    """Whether a training failed because a loss or weight was not finite."""
    return bool(DIVERGED.search(message))


def attempt_all_steps(trainer: Trainer, method: str, attempt: Any, coefficients: dict[str, Any]) -> None:
    """Trains the steps of a trial and ends it: complete, pruned, diverged or refused. Raises RunFailed.

    Args:
        attempt: a `search.Attempt`.
        coefficients: all of the method.
    """
    number = attempt.number
    try:
        trainer.write(method, number, coefficients)
    except ConfigError as error:
        attempt.stop("refused", str(error))
        return
    for step in range(1, trainer.steps + 1):
        name = trainer.run(method, number, step)
        try:
            trainer.train(name)
        except RunFailed as error:
            if not diverged(str(error)):
                raise RunFailed(f"{name}: {error}") from None
            attempt.stop("diverged", str(error))
            break
        attempt.report(step, trainer.scores(name))
        if step < trainer.steps and attempt.should_prune():
            attempt.stop("pruned")
            break
    else:
        attempt.complete()
    trainer.remove_checkpoints(method, number)
