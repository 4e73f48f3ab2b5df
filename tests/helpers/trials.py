"""One trial of the campaign: a training that is killed, once or more, resumed, and compared with an undisturbed one."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from tests.helpers import repository
from tests.helpers.repository import copy

METHODS = ("finetune", "mib", "plop", "gsc", "mbs")
RUNS = tuple(f"shapes-s0-{method}-{step}" for method in METHODS for step in (1, 2))
EPOCHS = 8  # some seconds: as long as `dvc repro` needs to meet the orphan of the one before
SIZE = (
    "limit=240 holdout=24 model.width=16 model.atrous_rates=[1,2] train.batch=8 train.threads=1 "
    f"train.curve=[0.2,0.5,1] evaluation.batch=30 train.base.epochs=4 train.increment.epochs={EPOCHS}"
).split()
PROCESSES = ("trainer", "papermill", "dvc")
PHASES = (
    "before the first epoch was finished",
    "before the command went on",  # a second kill, during start-up
    "between epochs",
    "while results were written",
    "after the results",  # papermill draws figures, DVC stores outputs
    "after the end",
)
LIMIT = 600.0  # seconds for a command, or for an orphan to end
OUTPUTS = ("runs", "results", "reports")


class Failure(Exception):
    """A trial that did not end as it must."""


@dataclass(frozen=True)
class Moment:
    """When to kill: after a share of the processor time that the command takes undisturbed (its children's too; what
    else runs on the machine does not count), or `seconds` after it has printed `text`."""

    share: float = 0.0
    text: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Trial:
    """One training, killed once or more. `alone`: `dvc repro -s`. `patient`: waits for an orphan, else ends it."""

    number: int
    process: str
    run: str
    moments: tuple[Moment, ...]
    alone: bool = True
    patient: bool = True


class Project:
    """A repository whose increments are trained; `references` of them, by run, and copies to start from again."""

    def __init__(self, folder: Path, references: dict[str, dict]):
        self.folder, self.references = folder, references

    @property
    def copies(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-copies")

    def paths(self, run: str) -> list[str]:
        return [f"runs/shapes/{run}", f"results/shapes/{run}", f"reports/shapes/{run}.ipynb"]

    def command(self, trial: Trial) -> list[str]:
        python, report = sys.executable, f"reports/shapes/{trial.run}.ipynb"
        if trial.process == "trainer":
            return [python, "-m", "ciss", "train", trial.run]
        if trial.process == "papermill":
            notebook = [python, "-m", "ciss", "execute", "notebooks/3_increment.ipynb", report]
            return [*notebook, "-p", "config", "params.yaml", "-p", "run", trial.run]
        # Without its cache of runs: the stage would be copied, not trained.
        return ["dvc", "repro", "--no-run-cache", *(["-s"] if trial.alone else []), f"increment@{trial.run}"]

    def clear(self, run: str, process: str) -> None:
        """Nothing is left of the run that this process makes."""
        for path in self.paths(run)[: 2 if process == "trainer" else 3]:
            remove(self.folder / path)
        remove(self.folder / "runs" / ".resume")
        if process == "dvc":  # else it would fetch the outputs of the last time
            yaml, lock = YAML(), self.folder / "dvc.lock"
            document = yaml.load(lock)
            document["stages"].pop(f"increment@{run}", None)
            yaml.dump(document, lock)

    def restore(self, run: str) -> None:
        """The undisturbed outputs are back, those that `dvc.lock` speaks of."""
        for path in self.paths(run):
            remove(self.folder / path)
            copy(self.copies / path, self.folder / path)
        copy(self.copies / "dvc.lock", self.folder / "dvc.lock")

    def state(self, run: str) -> dict:
        """What must be equal: bytes of files, arrays, results, and which files there are."""
        found: dict = {f"{part} of {run}": "missing" for part in ("weights", "results")}
        for file in sorted((self.folder / "runs" / "shapes" / run).glob("*")):
            found[f"weights of {run}"] = "there"
            found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        made = {file.name: file.read_bytes() for file in sorted((self.folder / "results" / "shapes" / run).glob("*"))}
        if made:
            found[f"results of {run}"] = "there"
        found |= repository.numbers(made)
        return found

    def files(self, run: str) -> set[str]:
        """Every file and folder named after the run: hidden halves, locks and states too."""
        everything = (path for part in OUTPUTS for path in (self.folder / part).rglob("*"))
        names = (str(path.relative_to(self.folder)) for path in everything if "__pycache__" not in path.parts)
        return {name.replace(run, "RUN") for name in names if run in name}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def prepare(folder: Path, runs: tuple[str, ...], workers: int) -> list[Project]:
    """A project a worker: data drawn once, the base and every increment trained once."""
    first = repository.make(folder / "project-0", "shapes", "--methods", *METHODS, "--no-joint", "--set", *SIZE)
    repository.run(first, "dvc", "repro", *(f"increment@{run}" for run in runs))
    references: dict[str, dict] = {}
    projects = [Project(first, references)]
    references |= {run: projects[0].state(run) for run in runs}
    for name in OUTPUTS:
        copy(first / name, projects[0].copies / name)
    copy(first / "dvc.lock", projects[0].copies / "dvc.lock")
    for number in range(1, workers):
        projects.append(Project(folder / f"project-{number}", references))
        copy(first, projects[-1].folder)
        copy(projects[0].copies, projects[-1].copies)
    return projects


@dataclass
class Session:
    """One trial's processes, found by a mark in their environment: an orphan keeps it."""

    project: Project
    trial: Trial
    stop: threading.Event
    texts: list[Path] = field(default_factory=list)  # what the commands print, in files that outlive a reader
    orphans: list[str] = field(default_factory=list)

    @property
    def mark(self) -> str:
        return f"{os.getpid()}-{self.trial.number}"

    def living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("CISS_CAMPAIGN") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def text(self, first: int = 0) -> str:
        return "\n".join(file.read_text(errors="replace") for file in self.texts[first:])

    def epochs(self) -> int:
        """Finished, by what was printed last."""
        said = re.findall(r"(?:epoch |continuing after epoch )(\d+)(?:/| of )", self.text())
        return int(said[-1]) if said else 0

    def launch(self, moment: Moment | None, whole: float = 0.0) -> tuple[subprocess.Popen, float, float]:
        """Starts the command, again where an orphan was in its way, until the moment or its end; see `until`."""
        while True:
            before = {process.pid for process in self.living()}
            file = self.project.folder.with_name(
                f"{self.project.folder.name}-{self.trial.number}-{len(self.texts)}.txt"
            )
            self.texts.append(file)
            environment = repository.environment(self.project.folder) | {"CISS_CAMPAIGN": self.mark}
            options = {"cwd": self.project.folder, "env": environment, "stdin": subprocess.DEVNULL}
            with open(file, "w") as stream:
                process = subprocess.Popen(
                    self.project.command(self.trial),
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    **options,
                )
            seconds, spent = self.until(process, moment, whole)
            if not process.poll():  # still running, or ended well
                return process, seconds, spent
            self.settle(before)

    def until(self, process: subprocess.Popen, moment: Moment | None, whole: float) -> tuple[float, float]:
        """Seconds, and those of processor time, until the moment or the end. `whole`: of the undisturbed command."""
        started, tree, spent, due = time.perf_counter(), psutil.Process(process.pid), 0.0, None
        while process.poll() is None:
            now = time.perf_counter() - started
            with suppress(psutil.Error):
                spent = max(spent, sum(sum(part.cpu_times()[:4]) for part in [tree, *tree.children(recursive=True)]))
            if moment and not moment.text and spent >= moment.share * whole:
                break
            if due is None and moment and moment.text and moment.text in self.text(-1):
                due = now + moment.seconds
            if due is not None and now >= due:
                break
            self.pause(now)
        return time.perf_counter() - started, spent

    def pause(self, seconds: float) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt
        if seconds > LIMIT:
            raise Failure(f"not over after {LIMIT:.0f} s: {self.text(-1)[-500:]}")
        time.sleep(0.05)

    def settle(self, before: set[int]) -> None:
        """A refused command must name a process that really is an orphan of this trial; wait for it, or end it."""
        named = re.search(r"(?:process|PID) (\d+)", self.text(-1))
        if not named or len(self.texts) > 20:
            raise Failure(f"failed: {self.text(-1)[-2000:]}")
        orphan = int(named[1])
        if orphan not in before | {process.pid for process in self.living()}:
            raise Failure(f"process {orphan} was named, and is none of {before}: {self.text(-1)[-500:]}")
        self.orphans.append(f"{'waited for' if self.trial.patient else 'ended'} {orphan}")
        if not self.trial.patient:
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGTERM)  # what `kill` sends
        self.gone(lambda: orphan in {process.pid for process in self.living()})

    def gone(self, living: Callable[[], object]) -> None:
        started = time.perf_counter()
        while living():
            self.pause(time.perf_counter() - started)

    def end(self) -> None:
        for process in self.living():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for file in self.texts:
            file.unlink(missing_ok=True)


