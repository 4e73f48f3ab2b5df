"""Cityscapes: leftImg8bit/ and gtFine/, each with train/ and val/ and a folder for every city.

Raw ids are the data set's train ids moved up by one, 1 to 19, so that 0 is left to old and future classes; what has no
train id is void. Source: Cordts et al., The Cityscapes dataset, CVPR 2016; ids and colours as in its label table.
"""

from pathlib import Path

import numpy as np

from ciss.data.pictures import FOREIGN, DataError, Pair
from ciss.data.sets.base import DataSet

# label id in the masks: name, colour; in the order of their train ids
LABELS = {
    7: ("road", "804080"),
    8: ("sidewalk", "f423e8"),
    11: ("building", "464646"),
    12: ("wall", "66669c"),
    13: ("fence", "be9999"),
    17: ("pole", "999999"),
    19: ("traffic light", "faaa1e"),
    20: ("traffic sign", "dcdc00"),
    21: ("vegetation", "6b8e23"),
    22: ("terrain", "98fb98"),
    23: ("sky", "4682b4"),
    24: ("person", "dc143c"),
    25: ("rider", "ff0000"),
    26: ("car", "00008e"),
    27: ("truck", "000046"),
    28: ("bus", "003c64"),
    31: ("train", "005064"),
    32: ("motorcycle", "0000e6"),
    33: ("bicycle", "770b20"),
}
CLASSES = {0: "background", **{raw: name for raw, (name, _) in enumerate(LABELS.values(), start=1)}}
# of the domain setting, in the order in which they arrive: training cities, then those of the validation images
CITIES = (
    "aachen bremen darmstadt erfurt hanover krefeld strasbourg tubingen weimar bochum cologne dusseldorf hamburg jena "
    "monchengladbach stuttgart ulm zurich frankfurt lindau munster"
).split()
IMAGE = "_leftImg8bit.png"
LAYOUT = (
    "Cityscapes has leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png"
)


def _table(raw: dict[int, int]) -> bytes:
    return bytes(raw.get(number, FOREIGN) for number in range(256))


MASKS = {  # ending -> what its numbers mean, see `read_pair`; of two masks of an image the last one counts
    "_gtFine_labelTrainIds.png": _table({**{number: number + 1 for number in range(19)}, 255: 255}),
    # -1, the licence plate, is 255 in 8 bits
    "_gtFine_labelIds.png": _table(
        {**dict.fromkeys((*range(34), 255), 255), **{label: raw for raw, label in enumerate(LABELS, start=1)}}
    ),
}


def palette() -> np.ndarray:
    """(256,3) uint8, by raw id; background black, void white."""
    table = np.zeros((256, 3), np.uint8)
    table[1:20] = [list(bytes.fromhex(colour)) for _, colour in LABELS.values()]
    table[255] = 255
    return table


def pairs(folder: Path, split: str) -> list[Pair]:
    """The pairs of a split (`train` or `val`), sorted by city and name; the domain is the city.

    An image's mask is its labelIds, else its labelTrainIds. Raises FileNotFoundError for a folder that is missing or
    empty, DataError for images or masks without a partner.
    """
    images, masks = _files(folder / "leftImg8bit" / split, IMAGE), _files(folder / "gtFine" / split, *MASKS)
    if lone := sorted(images.keys() ^ masks.keys()):
        what = "mask" if lone[0] in images else "image"
        problem = (
            f"{len(lone)} images or masks of {split} have no partner; the {what} of {'/'.join(lone[0])} is missing"
        )
        raise DataError(f"{folder}: {problem}. Complete the data set, or remove what is left over.")
    found = []
    for (city, name), (_, image) in sorted(images.items()):
        ending, mask = masks[city, name]
        found.append(Pair(name, image, mask, MASKS[ending], domain=city))
    return found


def _files(folder: Path, *endings: str) -> dict[tuple[str, str], tuple[str, Path]]:
    """City and name without ending -> ending and file; the last ending of a name counts."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Put it there: {LAYOUT}.")
    found = {}
    for ending in endings:
        for file in folder.glob(f"*/*{ending}"):
            if not file.name.startswith("."):
                found[file.parent.name, file.name.removesuffix(ending)] = (ending, file)
    if not found:
        raise FileNotFoundError(f"{folder}: no file CITY/*{endings[-1]} in it. Fetch the data set again: {LAYOUT}.")
    return found


DATASET = DataSet(("cityscapes",), CLASSES, pairs, palette(), background=False, domains=CITIES)
