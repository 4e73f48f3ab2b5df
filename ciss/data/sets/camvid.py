"""CamVid in the layout of SegNet's release: eleven classes, 480x360 pixels, train.txt, val.txt and test.txt.

Raw ids are the masks' numbers plus one, 1 to 11: 0 stays free for old and future classes. Number 11, unlabelled, is
void. `val` are the images of test.txt, as in publications; the images of val.txt are not used.
Source: Brostow, Fauqueur and Cipolla, Pattern Recognition Letters 2009, whose colours these are; the lists and the
eleven classes are those of SegNet (Badrinarayanan, Kendall and Cipolla, PAMI 2017).
"""

from pathlib import Path

from ciss.data.pictures import DataError, Pair
from ciss.data.sets.base import DataSet, colour_table, id_table
from ciss.data.sets.voc import read_lines, shown

LABELS = {
    "sky": "808080",
    "building": "800000",
    "pole": "c0c080",
    "road": "804080",
    "pavement": "0000c0",
    "tree": "808000",
    "signsymbol": "c08080",
    "fence": "404080",
    "car": "400080",
    "pedestrian": "404000",
    "bicyclist": "0080c0",
}
CLASSES = dict(enumerate(("background", *LABELS)))
LISTS = {"train": "train.txt", "val": "test.txt"}
IDS = id_table({**{number: number + 1 for number in range(11)}, 11: 255, 255: 255})
LAYOUT = "SegNet's CamVid has train.txt and test.txt beside train/, trainannot/, test/ and testannot/"


def pairs(folder: Path, split: str) -> list[Pair]:
    """The pairs of a split (`train` or `val`), in the order of its list.

    A line of the list names an image and its mask, relative to the folder. Of longer paths such as
    "/SegNet/CamVid/train/x.png" the last two parts count.

    Raises: FileNotFoundError for a list that is missing, DataError for one that is broken.
    """
    file = folder / LISTS[split]
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such list. Put it there: {LAYOUT}.")
    pairs = []
    for number, line in read_lines(file).items():
        files = [_last_two_parts(path) for path in line.split()]
        if len(files) != 2 or None in files or not line.replace("\t", " ").isprintable():
            wanted = "an image and its mask in the folder, such as train/x.png trainannot/x.png"
            raise DataError(f"{file}: line {number}: {shown(line)} does not name a pair. Write {wanted}.")
        image, mask = (folder / name for name in files)
        pairs.append(Pair(image.stem, image, mask, IDS))
    return pairs


def _last_two_parts(path: str) -> str | None:
    """The last two parts of a path. None for a path with fewer, or one that may lead out of a folder."""
    parts = path.split("/")
    if "\\" in path or ".." in parts:
        return None
    parts = [part for part in parts if part not in ("", ".")]
    return "/".join(parts[-2:]) if len(parts) > 1 else None


DATASET = DataSet(("CamVid",), CLASSES, pairs, colour_table(LABELS.values()), background=False)
