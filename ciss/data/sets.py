"""The data sets by name: where each lies, its classes and colours, and the reader of its layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciss import paths
from ciss.data import shapes, voc


@dataclass(frozen=True)
class DataSet:
    folder: tuple[str, ...]  # under a data root: the first part is what is looked for
    classes: dict[int, str]  # raw id -> name, background included
    pairs: Callable[[Path, str], list[voc.Pair]]
    palette: np.ndarray  # (256,3) uint8, by raw id
    void: int = 255
    draw: Callable[[Path], None] | None = None  # makes the data set where it is missing

    def root(self) -> Path:
        """Absolute folder of the data set. Raises FileNotFoundError with the places looked at and the remedy."""
        try:
            return paths.data_root(self.folder[0]).joinpath(*self.folder[1:])
        except FileNotFoundError:
            if not self.draw:
                raise
            self.draw(paths.project() / "data" / self.folder[0])
            return self.root()


VOC = DataSet(("VOCdevkit", "VOC2012"), voc.CLASSES, voc.pairs, voc.palette())

DATASETS: dict[str, DataSet] = {
    "shapes": DataSet(("shapes",), {0: "background", **shapes.CLASSES}, voc.pairs, voc.palette(), draw=shapes.write),
    "voc": VOC,
    "voc8": VOC,  # eight of its classes; the others are background
}
