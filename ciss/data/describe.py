"""`ciss data init FOLDER`: writes a first `dataset.yaml` for a folder of images and masks."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ciss import paths
from ciss.data import pictures
from ciss.data.pictures import DataError
from ciss.data.sets import DATASETS
from ciss.data.sets.own import FILE, LARGEST_CLASS, find, is_name, load, visible_files
from ciss.data.sets.shapes import is_foreign
from ciss.documents import counted
from ciss.store.files import write_text

LAYOUTS = ("{kind}/{split}", "{split}/{kind}", "{kind}")  # the last one has no validation images of its own
IMAGES = ("images", "image", "img", "JPEGImages")
MASKS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
SHARE = 0.2  # of the training images, scored where there are no validation images
VOID = 255  # where the masks hold no other number above the classes


@dataclass(frozen=True)
class Values:
    """The numbers in the masks of a data set."""

    pixels: dict[int, int]  # number -> pixels
    masks: dict[int, int]  # number -> masks that have it
    colours: dict[int, list[int]]  # number -> colour in the palette; black, the background's colour, is left out


def name_conflicts() -> list[str]:
    """A message for each folder of own data that has the name of a known data set.

    Every command would use the known data set, and the pipeline would replace data/shapes by its drawings.
    """
    folders = [file.parent for name in DATASETS if (file := find(name))]
    messages = [_taken(folder) for folder in folders]
    drawings = paths.project() / "data" / "shapes"
    if drawings not in folders and is_foreign(drawings):
        problem = f"{drawings}: the pipeline draws the data set shapes into this folder, and would delete your files"
        messages.append(f"{problem}. Rename the folder.")
    return messages


def _taken(folder: Path) -> str:
    name = folder.absolute().name
    return f"{folder}: {name} is the name of another data set, which would be used. Rename the folder."


def describe(folder: Path) -> str:
    """Writes `dataset.yaml` into a folder. Returns what was written and the next step.

    Raises: DataError for a folder with the name of a known data set, without images and masks, or with a
        `dataset.yaml`; also for masks that cannot be read.
    """
    file = folder / FILE
    if file.exists():
        raise DataError(f"{file} exists and is not overwritten. Edit it, or move it away and run this again.")
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Name the folder that holds images and masks.")
    if folder.absolute().name in DATASETS:
        raise DataError(_taken(folder))
    folders = _folders(folder)
    masks = [mask for _, mask_folder in folders.values() for mask in visible_files(folder / mask_folder, {".png"})]
    if not masks:
        names = " and ".join(mask_folder for _, mask_folder in folders.values())
        raise DataError(f"{folder}: no PNG masks in {names}. Masks have to be 8-bit PNG files named like their images.")
    values = _values(masks)
    classes = [number for number in values.pixels if 0 < number <= LARGEST_CLASS]
    if not classes:
        numbers = ", ".join(map(str, values.pixels))
        raise DataError(
            f"{folder}: the masks hold {numbers} and no class. Number the classes from 1 to {LARGEST_CLASS}; 0 is the "
            f"background, {VOID} is void."
        )
    void = VOID
    if other := [number for number in values.pixels if LARGEST_CLASS < number < VOID]:
        if len(other) > 1 or VOID in values.pixels:
            remedy = f"Use 1 to {LARGEST_CLASS} for classes and one larger number for void, such as {VOID}."
            raise DataError(f"{folder}: the masks hold {', '.join(map(str, other))}. {remedy}")
        void = other[0]
    write_text(file, _document(folders, values, classes, void))
    try:
        notes = list(load(file).own.unpaired(folder))
    except DataError as error:
        notes = [str(error)]
    return "\n".join([*_summary(file, values, classes, void, len(masks)), *notes, _next(file)])


def _folders(folder: Path) -> dict[str, tuple[str, str]]:
    """Split -> its folders of images and masks, relative. `train` alone without folders of validation images."""
    for layout in LAYOUTS:
        folders: dict[str, tuple[str, str]] = {}
        for split, names in SPLITS.items():
            for name, image, mask in itertools.product(names, IMAGES, MASKS):
                images, masks = layout.format(kind=image, split=name), layout.format(kind=mask, split=name)
                if (folder / images).is_dir() and (folder / masks).is_dir():
                    folders.setdefault(split, (images, masks))
        if "train" in folders:
            return {"train": folders["train"]} if layout == LAYOUTS[-1] else folders
    raise DataError(
        f"{folder}: no folders of images and masks. Make images/train and masks/train, images/val and masks/val (or "
        "images and masks alone), with masks named like their images."
    )


def _values(masks: list[Path]) -> Values:
    """The numbers in the masks, sorted. Raises DataError for a mask that cannot be read."""
    pixels, counts = np.zeros(256, np.int64), np.zeros(256, np.int64)
    colours: dict[int, list[int]] = {}
    for file in tqdm(masks, desc="reading masks", unit="mask", disable=None):
        present = np.bincount(pictures.read_mask(file).ravel(), minlength=256)
        pixels += present
        counts += present > 0
        with Image.open(file) as opened:
            palette = opened.getpalette() if opened.mode == "P" else None
        for number in present.nonzero()[0].tolist() if palette else ():
            colour = palette[3 * number : 3 * number + 3]
            if len(colour) == 3 and any(colour):
                colours.setdefault(number, colour)
    numbers = pixels.nonzero()[0].tolist()
    return Values({n: int(pixels[n]) for n in numbers}, {n: int(counts[n]) for n in numbers}, colours)


def _document(folders: dict[str, tuple[str, str]], values: Values, classes: list[int], void: int) -> str:
    total = sum(values.pixels.values())
    lines = [
        "# A data set of your own, written by `ciss data init`. Replace the names of the classes by yours.",
        "# 0 is the background. If it is a class in your masks, name it under `classes`.",
        "classes: # number in the masks -> name; the pixels are a share of all pixels",
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
    lines.append(f"void: {void} # pixels that do not count")
    return "\n".join(lines) + "\n"


def _summary(file: Path, values: Values, classes: list[int], void: int, masks: int) -> list[str]:
    verb = "holds" if masks == 1 else "hold"
    numbers = ", ".join(map(str, classes))
    contents = f"{counted(masks, 'mask')} {verb} {counted(len(classes), 'class', 'classes')} ({numbers})"
    contents += f" and {void} as void" if void in values.pixels else ""
    lines = [f"{file}: written. {contents}."]
    if void != VOID:
        lines.append(f"If {void} is a class, renumber it: classes are 1 to {LARGEST_CLASS}.")
    if 0 not in values.pixels:
        lines.append("No mask has 0, the background. If a class has to be 0 in the masks, name it under `classes`.")
    if len(classes) == 1:
        lines.append("One class leaves no step after the first. Two or more are needed.")
    return lines


def _next(file: Path) -> str:
    name = file.absolute().parent.name
    if not is_name(name):
        rename = "rename the folder to letters from A to Z, digits, '-' and '_'"
        return f"Next: {rename}; then give the classes names in {FILE}."
    planned = find(name)
    move = ""
    if planned is None or not planned.samefile(file):
        move = f"Put the folder {name} into data/ of the project, or into the folder that CISS_DATA names.\n"
    return f"{move}Next: give the classes names in {FILE}, then: ciss plan {name} 1-1"
