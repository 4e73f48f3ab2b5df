"""A data set of one's own: a folder of images and masks with a small `dataset.yaml`.

    classes: {1: leaf, 2: {name: stem, colour: [0, 128, 0]}}  # number in the masks -> name
    train: {images: images/train, masks: masks/train}         # these are the defaults, as for val
    share: 0.2                                                # scored, of the training images; without folders for val
    void: 255                                                 # the number of pixels that do not count

Masks are 8-bit PNGs named like their images. 0 is the background, unless it is void or `classes` names it otherwise:
then there is no background, and in the second case class ids in `params.yaml` are one larger than in the masks. Folders
within a folder of images are domains: one city, one camera, one season each.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ciss import config, paths
from ciss.data.pictures import FOREIGN, DataError, Pair
from ciss.data.sets.base import FILE
from ciss.data.sets.voc import palette
from ciss.documents import ConfigError, plain, read_yaml, short

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
Byte = Annotated[int, Field(ge=0, le=255)]


@config.section
class Class:
    name: Annotated[config.Text, Field(max_length=100)]
    colour: tuple[Byte, Byte, Byte] | None = None


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


@plain_dataclass(frozen=True)
class Own:
    file: Path
    described: Description
    classes: dict[int, str]
    palette: np.ndarray
    background: bool
    digest: str
    ids: bytes

    def pairs(self, folder: Path, split: str) -> list[Pair]:
        """The pairs of a split, sorted by name. Raises FileNotFoundError and DataError naming what lacks."""
        share = self.described.share
        found = self.listed(folder, "train" if share else split)
        if not share:
            return found
        order = sorted(found, key=lambda pair: hashlib.sha256(pair.id.encode()).hexdigest())
        scored = {pair.id for pair in order[: max(1, round(share * len(order)))]}
        return [pair for pair in found if (pair.id in scored) == (split == "val")]

    def listed(self, folder: Path, split: str) -> list[Pair]:
        """The pairs in the folders of a split, sorted by image."""
        where: Folders = getattr(self.described, split)
        images, masks = folder / where.images, folder / where.masks
        for place in (images, masks):
            if not place.is_dir():
                raise FileNotFoundError(f"{place}: there is no such folder. Make it, or name another in {self.file}.")
        walk = os.walk(images, followlinks=True)  # a city may be a link; names with a dot are the system's
        found = sorted(Path(place, name) for place, _, names in walk for name in names)
        found = [file for file in found if file.suffix.lower() in SUFFIXES]
        parts = {file: file.relative_to(images).with_suffix("").parts for file in found}
        found = [file for file in found if not any(part.startswith(".") for part in parts[file])]
        if not found:
            remedy = f", or remove `val` from {self.file} and set `share: 0.2`" if split == "val" else ""
            raise DataError(f"{images}: no images ({', '.join(sorted(SUFFIXES))}). Put them there{remedy}.")
        pairs: dict[str, Pair] = {}
        for file in found:
            *domain, name = parts[file]
            mask, number = masks.joinpath(*domain, f"{name}.png"), "_".join((split, *parts[file]))
            if not number.isprintable():
                raise DataError(f"{str(file)!r}: the name has signs that cannot be shown. Rename image and mask.")
            if number in pairs:
                other = pairs[number]
                if other.mask == mask:
                    raise DataError(f"{file} and {other.image.name} share the mask {mask}. Remove one image.")
                raise DataError(f"{file}: would be {number} in tables, as {other.image} is. Rename one.")
            pairs[number] = Pair(number, file, mask, self.ids, "/".join(domain), own=True)
        return list(pairs.values())


def is_name(text: str) -> bool:
    """Whether a folder of this name can be a data set: DVC and the file names of results need plain letters."""
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


def _check_names(classes: Any, file: Path) -> None:
    """Raises ConfigError for classes that are no mapping of numbers to names."""
    if isinstance(classes, list):
        raise ConfigError(
            f"{file}: classes: found a list, but each class needs its number. Write {{1: NAME, 2: NAME}}."
        )
    for number, each in classes.items() if isinstance(classes, dict) else ():
        if not isinstance(each, dict):
            what = "nothing" if each is None else short(each)
            advice = f"Write {number}: NAME, or {number}: {{name: NAME, colour: [R, G, B]}}."
            raise ConfigError(f"{file}: classes.{number}: found {what}, but it should be a name. {advice}")


def load(file: Path) -> Own:
    """Raises ConfigError naming file and key."""
    if not file.is_file():
        raise ConfigError(f"{file}: this is no file. Write `classes: {{1: NAME, 2: NAME}}` into a file of this name.")
    document = read_yaml(file)
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: found no sections. Write `classes: {{1: NAME, 2: NAME}}` at least.")
    values = dict(document)
    if isinstance(values.get("classes"), dict):
        values["classes"] = {
            str(number): {"name": each} if isinstance(each, str) else each for number, each in values["classes"].items()
        }
    if isinstance(values.get("val"), dict) and "share" in values["val"]:
        raise ConfigError(
            f"{file}: val.share: `share` is a key of its own. Write either `val: {{images: images/val, masks: "
            f"masks/val}}` for folders of validation images, or `share: {values['val']['share']}` in place of `val`."
        )
    if values.get("val") is not None and values.get("share") is not None:
        raise ConfigError(
            f"{file}: `val` and `share` are both set, but only one can give the scored images. Remove one."
        )
    if isinstance(values.get("share"), int | float) and values["share"] >= 1:
        raise ConfigError(f"{file}: share: found {values['share']}, but 0.2 stands for 20 %. Write a number below 1.")
    _check_names(values.get("classes"), file)
    described = config.validate(Description, values, str(file), "")
    numbers = {}
    for number, each in described.classes.items():
        if number == str(described.void):
            raise ConfigError(f"{file}: classes.{number}: {number} is `void` too. Remove the class, or change `void`.")
        if not re.fullmatch("[0-9]{1,3}", number) or int(number) > 250:
            problem = f"found the number {plain(number)!r}, but masks have classes from 0 to 250"
            raise ConfigError(f"{file}: classes: {problem}. Change it.")
        numbers[int(number)] = each
    if len(numbers) < len(document["classes"]):
        raise ConfigError(f"{file}: classes: a number stands twice. Change one.")
    if 0 in numbers and numbers[0].name.strip().lower() == "background":
        del numbers[0]  # it is that anyway
    if not numbers:
        raise ConfigError(f"{file}: classes: there is nothing but background. Name a class.")
    shift = 1 if 0 in numbers else 0
    names = {number + shift: each.name for number, each in sorted(numbers.items())}
    known = {"background": 0}
    for number, name in names.items():
        if name in known:
            first, second = known[name], number - shift
            raise ConfigError(f"{file}: classes: {first} and {second} have the same name, {name!r}. Change one.")
        known[name] = number - shift
    colours = palette()
    for number, each in numbers.items():
        if each.colour:
            colours[number + shift] = each.colour
    ids = np.full(256, FOREIGN, np.uint8)
    ids[0] = 0
    for number in numbers:
        ids[number] = number + shift
    ids[described.void] = 255
    return Own(
        file=file,
        described=described,
        classes={0: "background", **names},
        palette=colours,
        background=not shift and described.void != 0,
        digest=hashlib.sha256(json.dumps(asdict(described), sort_keys=True).encode()).hexdigest(),
        ids=ids.tobytes(),
    )
