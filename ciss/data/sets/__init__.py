"""The data sets by name: where each lies, its classes and colours, and the reader of its layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciss import paths
from ciss.data.pictures import Pair
from ciss.data.sets import ade20k as sets_ade20k
from ciss.data.sets import camvid as sets_camvid
from ciss.data.sets import cityscapes as sets_cityscapes
from ciss.data.sets import own as sets_own
from ciss.data.sets import shapes as sets_shapes
from ciss.data.sets import voc as sets_voc
from ciss.data.sets.ade20k import CLASSES
from ciss.data.sets.cityscapes import CITIES
from ciss.data.sets.own import FILE, find, load, names
from ciss.data.sets.shapes import write
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
                return paths.data_root(f"{self.folder[0]}/{sets_own.FILE}").parent
            return paths.data_root(self.folder[0]).joinpath(*self.folder[1:])
        except FileNotFoundError:
            if not self.draw:
                raise
            self.draw(paths.project() / "data" / self.folder[0])
            return self.root()

    def order(self) -> tuple[int, ...]:
        """Raw ids of all classes but the background, in order."""
        return tuple(sorted(set(self.classes) - {0}))


VOC = DataSet(("VOCdevkit", "VOC2012"), sets_voc.CLASSES, sets_voc.pairs, sets_voc.palette())

DATASETS: dict[str, DataSet] = {
    "shapes": DataSet(
        ("shapes",), {0: "background", **sets_shapes.CLASSES}, sets_voc.pairs, sets_voc.palette(), draw=write
    ),
    "voc": VOC,
    "voc8": VOC,  # eight of its classes; the others are background
    "ade20k": DataSet(("ADEChallengeData2016",), CLASSES, sets_ade20k.pairs, sets_ade20k.palette(), background=False),
    "cityscapes": DataSet(
        ("cityscapes",),
        sets_cityscapes.CLASSES,
        sets_cityscapes.pairs,
        sets_cityscapes.palette(),
        background=False,
        domains=CITIES,
    ),
    "camvid": DataSet(("CamVid",), sets_camvid.CLASSES, sets_camvid.pairs, sets_camvid.palette(), background=False),
}


def data_set(name: str) -> DataSet:
    """A data set by name: one of `DATASETS`, or a folder under a data root with a `dataset.yaml` (see `own`).

    Raises ConfigError for an unknown name, and for a `dataset.yaml` that is wrong, naming file and key.
    """
    if name in DATASETS:
        return DATASETS[name]
    file = find(name)
    if file is None:
        own_names = names()
        if name in own_names:  # its folder is there
            problem = "the name of a data set has letters from A to Z, digits, '-' and '_' only, since DVC reads it"
            raise ConfigError(f"no data set {short(name)}: {problem}. Rename the folder.")
        if (last := Path(name).name) in own_names:
            raise ConfigError(f"no data set {short(name)}. Give the name of the folder alone: {last}.")
        folder = f"A folder data/NAME with a {FILE} is a data set too."
        raise ConfigError(f"no data set {short(name)}. {choose(name, [*DATASETS, *own_names])} {folder}")
    found = load(file)
    return DataSet(
        folder=(name,),
        classes=found.classes,
        pairs=found.pairs,
        palette=found.palette,
        background=found.background,
        description=found.digest,
    )
