"""Checks an installation and says what to do: `ciss doctor`.

Each finding is one line: `ok`, `note` or `FAIL`; a note or a failure names a remedy. The checks try things: a training
step in every precision, a lock between two processes, a replaced file. They change nothing and leave no file behind.
Each check itself imports what may be missing or broken, so that the other checks still run.
"""

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import filelock
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ciss import paths
from ciss.documents import counted, size
from ciss.findings import CHECKS, INSTALL, Check, Result, Setup, check, examine, fail, note, short
from ciss.store.files import write_bytes

KERNEL = "python -m ipykernel install --sys-prefix --name python3"
RESULTS = 5e6  # bytes of a run beside its weights: scores, figures, the executed notebook
SCRATCH = 1e8  # bytes in the temporary folder: kernels, compiled code
SECOND_PROCESS = """import sys; from filelock import FileLock, Timeout
try: FileLock(sys.argv[1]).acquire(timeout=0)
except Timeout: sys.exit()
sys.exit("a second process gets the lock that the first one holds")"""


@check("uv python install 3.12 && uv sync --python 3.12")
def python(setup: Setup) -> Result:
    version = platform.python_version()
    project = (setup.root / "pyproject.toml").read_text(encoding="utf-8")  # Python 3.10 has no reader of TOML
    required = re.search(r'^requires-python = "(.*)"', project, re.MULTILINE)[1]
    fits = SpecifierSet(required).contains(version, prereleases=True)
    return f"{version}, {sys.executable}" if fits else fail(f"{version}, but the project needs {required}")


@check("export USER=ciss HOME=/tmp/home (docker run -e USER=ciss -e HOME=/tmp/home)")
def user(setup: Setup) -> Result:
    """The user's name and home folder, which DVC needs. In a container both may be missing."""
    name, home = getpass.getuser(), Path.home()
    parent = paths.existing_parent(home)
    if parent.is_dir() and os.access(parent, os.W_OK):
        return f"{name}, {home}"
    return (note if parent.is_dir() else fail)(f"{name}, whose home folder {home} cannot be written to")


@check()
def project(setup: Setup) -> Result:
    """The project's folder, and whether the code that runs is its own."""
    paths.project()
    code = Path(__file__).resolve().parent
    if code == (setup.root / "ciss").resolve():
        return str(setup.root)
    remedy = f"run `python -m ciss...` in {setup.root}, or install it there: uv sync"
    return note(f"{setup.root}, but the code that runs is that of {code}", remedy)


