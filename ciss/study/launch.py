"""Trains several runs of a parameter file, each in its own process: `ciss train --jobs 2`."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import cycle, islice
from queue import SimpleQueue

import torch

from ciss import config, paths
from ciss.config import Config
from ciss.data import prepare
from ciss.processor import available_cores
from ciss.runs import results as runs_results
from ciss.runs.check import check
from ciss.runs.results import file_hash, keep, recover
from ciss.runs.run import Run, index_folder, resolve, steps
from ciss.store import files
from ciss.training.loop import USER_ERRORS, predecessor

# Signals of a scheduler or a closed terminal. Windows lacks the last two, and SIGKILL.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
SIGKILL = getattr(signal, "SIGKILL", None)
ERROR = re.compile(r"^(?:process \d+ of \d+ on \S+: )?error: ", re.MULTILINE)  # the start of a training's message
LAST_LINES = 20  # of stderr, for a process that ends without a message
CHANGED = "ended, but is not what this file asks for: parameters or code changed meanwhile. Run the command again."


class Crew:
    """Processes that train runs, `jobs` at a time. Jobs share `devices` (values of CUDA_VISIBLE_DEVICES, or none for
    the machine's own setting) as evenly as possible."""

    def __init__(self, settings: Config, jobs: int, devices: list[str]):
        self.settings, self.jobs = settings, jobs
        self.processes: dict[str, subprocess.Popen] = {}
        self.stopped = False
        self.free: SimpleQueue[str | None] = SimpleQueue()
        for device in islice(cycle(devices or [None]), jobs):
            self.free.put(device)

    def train(self, names: list[str]) -> tuple[list[str], dict[str, str]]:
        """Trains the runs that are missing or outdated, each after the one it continues.

        Args:
            names: of runs; the runs they continue are among them, or trained.

        Returns: names of the runs trained now, and messages of those that failed, which are also printed at once.
        """
        waiting, jobs, trained, failed = list(names), dict[Future, str](), [], {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or jobs:
                    ready = [name for name in waiting if self._after(name) not in {*waiting, *jobs.values()}]
                    for name in ready[: self.jobs - len(jobs)]:
                        waiting.remove(name)
                        if self._after(name) in failed:
                            failed[name] = f"left out: it continues {self._after(name)}."
                        elif not self._finished(name):
                            jobs[pool.submit(self._run, name)] = name
                    if jobs and (not ready or len(jobs) == self.jobs):  # else there is more to start
                        for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                            name, message = jobs.pop(job), job.result()
                            if message is None and self._finished(name):
                                trained.append(name)
                            else:
                                failed[name] = message or CHANGED
                                print(f"{name} failed: {failed[name]}", flush=True)
            except BaseException:
                self.stopped = True
                while self.processes:  # a second Ctrl-C changes nothing
                    with suppress(KeyboardInterrupt):
                        for process in list(self.processes.values()):
                            _interrupt(process)
                        wait(jobs)
                raise
        return trained, failed

    def _after(self, name: str) -> str | None:
        return self.settings.chain[name].after if name in self.settings.chain else None

    def _finished(self, name: str) -> bool:
        try:
            return finished(resolve(self.settings, name))
        except USER_ERRORS:
            return False  # the process of the run reports the error

    def _run(self, name: str) -> str | None:
        """Trains one run. Returns its message if it fails."""
        if self.stopped:
            return "stopped"
        device = self.free.get()
        environment = {**os.environ, **({} if device is None else {"CUDA_VISIBLE_DEVICES": device})}
        # In a session of its own, a process does not get the terminal's Ctrl-C besides ours.
        options = {"stderr": subprocess.PIPE, "text": True, "errors": "replace", "start_new_session": True}
        try:
            with subprocess.Popen(command(self.settings, name), env=environment, **options) as process:
                self.processes[name] = process
                if self.stopped:  # while the process started
                    _interrupt(process)
                stderr = process.communicate()[1].strip()
        except OSError as error:
            return f"its process could not be started: {error}"
        finally:
            self.processes.pop(name, None)
            self.free.put(device)
        if process.returncode == 0:
            return None
        if process.returncode > 0:
            return _message(stderr).removeprefix(f"{name}: ") or f"exit status {process.returncode}"
        number = -process.returncode
        advice = "; is there memory enough?" if number == SIGKILL else ""
        return f"its process was killed ({signal.strsignal(number) or number}){advice} {_last_lines(stderr)}".strip()


def _message(stderr: str) -> str:
    """The last error message of a training; without one the last traceback, or the last lines."""
    if messages := list(ERROR.finditer(stderr)):
        return stderr[messages[-1].end() :]
    _, head, traceback = stderr.rpartition("Traceback (most recent call last):")
    return head + traceback if head else _last_lines(stderr)


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-LAST_LINES:])


