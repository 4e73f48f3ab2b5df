"""What is installed: Python, the packages, DVC, notebooks."""

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


def dvc(setup: Setup) -> Iterator[Finding]:
    import dvc
    from dvc.exceptions import DvcException

    if not (setup.root / ".dvc").is_dir():
        yield fail(f"{setup.root} has no folder .dvc", "clone the project with git, or make the folder: dvc init")
        return
    if not shutil.which("git"):
        yield fail("there is no program git", "install git; with conda: conda install git")
        return
    inside = subprocess.run(
        ["git", "rev-parse", "--is-inside-work-tree"], cwd=setup.root, capture_output=True, text=True, timeout=30
    )
    if inside.returncode:
        problem = inside.stderr.strip().partition("\n")[0]
        owned = f"git config --global --add safe.directory {setup.root}"
        yield fail(f"git: {problem}", owned if "dubious" in problem else "clone the project with git, or: git init")
        return
    try:
        folder, allowed = setup.cache
    except DvcException as error:
        yield fail(f".dvc/config: {short(error)}", "correct it; git diff .dvc/config shows what changed")
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
    """The kernel that papermill starts must be this Python, or trainings run with other packages."""
    import papermill
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        yield fail("there is no notebook kernel python3", KERNEL)
        return
    program = Path(spec.argv[0])
    bare = str(program) in {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info)}
    # The folder, not the file: every environment's python may be a link to the same one.
    if not bare and program.parent.resolve() != Path(sys.executable).parent.resolve():
        text = f"kernel python3 of {spec.resource_dir} starts {program}, not {sys.executable}"
        own = Path(spec.resource_dir).is_relative_to(sys.prefix)
        yield fail(text, KERNEL if own else f"{KERNEL}; if this stays: jupyter kernelspec remove python3, and again")
        return
    yield ok(f"papermill {papermill.__version__}, kernel python3 is this Python")