@check(INSTALL)
def packages(setup: Setup) -> Iterator[Result]:
    import tomllib

    declared = tomllib.loads((setup.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pinned = (setup.root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    problems = "; ".join(filter(None, map(_problem, declared)))
    shown = (f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm", "numpy", "dvc"))
    yield fail(problems) if problems else f"all {len(declared)} are installed: {', '.join(shown)}"
    others = [problem for problem in map(_problem, filter(None, pinned)) if problem.endswith(")")]
    if others:
        rest = f" and {len(others) - 3} more" if len(others) > 3 else ""
        remedy = f"{INSTALL}; results are equal to the last digit with the pinned versions only"
        yield note(f"not the versions of constraints.txt: {', '.join(others[:3])}{rest}", remedy)


def _problem(line: str) -> str:
    """What is wrong with a required package; empty for nothing."""
    requirement = Requirement(line)
    if requirement.marker and not requirement.marker.evaluate():
        return ""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} {version} ({requirement.specifier})"


@check("uv sync --reinstall-package torch --reinstall-package torchvision")
def torch_build(setup: Setup) -> Result:
    """torchvision is compiled against one build of torch."""
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])  # the first two overlap
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    pair = f"torch {torch.__version__} and torchvision {metadata.version('torchvision')}"
    if kept == [0, 2]:
        return f"{pair} fit"
    return fail(f"{pair} are not built for each other: nms kept boxes {kept}, not [0, 2]")


@check("start DVC by `uv run dvc repro`, or activate the environment first")
def stages(setup: Setup) -> Result:
    """Stages run `python -m ciss...` in a shell, whose PATH decides which Python that is."""
    program = shutil.which("python") or "no program: there is no python on PATH"
    same = Path(program).parent.resolve() == Path(sys.executable).parent.resolve()
    return f"stages start this Python: {program}" if same else note(f"stages start {program}, not {sys.executable}")


@check("correct .dvc/config; git diff .dvc/config shows what changed")
def dvc(setup: Setup) -> Result:
    """DVC's configuration, and the kinds of link from its cache to the project."""
    import dvc
    from dvc_objects.fs.generic import test_links
    from dvc_objects.fs.local import LocalFileSystem

    if not (setup.root / ".dvc").is_dir():
        return fail(f"{setup.root} has no folder .dvc", "clone the project with git, or create the folder: dvc init")
    section = setup.dvc("cache")
    allowed = section.get("type") or ["reflink", "copy"]
    cache = setup.folders()["DVC cache"]
    system = LocalFileSystem()
    works = test_links(["reflink", "hardlink", "symlink", "copy"], system, str(cache), system, str(setup.root / "link"))
    used = next((kind for kind in allowed if kind in works), "none")
    text = f"DVC {dvc.__version__}, cache {section.get('dir') or cache}: links that work: {', '.join(works)}; "
    text += f"{','.join(allowed)} selects {used}"
    if used == "none":
        return fail(text, "dvc config cache.type reflink,copy")
    if cache.stat().st_dev == setup.root.stat().st_dev:
        return text
    remedy = "nothing, if this is intended: results are copied and stored twice; else: dvc cache dir .dvc/cache"
    return note(f"{text}; the cache is on another file system than the project", remedy)


@check("create a repository: git init; or use DVC without git: dvc config core.no_scm true")
def git(setup: Setup) -> Result:
    with suppress(Exception):  # the check `dvc` says why
        if setup.dvc("core").get("no_scm"):
            return "not used (core.no_scm)"
    if not shutil.which("git"):
        return fail("there is no program git", "install git; with conda: conda install git")
    command = ["git", "rev-parse", "--is-inside-work-tree"]
    done = subprocess.run(command, cwd=setup.root, capture_output=True, text=True, timeout=30)
    problem = done.stderr.strip().partition("\n")[0]
    # experiments and git fail on a repository of dubious ownership, `dvc repro` does not
    remedy = f"git config --global --add safe.directory {setup.root}" if "dubious" in problem else ""
    return fail(problem, remedy) if done.returncode else "the project is a repository"


@check(KERNEL)
def notebooks(setup: Setup) -> Iterator[Result]:
    """The pipeline runs notebooks in this Python; `jupyter lab` starts the program of the kernelspec python3."""
    import ipykernel
    import papermill
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    yield f"papermill {papermill.__version__}, ipykernel {ipykernel.__version__}: stages use this Python"
    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        yield note("jupyter lab finds no kernel python3; `dvc repro` needs none")
        return
    program = Path(spec.argv[0])  # jupyter starts this Python for a name without a folder
    # The folder, not the file: python in several environments may be a link to the same file.
    if program.is_absolute() and program.parent.resolve() != Path(sys.executable).parent.resolve():
        own = Path(spec.resource_dir).is_relative_to(sys.prefix)
        text = f"jupyter lab's kernel python3 ({spec.resource_dir}) starts {program}, not {sys.executable}"
        remedy = "" if own else f"{KERNEL}; if this stays: jupyter kernelspec remove python3, and again"
        yield note(f"{text}; `dvc repro` does not use it", remedy)


for name in ("processor", "gpu", "training", "repeatability", "loaders", "processes"):
    CHECKS[name] = Check(f"ciss.training.machine:{name}")  # imported with torch, when it runs


@check()
def parameters(setup: Setup) -> Iterator[Result]:
    """The parameter file, with the weight files that it names."""
    from ciss import config
    from ciss.runs import check as runs_check

    try:
        settings = config.load(setup.file)
        runs_check.check(settings)
        yield f"{setup.file}: {', '.join(settings.benchmarks)}; {counted(len(settings.runs()), 'run')}"
    except config.ConfigError as error:
        remedy = f"correct it, then: ciss plan --check --output {setup.file}"
        yield from (fail(line, remedy) for line in str(error).splitlines())


@check("correct or unset CISS_DATA")
def data(setup: Setup) -> Iterator[Result]:
    """Where the data sets lie, with the number of images of those that are needed."""
    from ciss.data import DATASETS, data_set

    root = os.environ.get("CISS_DATA")
    exists = not root or Path(root).expanduser().is_dir()
    yield f"CISS_DATA is {root or 'not set'}" if exists else fail(f"CISS_DATA is {root}: there is no such folder")
    used = {benchmark.dataset: name for name, benchmark in setup.benchmarks.items()}
    for name in dict.fromkeys([*DATASETS, *used]):
        try:
            dataset = data_set(name)
            folder = paths.data_root(dataset.folder[0]).joinpath(*dataset.folder[1:])
            counts = [len(dataset.pairs(folder, split)) for split in ("train", "val") if name in used]
            images = "{} training and {} validation images".format(*counts) if counts else "not needed"
            yield f"{name}: {folder}, {images}"
        except Exception as error:
            if name not in used:
                yield f"{name}: not there; not needed"
            elif name in DATASETS and DATASETS[name].draw and isinstance(error, FileNotFoundError):
                yield f"{name}: not there; drawn when it is needed"
            else:
                remedy = f"put it there or correct it, or remove {used[name]} from {setup.file}"
                yield fail(f"{name}: {short(error)}", remedy)


@check()
def prepared(setup: Setup) -> Iterator[Result]:
    """The list of images of each benchmark, and notes on its data."""
    from ciss.data import DataError, Index
    from ciss.data.notes import data_notes, list_notes
    from ciss.runs.run import index_folder

    for name, benchmark in setup.benchmarks.items():
        try:
            index = Index.load(index_folder(setup.output, name), benchmark)
            yield f"{name}: prepared, {counted(len(index.steps), 'step')}"
            notes = data_notes(benchmark, index)
        except DataError as error:
            text, _, remedy = str(error).partition(" Run: ")
            yield note(text, remedy or f"dvc repro prepare@{name}")
            errors, notes = list_notes(benchmark)
            yield from (fail(f"{name}: {text}", f"change benchmarks.{name} in {setup.file}") for text in errors)
        for text in notes:
            if not text.startswith("The data of "):  # the check `data` reports it
                text, _, command = text.partition(" Run `")
                yield note(f"{name}: {text}", command.rstrip("`."))


@check("be online at the first training, or name a local file in model.weights")
def weights(setup: Setup) -> Iterator[Result]:
    """What encoders start from. The check `parameters` reports weight files that are missing or wrong."""
    from ciss.models import hub

    for name, benchmark in setup.benchmarks.items():
        model = benchmark.model
        file = hub.cached_weights(model.encoder) if model.pretrained else model.weights or "none needed"
        problem = f"{name}: timm's weights of {model.encoder} are not on this machine yet"
        yield f"{name}: {file}" if file else note(problem)


@check("free space (dvc gc -w drops old results), or move: `output`, dvc cache dir FOLDER, TMPDIR")
def disk(setup: Setup) -> Iterator[Result]:
    """Free space against what the runs that are missing will write."""
    if setup.settings is None:
        yield note(f"{setup.file} cannot be read, so the space is unknown", f"correct {setup.file}, and run this again")
        return
    from ciss.store.weights import STATE_WEIGHTS

    sizes = {name: _weights_size(name, benchmark) for name, benchmark in setup.benchmarks.items()}
    trained = setup.output / "runs"
    runs = [(run.benchmark, name) for name, run in setup.runs.items()]
    missing = [sizes[b] for b, name in runs if not (trained / b / name / "weights.safetensors").is_file()]
    written = sum(missing) + RESULTS * len(missing)
    state = STATE_WEIGHTS * max(missing, default=0)
    needs = {"runs/": written + state, "DVC cache": written, "temporary files": SCRATCH}
    folders = setup.folders()
    devices = {name: folder.stat().st_dev for name, folder in folders.items()}
    for device in dict.fromkeys(devices.values()):
        names = [name for name in devices if devices[name] == device]
        folder = folders[names[0]]
        free = shutil.disk_usage(folder).free
        need = sum(needs[name] for name in names)
        text = f"{' and '.join(names)} ({folder}): {size(free)} free, {size(need)} needed"
        text += f" ({len(missing)} of {len(runs)} runs to train)"
        yield text if free >= 2 * need else (fail if free < need else note)(text)


def _weights_size(name: str, benchmark: Any) -> int:
    """Bytes of a benchmark's network with all classes."""
    from ciss.models import create_network
    from ciss.models.without_values import without_values
    from ciss.runs.run import classes_of

    channels = len(classes_of(benchmark, name))
    with without_values():
        network = create_network(replace(benchmark.model, pretrained=False, weights=None), [channels])
    return sum(value.nbytes for value in network.state_dict().values())


@check()
def links(setup: Setup) -> list[Result]:
    """DVC refuses outputs outside of the project."""
    problems = paths.links(setup.output, [(run.benchmark, name) for name, run in setup.runs.items()])
    return [fail(*problem) for problem in problems] or ["no folder of outputs is a link out of the project"]


@check()
def files(setup: Setup) -> Iterator[Result]:
    """Whether the file systems support atomic writing and locks."""
    for name, folder in setup.folders().items():
        try:
            with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as inside:
                _try_files(Path(inside))
            yield f"{name} ({folder}): writing, replacing whole files and locks work"
        except Exception as error:
            remedy = f"make {folder} writable, or choose a folder on a local disk"
            yield fail(f"{name} ({folder}): {short(error)}", remedy)


def _try_files(folder: Path) -> None:
    """Raises an exception where a replaced file is not the new one, or a second process gets a lock that is held."""
    replaced = folder / "replaced"
    replaced.write_bytes(b"old")
    write_bytes(replaced, b"new")
    contents = [(file.name, file.read_bytes()) for file in folder.iterdir()]
    if contents != [("replaced", b"new")]:
        raise OSError(f"a replaced file is not the new one: {contents}")
    with filelock.FileLock(folder / "lock", timeout=0):
        command = [sys.executable, "-c", SECOND_PROCESS, str(folder / "lock")]
        second = subprocess.run(command, timeout=60, capture_output=True, text=True)
    if second.returncode:
        raise OSError(second.stderr.strip().rpartition("\n")[2])


@check()
def at_work(setup: Setup) -> Iterator[Result]:
    """DVC commands and trainings that run: another one of the same would have to wait."""
    import psutil

    temporary = setup.root / ".dvc" / "tmp"
    locks = {"a DVC command": (temporary / "lock", temporary / "lock")}  # and the files that name their processes
    for lock in sorted((setup.output / "runs" / ".resume").glob("*/*/lock")):
        locks[f"the training of {lock.parent.name}"] = (lock, lock.with_suffix(".pid"))
    numbers = {command: number for command, (lock, owner) in locks.items() if (number := _holder(lock, owner))}
    announced = temporary / "rwlock"  # what commands read and write while they run a stage
    try:
        text = json.loads(announced.read_text(encoding="utf-8")) if announced.is_file() else {}
        for process in chain(text.get("write", {}).values(), *text.get("read", {}).values()):
            if psutil.pid_exists(process["pid"]):
                numbers[f"`{process['cmd']}`"] = process["pid"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        remedy = "when no DVC command runs: rm .dvc/tmp/rwlock"
        yield fail(f"{announced} is damaged: {type(error).__name__}: {error}", remedy)
    for command, number in numbers.items():
        yield note(f"{command} is at work: process {number}", f"wait for it, or stop it: kill {number}")
    if not numbers:
        yield "no training and no DVC command is at work"


def _holder(lock: Path, owner: Path) -> str:
    """The number of the process that holds a lock, read from `owner`; empty for a free lock. Changes neither file."""
    from zc.lockfile import LockError, SimpleLockFile

    try:
        if lock.is_file():
            SimpleLockFile(str(lock)).close()
        return ""
    except LockError:
        with suppress(OSError, IndexError):
            return owner.read_text(encoding="utf-8").split()[0]
        return "unknown"


def main(config_file: str) -> NoReturn:
    """Checks the installation around the current folder, and exits with the status of `examine`."""
    root = Path.cwd()
    with suppress(FileNotFoundError):  # the check `project` reports it
        root = paths.project()
    warnings.simplefilter("ignore")
    try:
        sys.exit(examine(Setup(root, config_file), CHECKS))
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


if __name__ == "__main__":  # the name before `ciss doctor`
    from ciss import old_names

    exec(old_names.program("ciss.doctor", "doctor"))
