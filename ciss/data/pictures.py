"""Reading one image and its mask: their pixels as stored, or a message about what is wrong.

The scan and the loaders both read here: training sees what the scan accepted.
"""

import functools
import hashlib
import io
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

Image.init()  # loads all of Pillow's readers
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")  # readers of others may start programs
PIXELS = 89_478_485  # the limit at which Pillow warns of a broken header
Image.MAX_IMAGE_PIXELS = None  # `_read_file` checks the limit, with a message of its own
FOREIGN = 254  # marks a number without a class in `Pair.raw_id_table`; no data set uses it as a raw id
# The form of a mask, for messages.
MASK_FORM = "an 8-bit PNG with one channel (palette or grey): pixel value = class id, 255 = void"
GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow spreads greys of 2 and 4 bits over 0 to 255, and ids with them
KIND_WORDS = "image|img|rgb|masks?|labels?|labelids|gt|seg|segmentation|annotations?"  # at the ends of file names


class DataError(Exception):
    """Images or masks that are missing, unreadable or contradictory; the message names files and remedy."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask on disk."""

    id: str
    image: Path
    mask: Path
    raw_id_table: bytes | None = None  # (256,) number in the mask -> raw id, or FOREIGN. None: numbers are raw ids
    domain: str = ""  # such as the city
    own: bool = False  # belongs to a data set with a `dataset.yaml` instead of lists of images


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray, str, bool]:
    """Reads an image and its mask with the pixels as stored, which is the convention of the published code.

    Returns: image (H,W,3) uint8; mask (H,W) uint8 of raw ids; a digest of both files; whether an EXIF tag turns the
        image in a way that does not show in its size.

    Raises: DataError with one sentence: file and remedy.
    """
    otherwise = "or move the image away." if pair.own else f"or take {pair.id} off its list."
    image_data, image, image_orientation = _read_file("image", pair.image, _rgb_pixels, otherwise, pair.mask)
    mask_data, mask, _ = _read_file("mask", pair.mask, _mask_numbers, otherwise, pair.image)
    (height, width), (image_height, image_width) = mask.shape, image.shape[:2]
    if (image_height, image_width) != (height, width):
        problem = f"the mask is {width}x{height}, its image {image_width}x{image_height} pixels"
        if image_orientation > 4 and (image_height, image_width) == (width, height):
            problem += f"; they fit only when the image's EXIF tag (orientation {image_orientation}) turns it"
            raise DataError(f"{pair.image}: {problem}. Turn the pixels and remove the tag: pixels count as stored.")
        raise DataError(f"{pair.mask}: {problem}. Replace one of them.")
    if pair.raw_id_table is not None:
        numbers, mask = mask, np.frombuffer(pair.raw_id_table, np.uint8)[mask]
        if (mask == FOREIGN).any():
            foreign = np.unique(numbers[mask == FOREIGN]).tolist()
            known = [number for number, raw in enumerate(pair.raw_id_table) if raw != FOREIGN]
            raise DataError(foreign_ids(pair, foreign, known))
    digest = hashlib.sha256(image_data + mask_data).hexdigest()[:16]
    return image, mask, digest, image_orientation > 1 and (image_orientation < 5 or height == width)


def foreign_ids(pair: Pair, foreign: list[int], known: list[int]) -> str:
    """The message about a mask with ids that are no class of the data set. Both lists are sorted."""
    problem = f"id {foreign[0]} is no class"
    if len(foreign) > 1:
        problem = f"ids {', '.join(_ranges(foreign))} are no classes"
    *first, last = _ranges(known)
    wanted = f"{', '.join(first)}, or {last}" if first else last
    remedy = ", or name them under `classes` in dataset.yaml" if pair.own else ""
    return f"{pair.mask}: {problem} of the data set ({wanted}). Correct the mask{remedy}."


def _ranges(numbers: Iterable[int]) -> list[str]:
    """Sorted numbers as texts, three or more in a row as a range: "0 to 8", "255"."""
    texts: list[str] = []
    for _, run in itertools.groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        row = [number for _, number in run]
        texts += [f"{row[0]} to {row[-1]}"] if len(row) > 2 else map(str, row)
    return texts


def read_image(file: Path) -> tuple[np.ndarray, int]:
    """An image (H,W,3) uint8 as viewers show it, and the EXIF orientation by which it was turned (1: as stored).

    Raises DataError: one sentence with file and remedy.
    """
    _, pixels, orientation = _read_file("image", file, _rgb_pixels, "or leave it out.")
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    flips = (orientation - 1) % 4  # 1: horizontal, 2: both, 3: vertical
    if flips in (1, 2):
        pixels = pixels[:, ::-1]
    if flips in (2, 3):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels), orientation


def read_mask(file: Path) -> np.ndarray:
    """The numbers in a mask (H,W) uint8. Raises DataError: one sentence with file and remedy."""
    return _read_file("mask", file, _mask_numbers, "or move it away.")[1]


