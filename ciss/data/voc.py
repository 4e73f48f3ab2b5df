"""Pascal VOC 2012's folder layout: JPEGImages, SegmentationClassAug (SBD-augmented) or SegmentationClass, ImageSets.

Source: Everingham et al. 2010; the augmented training list and masks are Hariharan et al.'s (SBD, 2011).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

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


def palette(colours: int = 256) -> np.ndarray:
    """VOC's colour map, (colours, 3) uint8: the bits of a class id dealt out to red, green and blue from the top."""
    ids = np.arange(colours)
    table = np.zeros((colours, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return table


def pairs(folder: Path, split: str) -> list[Pair]:
    """The pairs of a split (`train` or `val`), in the order of its list. Raises FileNotFoundError naming what lacks."""
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
    ids = found[0].read_text(encoding="utf-8").split()
    if not ids:
        raise FileNotFoundError(f"{found[0]}: the list is empty. Fetch it again.")
    return [Pair(i, folder / "JPEGImages" / f"{i}.jpg", masks / f"{i}.png") for i in ids]
