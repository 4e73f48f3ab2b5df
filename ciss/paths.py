"""Where things are: the project, its data sets and what its runs write. Nothing here makes a folder."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

AFFECTS_RESULTS = False  # a change here trains nothing again, see store/code

OUTPUTS = (
    ".source",
    ".data",
    "data",
    "data/shapes",
    "data/index",
    "reports/benchmarks",
    "reports/compare",
    "runs",
    "results",
    "probes",
    "reports",
)


def project() -> Path:
    """The absolute folder of the project: the nearest ancestor of the current directory that holds a `dvc.yaml`, else
    the checkout this package lies in. A queued experiment runs in a copy of the repository, and finds that copy.

    Raises FileNotFoundError where there is neither.
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
    """Absolute folders that data sets are looked for in: `$CISS_DATA`, then `data/` of the project, then, in a queued
    experiment (DVC_ROOT), `data/` of the repository it was queued from."""
    roots = []
    if root := os.environ.get("CISS_DATA"):
        roots.append(Path(root).expanduser())
    with suppress(FileNotFoundError):  # CISS_DATA alone is enough outside a project
        roots.append(project() / "data")
    if root := os.environ.get("DVC_ROOT"):
        roots.append(Path(root) / "data")
    return list(dict.fromkeys(root.absolute() for root in roots))


def data_root(folder: str) -> Path:
    """The absolute path of a data set's folder, such as "VOCdevkit", in the first of the data roots that has it.

    Raises FileNotFoundError naming every place that was searched.
    """
    roots = data_roots()
    for root in roots:
        if os.path.exists(root / folder):  # Path.exists raises where a folder may not be searched
            return root / folder
    reasons = [f" ({reason})" for root in roots if (reason := _unreachable(root, folder))]
    raise FileNotFoundError(
        f"no {folder} in {' or '.join(map(str, roots)) or 'any project'}{''.join(reasons)}: "
        "set CISS_DATA to the folder that holds VOCdevkit/, ADEChallengeData2016/, cityscapes/ or CamVid/"
    )


def _unreachable(root: Path, folder: str) -> str:
    """Why a data set that may be there cannot be seen; empty without a reason."""
    for place in (root, root / folder):
        if os.path.islink(place) and not os.path.exists(place):
            return f"{place} is a link to {os.readlink(place)}, which cannot be reached"
    if os.path.isdir(root) and not os.access(root, os.X_OK):
        return f"no permission to read {root}"
    return ""


def content_file(benchmark: str) -> Path:
    """Where the pipeline keeps the content hash of a benchmark's own data, relative to the project."""
    return Path(".data") / benchmark


def links(root: Path, runs: Iterable[tuple[str, str]] = ()) -> Iterator[tuple[str, str]]:
    """What is wrong and what to do, for each folder of outputs that is a link to a place outside of the project. DVC
    refuses such an output, but only when its stage has ended, after hours of training.

    Args:
        root: the folder of the project.
        runs: (benchmark, name) of each run.
    """
    runs = list(runs)
    benchmarks = dict.fromkeys(benchmark for benchmark, _ in runs)
    of_benchmarks = [f"{folder}/{name}" for folder in (*OUTPUTS[-4:], "data/index") for name in benchmarks]
    of_runs = [f"{folder}/{benchmark}/{name}" for folder in ("runs", "results") for benchmark, name in runs]
    for name in (*OUTPUTS, *of_benchmarks, *of_runs):
        folder = root / name
        if not folder.is_symlink() or folder.resolve().is_relative_to(root.resolve()):
            continue
        if name == "data":
            remedy = "make data/ a folder, and put links to the data sets into it, or name their folder in CISS_DATA"
        else:
            remedy = (
                "replace the link by a folder. For more space move the whole project, or DVC's cache: dvc cache dir"
            )
        yield f"{folder} is a link to {os.readlink(folder)}, and DVC refuses outputs outside of the project", remedy
