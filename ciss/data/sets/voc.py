"""Pascal VOC 2012's folder layout: JPEGImages, SegmentationClassAug (SBD-augmented) or SegmentationClass, ImageSets.

Source: Everingham et al. 2010; the augmented training list and masks are Hariharan et al.'s (SBD, 2011).
"""

import re
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


def palette() -> np.ndarray:
    """VOC's colour map, (256,3) uint8: the bits of a class id go in turn to red, green and blue, from the top."""
    ids = np.arange(256)
    table = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return table


def read_lines(file: Path) -> dict[int, str]:
    """The lines of a list by their numbers, without blank ones, surrounding spaces and a byte order mark.

    Line ends are those of Unix, Windows or old Macs. Raises DataError for a list that is empty or unreadable.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: the list cannot be read ({error.strerror}). Fetch it again.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: the list is not UTF-8 ({error.reason}). Fetch it again.") from None
    texts = re.split("\r\n|\r|\n", text)
    lines = {number: line.strip() for number, line in enumerate(texts, start=1) if line.strip()}
    if not lines:
        raise DataError(f"{file}: the list is empty. Fetch it again.")
    return lines


def read_list(file: Path) -> list[str]:
    """Image ids, one a line, see `read_lines`. Raises DataError, also for lines that are no file name."""
    lines = read_lines(file)
    flags = all(re.fullmatch(r"\S+\s+-?[01]", line) for line in lines.values())  # as in the lists of ImageSets/Main
    for number, line in lines.items():
        if flags or not line.isprintable() or "/" in line or "\\" in line:
            problem = f"{file}: line {number}: {shown(line)} is no image id"
            raise DataError(f"{problem}. Write one a line, without folder or second column, such as 2007_000032.")
    return list(lines.values())


def shown(line: str) -> str:
    """A line as messages show it."""
    return repr(line if len(line) <= 60 else f"{line[:57]}...")


def pairs(folder: Path, split: str) -> list[Pair]:
    """The pairs of a split (`train` or `val`), in the order of its list.

    Raises: FileNotFoundError for a missing list or folder of masks, DataError for a broken list.
    """
    lists = folder / "ImageSets" / "Segmentation"
    file = next((lists / name for name in LISTS[split] if (lists / name).is_file()), None)
    if file is None:
        problem = f"{lists}: no {' or '.join(LISTS[split])}"
        problem += f". A data set in Pascal VOC's layout has its list of {split} images there."
        raise FileNotFoundError(problem + (" VOC's: ciss data fetch sbd." if split == "train" else ""))
    masks = next((folder / name for name in MASKS if (folder / name).is_dir()), None)
    if masks is None:
        raise FileNotFoundError(f"{folder}: no folder {' or '.join(MASKS)}. Put the masks there.")
    return [Pair(name, folder / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png") for name in read_list(file)]


DATASET = DataSet(("VOCdevkit", "VOC2012"), CLASSES, pairs, palette())
