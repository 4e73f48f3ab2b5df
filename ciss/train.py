"""Trains every run that a parameter file names, several at once, each in a process of its own.

    python -m ciss.plan voc8 --set train.threads=1
    python -m ciss.train --jobs 2    # on two cores, two runs of one thread are sooner done than one after the other
    dvc repro                        # finds every run trained: notebooks, tables and figures are left to make

A run starts as soon as the one it continues has ended. With several GPUs each job has one to itself (those that
CUDA_VISIBLE_DEVICES names, where it is set). A run that fails takes with it what continues it; all others go on, and
its message comes last. Ctrl-C stops all; the same command goes on after the last finished epoch of each.
"""

import argparse
import os
import signal
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import cycle, islice
from queue import SimpleQueue

import torch

from ciss import config, results, runs
from ciss.config import Config, ConfigError
from ciss.data import prepare
from ciss.engine import USER_ERRORS, predecessor


class Crew:
    """Processes that train runs, `jobs` at a time; each of `devices` (values of CUDA_VISIBLE_DEVICES, or nothing for
    what the machine has) goes to as few as possible."""

    def __init__(self, settings: Config, jobs: int, devices: list[str]):
        self.settings, self.jobs = settings, jobs
        self.processes: dict[str, subprocess.Popen] = {}
        self.stopped = False
        self.free: SimpleQueue[str | None] = SimpleQueue()
        for device in islice(cycle(devices or [None]), jobs):
            self.free.put(device)

    def train(self, names: list[str]) -> tuple[list[str], dict[str, str]]:
        """Trains what is missing or outdated of these runs, each after the one it continues, which must be among them
        or trained. Returns (those trained now, messages of those that failed, by name)."""
        waiting, jobs, trained, failed = list(names), dict[Future, str](), [], {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or jobs:
                    for name in [name for name in waiting if self._after(name) not in {*waiting, *jobs.values()}]:
                        if len(jobs) == self.jobs:
                            break
                        waiting.remove(name)
                        if self._after(name) in failed:
                            failed[name] = f"left out: it continues {self._after(name)}."
                        elif not finished(runs.resolve(self.settings, name)):
                            jobs[pool.submit(self._run, name)] = name
                    if jobs:
                        for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                            name, message = jobs.pop(job), job.result()
                            if message is None:
                                trained.append(name)
                            else:
                                failed[name] = message
            except BaseException:
                self.stop()
                raise
        return trained, failed

    def stop(self) -> None:
        """As Ctrl-C would stop each; a terminal's own does not reach them, so that it comes once."""
        self.stopped = True
        for process in list(self.processes.values()):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)

    def _after(self, name: str) -> str | None:
        return self.settings.chain[name].after if name in self.settings.chain else None

    def _run(self, name: str) -> str | None:
        """Trains one run. Returns what its process said in the end where it failed."""
        device = self.free.get()
        environment = {**os.environ, **({} if device is None else {"CUDA_VISIBLE_DEVICES": device})}
        options = {"stderr": subprocess.PIPE, "text": True, "errors": "replace", "start_new_session": True}
        try:
            with subprocess.Popen(command(self.settings, name), env=environment, **options) as process:
                self.processes[name] = process
                if self.stopped:  # while it was started
                    self.stop()
                said = process.communicate()[1].strip()
        finally:
            self.processes.pop(name, None)
            self.free.put(device)
        if process.returncode < 0:
            return f"its process was killed ({signal.Signals(-process.returncode).name}); is there memory enough?"
        return (said.removeprefix("error: ") or f"exit status {process.returncode}") if process.returncode else None


def command(settings: Config, name: str) -> list[str]:
    return [sys.executable, "-m", "ciss.engine", name, "--config", settings.file]


def finished(run: runs.Run) -> bool:
    """Whether there is a training of it by these parameters, this code, data and teacher."""
    before = predecessor(run)
    if before and not before.is_file():
        return False
    teacher = results.file_hash(before) if before else None
    return results.finished(run, run.identity(run.index().fingerprint, teacher))


def order(settings: Config) -> list[str]:
    """All runs, those first that most is waiting for: the longest line of runs behind them, counted in steps."""
    behind = dict.fromkeys(settings.runs(), 1)
    behind |= {name: len(runs.resolve(settings, name).groups) for name in settings.joints}  # as long as all steps
    for name in settings.chain:
        length = 1
        while name in settings.chain:
            name, length = settings.chain[name].after, length + 1
            behind[name] = max(behind[name], length)
    return sorted(settings.runs(), key=lambda name: -behind[name])


def gpus(settings: Config) -> list[str]:
    """One for each job; none where a training takes several (`train.processes`), or there is none."""
    if any(benchmark.train.processes > 1 for benchmark in settings.benchmarks.values()):
        return []
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def crowded(settings: Config, jobs: int, cores: int) -> str | None:
    """A remark where processes would wait for each other: their threads are more than the cores."""
    threads = max(benchmark.train.threads for benchmark in settings.benchmarks.values())
    if jobs == 1 or jobs * threads <= cores:
        return None
    return f"{jobs} jobs of {threads} threads on {cores} cores wait for each other. Plan with --set train.threads=1."


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ciss.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="params.yaml", help="parameter file (default: %(default)s)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a GPU, or one)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's word, as good as Ctrl-C
    try:
        settings = config.load(options.config)
        runs.check(settings)
        devices = gpus(settings)
        jobs = max(1, len(devices)) if options.jobs is None else options.jobs
        if jobs < 1:
            raise ConfigError(f"--jobs {jobs}: there should be one or more. Leave it out for one a GPU.")
        names = order(settings)
        root = runs.resolve(settings, names[0]).root if names else None
        for name, benchmark in settings.benchmarks.items():
            prepare(benchmark, runs.index_folder(root, name), progress=False)
        if not devices and (remark := crowded(settings, jobs, os.cpu_count() or 1)):
            print(remark, flush=True)
        trained, failed = Crew(settings, jobs, devices).train(names)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished epoch of each run.")
    print(f"{len(trained)} runs trained, {len(names) - len(trained) - len(failed)} were there. Next: dvc repro")
    if failed:
        sys.exit("\n".join(f"error: {name}: {message.removeprefix(f'{name}: ')}" for name, message in failed.items()))


if __name__ == "__main__":
    main()
