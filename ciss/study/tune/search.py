"""The trials of one method in Optuna's storage: what is tried next, what was measured, and who works on it.

Interruption: a trial of a killed process stays "running" in the storage. The lock of its number is free, so the next
process takes it over, with the same values. A new trial is made only if no such trial is left.

Proposals: each value is drawn by a sampler of its own, whose seed is made from the study, the number of the trial and
the name of the coefficient. With one worker the trials before it are the same after interruptions, and so is the value.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ciss import documents
from ciss.config import ConfigError
from ciss.data.loaders import stable_seed
from ciss.ranges import Choices, Range, plain

DATABASE = "trials.db"
STARTUP = 5  # finished trials with a score after a step, before a trial is pruned after this step
RANDOM = 10  # finished trials before values depend on scores
WAIT = 120  # seconds that a process waits for another's transaction
DIGITS = 3  # significant digits of a tried number
STORAGE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
optuna.logging.set_verbosity(optuna.logging.WARNING)


class PublishedFirst(BaseSampler):
    """Trial 0 has the published values. The other values are those of Optuna's TPE sampler, rounded.

    Args:
        study: a text that the random numbers depend on.
        published: the values of trial 0, as Optuna stores them.
    """

    def __init__(self, study: str, published: Mapping[str, Any]):
        self.study, self.published = study, published

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        if trial.number == 0:
            return self.published[name]
        seed = stable_seed("tune", self.study, trial.number, name) % 2**32
        sampler = TPESampler(n_startup_trials=RANDOM, multivariate=False, seed=seed)
        value = sampler.sample_independent(study, trial, name, distribution)
        if isinstance(distribution, FloatDistribution):
            value = min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)
        return value


class BelowMedian(BasePruner):
    """Prunes a trial whose score so far is below the median of the finished trials after the same step.

    Optuna's MedianPruner compares a trial's best score over its steps. mIoU falls from step to step, so that this would
    be the score of the first step.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        scores = [other.intermediate_values[step] for other in finished if step in other.intermediate_values]
        scores = [score if score == score else float("-inf") for score in scores]  # NaN: diverged
        return len(scores) >= STARTUP and trial.intermediate_values[step] < median(scores)


@dataclass
class Attempt:
    """A trial that this process works on."""

    trial: Trial
    coefficients: dict[str, Any]  # those that are tuned

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def scores(self) -> list[dict[str, float]]:
        """all, old and new on the hold-out set after each step."""
        return self.trial.user_attrs.get("scores", [])

    def report(self, step: int, scores: dict[str, float]) -> None:
        """Stores the scores after a step. They are stored once, also if an earlier process reported them."""
        if len(self.scores) < step:
            self.trial.set_user_attr("scores", [*self.scores, scores])
        mean = sum(score["all"] for score in self.scores[:step]) / step
        if step not in self._stored().intermediate_values:
            self.trial.report(mean, step)

    def should_prune(self) -> bool:
        return self.trial.should_prune()

    def complete(self) -> None:
        mean = sum(score["all"] for score in self.scores) / len(self.scores)
        self.trial.study.tell(self.trial, mean)

    def stop(self, state: str, reason: str = "") -> None:
        """Ends the trial without a value. `state`: pruned, diverged or refused."""
        self.trial.set_user_attr("state", state)
        self.trial.set_user_attr("reason", reason)
        step = len(self.scores) + 1
        if state != "pruned" and step not in self._stored().intermediate_values:
            self.trial.report(float("nan"), step)
        self.trial.study.tell(self.trial, state=TrialState.PRUNED)

    def _stored(self) -> FrozenTrial:
        return self.trial.study.get_trials(deepcopy=False)[self.number]


