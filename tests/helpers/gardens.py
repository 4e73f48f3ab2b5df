"""A data set of one's own: four classes in three seasons."""

import numpy as np
from PIL import Image

from ciss import data
from ciss.config import validate

GARDEN = """
classes:
  1: leaf
  2: {name: stem, colour: [0, 128, 0]}
  3: flower
  4: fruit
"""


SEASONS = ("spring", "summer", "winter")


def paint(folder, name: str, ids: list[int], seed: int) -> None:
    """An image of 32 pixels and its mask: a square for each id, of a colour of its own, on the background."""
    dice = np.random.default_rng(seed)
    image, mask = dice.integers(90, 120, (32, 32, 3), dtype=np.uint8), np.zeros((32, 32), np.uint8)
    for number, raw in enumerate(ids):
        row, column = 16 * (number // 2) + dice.integers(0, 4), 16 * (number % 2) + dice.integers(0, 4)
        mask[row : row + 10, column : column + 10] = raw
        image[row : row + 10, column : column + 10] = (60 * raw, 255 - 60 * raw, 40)
    for kind, array, suffix in (("images", image, "jpg"), ("masks", mask, "png")):
        file = folder / kind / f"{name}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)


def benchmark(project, **changes):
    values = {**project.document["benchmarks"]["tiny"], "dataset": "garden", "protocol": "2-2", "holdout": 0, **changes}
    return validate(data.index.Benchmark, values, "test", "")
