"""What became of each run of a plan, from the files of the runs, and how long the others will take."""

import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from ciss.config import Config
from ciss.documents import counted
from ciss.runs import live
from ciss.runs import results as runs_results
from ciss.runs.live import Curve
from ciss.runs.run import Run, predecessor, resolve
from ciss.study.slurm import queue, status
from ciss.study.slurm.queue import Job, SlurmError
from ciss.study.slurm.status import FAILED, STOPPED
from ciss.training.loop import USER_ERRORS, training_identity

DONE, RUNNING, QUEUED, TO_COME = "done", "running", "queued", "to come"
QUEUE_SECONDS = 30.0  # from one question to Slurm to the next


@dataclass
class Row:
    """One run of the plan.

    Args:
        number: of the run in the plan, from 1.
        state: DONE, RUNNING, QUEUED, STOPPED, FAILED or TO_COME.
        curve: of its last training here; None: it was never trained here.
        scores: of the finished run, or the newest of the running one; empty: none.
        left: seconds until it is trained, if it runs alone; None: not known.
        details: a remark on the state.
        earlier: the curve of a training with other values, which tells how long the run takes.
    """

    run: Run
    number: int
    state: str
    curve: Curve | None
    scores: dict
    left: float | None = None
    details: str = ""
    earlier: Curve | None = None

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def step(self) -> str:
        last = self.curve.about["last_step"] if self.curve else len(self.run.classes.groups) - 1
        return live.step_title(self.run.step, last, self.run.joint)

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.curve.trained[-1]["epoch"] if self.curve and self.curve.trained else 0

    @property
    def seconds(self) -> float | None:
        """Seconds of the training so far, without interruptions."""
        if self.curve is None or not self.curve.trained:
            return None
        spent = sum(row.get("wall_seconds", 0.0) for row in self.curve.trained)
        return max(spent, self.curve.result.get("wall_seconds", 0.0))

    @property
    def rate(self) -> float | None:
        """Seconds for one image in one epoch, with scoring; None before the first epoch."""
        curve = self.curve or self.earlier
        walls = [row["wall_seconds"] for row in curve.trained if "wall_seconds" in row] if curve else []
        return mean(walls) / curve.about["images"] if walls else None


