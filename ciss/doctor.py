"""Checks an installation and says what to do: `ciss doctor`.

Each finding is one line: `ok`, `note` or `FAIL`; a note or a failure names a remedy. The checks try things: a training
step in every precision, a lock between two processes, a replaced file. They change nothing and leave no file behind.
Each check imports what may be missing or broken itself, so that the other checks still run.
"""

import getpass
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ciss import paths
from ciss.documents import size
from ciss.findings import CHECKS, INSTALL, Check, Found, check, examine, fail, note, short
from ciss.store import locks

KERNEL = "python -m ipykernel install --sys-prefix --name python3"
RESULTS = 5e6  # bytes of a run beside its weights: scores, figures, the executed notebook
SCRATCH = 1e8  # bytes in the temporary folder: kernels, compiled code
MACHINE = ("processor", "gpu", "training", "repeatability", "loaders", "processes")  # checks of ciss.training.trials


@dataclass
class Setup:
    """The installation to check: a project's folder and its parameter file."""

    root: Path
    file: str = "params.yaml"

    @cached_property
    def settings(self) -> Any:
        """The Config, or None where it cannot be read; the check `parameters` says why."""
        with suppress(Exception):
            from ciss import config

            return config.load(self.file)

    @property
    def benchmarks(self) -> dict:
        return self.settings.benchmarks if self.settings else {}

    @property
    def output(self) -> Path:
        return (self.root / (self.settings.output if self.settings else ".")).resolve()

    def dvc(self, section: str) -> dict:
        from dvc.config import Config

        return Config(str(self.root / ".dvc"))[section]

    def folders(self) -> dict[str, Path]:
        """The folders that runs write to; instead of one that does not exist yet, its nearest parent."""
        cache = self.root / ".dvc" / "cache"
        with suppress(Exception):  # the check `dvc` says why
            cache = Path(self.dvc("cache").get("dir") or cache)
        written = {"runs/": self.output / "runs", "DVC cache": cache, "temporary files": Path(tempfile.gettempdir())}
        return {name: next(f for f in (folder, *folder.parents) if f.is_dir()) for name, folder in written.items()}


# --- software


@check("uv python install 3.12 && uv sync --python 3.12")
def python(setup: Setup) -> Found:
    version = platform.python_version()
    project = (setup.root / "pyproject.toml").read_text(encoding="utf-8")  # Python 3.10 has no reader of TOML
    needs = re.search(r'^requires-python = "(.*)"', project, re.MULTILINE)[1]
    fits = SpecifierSet(needs).contains(version, prereleases=True)
    return f"{version}, {sys.executable}" if fits else fail(f"{version}, but the project needs {needs}")


@check("export HOME=/tmp/home")
def user(setup: Setup) -> Found:
    """DVC needs the user's name and a folder for its settings. In a container the user may have neither."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        return fail("the user has no name, which DVC needs", "export USER=ciss (docker run -e USER=ciss)")
    home = Path(os.path.expanduser("~"))
    parent = next((folder for folder in (home, *home.parents) if folder.exists()), home)
    if not home.is_absolute() or not parent.is_dir():
        return fail(f"the home folder is {str(home)!r}, which cannot be created")
    writable = os.access(parent, os.W_OK)
    return f"{name}, {home}" if writable else note(f"{name}, whose home folder {home} cannot be written to")


@check()
def project(setup: Setup) -> Found:
    """The project's folder, and whether the code that runs is its own."""
    paths.project()
    code = Path(__file__).resolve().parent
    remedy = f"run `python -m ciss...` in {setup.root}, or install it there: uv sync"
    foreign = note(f"{setup.root}, but the code that runs is that of {code}", remedy)
    return str(setup.root) if code == (setup.root / "ciss").resolve() else foreign


