"""Tiny data sets in the official layouts, with as many images as the protocols need."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ciss import protocol
from ciss.data.sets import cityscapes as sets_cityscapes
from ciss.data.sets.cityscapes import CITIES, LABELS

SIZE = (40, 48)  # height and width, pixels
SEASONS = ("spring", "summer", "winter")
IMAGES_PER_DOMAIN = 5  # of the domain setting: four to train on and one to test
SIZES = ((33, 47), (64, 64), (20, 90), (90, 20), (8, 8), (41, 40))


def paint(image: Path, mask: Path, ids: Sequence[int], *, size: tuple[int, int] = SIZE, rest: int = 0) -> None:
    """Writes an image and its mask: a block in a colour of its own for each id, `rest` elsewhere."""
    dice = np.random.default_rng([len(ids), *ids, *image.stem.encode()])
    pixels = dice.integers(90, 130, (*size, 3))
    labels = np.full(size, rest, np.uint8)
    columns = max(1, -(-len(ids) // 3))
    for number, raw in enumerate(ids):
        row, column = number % 3, number // 3
        top, bottom = size[0] * row // min(3, len(ids)), size[0] * (row + 1) // min(3, len(ids))
        left, right = size[1] * column // columns, size[1] * (column + 1) // columns
        block = np.s_[top : max(top + 1, bottom - 2), left : max(left + 1, right - 4)]
        labels[block] = raw
        pixels[block] = np.array([37 * raw % 200, 91 * raw % 230, 151 * raw % 255]) + dice.integers(0, 25, 3)
    for file, array in ((image, pixels.astype(np.uint8)), (mask, labels)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)


def combinations(classes: Sequence[int], alone: int, pairs: int = 1) -> list[list[int]]:
    """Class ids of images: every class `alone` times by itself, and `pairs` times with a distant class."""
    count = len(classes)
    single = [[raw] for _ in range(alone) for raw in classes]
    double = [
        [raw, classes[(number + count // 2 + shift) % count]]
        for shift in range(pairs)
        for number, raw in enumerate(classes)
    ]
    return single + double


def chunks(classes: Sequence[int], size: int, rounds: int = 2) -> list[list[int]]:
    """Class ids of validation images: every class `rounds` times, `size` to an image."""
    found = []
    for shift in range(rounds):
        turned = [*classes[shift:], *classes[:shift]]
        found += [turned[start : start + size] for start in range(0, len(turned), size)]
    return found


def voc(root: Path) -> None:
    """VOCdevkit/VOC2012 with SBD's masks and list: 80 training and 10 validation images of 20 classes."""
    folder = root / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    classes = protocol.DATASETS["voc"]
    names: dict[str, list[str]] = {}
    for split, images in (("trainaug", combinations(classes, alone=3)), ("val", chunks(classes, 4))):
        names[split] = [f"200{7 + number % 2}_{number:06d}" for number in range(len(images))]
        if split == "val":
            names[split] = [name.replace("200", "201") for name in names[split]]
        for name, ids in zip(names[split], images, strict=True):
            image = folder / "JPEGImages" / f"{name}.jpg"
            paint(image, folder / "SegmentationClassAug" / f"{name}.png", ids)
            if split == "val" or name in names[split][::4]:  # VOC's own masks, of fewer images
                paint(image, folder / "SegmentationClass" / f"{name}.png", ids)
    names["train"] = names["trainaug"][::4]
    for split, listed in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))


def ade20k(root: Path) -> None:
    """ADEChallengeData2016: 200 training and 50 validation images of 150 classes."""
    folder, classes = root / "ADEChallengeData2016", protocol.DATASETS["ade20k"]
    training = [[raw] for raw in classes] + [[raw, raw + 50, raw + 100] for raw in classes[:50]]
    for split, short, images in (("training", "train", training), ("validation", "val", chunks(classes, 6))):
        for number, ids in enumerate(images, start=1):
            name = f"ADE_{short}_{number:08d}"
            paint(folder / "images" / split / f"{name}.jpg", folder / "annotations" / split / f"{name}.png", ids)