class Overview:
    """Reads the state of the runs of a parameter file. Takes no lock, so that no training finds its run locked.

    Args:
        settings: the parameter file.
        names: runs to show; None: all of the file.
    """

    def __init__(self, settings: Config, names: Iterable[str] | None = None):
        self.settings = settings
        self.runs = [resolve(settings, name) for name in (settings.runs() if names is None else names)]
        self._verdicts: dict[str, tuple[tuple, bool]] = {}
        self._images: dict[str, int | None] = {}
        self._jobs: dict[str, Job] = {}
        self._asked = -QUEUE_SECONDS

    def rows(self) -> list[Row]:
        """The runs as they are now, in the order of the file."""
        jobs = self._queue()
        rows = [self._row(number, run, jobs.get(str(run.folder))) for number, run in enumerate(self.runs, start=1)]
        for row in rows:
            row.left = 0.0 if row.state == DONE else self._left(row, rows)
        return rows

    def _row(self, number: int, run: Run, job: Job | None) -> Row:
        curve = live.read(live.folder(run.root, run.benchmark, run.name))
        if job and job.waits:
            return Row(run, number, QUEUED, None, {}, details=f"job {job.id}")
        if job or (owner := status.trainer(run)):
            current = curve if curve and not curve.result and not curve.message else None
            where = f"job {job.id}, on {job.node}" if job else owner
            return Row(run, number, RUNNING, current, current.last_score if current else {}, details=where)
        if self._trained(run):
            return Row(run, number, DONE, curve, _result_scores(run))
        if curve is None or curve.result:
            outdated = "trained before with other values" if (run.results / "result.json").is_file() else ""
            return Row(run, number, TO_COME, None, {}, details=outdated, earlier=curve)
        state, details = status.ended_early(curve)
        return Row(run, number, state, curve, curve.last_score, details=details)

    def _queue(self) -> dict[str, Job]:
        """Slurm's jobs by the folder of their run; none without Slurm."""
        if time.monotonic() - self._asked >= QUEUE_SECONDS and shutil.which("squeue"):
            self._asked = time.monotonic()
            try:
                self._jobs = queue.jobs()
            except SlurmError:  # what the files tell remains
                self._jobs = {}
        return self._jobs

    def _trained(self, run: Run) -> bool:
        """Whether the run is trained with these values. Files are read again only if one has changed."""
        before = predecessor(run)
        files = [run.results / "result.json", run.folder / "weights.safetensors", *([before] if before else [])]
        times = tuple(_changed(file) for file in files)
        if None in times[:2]:
            return False
        if self._verdicts.get(run.name, ((), False))[0] != times:
            try:
                verdict = runs_results.finished(run, training_identity(run, run.index()))
            except USER_ERRORS:
                verdict = False
            self._verdicts[run.name] = times, verdict
        return self._verdicts[run.name][1]

    def _left(self, row: Row, rows: list[Row]) -> float | None:
        """Seconds that a run still needs, as long as those of its method and benchmark took; None: none was measured.

        Other methods, and then other phases, of the benchmark stand in for what was not measured.
        """
        images = row.curve.about["images"] if row.curve else self._image_count(row.run)
        if images is None:
            return None
        peers = [other for other in rows if other.rate is not None and other.run.benchmark == row.run.benchmark]
        phase = [other for other in peers if bool(other.run.after) == bool(row.run.after)]
        method = [other for other in phase if other.run.method == row.run.method]
        for measured in ([row] if row.rate is not None else [], method, phase, peers):
            if measured:
                extra = [other.seconds - other.rate * other.curve.about["images"] * other.epoch
                         for other in peers if other.curve and other.curve.result]  # fmt: skip
                epochs = row.run.epochs - row.epoch
                rest = epochs * images * mean(other.rate for other in measured)
                return max(0.0, rest + max(0.0, median(extra) if extra else 0.0))
        return None

    def _image_count(self, run: Run) -> int | None:
        if run.name not in self._images:
            try:
                self._images[run.name] = len(run.images(run.index()))
            except USER_ERRORS:
                return None  # the data may be prepared meanwhile
        return self._images[run.name]


def time_left(rows: list[Row]) -> str:
    """How long all runs still take, in words, with as many at a time as run now."""
    ahead = [row for row in rows if row.state != DONE]
    if not ahead:
        return "all runs are done"
    known = {row.name: row.left for row in ahead if row.left is not None}
    if not known:
        return "time left: known after the first epoch"
    jobs = max(1, sum(row.state == RUNNING for row in ahead))
    chains = []
    for row in ahead:
        chain, run = 0.0, row.run
        while run is not None:
            chain, run = chain + known.get(run.name, 0.0), run.before
        chains.append(chain)
    text = f"{live.duration(max(sum(known.values()) / jobs, *chains))} left of all"
    unknown = len(ahead) - len(known)
    return f"{text}, without {counted(unknown, 'run')} not measured yet" if unknown else text


def counts(rows: list[Row]) -> str:
    """How many runs are in each state: "5 of 12 runs done, 1 running, 6 to come"."""
    states = [row.state for row in rows]
    others = (RUNNING, QUEUED, FAILED, STOPPED, TO_COME)
    parts = [f"{states.count(state)} {state}" for state in others if state in states]
    return ", ".join([f"{states.count(DONE)} of {len(rows)} runs done", *parts])


def last_message(rows: list[Row]) -> str:
    """The newest line of all trainings: why one stopped, or the scores of a finished one; empty without one."""
    ended = [row for row in rows if row.curve and row.state in (DONE, STOPPED, FAILED)]
    if not ended:
        return ""
    row = max(ended, key=lambda row: row.curve.time)
    return f"{row.name}  {live.sentence(row.scores)}" if row.state == DONE else f"{row.name}: {row.details}"


def _result_scores(run: Run) -> dict:
    try:
        return json.loads((run.results / "result.json").read_text(encoding="utf-8"))["scores"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _changed(file: Path) -> int | None:
    """When a file was changed, in nanoseconds; None if there is none."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return None
