"""What one job of Slurm does: it trains one run in a process of its own. Imports no torch."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission

from ciss.study.process import command, failure, interrupt
from ciss.study.slurm import TRY

END_SECONDS = 600.0  # within which Slurm ends a job that it told to end: its KillWait, or a partition's GraceTime


@dataclass
class Training:
    """The work of a job, which submitit stores in a file and calls on each node.

    Args:
        state: the file with the last finished epoch.
        processes: of the run on each node.
        limit: seconds of one try.
    """

    name: str
    config: str
    state: Path
    nodes: int
    processes: int
    limit: float

    def __call__(self) -> None:
        """Trains the run. Exits with status 1 if that fails."""
        self.started, self.saved = time.monotonic(), self._saved()
        self.told_to_end = False
        # Preemption begins with SIGTERM, and `scancel` too. Until Slurm ends the job, the training goes on.
        signal.signal(signal.SIGTERM, self._note)
        job = JobEnvironment()
        number = int(os.environ.get("SLURM_RESTART_COUNT", 0)) + 1
        print(f"{TRY}{job.job_id}, try {number}, on {job.hostname}", file=sys.stderr, flush=True)
        with subprocess.Popen(command(self.config, self.name, *self._torchrun(job)), preexec_fn=_ignore) as process:
            try:
                process.wait()
            except BaseException:  # the time limit
                interrupt(process)
                raise
        if process.returncode:
            if self.told_to_end:
                time.sleep(END_SECONDS)  # a job that fails before Slurm ends it is not tried again
            if process.returncode < 0:
                print(f"error: {failure(self.name, process.returncode, '')}", file=sys.stderr)
            sys.exit(1)

    def checkpoint(self) -> DelayedSubmission:
        """The work of the next try, which submitit asks for before the time limit and at a preemption.

        Exits with a message if the time limit is too short for one epoch, because every further try would be.
        """
        if self._saved() == self.saved and time.monotonic() - self.started > 0.5 * self.limit:
            hours = f"{self.limit / 3600:g} hours"
            sys.exit(f"error: no epoch ended within {hours}. Increase `hours` in cluster.yaml, and run it again.")
        return DelayedSubmission(replace(self))

    def _saved(self) -> int | None:
        """When the last finished epoch was saved, in nanoseconds; None without one."""
        try:
            return self.state.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _note(self, *_) -> None:
        self.told_to_end = True

    def _torchrun(self, job: JobEnvironment) -> list[str]:
        """Options of torchrun; none for one process."""
        if self.nodes == 1:
            return ["--standalone", f"--nproc-per-node={self.processes}"] if self.processes > 1 else []
        port = 20_000 + int(job.raw_job_id) % 20_000  # jobs that share a node have different ports
        return [
            f"--nnodes={self.nodes}",
            f"--node-rank={job.node}",
            f"--nproc-per-node={self.processes}",
            f"--master-addr={job.hostnames[0]}",
            f"--master-port={port}",
        ]


def _ignore() -> None:
    """Slurm signals all processes of a job. Only the one that stops the training shall hear them."""
    for name in ("SIGTERM", "SIGUSR2"):  # Windows, where this file is never imported, lacks the second
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
