"""What is installed: Python, the packages, DVC, notebooks."""

import getpass
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ciss import paths
from ciss.doctor.base import INSTALL, TORCH, Finding, Setup, fail, note, ok, short, version

KERNEL = "python -m ipykernel install --sys-prefix --name python3"


def python(setup: Setup) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    found, text = platform.python_version(), (setup.root / "pyproject.toml").read_text(encoding="utf-8")
    needs = re.search(r'^requires-python = "(.*)"', text, re.MULTILINE)[1]
    if SpecifierSet(needs).contains(found, prereleases=True):
        yield ok(f"{found}, {sys.executable}")
    else:
        yield fail(f"{found}, but the project needs {needs}", "uv python install 3.12 && uv sync --python 3.12")


def account(setup: Setup) -> Iterator[Finding]:
    """DVC asks for the user's name and for a folder of settings; a container's user may have neither."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        yield fail("the user has no name, and DVC asks for one", "export USER=ciss (docker run -e USER=ciss)")
        return
    home = Path(os.path.expanduser("~"))
    above = next((folder for folder in (home, *home.parents) if folder.exists()), None)
    if not home.is_absolute() or above is None or not above.is_dir():
        yield fail(f"the home folder is {str(home)!r}, which cannot be made", "export HOME=/tmp/home")
    elif not os.access(above, os.W_OK):
        yield note(
            f"{name}, whose home folder {home} cannot be written", "export HOME=/tmp/home, if DVC or git complain"
        )
    else:
        yield ok(f"{name}, {home}")


def project(setup: Setup) -> Iterator[Finding]:
    """Which project, and whose code."""
    paths.project()
    code, own = Path(__file__).resolve().parents[1], (setup.root / "ciss").resolve()
    if code == own:
        yield ok(str(setup.root))
    else:
        remedy = f"run `python -m ciss...` in {setup.root}, or install it there: uv sync"
        yield note(f"{setup.root}, but the code that runs is that of {code}", remedy)


def packages(setup: Setup) -> Iterator[Finding]:
    import tomllib

    from packaging.requirements import Requirement

    declared = tomllib.loads((setup.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pinned = (setup.root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wrong, others = [], []
    for lines, problems in ((declared, wrong), (pinned, others)):
        for requirement in map(Requirement, filter(None, lines)):
            if requirement.marker and not requirement.marker.evaluate():
                continue
            found, needs = version(requirement.name), requirement.specifier
            if found is None and problems is wrong:
                problems.append(f"{requirement.name} is missing")
            elif found is not None and not needs.contains(found, prereleases=True):
                problems.append(f"{requirement.name} {found} ({needs})")
    if wrong:
        yield fail("; ".join(wrong), INSTALL)
    else:
        shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "numpy", "dvc"))
        yield ok(f"all {len(declared)} there: {shown}")
    if others:
        rest = f" and {len(others) - 3} more" if len(others) > 3 else ""
        same = f"{INSTALL}; numbers are the same to the last digit with the pinned versions only"
        yield note(f"not as in constraints.txt: {', '.join(others[:3])}{rest}", same)


def torch_pair(setup: Setup) -> Iterator[Finding]:
    """torchvision is compiled against one build of torch."""
    import torch

    try:
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        if kept != [0, 2]:
            raise RuntimeError(f"nms kept boxes {kept}, not [0, 2]")
        yield ok(f"torch {torch.__version__} and torchvision {torchvision.__version__} fit")
    except Exception as error:
        pair = f"torch {torch.__version__} and torchvision {version('torchvision')}"
        yield fail(f"{pair} are not built for each other: {short(error)}", TORCH)


def stages(setup: Setup) -> Iterator[Finding]:
    """Stages run `python -m ciss...` in a shell, so that PATH says which Python that is."""
    program = shutil.which("python")
    remedy = "start DVC by `uv run dvc repro`, or activate the environment first"
    if program is None:
        yield note("there is no program python on PATH, which stages start", remedy)
    elif Path(program).parent.resolve() != Path(sys.executable).parent.resolve():
        yield note(f"stages start the python on PATH, {program}, not {sys.executable}", remedy)
    else:
        yield ok(f"stages start this Python: {program}")


def dvc(setup: Setup) -> Iterator[Finding]:
    import dvc
    from dvc.config import Config
    from dvc.exceptions import DvcException

    if not (setup.root / ".dvc").is_dir():
        yield fail(f"{setup.root} has no folder .dvc", "clone the project with git, or make the folder: dvc init")
        return
    try:
        without_git = Config(str(setup.root / ".dvc"))["core"].get("no_scm")
        folder, allowed = setup.cache
    except DvcException as error:
        yield fail(f".dvc/config: {short(error)}", "correct it; git diff .dvc/config shows what changed")
        return
    if not without_git and (problem := _git_problem(setup.root)):
        yield fail(*problem)
        return
    near = setup.folders()["DVC cache"]
    works = _links(near, setup.root)
    used = next((kind for kind in allowed if works.get(kind)), "none")
    tried = ", ".join(f"{kind} {'works' if works[kind] else 'does not'}" for kind in works)
    text = f"DVC {dvc.__version__}, cache {folder}: {tried}; cache.type {','.join(allowed)} makes it {used}"
    if used == "none":
        yield fail(text, "dvc config cache.type reflink,copy")
    elif near.stat().st_dev != setup.root.stat().st_dev:
        remedy = "nothing, if that is meant: results are copied and lie twice; else: dvc cache dir .dvc/cache"
        yield note(f"{text}; the cache is on another file system than the project", remedy)
    else:
        yield ok(text)


def _git_problem(root: Path) -> tuple[str, str] | None:
    """What is wrong with git or with the repository, and what to do."""
    if not shutil.which("git"):
        return "there is no program git", "install git; with conda: conda install git"
    command = ["git", "rev-parse", "--is-inside-work-tree"]
    inside = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30)
    if not inside.returncode:
        return None
    problem = inside.stderr.strip().partition("\n")[0]
    if "dubious" in problem:  # experiments and git fail, `dvc repro` does not
        return f"git: {problem}", f"git config --global --add safe.directory {root}"
    return f"git: {problem}", "make a repository: git init; or use DVC without git: dvc config core.no_scm true"


def _links(cache: Path, project: Path) -> dict[str, bool]:
    """Which kinds of link lead from the cache to the project: tried."""
    from dvc_objects.fs import system

    works = {}
    with (
        tempfile.TemporaryDirectory(prefix=".doctor-", dir=cache) as there,
        tempfile.TemporaryDirectory(prefix=".doctor-", dir=project) as here,
    ):
        source = Path(there, "source")
        source.write_bytes(b"data")
        kinds = {"reflink": system.reflink, "hardlink": os.link, "symlink": os.symlink, "copy": shutil.copyfile}
        for kind, link in kinds.items():
            try:
                link(str(source), str(Path(here, kind)))
                works[kind] = Path(here, kind).read_bytes() == b"data"
            except (OSError, NotImplementedError):
                works[kind] = False
    return works


def notebooks(setup: Setup) -> Iterator[Finding]:
    """The pipeline runs notebooks in this Python. `jupyter lab` starts what the kernelspec python3 names."""
    import ipykernel
    import papermill
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    yield ok(f"papermill {papermill.__version__}, ipykernel {ipykernel.__version__}: stages use this Python")
    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        yield note("jupyter lab finds no kernel python3; `dvc repro` needs none", KERNEL)
        return
    program = Path(spec.argv[0])
    bare = str(program) in {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info)}
    # The folder, not the file: every environment's python may be a link to the same one.
    if bare or program.parent.resolve() == Path(sys.executable).parent.resolve():
        return
    text = f"jupyter lab's kernel python3 ({spec.resource_dir}) starts {program}, not {sys.executable}"
    own = Path(spec.resource_dir).is_relative_to(sys.prefix)
    remedy = KERNEL if own else f"{KERNEL}; if this stays: jupyter kernelspec remove python3, and again"
    yield note(f"{text}; `dvc repro` does not use it", remedy)
