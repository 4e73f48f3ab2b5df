"""Trains several runs of a parameter file on this machine, each in its own process: `ciss train --jobs 2`."""

import os
import signal
import sys
from functools import partial

import torch

from ciss import config, paths, updates
from ciss.config import Config, ConfigError
from ciss.data import prepare
from ciss.documents import counted
from ciss.processor import available_cores
from ciss.runs import results as runs_results
from ciss.runs.check import check
from ciss.runs.results import keep, recover
from ciss.runs.run import Run, index_folder, predecessor, resolve, steps
from ciss.store import files
from ciss.study.crew import Crew
from ciss.study.estimate.command import print_comparison
from ciss.study.process import command
from ciss.study.watch.terminal import Terminal
from ciss.training.loop import USER_ERRORS, training_identity

# Signals of a scheduler or a closed terminal. Windows lacks the last two.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]


def crew(settings: Config, jobs: int, devices: list[str], processes: int = 1) -> Crew:
    """What trains the runs of a parameter file, `jobs` at a time, each in `processes` processes on some `devices`."""
    torchrun = ("--standalone", f"--nproc-per-node={processes}") if processes > 1 else ()
    after = {name: run.after for name, run in settings.chain.items()}
    return Crew(jobs, devices, after, partial(trained, settings), lambda name: command(settings.file, name, *torchrun))


def trained(settings: Config, name: str) -> bool:
    """Whether a run is trained. False after an error, which the process of the run reports."""
    try:
        return finished(resolve(settings, name))
    except USER_ERRORS:
        return False


def finished(run: Run) -> bool:
    """Whether the run is trained with these parameters, this code, data and teacher.

    A finished run is also kept where no pipeline removes it; one that a pipeline removed is put back. Raises OSError,
    DataError, CheckpointError, and Locked while another process trains the run.
    """
    identity = training_identity(run, run.index())
    with files.exclusive(run.resume / "lock", run.name):
        complete = runs_results.finished(run, identity) or recover(run, identity)
        if complete:
            keep(run, identity)
    return complete


def order(settings: Config) -> list[str]:
    """All runs. Those with the longest chain of runs behind them, counted in steps, come first."""
    behind = dict.fromkeys(settings.runs(), 1)
    for name, joint in settings.joints.items():  # joint training takes as long as all steps
        behind[name] = steps(settings.benchmarks[joint.benchmark], f"{settings.file}: benchmarks.{joint.benchmark}")
    for name in settings.chain:
        length = 1
        while name in settings.chain:
            name, length = settings.chain[name].after, length + 1
            behind[name] = max(behind[name], length)
    return sorted(settings.runs(), key=lambda name: -behind[name])


def gpus(per_run: int = 1) -> list[str]:
    """The GPUs of each run, as values of CUDA_VISIBLE_DEVICES: groups of `per_run`. Too few for a group: no group."""
    count = torch.cuda.device_count()  # reads the variable as CUDA does
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = map(str, range(count)) if named is None else named.split(",")
    names = [device.strip() for device in devices][:count]
    return [",".join(names[start : start + per_run]) for start in range(0, count - per_run + 1, per_run)]


def crowded(settings: Config, jobs: int, cores: int) -> str | None:
    """A remark if the jobs have more threads than there are cores."""
    threads = max(benchmark.train.threads * benchmark.train.processes for benchmark in settings.benchmarks.values())
    if jobs == 1 or jobs * threads <= cores:
        return None
    problem = f"{jobs} jobs of {counted(threads, 'thread')} on {counted(cores, 'core')} wait for each other"
    return f"{problem}. Take fewer, or train.threads=1."


def main(runs: list[str], config_file: str, jobs: int | None, per_run: int | None = None) -> None:
    """Trains the runs that are missing or outdated, and prints a summary. Exits with messages if runs fail.

    Args:
        runs: names, or none for all runs of the file. The runs they continue are among them, or trained.
        config_file: the parameter file.
        jobs: runs at a time; None: as many as the GPUs are enough for, or one.
        per_run: GPUs of one run; None: `train.processes` of the file.
    """
    handle_signals()
    try:
        settings, names = prepared(runs, config_file)
        require_predecessors(settings, names)
        processes = gpus_per_run(settings, per_run)
        devices = gpus(processes)
        jobs = jobs or max(1, len(devices))
        if not torch.cuda.is_available() and (remark := crowded(settings, jobs, available_cores())):
            print(remark, flush=True)
        with Terminal(settings, names):
            done, failed = crew(settings, jobs, devices, per_run or 1).train(names)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on after the last finished epoch of each run.", file=sys.stderr)
        sys.exit(130)
    present = len(names) - len(done) - len(failed)
    summary = f"{len(done)} of {len(names)} runs trained, {present} were trained before"
    if failed:
        print(f"{summary}, {len(failed)} failed:", flush=True)
        sys.exit("\n".join(f"error: {name}: {message}" for name, message in failed.items()))
    print_comparison(names, config_file, only_sum=True)
    print(f"{summary}. Next: dvc repro")


def prepared(runs: list[str], config_file: str) -> tuple[Config, list[str]]:
    """The checked parameter file, and the names of the chosen runs (none: of all) in the order of training.

    Prepares the data of their benchmarks.
    """
    settings = config.load(config_file)
    check(settings)
    wanted = {resolve(settings, name).name for name in runs or settings.runs()}
    names = [name for name in order(settings) if name in wanted]
    root = (paths.project() / settings.output).resolve()
    for name in dict.fromkeys(settings.runs()[name].benchmark for name in names):
        folder = index_folder(root, name)
        prepare(settings.benchmarks[name], folder, progress=not folder.is_dir())  # later, few images are read
    return settings, names


def require_predecessors(settings: Config, names: list[str]) -> None:
    """Raises ConfigError for runs that continue a run which is neither among them nor trained."""
    lines = []
    for name in names:
        run = resolve(settings, name)
        if not run.before or run.after in names:
            continue
        if not predecessor(run).is_file() and not trained(settings, run.after):
            lines.append(f"{name} continues {run.after}, which is not trained. Name both, or none for all runs.")
    if lines:
        raise ConfigError("\n".join(lines))


def gpus_per_run(settings: Config, wanted: int | None) -> int:
    """How many GPUs each run takes. Raises ConfigError if the machine has fewer, if `train.processes` differs, or if a
    batch does not divide among them.

    Args:
        wanted: the number asked for; None: `train.processes`.
    """
    planned = max(benchmark.train.processes for benchmark in settings.benchmarks.values())
    if wanted is None:
        return planned
    if planned not in (1, wanted):
        raise ConfigError(f"--per-run {wanted}: train.processes is {planned}. Make them equal, or leave --per-run out.")
    if (present := torch.cuda.device_count()) < wanted:
        remedy = f"Take at most {present}" if present else "Leave --per-run out"
        raise ConfigError(f"--per-run {wanted}: this machine has {present} GPUs. {remedy}.")
    for name, benchmark in settings.benchmarks.items():
        updates.require_divided(
            benchmark.train.batch, wanted, f"--per-run {wanted}: {settings.file}: benchmarks.{name}"
        )
    return wanted


def handle_signals() -> None:
    """Treats every signal to stop as Ctrl-C. A shell lets its background jobs ignore Ctrl-C, and so their processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as set by nohup
            signal.signal(number, signal.default_int_handler)
