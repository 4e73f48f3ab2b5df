"""The embedded benchmark `shapes`: eight classes of drawn shapes in Pascal VOC's folder layout.

Made to show the two failures of the field within minutes on a CPU. A class is an outline *and* a texture in any
colour: classes of different steps share an outline or a texture, so that a new class pulls on an old one (forgetting),
and stand together in most images, so that they are background to each other's steps (background shift). Classes differ
in size and frequency, so that they fade at their own paces.

Every pixel depends on (seed, split, index) and on nothing that a version of numpy or a CPU may change: random numbers
are the raw words of PCG64 (numpy keeps that stream, but not what the methods of Generator make of it), and arithmetic
is elementwise + - * / % sqrt floor in float64, which IEEE 754 rounds in one way. No sine, no sum of floats.
"""

import hashlib
import math
import shutil
from collections import namedtuple
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ciss.data.sets.base import DataSet
from ciss.data.sets.voc import pairs, palette

SIZE = 64  # pixels, both sides
TRAIN, VAL = 1200, 240  # images
LISTS = {"train": "trainaug.txt", "val": "val.txt"}  # under ImageSets/Segmentation
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE] + 0.5


# share: of a hundred objects; radii: smallest and largest, in pixels, of the circle around an object
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
URN = [raw for raw, kind in KINDS.items() for _ in range(kind.share)]


