"""The jobs of Slurm's queue, as `squeue` and `scontrol` tell. No accounting database is asked."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

UNREACHABLE = "DependencyNeverSatisfied"  # the reason of a job that Slurm is about to remove


class SlurmError(Exception):
    """A command of Slurm that is missing or failed, with its own words."""


@dataclass(frozen=True)
class Job:
    """A job that waits or runs.

    Args:
        state: Slurm's word, such as PENDING.
        reason: why it waits, Slurm's word.
        node: where it runs.
        folder: of the run that it trains.
    """

    id: str
    state: str
    reason: str
    node: str
    folder: str

    @property
    def waits(self) -> bool:
        return self.state == "PENDING"


def jobs() -> dict[str, Job]:
    """This user's jobs that wait or run, by the folder of their run. Raises SlurmError."""
    listed = {}
    for line in ask("squeue", "--me", "--noheader", "--format=%i|%T|%r|%N|%k").splitlines():
        job = Job(*line.split("|", maxsplit=4))
        if job.reason != UNREACHABLE:
            listed[job.folder] = job
    return listed


def last_state(job_id: str) -> str | None:
    """Slurm's word for the state of a job that ended some minutes ago; None once Slurm has forgotten it."""
    try:
        found = re.search(r"\bJobState=(\S+)", ask("scontrol", "--oneliner", "show", "job", job_id))
    except SlurmError:
        return None
    return found[1] if found else None


def cancel(job_ids: Iterable[str]) -> None:
    """Removes jobs from the queue; running ones end. Raises SlurmError."""
    if job_ids := list(job_ids):
        ask("scancel", *job_ids)


def ask(*command: str) -> str:
    """The output of a command. Raises SlurmError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not installed. Run this command on a machine with Slurm.") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within two minutes. Try again.") from None
    if done.returncode:
        raise SlurmError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