class Search:
    """The trials of one method, of one benchmark and seed.

    Args:
        folder: that of the benchmark and seed.
        method: a method or variant.
        space: what is tried, by coefficient.
        published: the published values of these coefficients.
        identity: what all trials have in common, as plain values.

    Raises ConfigError if the stored trials have another identity.
    """

    def __init__(self, folder: Path, method: str, space: dict[str, Range | Choices], published: dict, identity: dict):
        self.folder, self.method, self.space, self.published = folder, method, space, published
        self.locks = folder / "locks"
        self.locks.mkdir(parents=True, exist_ok=True)
        with self._exclusive():
            self.storage = open_storage(folder)
            sampler = PublishedFirst(f"{folder.name} {method}", self._texts(published))
            options = {"sampler": sampler, "pruner": BelowMedian(), "direction": "maximize"}
            self.study = optuna.create_study(study_name=method, storage=self.storage, load_if_exists=True, **options)
            ranges = {name: str(entry) for name, entry in space.items()}
            wanted = json.loads(json.dumps({**identity, "ranges": ranges, "published": published}))
            stored = self.study.user_attrs.get("identity")
            if stored is None:
                self.study.set_user_attr("identity", wanted)
            elif different := documents.differences(stored, wanted):
                raise ConfigError(
                    f"{folder / DATABASE}: the trials of {method} were made with other values: "
                    f"{'; '.join(different)}. Restore them, or move {folder} away to start again."
                )

    @contextmanager
    def claim(self, trials: int) -> Iterator[Attempt | None]:
        """A trial that nobody works on: one that was interrupted, or else a new one. None if there are enough.

        Args:
            trials: the number of trials of the study, those of earlier commands included.
        """
        with self._exclusive():
            claimed = self._interrupted() or self._new(trials)
        if claimed is None:
            yield None
            return
        trial, lock = claimed
        try:
            values = {name: self._suggest(trial, name) for name in self.space}
            yield Attempt(trial, values)
        finally:
            lock.release()

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def importances(self) -> dict[str, float]:
        """The share of each coefficient in the variance of the complete trials; empty if they are too few or equal."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        if len(complete) < 3 or len({trial.value for trial in complete}) == 1:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {name: float(shares[name]) for name in self.space if name in shares}

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """The tuned coefficients of a trial, as in a parameter file."""
        return {name: self._plain(name, trial.params[name]) for name in self.space if name in trial.params}

    def _exclusive(self) -> FileLock:
        return FileLock(self.locks / f"{self.method}.lock")

    def _interrupted(self) -> tuple[Trial, FileLock] | None:
        study = self.storage.get_study_id_from_name(self.method)
        for stored in self.trials():
            if stored.state != TrialState.RUNNING or not (lock := self._lock(stored.number)):
                continue
            if self.trials()[stored.number].state == TrialState.RUNNING:
                trial = self.storage.get_trial_id_from_study_id_trial_number(study, stored.number)
                return Trial(self.study, trial), lock
            lock.release()  # another worker has ended the trial since the trials were read
        return None

    def _new(self, trials: int) -> tuple[Trial, FileLock] | None:
        if len(self.trials()) >= trials:
            return None
        trial = self.study.ask()
        lock = self._lock(trial.number)
        assert lock is not None, "the lock of a new trial is free"
        return trial, lock

    def _lock(self, number: int) -> FileLock | None:
        """The lock of a trial, which the system releases if its process ends; None if somebody has it."""
        lock = FileLock(self.locks / f"{self.method}-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def _suggest(self, trial: Trial, name: str) -> Any:
        entry = self.space[name]
        if isinstance(entry, Range):
            return trial.suggest_float(name, entry.low, entry.high, log=entry.log)
        return self._plain(name, trial.suggest_categorical(name, [_text(value) for value in entry.values]))

    def _texts(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: _text(values[name]) if isinstance(self.space[name], Choices) else values[name] for name in values}

    def _plain(self, name: str, stored: Any) -> Any:
        entry = self.space[name]
        if isinstance(entry, Range):
            return stored
        return next(plain(value) for value in entry.values if _text(value) == stored)


def open_storage(folder: Path) -> RDBStorage:
    """Optuna's storage of a folder, an SQLite file: a transaction that a killed process left is undone."""
    return RDBStorage(f"sqlite:///{folder / DATABASE}", engine_kwargs={"connect_args": {"timeout": WAIT}})


def is_damaged(error: Exception) -> bool:
    """Whether the file is no database or a part of it is missing. Otherwise the disk, permissions or a lock hinder."""
    return not isinstance(_cause(error), sqlite3.OperationalError)


def reason(error: Exception) -> str:
    """The words of SQLite for an error of the storage, without the statement."""
    return str(_cause(error)).splitlines()[0]


def _cause(error: BaseException) -> BaseException:
    while not isinstance(error, sqlite3.Error) and (inner := error.__cause__ or error.__context__):
        error = inner
    return error


def _text(value: Any) -> str | bool | int | float | None:
    """A choice as Optuna stores it: lists as JSON."""
    value = plain(value)
    return json.dumps(value) if isinstance(value, list) else value


def stored_methods(folder: Path) -> list[str]:
    """The methods with trials in a folder."""
    if not (folder / DATABASE).is_file():
        return []
    return [study.study_name for study in optuna.get_all_study_summaries(open_storage(folder)) if study.n_trials]
