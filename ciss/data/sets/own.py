"""A data set of one's own: a folder of images and masks with a small `dataset.yaml`.

    classes: {1: leaf, 2: {name: stem, colour: [0, 128, 0]}}  # number in the masks -> name
    train: {images: images/train, masks: masks/train}         # the default; the same for `val`
    share: 0.2                                                # in place of `val`: scored images, drawn from `train`
    void: 255                                                 # the number of ignored pixels

Masks are 8-bit PNGs named like their images. Folders within the folder of images are domains: cities, cameras, seasons.

0 is the background, unless it is void or `classes` gives it another name. In both cases no pixel is background. In the
second case class ids in `params.yaml` are the numbers in the masks plus one.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from ciss import config, paths
from ciss.data.pictures import DataError, Pair
from ciss.data.sets.base import FILE, DataSet, id_table
from ciss.data.sets.voc import palette
from ciss.documents import ConfigError, plain, read_yaml, short

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
LARGEST_CLASS = 250  # the largest number of a class in the masks
Byte = Annotated[int, Field(ge=0, le=255)]


def _not_blank(name: str) -> str:
    if not name.strip():
        raise ValueError("should be a name")
    return name


def _not_black(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    if not any(colour):
        raise ValueError("should be another colour, because the background is black")
    return colour


@config.section
class Class:
    name: Annotated[config.Text, Field(max_length=100), AfterValidator(_not_blank)]
    colour: Annotated[tuple[Byte, Byte, Byte], AfterValidator(_not_black)] | None = None


@config.section
class Folders:
    images: config.Text
    masks: config.Text


@config.section
class Description:
    classes: Annotated[dict[str, Class], Field(min_length=1)]
    train: Folders = Folders(images="images/train", masks="masks/train")
    val: Folders = Folders(images="images/val", masks="masks/val")
    share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of the training images, drawn by name, in place of `val`
    void: Byte = 255

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have folders."""
        return ("train",) if self.share else ("train", "val")


@plain_dataclass(frozen=True)
class Own:
    """The folders of a data set of one's own. `ids`: the table of `Pair.raw_id_table`."""

    file: Path
    described: Description
    ids: bytes

    def pairs(self, folder: Path, split: str) -> list[Pair]:
        """The pairs of a split, sorted by name. Raises FileNotFoundError and DataError naming what is missing."""
        share = self.described.share
        if not share:
            return self.listed(folder, split)
        pairs = self.listed(folder, "train")
        order = sorted(pairs, key=lambda pair: hashlib.sha256(pair.id.encode()).hexdigest())
        scored = {pair.id for pair in order[: max(1, round(share * len(order)))]}
        return [pair for pair in pairs if (pair.id in scored) == (split == "val")]

    def listed(self, folder: Path, split: str) -> list[Pair]:
        """The pairs in the folders of a split, sorted by image."""
        folders: Folders = getattr(self.described, split)
        images, masks = folder / folders.images, folder / folders.masks
        for needed in (images, masks):
            if not needed.is_dir():
                raise FileNotFoundError(f"{needed}: there is no such folder. Make it, or name another in {self.file}.")
        files = visible_files(images, SUFFIXES)
        if not files:
            remedy = f", or remove `val` from {self.file} and set `share: 0.2`" if split == "val" else ""
            raise DataError(f"{images}: no images ({', '.join(sorted(SUFFIXES))}). Put them there{remedy}.")
        pairs: dict[str, Pair] = {}
        for file in files:
            *domain, name = file.relative_to(images).with_suffix("").parts
            mask, image_id = masks.joinpath(*domain, f"{name}.png"), "_".join((split, *domain, name))
            if not image_id.isprintable():
                raise DataError(f"{str(file)!r}: the name has characters that cannot be shown. Rename image and mask.")
            if other := pairs.get(image_id):
                if other.mask == mask:
                    raise DataError(f"{file} and {other.image.name} share the mask {mask}. Remove one image.")
                raise DataError(f"{file} and {other.image} both have the image id {image_id}. Rename one.")
            pairs[image_id] = Pair(image_id, file, mask, self.ids, "/".join(domain), own=True)
        return list(pairs.values())

    def unpaired(self, folder: Path) -> Iterator[str]:
        """Notes on images without a mask, and on masks without an image. Raises as `pairs`."""
        pairs = [pair for split in self.described.splits for pair in self.listed(folder, split)]
        masks: set[Path] = set()
        for split in self.described.splits:
            masks.update(visible_files(folder / getattr(self.described, split).masks, {".png"}))
        if missing := [pair for pair in pairs if pair.mask not in masks and not pair.mask.is_file()]:
            images = "1 image has" if len(missing) == 1 else f"{len(missing)} images have"
            first = f"first: {missing[0].image} needs {missing[0].mask}"
            yield f"{images} no mask of the same name ({first}). Rename the masks, or move the images away."
        if unused := sorted(masks - {pair.mask for pair in pairs}):
            count = "1 mask is" if len(unused) == 1 else f"{len(unused)} masks are"
            problem = f"{count} not used, because no image of the same name is there (first: {unused[0]})"
            yield f"{problem}. Images have to be {', '.join(sorted(SUFFIXES))} files: convert or rename them."


