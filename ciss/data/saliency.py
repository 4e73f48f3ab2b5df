"""Saliency maps: where an image shows some object, made by a detector of one's own. SSUL reads them.

The folder `saliency` lies beside the folder of the images, and has a PNG with the name of every training image. Numbers
above 0 are salient.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from ciss.data.pictures import FOREIGN, DataError, Pair, read_mask

NOT_SALIENT = FOREIGN  # between loader and batch: the label of a background pixel that is not salient


def map_file(pair: Pair) -> Path:
    return pair.image.parent.parent / "saliency" / f"{pair.image.stem}.png"


def read_map(pair: Pair, size: tuple[int, ...]) -> np.ndarray:
    """The map (H,W) uint8 of an image of a size. Raises DataError."""
    saliency = read_mask(map_file(pair))
    if saliency.shape != size:
        (height, width), (rows, columns) = size, saliency.shape
        problem = f"{map_file(pair)}: {columns}x{rows}, but its image is {width}x{height} pixels"
        raise DataError(f"{problem}. Make the map again.")
    return saliency


def mark(labels: Tensor, saliency: Tensor) -> Tensor:
    """Labels (H,W) uint8 in which background pixels that are not salient are NOT_SALIENT."""
    return labels.masked_fill((labels == 0) & (saliency == 0), NOT_SALIENT)


def digest(pairs: Iterable[Pair]) -> str:
    """sha256 over the maps of images. Raises DataError for a missing map."""
    total = hashlib.sha256()
    for pair in pairs:
        file = map_file(pair)
        try:
            total.update(file.read_bytes())
        except FileNotFoundError:
            advice = "Make the maps of all training images, or use `saliency: off`"
            raise DataError(f"{file}: the saliency map is missing. {advice}.") from None
    return total.hexdigest()
