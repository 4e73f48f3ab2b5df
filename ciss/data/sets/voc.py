"""Pascal VOC 2012's folder layout: JPEGImages, SegmentationClassAug (SBD-augmented) or SegmentationClass, ImageSets.

Source: Everingham et al. 2010; the augmented training list and masks are Hariharan et al.'s (SBD, 2011).
"""

from pathlib import Path

import numpy as np

from ciss.data.pictures import DataError, Pair
from ciss.data.sets.base import DataSet

NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
CLASSES = dict(enumerate(NAMES))
LISTS = {"train": ("trainaug.txt", "train_aug.txt"), "val": ("val.txt",)}
MASKS = ("SegmentationClassAug", "SegmentationClass")


def palette(colours: int = 256) -> np.ndarray:
    """VOC's colour map, (colours, 3) uint8: the bits of a class id dealt out to red, green and blue from the top."""
    ids = np.arange(colours)
    table = np.zeros((colours, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return table


def read_lines(file: Path) -> dict[int, str]:
    """The lines of a list by their numbers; blank ones, spaces around them, a byte order mark and Windows' line ends
    do not count. Raises DataError for a list that is empty or unreadable."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: the list cannot be read ({error.strerror}). Fetch it again.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: the list is not UTF-8 ({error.reason}). Fetch it again.") from None
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
    if not lines:
        raise DataError(f"{file}: the list is empty. Fetch it again.")
    return lines


def read_list(file: Path) -> list[str]:
    """Image ids, one a line, see `read_lines`. Raises DataError, also for ids that lead out of the folder of images."""
    lines = read_lines(file)
    for number, name in lines.items():
        if not name.isprintable() or "/" in name or "\\" in name:
            raise DataError(
                f"{file}: line {number}: {shown(name)} is no image id. Write one a line, such as 2007_000032."
            )
    return list(lines.values())


def shown(line: str) -> str:
    """A line as messages show it."""
    return repr(line if len(line) <= 60 else f"{line[:57]}...")


def pairs(folder: Path, split: str) -> list[Pair]:
    """The pairs of a split (`train` or `val`), in the order of its list. Raises FileNotFoundError naming what lacks,
    DataError for a broken list."""
    lists = folder / "ImageSets" / "Segmentation"
    found = [lists / name for name in LISTS[split] if (lists / name).is_file()]
    if not found:
        wanted = " or ".join(LISTS[split])
        place = f"{lists}: no {wanted}. A data set in Pascal VOC's layout has its list of {split} images there."
        raise FileNotFoundError(f"{place} VOC's: ciss data fetch sbd." if split == "train" else place)
    masks = next((folder / name for name in MASKS if (folder / name).is_dir()), None)
    if masks is None:
        raise FileNotFoundError(f"{folder}: no folder {' or '.join(MASKS)}. Put the masks there.")
    ids = read_list(found[0])
    return [Pair(i, folder / "JPEGImages" / f"{i}.jpg", masks / f"{i}.png") for i in ids]


DATASET = DataSet(("VOCdevkit", "VOC2012"), CLASSES, pairs, palette())
