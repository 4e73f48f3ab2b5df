"""`ciss train --slurm`, `--status` and `--cancel`: the runs of a parameter file as jobs of Slurm."""

import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

from filelock import FileLock

from ciss import config, paths
from ciss.config import Config, ConfigError
from ciss.documents import counted
from ciss.runs.run import Run, resolve
from ciss.study import launch
from ciss.study.slurm import queue, resources, status
from ciss.study.slurm.queue import SlurmError
from ciss.study.slurm.resources import Resources
from ciss.training.loop import STATE, USER_ERRORS

ERRORS = (*USER_ERRORS, SlurmError)
SIGNAL_SECONDS = 60  # before the time limit, when a job is told to queue itself again
TRIES = 1_000_000  # as many as a run needs: `Training.checkpoint` ends a run that makes no progress


def main(option: str, runs: list[str], config_file: str, slurm: list[str] | None, write: bool) -> None:
    """Does what an option of `ciss train` asks for.

    Args:
        option: --slurm, --status or --cancel.
        runs: names, or none for all runs of the file.
        slurm: the values of --slurm: a file with resources, or "".
        write: whether to write that file instead of queueing.
    """
    file, *others = slurm or [""]
    try:
        if others or (file and Path(file).suffix not in (".yaml", ".yml")):
            text = f"--slurm takes one FILE.yaml, but found {' '.join(slurm)}. Write names of runs before --slurm."
            raise ConfigError(text)
        file = file or "cluster.yaml"
        if option == "--status":
            show_status(runs, config_file)
        elif option == "--cancel":
            cancel(runs, config_file)
        elif write:
            added = resources.write(_absolute(file), config.load(config_file))
            text = f"sections added: {', '.join(added) or 'none'}"
            print(f"{file}: {text}. Check the numbers, then run: ciss train --slurm")
        else:
            submit(runs, config_file, file)
    except ERRORS as error:
        sys.exit(f"error: {error}")


def submit(runs: list[str], config_file: str, cluster_file: str) -> None:
    """Queues the runs that are missing or outdated and not in the queue. Prints a summary."""
    settings, names = launch.prepared(runs, config_file)
    asked = resources.read(_absolute(cluster_file), settings, {settings.runs()[name].benchmark for name in names})
    logs = status.log_folder((paths.project() / settings.output).resolve())
    logs.mkdir(parents=True, exist_ok=True)
    with FileLock(logs / "lock"):  # two of these commands at once would queue runs twice
        queued, present, kept = _submit(settings, names, asked)
    print(f"{len(queued)} of {len(names)} runs queued, {len(kept)} were in the queue, {len(present)} are trained.")
    print("See them: ciss train --status" if queued or kept else "Next: dvc repro")


def _submit(settings: Config, names: list[str], asked: dict[str, Resources]) -> tuple[list[str], list[str], list[str]]:
    """Queues runs. Returns names: queued now, trained before, in the queue before."""
    live = queue.jobs()
    queued: dict[str, str] = {}  # job ids by run
    present, kept = [], []
    for name in names:  # each after the one that it continues
        run = resolve(settings, name)
        job = live.get(str(run.folder))
        before = live.get(str(run.before.folder)) if run.before else None
        after = queued.get(run.after) or (before.id if before else None)
        if job and run.after not in queued:
            kept.append(name)
            continue
        if not after and launch.trained(settings, name):
            present.append(name)
            continue
        if run.before and not after and run.after not in present and not launch.trained(settings, run.after):
            raise ConfigError(f"{name} continues {run.after}, which is neither trained nor queued. Name both.")
        if job:  # it waits for an earlier training of the run that it continues
            queue.cancel([job.id])
        queued[name] = _submit_run(run, asked[run.benchmark], after)
        print(f"{name}: job {queued[name]}" + (f" after {run.after}" if after else ""), flush=True)
    return list(queued), present, kept


def _submit_run(run: Run, asked: Resources, after: str | None) -> str:
    """Queues a run, after the job of the one that it continues. Returns the job's id. Raises SlurmError."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    from ciss.study.slurm.job import Training  # stored by its name: the job imports it from the project

    if not shutil.which("sbatch"):
        raise SlurmError("sbatch is not installed. Run this command on a machine with Slurm.")
    options = {
        **asked.options,
        "chdir": str(paths.project()),
        "comment": str(run.folder),  # how `queue.jobs` knows the run
        "requeue": True,
    }
    if after:  # if that job fails, this one is removed from the queue
        options |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    executor = SlurmExecutor(status.log_folder(run.root, run), max_num_timeout=TRIES)
    executor.update_parameters(
        job_name=run.name,
        time=max(1, round(60 * asked.hours)),
        nodes=asked.nodes,
        ntasks_per_node=1,
        cpus_per_task=asked.cpus,
        mem=None if asked.memory is None else f"{round(1024 * asked.memory)}M",
        gpus_per_node=asked.gpus or None,
        partition=asked.partition,
        account=asked.account,
        setup=list(asked.setup),
        signal_delay_s=SIGNAL_SECONDS,
        additional_parameters=options,
        srun_args=["--kill-on-bad-exit=1"],  # of several nodes, none waits for one that failed
    )
    processes = asked.processes(run.settings.train.processes)
    work = Training(run.name, run.config, run.resume / STATE, asked.nodes, processes, limit=3600 * asked.hours)
    slurm_conf = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
    try:
        # clean_env: of a job that this command may run in. The error below has what submitit prints.
        with clean_env(), redirect_stderr(io.StringIO()):
            os.environ.update(slurm_conf)
            return executor.submit(work).job_id
    except (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError) as error:
        raise SlurmError(f"{run.name}: sbatch refused the job. Correct cluster.yaml. {error}") from None


def cancel(runs: list[str], config_file: str) -> None:
    """Removes runs, and all that continue them, from the queue."""
    settings = config.load(config_file)
    names = {resolve(settings, name).name for name in runs or settings.runs()}
    for name in launch.order(settings):  # predecessors first
        if name in settings.chain and settings.chain[name].after in names:
            names.add(name)
    live = queue.jobs()
    jobs = [job for name in names if (job := live.get(str(resolve(settings, name).folder)))]
    queue.cancel(job.id for job in jobs)
    print(f"{counted(len(jobs), 'run')} removed from the queue. To queue them again: ciss train --slurm")


def show_status(runs: list[str], config_file: str) -> None:
    """Prints a line for each run, and a summary. Without an answer of Slurm, what the files of the runs tell."""
    settings = config.load(config_file)
    wanted = {resolve(settings, name).name for name in runs or settings.runs()}
    try:
        live = queue.jobs() if shutil.which("squeue") else None
    except SlurmError as error:
        live = None
        print(f"Slurm does not answer; jobs that wait or run are not known. {error}", file=sys.stderr)
    print(status.table([status.describe(settings, name, live) for name in settings.runs() if name in wanted]))


def _absolute(file: str) -> Path:
    return paths.project() / file
