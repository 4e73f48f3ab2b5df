"""A data set: its folder, classes, colours and reader, and what the readers have in common."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciss import paths
from ciss.data.pictures import FOREIGN, DataError, Pair
from ciss.documents import counted

FILE = "dataset.yaml"  # describes a data set of one's own


@dataclass(frozen=True)
class DataSet:
    folder: tuple[str, ...]  # under a data root, which is found by the first part
    classes: dict[int, str]  # raw id -> name, background included
    pairs: Callable[[Path, str], list[Pair]]
    palette: np.ndarray  # (256,3) uint8, by raw id
    void: int = 255
    draw: Callable[[Path], None] | None = None  # makes the data set where it is missing
    background: bool = True  # 0 is a class, and not only pixels without a label
    domains: tuple[str, ...] = ()  # in order of arrival; empty: the folders of images, sorted
    description: str = ""  # of a data set of one's own: sha256 of the values in its `dataset.yaml`
    own: Any = None  # of a data set of one's own: its folders, see `own.Own`

    def root(self) -> Path:
        """Absolute folder of the data set. Raises FileNotFoundError naming the searched folders and the remedy."""
        try:
            if self.description:  # another folder of this name may have no description
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


def colour_table(colours: Iterable[str]) -> np.ndarray:
    """(256,3) uint8 by raw id: hexadecimal colours from id 1 on; background black, void white."""
    table = np.zeros((256, 3), np.uint8)
    for raw, colour in enumerate(colours, start=1):
        table[raw] = list(bytes.fromhex(colour))
    table[255] = 255
    return table


def id_table(raw_ids: dict[int, int]) -> bytes:
    """A table for `Pair.raw_id_table` from number in the mask -> raw id. All other numbers are FOREIGN."""
    return bytes(raw_ids.get(number, FOREIGN) for number in range(256))


def match_files(
    images: Path, image_pattern: str, masks: Path, mask_patterns: Iterable[str], layout: str
) -> list[tuple[tuple[str, ...], Path, Path, str]]:
    """Matches images and masks whose paths are the same but for the folder and the ending.

    Args:
        images, masks: folders.
        image_pattern, mask_patterns: globs with the ending after the last "*". The mask of the last pattern counts.
        layout: the layout of the data set, for messages.

    Returns: parts of the path without folder and ending, image, mask, pattern of the mask; sorted by path.

    Raises: FileNotFoundError for a missing or empty folder; DataError for an image or mask without partner.
    """
    image_files = _files(images, [image_pattern], layout)
    mask_files = _files(masks, mask_patterns, layout)
    if lone := sorted(image_files.keys() ^ mask_files.keys()):
        missing = "mask" if lone[0] in image_files else "image"
        verb = "has" if len(lone) == 1 else "have"
        count = counted(len(lone), "image or mask", "images or masks")
        problem = f"{count} {verb} no partner; the {missing} of {'/'.join(lone[0])} is missing"
        raise DataError(f"{images}: {problem}. Complete the data set, or remove what is left over.")
    return [(parts, image_files[parts][0], *mask_files[parts]) for parts in sorted(image_files)]


def _files(folder: Path, patterns: Iterable[str], layout: str) -> dict[tuple[str, ...], tuple[Path, str]]:
    """Parts of the path in the folder, without ending -> file and pattern. Hidden files do not count."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Put it there: {layout}.")
    files = {}
    for pattern in patterns:
        ending = pattern.rpartition("*")[2]
        for file in folder.glob(pattern):
            if not file.name.startswith("."):
                *parents, name = file.relative_to(folder).parts
                files[*parents, name.removesuffix(ending)] = (file, pattern)
    if not files:
        raise FileNotFoundError(f"{folder}: no file {pattern} in it. Fetch the data set again: {layout}.")
    return files
