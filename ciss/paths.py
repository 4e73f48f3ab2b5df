"""Where things are: the project, its data sets and what its runs write. Nothing here makes a folder."""

import os
from contextlib import suppress
from pathlib import Path


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


def data_root(folder: str) -> Path:
    """The absolute path of a data set's folder, such as "VOCdevkit": under `$CISS_DATA`, else under `data/` of the
    project, else, in a queued experiment (DVC_ROOT), under `data/` of the repository it was queued from.

    Raises FileNotFoundError naming every place that was searched.
    """
    places = []
    if root := os.environ.get("CISS_DATA"):
        places.append(Path(root).expanduser())
    with suppress(FileNotFoundError):  # CISS_DATA alone is enough outside a project
        places.append(project() / "data")
    if root := os.environ.get("DVC_ROOT"):
        places.append(Path(root) / "data")
    places = list(dict.fromkeys(place.absolute() for place in places))
    for place in places:
        if (place / folder).exists():
            return place / folder
    raise FileNotFoundError(
        f"no {folder} in {' or '.join(map(str, places)) or 'any project'}: "
        "set CISS_DATA to the folder that holds VOCdevkit/, ADEChallengeData2016/, cityscapes/ or CamVid/"
    )
