"""Pascal VOC 2012's folder layout: JPEGImages, SegmentationClassAug (SBD-augmented) or SegmentationClass, ImageSets.

Source: Everingham et al. 2010; the augmented training list and masks are Hariharan et al.'s (SBD, 2011).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciss.data.pictures import DataError

NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
CLASSES = dict(enumerate(NAMES))
LISTS = {"train": ("trainaug.txt", "train_aug.txt"), "val": ("val.txt",)}
MASKS = ("SegmentationClassAug", "SegmentationClass")


@dataclass(frozen=True)
class Pair:
    """An image and its mask on disk."""

    id: str
    image: Path
    mask: Path
    ids: bytes | None = None  # see `read_pair`
    domain: str = ""  # such as the city it was taken in


def palette(colours: int = 256) -> np.ndarray:
    """VOC's colour map, (colours, 3) uint8: the bits of a class id dealt out to red, green and blue from the top."""
    ids = np.arange(colours)
    table = np.zeros((colours, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return table


def read_list(file: Path) -> list[str]:
    """Image ids, one a line; blank lines, spaces around them, a byte order mark and Windows' line ends do not count.

    Raises DataError for a list that is empty or unreadable, and for ids that lead out of the folder of images.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: the list cannot be read ({error.strerror}). Fetch it again.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: the list is not UTF-8 ({error.reason}). Fetch it again.") from None
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), start=1)}
    for number, name in lines.items():
        if not name.isprintable() or "/" in name or "\\" in name:
            shown = repr(name if len(name) <= 60 else f"{name[:57]}...")
            raise DataError(f"{file}: line {number}: {shown} is no image id. Write one a line, such as 2007_000032.")
    ids = [name for name in lines.values() if name]
    if not ids:
        raise DataError(f"{file}: the list is empty. Fetch it again.")
    return ids


def pairs(folder: Path, split: str) -> list[Pair]:
    """The pairs of a split (`train` or `val`), in the order of its list. Raises FileNotFoundError naming what lacks,
    DataError for a broken list."""
    lists = folder / "ImageSets" / "Segmentation"
    found = [lists / name for name in LISTS[split] if (lists / name).is_file()]
    if not found:
        wanted = " or ".join(LISTS[split])
        raise FileNotFoundError(
            f"{lists}: no {wanted}. A data set in Pascal VOC's layout has its list of {split} images there."
        )
    masks = next((folder / name for name in MASKS if (folder / name).is_dir()), None)
    if masks is None:
        raise FileNotFoundError(f"{folder}: no folder {' or '.join(MASKS)}. Put the masks there.")
    ids = read_list(found[0])
    return [Pair(i, folder / "JPEGImages" / f"{i}.jpg", masks / f"{i}.png") for i in ids]
