"""`ciss data init FOLDER`: a first `dataset.yaml` for a folder of images and masks, from what is in them."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ciss.data import pictures
from ciss.data.pictures import DataError
from ciss.data.sets import DATASETS
from ciss.data.sets import own as sets_own
from ciss.data.sets.own import FILE, find, is_name, load
from ciss.store.files import write_text

LAYOUTS = ("{kind}/{split}", "{split}/{kind}", "{kind}")  # the last one has no validation images of its own
IMAGES = ("images", "image", "img", "JPEGImages")
MASKS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
SHARE = 0.2  # of the training images, scored where there are no validation images
LARGEST_CLASS = 250  # see `own.load`
VOID = 255


@dataclass(frozen=True)
class Values:
    """What the masks of a data set hold, by number."""

    pixels: dict[int, int]
    masks: dict[int, int]  # how many masks have it
    colours: dict[int, list[int]]  # of palettes, where the masks have one


def hidden() -> list[str]:
    """A message for each folder with a description and the name of a known data set.

    Every command would take the known one instead, and the pipeline draws into data/shapes.
    """
    return [_taken(found.parent) for name in DATASETS if (found := find(name))]


def _taken(folder: Path) -> str:
    name = folder.absolute().name
    return f"{folder}: {name} is the name of another data set, which would be used. Rename the folder."


def describe(folder: Path) -> str:
    """Writes `dataset.yaml` into a folder. Returns what was written and what to do next.

    Raises: DataError for a folder with the name of a known data set, or without images and masks, masks that cannot
    be read, or a `dataset.yaml` that is there already.
    """
    file = folder / FILE
    if file.exists():
        raise DataError(f"{file} exists and is not overwritten. Edit it, or move it away and run this again.")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Name the folder that holds images and masks.")
    if folder.absolute().name in DATASETS:
        raise DataError(_taken(folder))
    folders = _folders(folder)
    masks = [mask for _, masks in folders.values() for mask in _masks(folder / masks)]
    if not masks:
        names = " and ".join(masks for _, masks in folders.values())
        raise DataError(f"{folder}: no PNG masks in {names}. Masks have to be 8-bit PNG files named like their images.")
    values = _values(masks)
    classes = [number for number in sorted(values.pixels) if 0 < number <= LARGEST_CLASS]
    other = [number for number in sorted(values.pixels) if LARGEST_CLASS < number < VOID]
    if not classes:
        found = ", ".join(map(str, sorted(values.pixels)))
        raise DataError(f"{folder}: the masks hold {found} and no class. Number the classes from 1 to {LARGEST_CLASS}.")
    if other:
        raise DataError(
            f"{folder}: the masks hold {other[0]}. Use 1 to {LARGEST_CLASS} for classes and {VOID} for void."
        )
    write_text(file, _document(folders, values, classes))
    return "\n".join([*_summary(file, values, classes, len(masks)), *_unpaired(folder, folders), _next(file)])


def _unpaired(folder: Path, splits: Iterable[str]) -> Iterator[str]:
    """What is wrong with the names of images and masks, one line for a split."""
    description = load(folder / sets_own.FILE)
    for split in splits:
        try:
            pairs = description.listed(folder, split)
        except DataError as error:
            yield str(error)
            continue
        missing = [pair for pair in pairs if not pair.mask.is_file()]
        if missing:
            noun = "image has" if len(missing) == 1 else "images have"
            yield (
                f"{len(missing)} {split} {noun} no mask of the same name (first: {missing[0].image.name} needs "
                f"{missing[0].mask.name}). Rename the masks, or move the images away."
            )


def _folders(folder: Path) -> dict[str, tuple[str, str]]:
    """Split -> its folders of images and masks, relative. `train` alone where nothing is set aside for validation."""
    for layout in LAYOUTS:
        found = {}
        for split, names in SPLITS.items():
            pairs = (
                (layout.format(kind=image, split=name), layout.format(kind=mask, split=name))
                for name in names
                for image in IMAGES
                for mask in MASKS
            )
            pair = next((p for p in pairs if all((folder / part).is_dir() for part in p)), None)
            if pair:
                found[split] = pair
        if "train" in found:
            return {"train": found["train"]} if layout == LAYOUTS[-1] else found
    raise DataError(
        f"{folder}: no folders of images and masks. Make images/train and masks/train, images/val and masks/val (or "
        "images and masks alone), with masks named like their images."
    )


def _masks(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            if name.lower().endswith(".png") and not name.startswith("."):
                yield Path(place, name)


def _values(masks: list[Path]) -> Values:
    """Raises DataError for a mask that cannot be read."""
    pixels, counts = np.zeros(256, np.int64), np.zeros(256, np.int64)
    colours: dict[int, list[int]] = {}
    for file in tqdm(masks, desc="reading masks", unit="mask", disable=None):
        ids = pictures.read_mask(file)
        present = np.bincount(ids.ravel(), minlength=256)
        pixels += present
        counts += present > 0
        with Image.open(file) as opened:
            palette = opened.getpalette() if opened.mode == "P" else None
        for number in present.nonzero()[0].tolist():
            if palette and number not in colours and len(palette) >= 3 * number + 3:
                colours[number] = palette[3 * number : 3 * number + 3]
    numbers = pixels.nonzero()[0].tolist()
    return Values({n: int(pixels[n]) for n in numbers}, {n: int(counts[n]) for n in numbers}, colours)


def _document(folders: dict[str, tuple[str, str]], values: Values, classes: list[int]) -> str:
    total = sum(values.pixels.values())
    lines = [
        "# A data set of your own. Written by `ciss data init`: replace the names of the classes by yours.",
        "# 0 is the background; name it under `classes` if it is a class of its own.",
        "classes: # number in the masks -> name; pixels are the share of all",
    ]
    for number in classes:
        colour = values.colours.get(number)
        entry = f"{{ name: class_{number}, colour: {colour} }}" if colour else f"class_{number}"
        noun = "mask" if values.masks[number] == 1 else "masks"
        share = values.pixels[number] / total
        lines.append(f"  {number}: {entry} # {values.masks[number]} {noun}, {share:.2%} of the pixels")
    lines += [f"{split}: {{ images: {images}, masks: {masks} }}" for split, (images, masks) in folders.items()]
    if "val" not in folders:
        lines.append(f"share: {SHARE} # of the training images, drawn by name: scored, and not trained on")
    lines.append(f"void: {VOID} # pixels that do not count")
    return "\n".join(lines) + "\n"


def _summary(file: Path, values: Values, classes: list[int], masks: int) -> list[str]:
    found = f"{masks} masks hold {len(classes)} classes ({', '.join(map(str, classes))})"
    found += f" and {VOID} as void" if VOID in values.pixels else ""
    lines = [f"{file}: written. {found}."]
    if 0 not in values.pixels:
        lines.append("No mask has 0, the background. If a class has to be 0 in the masks, name it under `classes`.")
    if len(classes) == 1:
        lines.append("One class leaves no step after the first. Two or more are needed.")
    return lines


def _next(file: Path) -> str:
    name = file.absolute().parent.name
    if not is_name(name):
        rename = "rename the folder to letters from A to Z, digits, '-' and '_'"
        return f"Next: {rename}; then give the classes names in {sets_own.FILE}."
    move = ""
    if find(name) is None or not sets_own.find(name).samefile(file):
        move = f"Put the folder {name} into data/ of the project, or into the folder that CISS_DATA names.\n"
    return f"{move}Next: give the classes names in {sets_own.FILE}, then: ciss plan {name} 1-1"
