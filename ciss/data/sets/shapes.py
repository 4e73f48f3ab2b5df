"""The embedded benchmark `shapes`: eight classes of drawn shapes in Pascal VOC's folder layout.

It shows the two failures of the field within minutes on a CPU. A class is an outline *and* a texture, in any colour.
Classes of different steps share an outline or a texture, so that a new class pulls on an old one (forgetting). They
occur together in most images, so that each is background in the other's step (background shift). Classes differ in
size and frequency, so that they fade at different paces.

Every pixel depends on (seed, split, index) alone, not on the version of numpy or the CPU. Random numbers are the raw
words of PCG64, which numpy keeps stable, unlike the methods of Generator. Arithmetic is elementwise + - * / % sqrt
floor in float64, which IEEE 754 rounds in one way. There is no sine and no sum of floats.
"""

import math
import shutil
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from ciss.data.sets.base import DataSet
from ciss.data.sets.voc import pairs, palette

SIZE = 64  # pixels, both sides
TRAIN, VAL = 1200, 240  # images
LISTS = {"train": "trainaug.txt", "val": "val.txt"}  # under ImageSets/Segmentation
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE] + 0.5

# share: per cent of all objects; radii: smallest and largest, in pixels, of the circle around an object
Kind = namedtuple("Kind", "outline texture share radii")
KINDS = {  # raw id -> class; protocol 4-2 learns 1-4, then 5-6, then 7-8
    1: Kind("disc", "plain", 17, (8.5, 13.5)),
    2: Kind("square", "striped", 14, (9.5, 14.5)),
    3: Kind("triangle", "dotted", 13, (11.0, 16.0)),
    4: Kind("cross", "plain", 9, (7.5, 10.5)),
    5: Kind("disc", "striped", 14, (8.0, 13.0)),
    6: Kind("ring", "plain", 11, (9.5, 13.5)),
    7: Kind("square", "checked", 12, (10.0, 15.0)),
    8: Kind("triangle", "plain", 10, (10.0, 14.0)),
}
CLASSES = {raw: f"{kind.texture} {kind.outline}" for raw, kind in KINDS.items()}
WEIGHTED_CLASSES = [raw for raw, kind in KINDS.items() for _ in range(kind.share)]


