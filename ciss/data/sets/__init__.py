"""The data sets by name. A file of this folder that defines `DATASET` is a new data set."""

import importlib
from pathlib import Path

from ciss.data.sets.base import DataSet
from ciss.data.sets.own import FILE, find, load, names
from ciss.documents import ConfigError, choose, short

__all__ = ["DATASETS", "DataSet", "data_set"]


def _discover() -> dict[str, DataSet]:
    """The data sets of this folder, by the names of their files."""
    files = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem.isidentifier())
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in files if name != "__init__"}
    return {name: module.DATASET for name, module in modules.items() if hasattr(module, "DATASET")}


DATASETS: dict[str, DataSet] = _discover()


def data_set(name: str) -> DataSet:
    """A data set by name: one of `DATASETS`, or a folder under a data root with a `dataset.yaml` (see `own`).

    Raises ConfigError for an unknown name, and for a `dataset.yaml` that is wrong, naming file and key.
    """
    if name in DATASETS:
        return DATASETS[name]
    if file := find(name):
        return load(file)
    own_names = names()
    if name in own_names:  # its folder is there
        problem = "DVC needs a name of letters from A to Z, digits, '-' and '_'"
        raise ConfigError(f"no data set {short(name)}: {problem}. Rename the folder.")
    if (last := Path(name).name) in own_names:
        raise ConfigError(f"no data set {short(name)}. Give the name of the folder alone: {last}.")
    folder = f"A folder data/NAME with a {FILE} is a data set too."
    raise ConfigError(f"no data set {short(name)}. {choose(name, [*DATASETS, *own_names])} {folder}")
