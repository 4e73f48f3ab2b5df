"""What became of each run, in the words of the plan: trained, training, queued, failed, stopped or missing."""

import re
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from ciss.config import Config
from ciss.documents import counted
from ciss.runs import live as runs_live
from ciss.runs import results as runs_results
from ciss.runs.live import Curve
from ciss.runs.run import Run, resolve
from ciss.study import process
from ciss.study.slurm import TRY, queue
from ciss.study.slurm.queue import Job
from ciss.training.loop import USER_ERRORS, training_identity

EPOCH = re.compile(r": epoch (\d+/\d+):")
BY_USER = "stopped by the user"  # see `Curves`
STOPPED, FAILED = "stopped", "failed"
TOO_MUCH = "cancel it, correct cluster.yaml, and queue it again"
REASONS = {  # Slurm's words for why a job waits
    "Resources": "waits for a free node",
    "Priority": "waits for jobs of higher priority",
    "BeginTime": "starts again in a few minutes",
    "JobHeldUser": "held; release it with scontrol release",
    "PartitionConfig": f"no node of its partition has what it asks for: {TOO_MUCH}",
    "BadConstraints": f"no node has what it asks for: {TOO_MUCH}",
    "PartitionTimeLimit": f"asks for more hours than its partition allows: {TOO_MUCH}",
    "PartitionNodeLimit": f"asks for more nodes than its partition allows: {TOO_MUCH}",
}


@dataclass(frozen=True)
class Row:
    """A line of the table. `state`: one word; `details`: the rest."""

    run: str
    state: str
    job: str = ""
    details: str = ""


def log_folder(root: Path, run: Run | None = None) -> Path:
    """Where jobs write what they print; of one run, or of all."""
    folder = root / "runs" / ".slurm"
    return folder / run.benchmark / run.name if run else folder


def describe(settings: Config, name: str, live: dict[str, Job] | None) -> Row:
    """The state of a run. Takes no lock, so that no job finds the run locked.

    Args:
        live: jobs by the folder of their run; None: there is no Slurm.
    """
    run = resolve(settings, name)
    if live and (job := live.get(str(run.folder))):
        return _of_job(run, job, live)
    if _trained(run):
        return Row(name, "trained")
    if owner := trainer(run):
        return Row(name, "training", details=owner)
    return _ended(run, live)


def _of_job(run: Run, job: Job, live: dict[str, Job]) -> Row:
    if not job.waits:
        epochs = EPOCH.findall(_log(run, job.id, "out") or "")
        return Row(run.name, "training", job.id, f"epoch {epochs[-1]}, on {job.node}" if epochs else f"on {job.node}")
    if run.before and str(run.before.folder) in live and job.reason == "Dependency":
        return Row(run.name, "queued", job.id, f"after {run.after}")
    return Row(run.name, "queued", job.id, REASONS.get(job.reason, job.reason))


def _trained(run: Run) -> bool:
    try:
        return runs_results.finished(run, training_identity(run, run.index()))
    except USER_ERRORS:
        return False


def trainer(run: Run) -> str:
    """The process that trains a run outside of Slurm; empty if there is none. A killed one leaves its file behind."""
    try:
        number, host = (run.resume / "lock.pid").read_text(encoding="utf-8").split()
        ended = bool(_job_ids(run)) if host != socket.gethostname() else not psutil.pid_exists(int(number))
    except (OSError, ValueError):
        return ""
    return "" if ended else f"process {number} on {host}"


def _job_ids(run: Run) -> list[str]:
    """Ids of the jobs that were ever queued for a run, the last one at the end."""
    submissions = log_folder(run.root, run).glob("*_submission.sh")
    return sorted((file.name.partition("_")[0] for file in submissions), key=int)


def ended_early(curve: Curve) -> tuple[str, str]:
    """State and details of a training that ended without a result: STOPPED or FAILED, and after which epoch."""
    after = f"after epoch {curve.trained[-1]['epoch'] if curve.trained else 0} of {curve.about['epochs']}"
    if curve.message and curve.message != BY_USER:
        return FAILED, f"{after}: {curve.message}"
    return STOPPED, f"{after}: {curve.message or 'its process ended without a message; it may have been killed'}"


def _ended(run: Run, live: dict[str, Job] | None) -> Row:
    """The state of a run that is neither trained nor in the queue, from the log of its last job or its curve."""
    if not (ids := _job_ids(run)):
        curve = runs_live.read(runs_live.folder(run.root, run.benchmark, run.name))
        if curve and not curve.result:
            state, details = ended_early(curve)
            return Row(run.name, state, details=details)
        return Row(run.name, "missing", details="not trained, not queued")
    job_id = ids[-1]
    log = _log(run, job_id, "err")
    if log is None:
        return Row(run.name, "missing", job_id, f"its job was removed before it began{_reason(run, live)}")
    ended = queue.last_state(job_id) if live is not None else None
    if ended == "CANCELLED":
        return Row(run.name, "stopped", job_id, "its job was cancelled")
    return Row(run.name, "failed", job_id, _message(run, log.rpartition(TRY)[2].partition("\n")[2]))


def _reason(run: Run, live: dict[str, Job] | None) -> str:
    before = run.before
    waits = before and live and str(before.folder) in live
    return "" if not before or waits or _trained(before) else f": {run.after} is not trained"


def _message(run: Run, log: str) -> str:
    """The message of a training in one line; without one, the last line that its job printed."""
    first, *others = process.message(log).strip().splitlines() or ["ended without a message"]
    return first.removeprefix(f"{run.name}: ") if process.ERROR.search(log) else [first, *others][-1]


def _log(run: Run, job_id: str, kind: str) -> str | None:
    """What a job printed, on its first node if there are several; None if it never began."""
    try:
        return (log_folder(run.root, run) / f"{job_id}_0_log.{kind}").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def table(rows: list[Row]) -> str:
    """A line for each run, and how many there are of each state."""
    widths = [max(len(getattr(row, column)) for row in rows) for column in ("run", "state", "job")]
    lines = []
    for row in rows:
        cells = (row.run, row.state, row.job)
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True) if width]
        lines.append("  ".join([*padded, row.details]).rstrip())
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    return "\n".join([*lines, f"{counted(len(rows), 'run')}: {states}"])