def phase(session: Session, over: bool) -> str:
    if over:
        return PHASES[5]
    epochs = session.epochs()
    if "epoch" not in session.text(-1) and len(session.texts) > 1:
        return PHASES[1]
    if epochs == 0:
        return PHASES[0]
    if epochs < EPOCHS:
        return PHASES[2]
    run = session.trial.run
    whole = all((session.project.folder / path).is_dir() for path in session.project.paths(run)[:2])
    return PHASES[4] if whole else PHASES[3]


def resumed(text: str, run: str) -> tuple[str, int]:
    """What the command after a kill said, and after which epoch it went on."""
    if went_on := re.search(r"continuing after epoch (\d+)", text):
        return f"continuing after epoch {went_on[1]}", int(went_on[1])
    if re.search(r"epoch \d+/", text):
        return "started anew", 0
    done = "nothing to do" in text or f"increment@{run}' didn't change" in text
    return ("nothing to do", EPOCHS) if done else ("killed before it spoke", -1)


def carry_out(project: Project, trial: Trial, whole: dict[str, float], expected: dict, stop, out: Path) -> list[dict]:
    """A trial's rows, one a kill. `whole`: processor seconds undisturbed; `expected`: files then, by process."""
    session, rows, wrong = Session(project, trial, stop), [], []
    project.clear(trial.run, trial.process)
    try:
        for moment in trial.moments:
            process, seconds, _ = session.launch(moment, whole[trial.process])
            over = process.poll() is not None
            if rows:
                rows[-1]["resumed"], rows[-1]["went_on_after"] = resumed(session.text(rows[-1]["commands"]), trial.run)
            if not over:
                process.kill()
                process.wait()
            rows.append({"seconds": round(seconds, 2), "aimed": bool(moment.text), "landed": phase(session, over)})
            rows[-1] |= {"epochs": session.epochs(), "commands": len(session.texts)}
            rows[-1]["left_alive"] = len(session.living())
        session.launch(None)
        rows[-1]["resumed"], rows[-1]["went_on_after"] = resumed(session.text(rows[-1]["commands"]), trial.run)
        session.gone(session.living)
        wrong = differences(project, trial, expected)
    except Failure as failure:
        wrong = [str(failure)]
    finally:
        texts = session.text()
        session.end()
    project.restore(trial.run)
    if wrong:
        (out / f"trial-{trial.number}.txt").write_text("\n".join([f"{trial}", *wrong, "", texts]))
    shared = {"trial": trial.number, "run": trial.run, "process": trial.process}
    same = {"orphan": "; ".join(session.orphans), "identical": not wrong, "wrong": "; ".join(wrong)[:300]}
    return [{**shared, **row, **same} for row in rows]


def differences(project: Project, trial: Trial, expected: dict[str, set[str]]) -> list[str]:
    """What is not as after an undisturbed training, a line each."""
    wrong, run = [], trial.run
    left, made = project.references[run], project.state(run)
    wrong += [f"{name} differs" for name in sorted(left.keys() | made.keys()) if left.get(name) != made.get(name)]
    here = project.files(run)
    wrong += [
        f"{name.replace('RUN', run)} is {'left' if name in here else 'missing'}"
        for name in here ^ expected[trial.process]
    ]
    if trial.process != "trainer":
        book = json.loads((project.folder / "reports" / "shapes" / f"{run}.ipynb").read_text())
        cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
        if "error" in kinds or not all(cell["execution_count"] for cell in cells):
            wrong.append("the notebook is not executed to its end")
    if trial.process == "dvc":
        status = repository.run(project.folder, "dvc", "status", "--json", f"increment@{run}")
        wrong += [f"dvc status: {status.strip()}"] if json.loads(status) else []
    return wrong