def cityscapes_tree(root: Path) -> None:
    """cityscapes: 5 images of each of 18 training and 3 validation cities, 19 classes, masks of label ids."""
    folder, labels = root / "cityscapes", list(LABELS)
    images = combinations(labels, alone=2, pairs=4)
    for number, city in enumerate(CITIES):
        split = "val" if city in sets_cityscapes.CITIES[-3:] else "train"
        for frame in range(IMAGES_PER_DOMAIN):
            ids = images[number * IMAGES_PER_DOMAIN + frame]
            if split == "val":  # all classes are scored
                ids = chunks(labels, 4)[(number * IMAGES_PER_DOMAIN + frame) % 10]
            name = f"{city}_{frame:06d}_000019"
            image = folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
            paint(image, folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids)


def camvid(root: Path) -> None:
    """CamVid in SegNet's layout: 33 training, 3 validation and 6 test images of 11 classes; 11 is void."""
    folder, classes = root / "CamVid", list(range(11))
    splits = {"train": combinations(classes, alone=2), "val": chunks(classes, 4, 1), "test": chunks(classes, 4)}
    for split, images in splits.items():
        lines = []
        for number, ids in enumerate(images):
            names = f"{split}/0001TP_{number:06d}.png", f"{split}annot/0001TP_{number:06d}.png"
            paint(folder / names[0], folder / names[1], ids, rest=11)
            lines.append(" ".join(names) + "\n")
        (folder / f"{split}.txt").write_text("".join(lines))


def own(
    root: Path,
    name: str,
    train: Sequence[Sequence[int]],
    val: Sequence[Sequence[int]] = (),
    *,
    classes: dict[int, str],
    extra: str = "",
    domains: Sequence[str] = ("",),
    sizes: Sequence[tuple[int, int]] = (SIZE,),
) -> None:
    """A data set of one's own with its dataset.yaml. Images go to the domains and take the sizes in turn."""
    folder = root / name
    for split, images in (("train", train), ("val", val)):
        for number, ids in enumerate(images):
            place = f"{split}/{domains[number % len(domains)]}"
            image = folder / "images" / place / f"{number:03d}.png"
            paint(image, folder / "masks" / place / f"{number:03d}.png", ids, size=sizes[number % len(sizes)])
    lines = "".join(f"  {number}: {word}\n" for number, word in classes.items())
    (folder / "dataset.yaml").write_text(f"classes:\n{lines}{extra}")


FOUR = {1: "leaf", 2: "stem", 3: "flower", 4: "fruit"}
TWO = {1: "road", 2: "car"}
THREE = {1: "road", 2: "car", 3: "tram"}
IDS = [1, 2, 3, 4]

TREES: dict[str, Callable[[Path], None]] = {  # by the name of the data set in `ciss plan`; `shapes` draws itself
    "voc": voc,
    "ade20k": ade20k,
    "cityscapes": cityscapes_tree,
    "camvid": camvid,
    "two": partial(own, name="two", classes=TWO, train=[[1], [2], [1, 2]] * 4, val=[[1, 2]] * 4),
    "lacking": partial(  # no validation image shows the tram
        own, name="lacking", classes=THREE, train=combinations([1, 2, 3], 3), val=[[1, 2]] * 3 + [[1], [2]]
    ),
    "single": partial(  # one image of the second step
        own, name="single", classes=THREE, train=[[3], *[[1], [2], [1, 2]] * 4], val=[[1, 2, 3], [3, 1], [2]]
    ),
    "sizes": partial(
        own, name="sizes", classes=FOUR, train=combinations(IDS, 3, 2), val=[*chunks(IDS, 2), [1]],
        sizes=(*SIZES, (1, 1)),
    ),
    "share": partial(own, name="share", classes=FOUR, train=combinations(IDS, 3, 2), extra="share: 0.3\n"),
    "nobackground": partial(  # 0 is a class, 9 is void
        own, name="nobackground", classes={0: "sky", **FOUR}, train=combinations(IDS, 3), val=chunks(IDS, 2),
        extra="void: 9\n",
    ),
    "domains": partial(
        own, name="domains", classes=FOUR, train=combinations(IDS, 3, 3), val=chunks(IDS, 2, 3), domains=SEASONS
    ),
    "manydomains": partial(  # more domains than classes
        own, name="manydomains", classes=TWO, train=[[1], [2], [1, 2]] * 10, val=[[1, 2]] * 6,
        domains=[f"place{number}" for number in range(6)],
    ),
}  # fmt: skip
TREES["voc8"] = voc


def write(name: str, root: Path) -> None:
    """Writes the tree of a data set below `root`; nothing for `shapes`, which the pipeline draws."""
    if name != "shapes":
        TREES[name](root)
