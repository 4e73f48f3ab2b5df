"""Reading one image and its mask: pixels as stored, or a sentence about what is wrong. The scan and the loaders both
read here, so that what was accepted is what is trained on."""

import functools
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# Others are not asked: some start programs, and no data set of the field has them.
Image.init()  # else those whose reader nothing else has loaded are not known
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
PIXELS = 89_478_485  # where Pillow begins to warn: more are a broken header, or too many for a training
Image.MAX_IMAGE_PIXELS = None  # it would warn, or stop, in other words than `_decoded`, which checks before it decodes
FOREIGN = 254  # no raw id of any data set
GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow spreads greys of 2 and 4 bits over 0..255, and ids with them


KIND_WORDS = "image|img|rgb|masks?|labels?|labelids|gt|seg|segmentation|annotations?"  # at the ends of files' names
TURNS = {  # EXIF's orientation -> how the pixels (H,W,...) become upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


class DataError(Exception):
    """Images or masks that are missing, unreadable or contradict each other; the message names files and remedy."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask on disk."""

    id: str
    image: Path
    mask: Path
    ids: bytes | None = None  # (256,) number in the mask -> raw id, where they are not the same; FOREIGN: no class
    domain: str = ""  # such as the city it was taken in
    own: bool = False  # of a data set of one's own, which has a `dataset.yaml` and no list of images


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray, str, bool]:
    """Image (H,W,3) uint8, mask (H,W) uint8 of raw ids, digest of both files, and whether an EXIF tag turns the image
    in a way that its size cannot tell. Pixels count as stored, as they do in the published code.

    Raises DataError: one sentence with file and remedy.
    """
    otherwise = "or move the image away." if pair.own else f"or take {pair.id} off its list."
    digest, arrays, turns = hashlib.sha256(), [], []
    for kind, file, partner, pixels in (
        ("image", pair.image, pair.mask, _colours),
        ("mask", pair.mask, pair.image, _ids),
    ):
        data, array, turn = _decoded(kind, file, pixels, otherwise, partner)
        digest.update(data)
        arrays.append(array)
        turns.append(turn)
    turn = turns[0]
    (height, width), shape = arrays[1].shape, arrays[0].shape[:2]
    if shape != (height, width):
        found = f"the mask is {width}x{height}, its image {shape[1]}x{shape[0]} pixels"
        if turn > 4 and shape == (width, height):
            found += f"; they fit only when the image's EXIF tag (orientation {turn}) turns it"
            raise DataError(f"{pair.image}: {found}. Turn the pixels and remove the tag: pixels count as stored.")
        raise DataError(f"{pair.mask}: {found}. Replace one of them.")
    if pair.ids is not None:
        stored, arrays[1] = arrays[1], np.frombuffer(pair.ids, np.uint8)[arrays[1]]
        if (arrays[1] == FOREIGN).any():
            foreign = np.unique(stored[arrays[1] == FOREIGN]).tolist()
            raise DataError(f"{pair.mask}: {foreign_ids(foreign, known_ids(pair.ids), pair.own)}")
    return *arrays, digest.hexdigest()[:16], turn > 1 and (turn < 5 or height == width)


def known_ids(table: bytes) -> list[int]:
    """Numbers in masks that mean a class, the background or void, by a table of `Pair.ids`."""
    return [number for number, raw in enumerate(table) if raw != FOREIGN]


def foreign_ids(foreign: Iterable[int], known: Iterable[int], own: bool) -> str:
    """What to say of a mask with ids that are no class of the data set; all of them are named."""
    foreign = list(foreign)
    what = f"id {foreign[0]} is no class" if len(foreign) == 1 else f"ids {', '.join(_ranges(foreign))} are no classes"
    remedy = "Correct the mask, or name them under `classes` in dataset.yaml." if own else "Correct the mask."
    *first, last = _ranges(known)
    return f"{what} of the data set ({', '.join([*first, f'or {last}' if first else last])}). {remedy}"


def _ranges(numbers: Iterable[int]) -> list[str]:
    """Sorted numbers as texts, three and more in a row as a range: "0 to 8", "255"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run) for run in runs]
    return [text for several in texts for text in several]


def read_image(file: Path) -> tuple[np.ndarray, int]:
    """An image (H,W,3) uint8 as viewers show it, and EXIF's orientation by which it was turned (1: as stored).

    Raises DataError: one sentence with file and remedy.
    """
    _, pixels, turn = _decoded("image", file, _colours, "or leave it out.")
    return np.ascontiguousarray(TURNS[turn](pixels)) if turn > 1 else pixels, turn


def read_mask(file: Path) -> np.ndarray:
    """The numbers in a mask (H,W) uint8. Raises DataError: one sentence with file and remedy."""
    return _decoded("mask", file, _ids, "or move it away.")[1]


def _decoded(
    kind: str,
    file: Path,
    pixels: Callable[[Image.Image, Path], np.ndarray],
    otherwise: str,
    partner: Path | None = None,
) -> tuple[bytes, np.ndarray, int]:
    """A file's bytes, its `pixels`, and how EXIF turns them."""
    data = _content(kind, file, otherwise, partner)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS:
                raise Image.DecompressionBombError(f"{opened.width}x{opened.height} pixels")
            if getattr(opened, "is_animated", False) and opened.format != "MPO":  # whose others are previews
                raise DataError(f"{file}: the {kind} has {opened.n_frames} frames. Keep one of them, {otherwise}")
            return data, pixels(opened, file), _orientation(opened)
    except DataError:
        raise
    except UnidentifiedImageError:
        what = "no image of a known format" if data else "it is empty"
        raise DataError(f"{file}: the {kind} cannot be read ({what}). Fetch it again, {otherwise}") from None
    except Image.DecompressionBombError as error:
        problem = f"{file}: the {kind} is too large ({error})"
        raise DataError(f"{problem}. Cut it up, or fetch it again, {otherwise}") from None
    except Exception as error:  # Pillow raises many kinds; each means that the file cannot be read
        why = " ".join(str(error).split())
        raise DataError(f"{file}: the {kind} cannot be read ({why}). Fetch it again, {otherwise}") from None