class RandomNumbers:
    """Random numbers that are the same in every version of numpy."""

    def __init__(self, *key: int):
        self.words = np.random.PCG64(np.random.SeedSequence(key))

    def choice(self, items: Sequence):
        return items[self.words.random_raw() % len(items)]

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = ()):
        """float64 in [low, high): an array, or a scalar without a shape."""
        words = self.words.random_raw(math.prod(shape)).reshape(shape)
        return low + (high - low) * ((words >> np.uint64(11)) * 2.0**-53)

    def colour(self, saturation: float, low: float, high: float) -> np.ndarray:
        """RGB (3, 1, 1) in 0..255. The largest channel is in [low, high); the smallest is 1 - saturation times it."""
        wheel = np.abs((self.uniform(0, 6) + np.array([0.0, 4.0, 2.0]).reshape(3, 1, 1)) % 6 - 3) - 1
        return self.uniform(low, high) * (1 - saturation * (1 - np.clip(wheel, 0, 1)))

    def coordinates(self, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates u and v, each (H, W), in pixels around a random point, rotated by up to a quarter turn."""
        y, x, t = self.uniform(margin, SIZE - margin), self.uniform(margin, SIZE - margin), self.uniform(-1, 1)
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # t = tan(angle / 2)
        return cos * (COLUMNS - x) + sin * (ROWS - y), cos * (ROWS - y) - sin * (COLUMNS - x)

    def smooth_noise(self, cells: int) -> np.ndarray:
        """(3, H, W) from -1 to 1: random values on a coarse grid, interpolated linearly."""
        grid = self.uniform(-1, 1, (3, cells + 1, cells + 1))
        point = (np.arange(SIZE) + 0.5) * cells / SIZE
        cell, fraction = point.astype(int), point % 1
        rows = grid[:, cell] + fraction[:, None] * (grid[:, cell + 1] - grid[:, cell])
        return rows[..., cell] + fraction * (rows[..., cell + 1] - rows[..., cell])


def distance(outline: str, u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """Signed distance to the outline in pixels, negative inside. A slope of at most 1 leaves no gap in the void."""
    centre, short, long = np.sqrt(u * u + v * v), np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return {
        "disc": centre - r,
        "ring": np.abs(centre - 0.74 * r) - 0.26 * r,
        "square": long - 0.75 * r,
        "triangle": np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.5 * r,
        "cross": np.maximum(short - 0.34 * r, long - r),
    }[outline]


def second_colour(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The share, 0 to 1, of the object's second colour in each pixel. Edges are one pixel wide."""
    period = {"plain": 1.0, "striped": 5.0, "dotted": 5.5, "checked": 8.0}[texture]
    u, v = ((x / period - np.floor(x / period) - 0.5) * period for x in (u, v))  # from the centre of the cell
    a, b = period / 4 - np.abs(u), period / 4 - np.abs(v)
    inside = {
        "plain": np.full_like(u, -1),
        "striped": a,
        "dotted": 1.7 - np.sqrt(u * u + v * v),
        "checked": np.sign(a * b) * np.minimum(np.abs(a), np.abs(b)),
    }[texture]
    return np.clip(inside + 0.5, 0, 1)


def paint(image: np.ndarray, colour: np.ndarray, away: np.ndarray) -> None:
    """Blends a colour, (3, 1, 1) or (3, H, W), into the image (3, H, W) where the distance (H, W) is negative."""
    image += np.clip(0.5 - away, 0, 1) * (colour - image)


def draw_clutter(numbers: RandomNumbers, image: np.ndarray) -> None:
    """Draws lines and specks of no class, so that colour and contrast alone do not show an object."""
    for _ in range(numbers.choice((1, 2, 3))):
        u, v = numbers.coordinates(0)
        line = np.maximum(np.abs(u) - numbers.uniform(0.4, 0.9), np.abs(v) - numbers.uniform(6, 24))
        paint(image, numbers.colour(0.8, 40, 255), line)
    for _ in range(numbers.choice((1, 2, 3, 4))):
        u, v = numbers.coordinates(0)
        speck = np.sqrt(u * u + numbers.uniform(1, 4) * v * v) - numbers.uniform(1, 3)
        paint(image, numbers.colour(0.8, 40, 255), speck)


def draw_object(numbers: RandomNumbers, image: np.ndarray, mask: np.ndarray) -> None:
    """Draws one object over the others. Leaves it out if each of 20 positions would hide much of an earlier object."""
    raw = numbers.choice(WEIGHTED_CLASSES)
    outline, texture, _, radii = KINDS[raw]
    radius, first = numbers.uniform(*radii), numbers.colour(numbers.uniform(0.3, 0.9), 60, 255)
    second = 0.25 * first if first.max() > 150 else 0.3 * first + 178
    for _ in range(20):
        u, v = numbers.coordinates(0.8 * radius)
        away = distance(outline, u, v, radius)
        covered = away < 0.5
        if (covered & (mask > 0)).sum() <= 0.12 * covered.sum():
            paint(image, first + second_colour(texture, u, v) * (second - first), away)
            mask[covered] = 255
            mask[away < -0.5] = raw
            return


def draw(index: int, split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 image (64, 64, 3) and mask (64, 64): 0 background, 1..8 the class, 255 the border of an object."""
    numbers = RandomNumbers(seed, {"train": 0, "val": 1}[split], index)
    image = numbers.colour(0.35, 90, 190) + 45 * numbers.smooth_noise(3) + 14 * numbers.smooth_noise(10)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    draw_clutter(numbers, image)
    for _ in range(numbers.choice((1, 2, 2, 3, 3))):
        draw_object(numbers, image, mask)
    image *= 1 + 0.12 * numbers.smooth_noise(2)[:1]  # uneven light, on objects too
    image += numbers.uniform(-9, 9, image.shape) + numbers.uniform(-9, 9, image.shape)
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8).transpose(1, 2, 0).copy(), mask


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds other files than a drawn data set."""
    return folder.exists() and any(folder.iterdir()) and not (folder / "JPEGImages" / "train_00000.jpg").is_file()


def write(folder: Path, train: int = TRAIN, val: int = VAL) -> None:
    """Draws the data set into a folder, whole or not at all, in place of an earlier copy.

    A second process that draws into the folder waits for the first.

    Raises: FileExistsError if the folder holds anything else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        _write(folder, train, val)


def _write(folder: Path, train: int, val: int) -> None:
    if is_foreign(folder):
        raise FileExistsError(f"{folder}: the folder has other files than the drawn data set. Rename the folder.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    photos, masks, lists = (partial / name for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"))
    colours = palette().tobytes()
    try:
        for part in (photos, masks, lists):
            part.mkdir(parents=True)
        for split, count in {"train": train, "val": val}.items():
            names = [f"{split}_{index:05d}" for index in range(count)]
            for index, name in enumerate(names):
                image, mask = draw(index, split)
                Image.fromarray(image).save(photos / f"{name}.jpg", quality=95, subsampling=0)  # full colour resolution
                labels = Image.fromarray(mask)
                labels.putpalette(colours)
                labels.save(masks / f"{name}.png")
            (lists / LISTS[split]).write_text("".join(f"{name}\n" for name in names), newline="\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


DATASET = DataSet(("shapes",), {0: "background", **CLASSES}, pairs, palette(), draw=write)