class Dice:
    """Random numbers whose values no version of numpy changes."""

    def __init__(self, *key: int):
        self.words = np.random.PCG64(np.random.SeedSequence(key))

    def pick(self, items: Sequence):
        return items[self.words.random_raw() % len(items)]

    def real(self, low: float, high: float, shape: tuple[int, ...] = ()):
        """float64 from low up to but not including high: an array, or a scalar when no shape is given."""
        words = self.words.random_raw(math.prod(shape)).reshape(shape)
        return low + (high - low) * ((words >> np.uint64(11)) * 2.0**-53)

    def colour(self, saturation: float, low: float, high: float) -> np.ndarray:
        """RGB (3, 1, 1) in 0..255: any hue, brightest channel from low to high, darkest (1 - saturation) times that."""
        wheel = np.abs((self.real(0, 6) + np.array([0.0, 4.0, 2.0]).reshape(3, 1, 1)) % 6 - 3) - 1
        return self.real(low, high) * (1 - saturation * (1 - np.clip(wheel, 0, 1)))

    def place(self, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates u and v, each (H, W), in pixels about a random point, turned by up to a quarter either way."""
        y, x, t = self.real(margin, SIZE - margin), self.real(margin, SIZE - margin), self.real(-1, 1)
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # t: tangent of half the angle
        return cos * (COLUMNS - x) + sin * (ROWS - y), cos * (ROWS - y) - sin * (COLUMNS - x)

    def smooth_noise(self, cells: int) -> np.ndarray:
        """(3, H, W) from -1 to 1: random values on a coarse grid, joined linearly."""
        grid = self.real(-1, 1, (3, cells + 1, cells + 1))
        point = (np.arange(SIZE) + 0.5) * cells / SIZE
        at, part = point.astype(int), point % 1
        rows = grid[:, at] + part[:, None] * (grid[:, at + 1] - grid[:, at])
        return rows[..., at] + part * (rows[..., at + 1] - rows[..., at])


def distance(outline: str, u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """Signed distance to the outline in pixels, negative inside; never steeper than 1, which keeps the void closed."""
    centre, short, long = np.sqrt(u * u + v * v), np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return {
        "disc": centre - r,
        "ring": np.abs(centre - 0.74 * r) - 0.26 * r,
        "square": long - 0.75 * r,
        "triangle": np.maximum(v, 0.866 * np.abs(u) - 0.5 * v) - 0.5 * r,
        "cross": np.maximum(short - 0.34 * r, long - r),
    }[outline]


def second_colour(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How much of each pixel, 0 to 1, has the second of the object's two colours; edges are a pixel wide."""
    period = {"plain": 1.0, "striped": 5.0, "dotted": 5.5, "checked": 8.0}[texture]
    u, v = ((x / period - np.floor(x / period) - 0.5) * period for x in (u, v))  # pixels from the middle of the cell
    a, b = period / 4 - np.abs(u), period / 4 - np.abs(v)
    inside = {
        "plain": np.full_like(u, -1),
        "striped": a,
        "dotted": 1.7 - np.sqrt(u * u + v * v),
        "checked": np.sign(a * b) * np.minimum(np.abs(a), np.abs(b)),
    }[texture]
    return np.clip(inside + 0.5, 0, 1)


def paint(image: np.ndarray, colour: np.ndarray, away: np.ndarray) -> None:
    """Blend a colour, (3, 1, 1) or (3, H, W), into the image (3, H, W) where the distance (H, W) is negative."""
    image += np.clip(0.5 - away, 0, 1) * (colour - image)


def draw_clutter(dice: Dice, image: np.ndarray) -> None:
    """Lines and specks of no class, in place, so that colour and contrast alone do not give an object away."""
    for _ in range(dice.pick((1, 2, 3))):
        u, v = dice.place(0)
        line = np.maximum(np.abs(u) - dice.real(0.4, 0.9), np.abs(v) - dice.real(6, 24))
        paint(image, dice.colour(0.8, 40, 255), line)
    for _ in range(dice.pick((1, 2, 3, 4))):
        u, v = dice.place(0)
        speck = np.sqrt(u * u + dice.real(1, 4) * v * v) - dice.real(1, 3)
        paint(image, dice.colour(0.8, 40, 255), speck)


def draw_object(dice: Dice, image: np.ndarray, mask: np.ndarray) -> None:
    """One object on top of what is there, in place; left out where every try would hide much of an earlier one."""
    raw = dice.pick(URN)
    outline, texture, _, radii = KINDS[raw]
    radius, first = dice.real(*radii), dice.colour(dice.real(0.3, 0.9), 60, 255)
    second = 0.25 * first if first.max() > 150 else 0.3 * first + 178
    for _ in range(20):
        u, v = dice.place(0.8 * radius)
        away = distance(outline, u, v, radius)
        covered = away < 0.5
        if (covered & (mask > 0)).sum() <= 0.12 * covered.sum():
            paint(image, first + second_colour(texture, u, v) * (second - first), away)
            mask[covered] = 255
            mask[away < -0.5] = raw
            return


def draw(index: int, split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 image (64, 64, 3) and mask (64, 64): 0 background, 1..8 the class, 255 the border of an object."""
    dice = Dice(seed, {"train": 0, "val": 1}[split], index)
    image = dice.colour(0.35, 90, 190) + 45 * dice.smooth_noise(3) + 14 * dice.smooth_noise(10)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    draw_clutter(dice, image)
    for _ in range(dice.pick((1, 2, 2, 3, 3))):
        draw_object(dice, image, mask)
    image *= 1 + 0.12 * dice.smooth_noise(2)[:1]  # light falls unevenly on objects too
    image += dice.real(-9, 9, image.shape) + dice.real(-9, 9, image.shape)
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8).transpose(1, 2, 0).copy(), mask


def images(train: int, val: int, seed: int) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Every (split, id, image, mask) in turn; ids count from 0 in each split."""
    for split, count in {"train": train, "val": val}.items():
        for index in range(count):
            yield split, f"{split}_{index:05d}", *draw(index, split, seed)


def content_hash(train: int = TRAIN, val: int = VAL, seed: int = 0) -> str:
    """SHA-256 over the drawn arrays, not over files: JPEG bytes change with the library that writes them."""
    digest = hashlib.sha256()
    for _, name, image, mask in images(train, val, seed):
        digest.update(name.encode() + image.tobytes() + mask.tobytes())
    return digest.hexdigest()


def write(folder: Path, train: int = TRAIN, val: int = VAL, seed: int = 0) -> None:
    """Write the folder whole or not at all, in place of an earlier copy; FileExistsError if it holds anything else."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "JPEGImages" / "train_00000.jpg").is_file():
        raise FileExistsError(f"{folder} holds something else than shapes")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    photos, masks, lists = (partial / part for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"))
    colours = palette().tobytes()
    try:
        for part in (photos, masks, lists):
            part.mkdir(parents=True)
        for split, name, image, mask in images(train, val, seed):
            Image.fromarray(image).save(photos / f"{name}.jpg", quality=95, subsampling=0)  # full colour resolution
            labels = Image.fromarray(mask)
            labels.putpalette(colours)
            labels.save(masks / f"{name}.png")
            with (lists / LISTS[split]).open("a", newline="\n") as listed:
                listed.write(f"{name}\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


DATASET = DataSet(("shapes",), {0: "background", **CLASSES}, pairs, palette(), draw=write)


def main() -> None:
    from ciss.paths import project  # here, because drawing needs no project around it

    write(project() / "data" / "shapes")


if __name__ == "__main__":
    main()