def visible_files(folder: Path, suffixes: set[str]) -> list[Path]:
    """Files with one of the suffixes in a folder and the folders within, sorted, without names that start with "."."""
    files = []
    for parent, folders, names in os.walk(folder, followlinks=True):  # a domain may be a link
        here = Path(parent).resolve()
        folders[:] = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in folders if not here.is_relative_to(Path(parent, name).resolve())]  # no circles
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.suffix.lower() in suffixes)


def is_name(text: str) -> bool:
    """Whether a folder of this name can be a data set. DVC and the names of results need plain letters."""
    return re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", text) is not None


def find(name: str) -> Path | None:
    """The description of a data set of one's own, or None."""
    if not is_name(name):
        return None
    try:
        return paths.data_root(f"{name}/{FILE}")
    except FileNotFoundError:
        return None


def names() -> list[str]:
    """Names of the folders under the data roots that have a description."""
    return sorted({file.parent.name for root in paths.data_roots() for file in root.glob(f"*/{FILE}")})


def load(file: Path) -> DataSet:
    """The data set that a `dataset.yaml` describes. Raises ConfigError naming file and key."""
    described = _description(file)
    classes = _by_number(described, file)
    shift = 1 if 0 in classes else 0
    colours = palette()
    for number, entry in classes.items():
        if entry.colour:
            colours[number + shift] = entry.colour
    ids = id_table({0: 0, **{number: number + shift for number in classes}, described.void: 255})
    own = Own(file, described, ids)
    return DataSet(
        folder=(file.parent.name,),
        classes={0: "background", **{number + shift: entry.name for number, entry in classes.items()}},
        pairs=own.pairs,
        palette=colours,
        background=not shift and described.void != 0,
        description=hashlib.sha256(json.dumps(asdict(described), sort_keys=True).encode()).hexdigest(),
        own=own,
    )


def _description(file: Path) -> Description:
    """The contents of a `dataset.yaml`. Raises ConfigError naming file and key."""

    def wrong(problem: str) -> ConfigError:
        return ConfigError(f"{file}: {problem}")

    if not file.is_file():
        raise wrong("this is no file. Write `classes: {1: NAME, 2: NAME}` into a file of this name.")
    document = read_yaml(file)
    if not isinstance(document, dict):
        raise wrong("found no sections. Write `classes: {1: NAME, 2: NAME}` at least.")
    classes, val, share = (document.get(key) for key in ("classes", "val", "share"))
    if isinstance(classes, list):
        raise wrong("classes: found a list, but each class needs its number. Write {1: NAME, 2: NAME}.")
    if isinstance(classes, dict):
        entries = {}
        for number, entry in classes.items():
            if not isinstance(entry, str | dict):
                problem = f"found {'nothing' if entry is None else short(entry)}, but it should be a name"
                advice = f"Write {number}: NAME, or {number}: {{name: NAME, colour: [R, G, B]}}."
                raise wrong(f"classes.{number}: {problem}. {advice}")
            entries[str(number)] = {"name": entry} if isinstance(entry, str) else entry
        if len(entries) < len(classes):
            raise wrong("classes: a number stands twice. Change one.")
        document = {**document, "classes": entries}
    if isinstance(val, dict) and "share" in val:
        folders = "`val: {images: images/val, masks: masks/val}` for folders of validation images"
        problem = "val.share: `share` is a key of its own"
        raise wrong(f"{problem}. Write either {folders}, or `share: {val['share']}` in place of `val`.")
    if val is not None and share is not None:
        raise wrong("`val` and `share` are both set, but only one can give the scored images. Remove one.")
    if isinstance(share, int | float) and share >= 1:
        raise wrong(f"share: found {share}, but 0.2 stands for 20 %. Write a number below 1.")
    return config.validate(Description, document, str(file), "")


def _by_number(described: Description, file: Path) -> dict[int, Class]:
    """The classes by their number in the masks, sorted, without the background. Raises ConfigError."""
    classes = {}
    for number, entry in described.classes.items():
        if number == str(described.void):
            raise ConfigError(f"{file}: classes.{number}: {number} is `void` too. Remove the class, or change `void`.")
        if not re.fullmatch("0|[1-9][0-9]{0,2}", number) or int(number) > LARGEST_CLASS:
            problem = f"found the number {plain(number)!r}, but masks have classes from 0 to {LARGEST_CLASS}"
            raise ConfigError(f"{file}: classes: {problem}. Change it; the number of void is {described.void}.")
        classes[int(number)] = entry
    if 0 in classes and classes[0].name.strip().lower() == "background":
        del classes[0]  # the default name
    if not classes:
        raise ConfigError(f"{file}: classes: there is nothing but background. Name a class.")
    classes = dict(sorted(classes.items()))
    numbers = {"background": 0}
    for number, entry in classes.items():
        if entry.name in numbers:
            same = f"{numbers[entry.name]} and {number} have the same name, {entry.name!r}"
            raise ConfigError(f"{file}: classes: {same}. Change one.")
        numbers[entry.name] = number
    return classes
