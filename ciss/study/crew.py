"""Several trainings at once on this machine: the order of a chain, and the GPUs of each run."""

from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from graphlib import TopologicalSorter
from queue import SimpleQueue

from ciss.distributed import print_line
from ciss.study.process import RunFailed, interrupt, interrupt_all, start, wait_for

CHANGED = "ended, but is not what this file asks for: parameters or code changed meanwhile. Run the command again."


class Crew:
    """Trains runs, `jobs` at a time.

    Args:
        devices: values of CUDA_VISIBLE_DEVICES that the jobs share as evenly as possible; none: the machine's setting.
        after: the run that a run continues, by name; missing for a run that continues none.
        finished, command: whether a run is trained, and the command that trains it.
    """

    def __init__(self, jobs: int, devices: list[str], after: dict[str, str], finished: Callable, command: Callable):
        self.jobs, self.after, self.finished, self.command = jobs, after, finished, command
        self.processes = {}  # those of the runs in training, by name
        self.stopped = False
        self.free: SimpleQueue[str | None] = SimpleQueue()
        for number in range(jobs):
            self.free.put(devices[number % len(devices)] if devices else None)

    def train(self, names: list[str]) -> tuple[list[str], dict[str, str]]:
        """Trains the runs that are missing or outdated, each after the one it continues, the first names first.
        Returns names of the runs trained now, and messages of those that failed, which are also printed at once."""
        graph = TopologicalSorter({name: {self.after.get(name)} & {*names} for name in names})
        graph.prepare()
        ready, jobs, trained, failed = [], dict[Future, str](), [], {}
        with ThreadPoolExecutor(self.jobs) as pool, self.stopping(jobs):
            while graph.is_active():
                ready = sorted([*ready, *graph.get_ready()], key=names.index)
                while ready and len(jobs) < self.jobs:
                    name = ready.pop(0)
                    jobs[pool.submit(self.train_one, name, failed)] = name
                for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                    graph.done(name := jobs.pop(job))
                    try:
                        trained += [name] if job.result() else []
                    except RunFailed as error:
                        failed[name] = str(error)
                        print_line(f"{name} failed: {error}")
        return trained, failed

    @contextmanager
    def stopping(self, jobs: Iterable[Future]) -> Iterator[None]:
        """If its block ends with an error or Ctrl-C, ends all processes and waits for the jobs that started them."""
        try:
            yield
        except BaseException:
            self.stopped = True
            interrupt_all(self.processes, jobs)
            raise

    def train_one(self, name: str, failed: Container[str] = ()) -> bool:
        """Trains one run in a process of its own. Returns False if it was trained before. Raises RunFailed."""
        if self.after.get(name) in failed:
            raise RunFailed(f"left out: it continues {self.after[name]}.")
        if self.stopped or self.finished(name):
            return False
        device = self.free.get()
        try:
            with start(self.command(name), device) as process:
                self.processes[name] = process
                if self.stopped:  # while the process started
                    interrupt(process)
                wait_for(process, name)
        finally:
            self.processes.pop(name, None)
            self.free.put(device)
        if not self.finished(name):
            raise RunFailed(CHANGED)
        return True
