"""What a data set is: where it lies, its classes and colours, and the reader of its layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciss import paths
from ciss.data.pictures import Pair

FILE = "dataset.yaml"  # describes a data set of one's own


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
    description: str = ""  # of a data set of one's own: sha256 of the values in its `dataset.yaml`

    def root(self) -> Path:
        """Absolute folder of the data set. Raises FileNotFoundError with the places looked at and the remedy."""
        try:
            if self.description:  # not a folder of that name without one
                return paths.data_root(f"{self.folder[0]}/{FILE}").parent
            return paths.data_root(self.folder[0]).joinpath(*self.folder[1:])
        except FileNotFoundError:
            if not self.draw:
                raise
            self.draw(paths.project() / "data" / self.folder[0])
            return self.root()

    def order(self) -> tuple[int, ...]:
        """Raw ids of all classes but the background, in order."""
        return tuple(sorted(set(self.classes) - {0}))
