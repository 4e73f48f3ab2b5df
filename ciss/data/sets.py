"""The data sets by name: where each lies, its classes and colours, and the reader of its layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciss import paths
from ciss.data import ade20k, camvid, cityscapes, own, shapes, voc
from ciss.data.pictures import Pair
from ciss.documents import ConfigError, choose, short


@dataclass(frozen=True)
class DataSet:
    folder: tuple[str, ...]  # under a data root: the first part is what is looked for
    classes: dict[int, str]  # raw id -> name, background included
    pairs: Callable[[Path, str], list[Pair]]
    palette: np.ndarray  # (256,3) uint8, by raw id
    void: int = 255
    draw: Callable[[Path], None] | None = None  # makes the data set where it is missing
    background: bool = True  # 0 is a class of its own, and not only what has no label
    domains: tuple[str, ...] = ()  # in their usual order of arrival; empty: as the images are sorted
    description: str = ""  # sha256 of the file that describes a data set of one's own

    def root(self) -> Path:
        """Absolute folder of the data set. Raises FileNotFoundError with the places looked at and the remedy."""
        try:
            if self.description:  # not a folder of that name without one
                return paths.data_root(f"{self.folder[0]}/{own.FILE}").parent
            return paths.data_root(self.folder[0]).joinpath(*self.folder[1:])
        except FileNotFoundError:
            if not self.draw:
                raise
            self.draw(paths.project() / "data" / self.folder[0])
            return self.root()

    def order(self) -> tuple[int, ...]:
        """Raw ids of all classes but the background, in order."""
        return tuple(sorted(set(self.classes) - {0}))


VOC = DataSet(("VOCdevkit", "VOC2012"), voc.CLASSES, voc.pairs, voc.palette())

DATASETS: dict[str, DataSet] = {
    "shapes": DataSet(("shapes",), {0: "background", **shapes.CLASSES}, voc.pairs, voc.palette(), draw=shapes.write),
    "voc": VOC,
    "voc8": VOC,  # eight of its classes; the others are background
    "ade20k": DataSet(("ADEChallengeData2016",), ade20k.CLASSES, ade20k.pairs, ade20k.palette(), background=False),
    "cityscapes": DataSet(
        ("cityscapes",),
        cityscapes.CLASSES,
        cityscapes.pairs,
        cityscapes.palette(),
        background=False,
        domains=cityscapes.CITIES,
    ),
    "camvid": DataSet(("CamVid",), camvid.CLASSES, camvid.pairs, camvid.palette(), background=False),
}


def data_set(name: str) -> DataSet:
    """A data set by name: one of `DATASETS`, or a folder under a data root with a `dataset.yaml` (see `own`).

    Raises ConfigError for an unknown name, and for a `dataset.yaml` that is wrong, naming file and key.
    """
    if name in DATASETS:
        return DATASETS[name]
    file = own.find(name)
    if file is None:
        own_names = own.names()
        if name in own_names:  # its folder is there
            problem = "the name of a data set has letters from A to Z, digits, '-' and '_' only, since DVC reads it"
            raise ConfigError(f"no data set {short(name)}: {problem}. Rename the folder.")
        if (last := Path(name).name) in own_names:
            raise ConfigError(f"no data set {short(name)}. Give the name of the folder alone: {last}.")
        folder = f"A folder data/NAME with a {own.FILE} is a data set too."
        raise ConfigError(f"no data set {short(name)}. {choose(name, [*DATASETS, *own_names])} {folder}")
    found = own.load(file)
    return DataSet(
        folder=(name,),
        classes=found.classes,
        pairs=found.pairs,
        palette=found.palette,
        background=found.background,
        description=found.digest,
    )
