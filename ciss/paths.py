"""Folders of the project, its data sets and its outputs. Nothing here makes a folder."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

AFFECTS_RESULTS = False  # a change here trains nothing again, see store/code

OUTPUTS = ".source .data data data/shapes data/index runs results probes reports"
OUTPUTS += " reports/benchmarks reports/compare reports/notebooks"
BY_BENCHMARK = "data/index runs results probes reports"  # folders with a folder for each benchmark


def project() -> Path:
    """The absolute folder of the project: the nearest one above the current folder with a `dvc.yaml`, else the checkout
    of this package. A queued experiment finds the copy of the repository that it runs in.

    Raises FileNotFoundError if there is neither.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no dvc.yaml in {here} or above: change to the folder of the project, or to one inside it")


def existing_parent(path: Path) -> Path:
    """The path itself where it exists, else its nearest ancestor that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def data_roots() -> list[Path]:
    """Absolute folders that may hold data sets: `$CISS_DATA`, `data/` of the project and, in a queued experiment
    (DVC_ROOT), `data/` of the repository that it comes from."""
    roots = []
    if root := os.environ.get("CISS_DATA"):
        roots.append(Path(root).expanduser())
    with suppress(FileNotFoundError):  # outside a project, CISS_DATA is enough
        roots.append(project() / "data")
    if root := os.environ.get("DVC_ROOT"):
        roots.append(Path(root) / "data")
    return list(dict.fromkeys(root.absolute() for root in roots))


def data_root(folder: str) -> Path:
    """The absolute path of a data set's folder, such as "VOCdevkit", in the first data root that has it.

    Raises FileNotFoundError, which names every data root.
    """
    roots = data_roots()
    for root in roots:
        if os.path.exists(root / folder):  # Path.exists raises without the permission to search
            return root / folder
    reasons = [f" ({reason})" for root in roots if (reason := _unreachable(root, folder))]
    raise FileNotFoundError(
        f"no {folder} in {' or '.join(map(str, roots)) or 'any project'}{''.join(reasons)}: "
        "set CISS_DATA to the folder that holds VOCdevkit/, ADEChallengeData2016/, cityscapes/ or CamVid/"
    )


def _unreachable(root: Path, folder: str) -> str:
    """The reason why a data set may exist but cannot be read; empty without one."""
    for path in (root, root / folder):
        if os.path.islink(path) and not os.path.exists(path):
            return f"{path} is a link to {os.readlink(path)}, which cannot be reached"
    if os.path.isdir(root) and not os.access(root, os.X_OK):
        return f"no permission to read {root}"
    return ""


def content_file(benchmark: str) -> Path:
    """Where the pipeline keeps the content hash of a benchmark's own data, relative to the project."""
    return Path(".data") / benchmark


def links(root: Path, runs: Iterable[tuple[str, str]] = ()) -> Iterator[tuple[str, str]]:
    """A problem and its remedy for each output folder that is a link to a folder outside the project. DVC refuses such
    an output, but only at the end of its stage, after hours of training.

    Args:
        root: the folder of the project.
        runs: (benchmark, name) of each run.
    """
    runs = list(runs)
    folders = OUTPUTS.split()
    folders += [f"{folder}/{name}" for folder in BY_BENCHMARK.split() for name in dict.fromkeys(b for b, _ in runs)]
    folders += [f"{folder}/{benchmark}/{name}" for folder in ("runs", "results") for benchmark, name in runs]
    for name in folders:
        folder = root / name
        if folder.is_symlink() and not folder.resolve().is_relative_to(root.resolve()):
            remedy = (
                "replace the link by a folder. For more space move the whole project, or DVC's cache: dvc cache dir"
            )
            if name == "data":
                remedy = "make data/ a folder with links to the data sets, or name their folder in CISS_DATA"
            yield f"{folder} is a link to {os.readlink(folder)}, and DVC refuses outputs outside of the project", remedy
