"""One study: a small repository, planned from the command line, run by `dvc repro` to its report, then checked."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.helpers import repository
from tests.studies import check, cover, trees

ROOT = Path(__file__).resolve().parents[2]
CODE = ("ciss", "notebooks", "dvc.yaml", "reports/published.yaml", "reports/README.md")
CODE += tuple(f"tests/{name}" for name in ("helpers/repository.py", "studies"))
LIMIT = 1800  # seconds of one study
STOP = threading.Event()  # set by Ctrl-C: running pipelines are killed


@dataclass(frozen=True)
class Result:
    """What is left of a finished study. `code`: hash of the working tree that it was run with."""

    name: str
    code: str
    seconds: float  # wall
    processor_seconds: float
    failures: list[str]


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def code_hash() -> str:
    """A hash of the files that a study's result depends on, as they lie in the working tree."""
    total = hashlib.sha256()
    for name in CODE:
        path = ROOT / name
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            if "__pycache__" not in file.parts and ".ipynb_checkpoints" not in file.parts:
                total.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def read_result(folder: Path, name: str, code: str) -> Result | None:
    """The result of a finished study, or None where it is missing or of other code."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        result = Result(**json.loads((folder / f"{name}.json").read_text()))
        return result if result.code == code else None
    return None


def make_template(folder: Path) -> Path:
    """A repository in which the drawings were made by the pipeline: its DVC cache spares the studies to draw them."""
    shutil.rmtree(folder, ignore_errors=True)
    repository.commit(repository.make_code(folder), ["shapes", "4-2", "--methods", "finetune", "--no-joint"])
    repository.run(folder, "dvc", "repro", "shapes")
    return folder


def make(study: cover.Study, folder: Path, template: Path | None = None) -> Path:
    """The study's data sets and repository, with its parameters committed. Returns the repository."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name in {"voc" if case.data == "voc8" else case.data for case in study.cases}:
        trees.write(name, data)
    project = repository.make_code(folder / "project")
    if template:
        shutil.copytree(template / ".dvc" / "cache", project / ".dvc" / "cache", copy_function=os.link)
        repository.run(project, "dvc", "config", "cache.type", "hardlink,copy")
    return repository.commit(project, *study.commands(), CISS_DATA=str(data))


def reproduce(folder: Path) -> tuple[int, float]:
    """Runs the pipeline; what it prints goes into `repro.txt`. Returns the exit status and processor seconds."""
    environment = repository.environment(folder / "project") | {"CISS_DATA": str(folder / "data")}
    with (folder / "repro.txt").open("w") as log:
        process = subprocess.Popen(
            ["dvc", "repro", "--keep-going"],
            cwd=folder / "project", env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            limit = time.monotonic() + LIMIT
            while True:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    return process.returncode, usage.ru_utime + usage.ru_stime
                if STOP.is_set():
                    raise InterruptedError("stopped")
                if time.monotonic() > limit:
                    raise TimeoutError(f"dvc repro took more than {LIMIT} s")
                time.sleep(0.2)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run(study: cover.Study, folder: Path, code: str, template: Path | None = None) -> Result:
    """Makes, runs and checks a study in `folder/NAME`, and leaves `folder/NAME.json`.

    The folder of a study that passed is removed; that of one that failed stays, to be looked at.
    """
    place, started, spent = folder / study.name, time.perf_counter(), 0.0
    shutil.rmtree(place, ignore_errors=True)
    try:
        project = make(study, place, template)
        status, spent = reproduce(place)
        failures = check.failures(project, status, (place / "repro.txt").read_text(encoding="utf-8", errors="replace"))
    except (AssertionError, TimeoutError) as error:  # of a command before the pipeline
        failures = [f"{type(error).__name__}: {error}"]
    result = Result(study.name, code, round(time.perf_counter() - started, 1), round(spent, 1), failures)
    scratch = folder / f".{study.name}.{os.getpid()}.tmp"
    scratch.write_text(json.dumps(asdict(result), indent=1) + "\n")
    os.replace(scratch, folder / f"{study.name}.json")
    if not failures:
        shutil.rmtree(place, ignore_errors=True)
    return result