@check(INSTALL)
def packages(setup: Setup) -> Iterator[Found]:
    import tomllib

    declared = tomllib.loads((setup.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pinned = (setup.root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wrong = list(_unmet(declared))
    others = [problem for problem in _unmet(pinned) if not problem.endswith(" is missing")]
    shown = (f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm", "numpy", "dvc"))
    yield fail("; ".join(wrong)) if wrong else f"all {len(declared)} are installed: {', '.join(shown)}"
    if others:
        rest = f" and {len(others) - 3} more" if len(others) > 3 else ""
        remedy = f"{INSTALL}; results are equal to the last digit with the pinned versions only"
        yield note(f"not the versions of constraints.txt: {', '.join(others[:3])}{rest}", remedy)


def _unmet(lines: Iterable[str]) -> Iterator[str]:
    """What is wrong with each required package that is missing or of another version."""
    for requirement in map(Requirement, filter(None, lines)):
        version = None
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate()
        if applies and not (version and requirement.specifier.contains(version, prereleases=True)):
            problem = f"{version} ({requirement.specifier})" if version else "is missing"
            yield f"{requirement.name} {problem}"


@check("uv sync --reinstall-package torch --reinstall-package torchvision")
def torch_build(setup: Setup) -> Found:
    """torchvision is compiled against one build of torch."""
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    pair = f"torch {torch.__version__} and torchvision {metadata.version('torchvision')}"
    wrong = fail(f"{pair} are not built for each other: nms kept boxes {kept}, not [0, 2]")
    return f"{pair} fit" if kept == [0, 2] else wrong


@check("start DVC by `uv run dvc repro`, or activate the environment first")
def stages(setup: Setup) -> Found:
    """Stages run `python -m ciss...` in a shell, whose PATH decides which Python that is."""
    program = shutil.which("python")
    if program is None:
        return note("there is no program python on PATH, which stages start")
    same = Path(program).parent.resolve() == Path(sys.executable).parent.resolve()
    return f"stages start this Python: {program}" if same else note(f"stages start {program}, not {sys.executable}")


@check("correct .dvc/config; git diff .dvc/config shows what changed")
def dvc(setup: Setup) -> Found:
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
    kinds = ["reflink", "hardlink", "symlink", "copy"]
    works = test_links(kinds, system, str(cache), system, str(setup.root / "link"))
    used = next((kind for kind in allowed if kind in works), "none")
    tried = ", ".join(f"{kind} {'works' if kind in works else 'does not'}" for kind in kinds)
    text = f"DVC {dvc.__version__}, cache {section.get('dir') or cache}: {tried}; {','.join(allowed)} selects {used}"
    if used == "none":
        return fail(text, "dvc config cache.type reflink,copy")
    remedy = "nothing, if this is intended: results are copied and stored twice; else: dvc cache dir .dvc/cache"
    apart = note(f"{text}; the cache is on another file system than the project", remedy)
    return text if cache.stat().st_dev == setup.root.stat().st_dev else apart


@check("create a repository: git init; or use DVC without git: dvc config core.no_scm true")
def git(setup: Setup) -> Found:
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
def notebooks(setup: Setup) -> Iterator[Found]:
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
    program = Path(spec.argv[0])
    bare = str(program) in {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info)}
    # The folder, not the file: python in several environments may be a link to the same file.
    if not bare and program.parent.resolve() != Path(sys.executable).parent.resolve():
        own = Path(spec.resource_dir).is_relative_to(sys.prefix)
        text = f"jupyter lab's kernel python3 ({spec.resource_dir}) starts {program}, not {sys.executable}"
        remedy = "" if own else f"{KERNEL}; if this stays: jupyter kernelspec remove python3, and again"
        yield note(f"{text}; `dvc repro` does not use it", remedy)


CHECKS |= {name: Check(f"ciss.training.trials:{name}") for name in MACHINE}  # imported with torch, when they run


@check()
def parameters(setup: Setup) -> Iterator[Found]:
    """The parameter file, with the weight files that it names."""
    from ciss import config
    from ciss.runs import check as runs_check

    try:
        settings = config.load(setup.file)
        runs_check.check(settings)
        yield f"{setup.file}: {', '.join(settings.benchmarks)}; {len(settings.runs())} runs"
    except config.ConfigError as error:
        remedy = f"correct it, then: ciss plan --check --output {setup.file}"
        yield from (fail(line, remedy) for line in str(error).splitlines())


@check("correct or unset CISS_DATA")
def data(setup: Setup) -> Iterator[Found]:
    """Where the data sets lie, with the number of images of those that are needed."""
    from ciss.data import DATASETS, data_set

    root = os.environ.get("CISS_DATA")
    missing = root and not Path(root).expanduser().is_dir()
    yield fail(f"CISS_DATA is {root}: there is no such folder") if missing else f"CISS_DATA is {root or 'not set'}"
    used = {benchmark.dataset: name for name, benchmark in setup.benchmarks.items()}
    for name in dict.fromkeys([*DATASETS, *used]):
        drawn = False
        try:
            dataset = data_set(name)
            drawn = dataset.draw is not None
            folder = paths.data_root(dataset.folder[0]).joinpath(*dataset.folder[1:])
            counts = [len(dataset.pairs(folder, split)) for split in ("train", "val") if name in used]
            images = "{} training and {} validation images".format(*counts) if counts else "not needed"
            yield f"{name}: {folder}, {images}"
        except Exception as error:
            if name not in used or (drawn and isinstance(error, FileNotFoundError)):
                yield f"{name}: not there; {'drawn when it is needed' if name in used else 'not needed'}"
            else:
                remedy = f"put it there or correct it, or remove {used[name]} from {setup.file}"
                yield fail(f"{name}: {short(error)}", remedy)


@check()
def prepared(setup: Setup) -> Iterator[Found]:
    """The list of images of each benchmark, and notes on its data."""
    from ciss.data import DataError, Index
    from ciss.data.notes import data_notes, list_notes
    from ciss.runs.run import index_folder

    for name, benchmark in setup.benchmarks.items():
        errors = []
        try:
            index = Index.load(index_folder(setup.output, name), benchmark)
            yield f"{name}: prepared, {len(index.steps)} steps"
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
def weights(setup: Setup) -> Iterator[Found]:
    """What encoders start from. The check `parameters` reports weight files that are missing or wrong."""
    from ciss.models import hub

    for name, benchmark in setup.benchmarks.items():
        model = benchmark.model
        file = hub.cached_weights(model.encoder) if model.pretrained else model.weights or "none needed"
        missing = note(f"{name}: timm's weights of {model.encoder} are not on this machine yet")
        yield f"{name}: {file}" if file else missing


# --- storage


@check("free space (dvc gc -w drops old results), or move: `output`, dvc cache dir FOLDER, TMPDIR")
def disk(setup: Setup) -> Iterator[Found]:
    """Free space against what the runs that are missing will write."""
    if setup.settings is None:
        yield note(f"{setup.file} cannot be read, so the space is unknown", f"correct {setup.file}, and run this again")
        return
    from ciss.store.weights import STATE_WEIGHTS

    sizes = {name: _weights(name, benchmark) for name, benchmark in setup.benchmarks.items()}
    runs = {name: run.benchmark for name, run in setup.settings.runs().items()}
    trained = setup.output / "runs"
    missing = [sizes[b] for name, b in runs.items() if not (trained / b / name / "weights.safetensors").is_file()]
    written = sum(missing) + RESULTS * len(missing)
    state = STATE_WEIGHTS * max(missing, default=0)
    needs = {"runs/": written + state, "DVC cache": written, "temporary files": SCRATCH}
    systems: dict[int, list[str]] = {}
    for name, folder in setup.folders().items():
        systems.setdefault(folder.stat().st_dev, []).append(name)
    for names in systems.values():
        folder = setup.folders()[names[0]]
        free = shutil.disk_usage(folder).free
        need = sum(needs[name] for name in names)
        text = f"{' and '.join(names)} ({folder}): {size(free)} free, {size(need)} needed"
        text += f" ({len(missing)} of {len(runs)} runs to train)"
        yield text if free >= 2 * need else (fail if free < need else note)(text)


def _weights(name: str, benchmark: Any) -> int:
    """Bytes of a benchmark's network with all classes."""
    import torch

    from ciss.models import create_network
    from ciss.runs.run import classes_of

    channels = len(classes_of(benchmark, name))
    with torch.device("meta"):  # without values
        network = create_network(replace(benchmark.model, pretrained=False, weights=None), [channels])
    return sum(value.nbytes for value in network.state_dict().values())


@check()
def links(setup: Setup) -> list[Found]:
    """DVC refuses outputs outside of the project."""
    runs = setup.settings.runs() if setup.settings else {}
    problems = [fail(*problem) for problem in paths.links(setup.output, [(r.benchmark, n) for n, r in runs.items()])]
    return problems or ["no folder of outputs is a link out of the project"]


@check()
def files(setup: Setup) -> Iterator[Found]:
    """Whether the file systems do what atomic writing and locks need."""
    for name, folder in setup.folders().items():
        try:
            problem = locks.folder_problem(folder)
        except Exception as error:
            problem = short(error)
        remedy = f"make {folder} writable, or choose a folder on a local disk"
        works = f"{name} ({folder}): writing, replacing whole files and locks work"
        yield fail(f"{name} ({folder}): {problem}", remedy) if problem else works


@check("when no DVC command runs: rm .dvc/tmp/rwlock")
def at_work(setup: Setup) -> Iterator[Found]:
    """DVC commands and trainings that run: another one of the same would have to wait."""
    free = True
    for processes in (locks.trainings(setup.output), locks.dvc_commands(setup.root)):
        for what, number in processes:
            free = False
            yield note(f"{what} is at work: process {number}", f"wait for it, or stop it: kill {number}")
    if free:
        yield "no training and no DVC command is at work"


def main(config_file: str) -> NoReturn:
    """Checks the installation around the current folder, and exits with the status of `examine`."""
    root = Path.cwd()
    with suppress(FileNotFoundError):  # the check `project` reports it
        root = paths.project()
    warnings.simplefilter("ignore")
    try:
        sys.exit(examine(Setup(root, config_file)))
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


if __name__ == "__main__":  # the name before `ciss doctor`
    from ciss import old_names

    exec(old_names.program("ciss.doctor", "doctor"))