def _content(kind: str, file: Path, otherwise: str, partner: Path | None) -> bytes:
    try:
        if file.is_file():  # reading a pipe would wait for ever
            return file.read_bytes()
    except PermissionError:
        raise DataError(f"{file}: the {kind} may not be read. Allow it (chmod u+r), {otherwise}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: the {kind} cannot be read ({error}). Fetch it again, {otherwise}") from None
    if not os.path.lexists(file):
        if similar := _similar_name(kind, file, partner):
            raise DataError(f"{file}: the {kind} is missing. {similar}")
        raise DataError(f"{file}: the {kind} is missing. Complete the data set, {otherwise}")
    what = "a link that leads nowhere" if file.is_symlink() and not file.exists() else "no file"
    raise DataError(f"{file}: the {kind} cannot be read (it is {what}). Fetch it again, {otherwise}")


def _similar_name(kind: str, file: Path, partner: Path | None) -> str:
    """What to do with a file of nearly the name of one that is missing; nothing where there is none. `partner`: its
    mask or image, which may lie in the same folder."""
    try:
        names = _names_by_key(file.parent, os.stat(file.parent).st_mtime_ns).get(_name_key(file.name), [])
    except OSError:
        return ""
    if partner and partner.parent == file.parent:
        names = [name for name in names if name != partner.name]
    same_kind = [name for name in names if Path(name).suffix.lower() == file.suffix.lower()]
    for name in same_kind:
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", file.name):
            forms = f"{_unicode_form(name)}, not {_unicode_form(file.name)}"
            return f"A name that looks the same is there in another Unicode form ({forms}). Rename it to {file.name}."
        return f"{name} is there. Rename it to {file.name}."
    if kind == "mask" and names:
        return f"{names[0]} is there, but masks have to be PNG files. Convert the original to {file.name}."
    return f"{names[0]} is there. Convert it to {file.name}." if names else ""


@functools.lru_cache(maxsize=4)
def _names_by_key(folder: Path, _changed: int) -> dict[str, list[str]]:
    """Names of a folder's files by what `_name_key` leaves of them."""
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        names.setdefault(_name_key(name), []).append(name)
    return names


def _name_key(name: str) -> str:
    """Equal for names that differ in their case, Unicode form, suffix, or a word such as "_mask" at their end."""
    stem = unicodedata.normalize("NFC", name).casefold().rpartition(".")[0]
    return re.sub(rf"(?<=.)[ _.-]({KIND_WORDS})$", "", stem)


def _unicode_form(name: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "mixed")


def _colours(opened: Image.Image, file: Path) -> np.ndarray:
    """(H,W,3) uint8. 16 bits a colour keep their upper byte, which is to scale; Pillow would cut grey ones off."""
    if opened.mode.startswith(("I", "F")):
        raise DataError(f"{file}: the image has mode {opened.mode}, more than 8 bits of grey. Convert it to 8 bits.")
    if opened.format == "TIFF" and opened.tag_v2.get(ExifTags.Base.Orientation, 1) != 1:  # Pillow would turn it
        raise DataError(f"{file}: the image has a tag that turns it. Turn its pixels and remove the tag.")
    if not opened.has_transparency_data:
        return np.array(opened.convert("RGB"))
    colours = np.array(opened.convert("RGBA"))
    if colours[..., 3].min() < 255:
        raise DataError(f"{file}: parts of the image are transparent. Lay it on a background, and save it as RGB.")
    return np.ascontiguousarray(colours[..., :3])


def _ids(opened: Image.Image, file: Path) -> np.ndarray:
    """(H,W) uint8, the numbers in the file, however many bits they have there."""
    if opened.format != "PNG":
        problem = f"{file}: the mask is a {opened.format} file, and many of those change ids"
        raise DataError(f"{problem}. Make a palette PNG of the original.")
    if opened.mode not in ("P", "L"):
        raise DataError(
            f"{file}: mode {opened.mode}, not one id a pixel (P or L). Convert it to a palette PNG of 8 bits."
        )
    step = GREY_STEPS.get(opened.tile[0][3], 1)
    return np.array(opened) // np.uint8(step)


def _orientation(opened: Image.Image) -> int:
    """EXIF's, 1 to 8; 1, as it is, also where the tags are broken."""
    try:
        turn = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of many kinds; the pixels were read, and they count
        return 1
    return turn if turn in range(1, 9) else 1