def _read_file(
    kind: str,
    file: Path,
    read_pixels: Callable[[Image.Image, Path], np.ndarray],
    otherwise: str,
    partner: Path | None = None,
) -> tuple[bytes, np.ndarray, int]:
    """A file's bytes, its pixels and its EXIF orientation.

    `otherwise` ends the message of an unreadable file. `partner`: the mask of an image, the image of a mask.
    """

    def unreadable(reason: str) -> DataError:
        return DataError(f"{file}: the {kind} cannot be read ({reason}). Fetch it again, {otherwise}")

    data = b""
    try:
        if not file.is_file():  # reading a pipe would never end
            if not os.path.lexists(file):
                remedy = _similar_name(kind, file, partner) or f"Complete the data set, {otherwise}"
                raise DataError(f"{file}: the {kind} is missing. {remedy}")
            dangling = file.is_symlink() and not file.exists()
            raise unreadable("it is a link that leads nowhere" if dangling else "it is no file")
        data = file.read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS:
                problem = f"{file}: the {kind} is too large ({opened.width}x{opened.height} pixels)"
                raise DataError(f"{problem}. Cut it up, or fetch it again, {otherwise}")
            if getattr(opened, "is_animated", False) and opened.format != "MPO":  # MPO: the other frames are previews
                raise DataError(f"{file}: the {kind} has {opened.n_frames} frames. Keep one of them, {otherwise}")
            return data, read_pixels(opened, file), _orientation(opened)
    except DataError:
        raise
    except PermissionError:
        raise DataError(f"{file}: the {kind} may not be read. Allow it (chmod u+r), {otherwise}") from None
    except UnidentifiedImageError:
        raise unreadable("no image of a known format" if data else "it is empty") from None
    except Exception as error:  # Pillow raises many kinds; each means that the file cannot be read
        raise unreadable(" ".join(str(error).split())) from None


def _similar_name(kind: str, file: Path, partner: Path | None) -> str:
    """The remedy for a missing file where a file of nearly the same name exists; else an empty text."""
    try:
        names = _names_by_key(file.parent, os.stat(file.parent).st_mtime_ns).get(_name_key(file.name), [])
    except OSError:
        return ""
    if partner and partner.parent == file.parent:
        names = [name for name in names if name != partner.name]
    for name in names:
        if Path(name).suffix.lower() != file.suffix.lower():
            continue
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", file.name):
            forms = f"{_unicode_form(name)}, not {_unicode_form(file.name)}"
            return f"A name that looks the same is there in another Unicode form ({forms}). Rename it to {file.name}."
        return f"{name} is there. Rename it to {file.name}."
    if not names:
        return ""
    if kind == "mask":
        return f"{names[0]} is there, but masks have to be PNG files. Convert the original to {file.name}."
    return f"{names[0]} is there. Convert it to {file.name}."


@functools.lru_cache(maxsize=4)
def _names_by_key(folder: Path, _changed: int) -> dict[str, list[str]]:
    """Names of a folder's files, grouped by `_name_key`. `_changed`: when the folder changed, for the cache."""
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        names.setdefault(_name_key(name), []).append(name)
    return names


def _name_key(name: str) -> str:
    """Equal for names that differ in case, Unicode form, suffix, or a final word such as "_mask"."""
    stem = unicodedata.normalize("NFC", name).casefold().rpartition(".")[0]
    return re.sub(rf"(?<=.)[ _.-]({KIND_WORDS})$", "", stem)


def _unicode_form(name: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "mixed")


def _rgb_pixels(opened: Image.Image, file: Path) -> np.ndarray:
    """(H,W,3) uint8. 16 bits a colour keep their upper byte; 16 bits of grey are refused, because Pillow clips them."""
    if opened.mode.startswith(("I", "F")):
        raise DataError(f"{file}: the image has mode {opened.mode}, more than 8 bits of grey. Convert it to 8 bits.")
    if opened.format == "TIFF" and opened.tag_v2.get(ExifTags.Base.Orientation, 1) != 1:  # Pillow would turn it
        raise DataError(f"{file}: the image has a tag that turns it. Turn its pixels and remove the tag.")
    if not opened.has_transparency_data:
        return np.array(opened if opened.mode == "RGB" else opened.convert("RGB"))  # `convert` always copies
    colours = np.array(opened.convert("RGBA"))
    if colours[..., 3].min() < 255:
        raise DataError(f"{file}: parts of the image are transparent. Lay it on a background, and save it as RGB.")
    return np.ascontiguousarray(colours[..., :3])


def _mask_numbers(opened: Image.Image, file: Path) -> np.ndarray:
    """(H,W) uint8, the numbers in the file at any bit depth."""
    if opened.format != "PNG":
        problem = f"{file}: the mask is a {opened.format} file, and many of those change ids"
        raise DataError(f"{problem}. Convert the original to {MASK_FORM}.")
    if opened.mode not in ("P", "L"):
        problem = f"{file}: mode {opened.mode}, not one id a pixel (P or L)"
        raise DataError(f"{problem}. Convert it to {MASK_FORM}.")
    grey_step = GREY_STEPS.get(opened.tile[0][3], 1)  # before the pixels are read, which empties `tile`
    return np.array(opened) // np.uint8(grey_step)


def _orientation(opened: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (as stored) where the tags are broken."""
    try:
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds; the pixels were read
        return 1
    return orientation if orientation in range(1, 9) else 1
