"""Cityscapes: leftImg8bit/ and gtFine/, each with train/ and val/ and a folder for every city.

Raw ids are the data set's train ids plus one, 1 to 19: 0 stays free for old and future classes. Labels without train
id are void. Source: Cordts et al., The Cityscapes dataset, CVPR 2016; ids and colours as in its label table.
"""

from pathlib import Path

from ciss.data.pictures import Pair
from ciss.data.sets.base import DataSet, colour_table, id_table, match_files

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
# domains in order of arrival: the training cities, then those of the validation images
CITIES = (
    "aachen bremen darmstadt erfurt hanover krefeld strasbourg tubingen weimar bochum cologne dusseldorf hamburg jena "
    "monchengladbach stuttgart ulm zurich frankfurt lindau munster"
).split()
LAYOUT = (
    "Cityscapes has leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png"
)
LABEL_IDS = {**dict.fromkeys((*range(34), 255), 255), **{label: raw for raw, label in enumerate(LABELS, start=1)}}
MASKS = {  # pattern -> `Pair.raw_id_table`; of two masks of an image the last one counts
    "*/*_gtFine_labelTrainIds.png": id_table({**{number: number + 1 for number in range(19)}, 255: 255}),
    "*/*_gtFine_labelIds.png": id_table(LABEL_IDS),  # -1, the licence plate, is 255 in 8 bits
}


def pairs(folder: Path, split: str) -> list[Pair]:
    """The pairs of a split (`train` or `val`), sorted by city and name; the domain is the city.

    An image's mask is its labelIds, else its labelTrainIds. Raises as `match_files`.
    """
    images, masks = folder / "leftImg8bit" / split, folder / "gtFine" / split
    matches = match_files(images, "*/*_leftImg8bit.png", masks, MASKS, LAYOUT)
    return [Pair(name, image, mask, MASKS[kind], domain=city) for (city, name), image, mask, kind in matches]


PALETTE = colour_table(colour for _, colour in LABELS.values())
DATASET = DataSet(("cityscapes",), CLASSES, pairs, PALETTE, background=False, domains=CITIES)