def _interrupt(process: subprocess.Popen) -> None:
    """Ends a process as Ctrl-C does. Windows has no such signal for a single process."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)


def command(settings: Config, name: str) -> list[str]:
    return [sys.executable, "-m", "ciss", "train", name, "--config", settings.file]


def finished(run: Run) -> bool:
    """Whether the run is trained with these parameters, this code, data and teacher.

    A finished run is also kept where no pipeline removes it; one that a pipeline removed is put back. Raises OSError,
    DataError, CheckpointError, and Locked while another process trains the run.
    """
    before = predecessor(run)
    identity = run.identity(run.index().fingerprint, file_hash(before) if before else None)
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


def gpus(settings: Config) -> list[str]:
    """One GPU for each job; none if a training takes several (`train.processes`), or there is none."""
    if any(benchmark.train.processes > 1 for benchmark in settings.benchmarks.values()):
        return []
    count = torch.cuda.device_count()  # reads the variable as CUDA does
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = map(str, range(count)) if named is None else named.split(",")
    return [device.strip() for device in devices][:count]


def crowded(settings: Config, jobs: int, cores: int) -> str | None:
    """A remark if the jobs have more threads than there are cores."""
    threads = max(benchmark.train.threads * benchmark.train.processes for benchmark in settings.benchmarks.values())
    if jobs == 1 or jobs * threads <= cores:
        return None
    return f"{jobs} jobs of {threads} threads on {cores} cores wait for each other. Take fewer, or train.threads=1."


def main(runs: list[str], config_file: str, jobs: int | None) -> None:
    """Trains the runs that are missing or outdated, and prints a summary. Exits with messages if runs fail.

    Args:
        runs: names, or none for all runs of the file. The runs they continue are among them, or trained.
        config_file: the parameter file.
        jobs: runs at a time; None: one per GPU, or one.
    """
    _handle_signals()
    try:
        settings = config.load(config_file)
        check(settings)
        devices = gpus(settings)
        jobs = jobs or max(1, len(devices))
        wanted = {resolve(settings, name).name for name in runs or settings.runs()}
        names = [name for name in order(settings) if name in wanted]
        root = (paths.project() / settings.output).resolve()
        for name in dict.fromkeys(settings.runs()[name].benchmark for name in names):
            prepare(settings.benchmarks[name], index_folder(root, name), progress=False)
        if not torch.cuda.is_available() and (remark := crowded(settings, jobs, available_cores())):
            print(remark, flush=True)
        trained, failed = Crew(settings, jobs, devices).train(names)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on after the last finished epoch of each run.", file=sys.stderr)
        sys.exit(130)
    present = len(names) - len(trained) - len(failed)
    summary = f"{len(trained)} of {len(names)} runs trained, {present} were trained before"
    if failed:
        print(f"{summary}, {len(failed)} failed:", flush=True)
        sys.exit("\n".join(f"error: {name}: {message}" for name, message in failed.items()))
    print(f"{summary}. Next: dvc repro")


def _handle_signals() -> None:
    """Treats every signal to stop as Ctrl-C. A shell lets its background jobs ignore Ctrl-C, and so their processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as set by nohup
            signal.signal(number, signal.default_int_handler)
