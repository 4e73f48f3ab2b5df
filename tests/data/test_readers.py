"""The readers of ADE20K, Cityscapes and CamVid, on tiny trees in the official layouts."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciss import protocol
from ciss.data.pictures import FOREIGN, DataError, Pair, read_pair
from ciss.data.sets import ade20k as sets_ade20k
from ciss.data.sets import camvid as sets_camvid
from ciss.data.sets import cityscapes as sets_cityscapes
from ciss.data.sets.ade20k import CLASSES
from ciss.data.sets.cityscapes import CITIES, MASKS

READERS = {"ade20k": sets_ade20k, "cityscapes": sets_cityscapes, "camvid": sets_camvid}
# raw ids of Cityscapes' 34 label ids, 0 to 33
CITYSCAPES = [255] * 7 + [1, 2, 255, 255, 3, 4, 5, 255, 255, 255, 6, 255, *range(7, 17), 255, 255, 17, 18, 19]
SIZE = (6, 8)


def write(file: Path, array: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)
    return file


def picture(file: Path) -> Path:
    return write(file, np.full((*SIZE, 3), 90, np.uint8))


def mask(file: Path, *numbers: int) -> Path:
    """A mask that shows each of these numbers."""
    return write(file, np.resize(np.array(numbers, np.uint8), SIZE))


def read(pair: Pair) -> np.ndarray:
    """Raw ids of a pair."""
    image, ids, _, _ = read_pair(pair)
    assert image.shape == (*SIZE, 3) and ids.shape == SIZE
    return ids


def raw(pair: Pair) -> set[int]:
    return set(read(pair).flat)


def make_ade20k(folder: Path) -> Path:
    for part, names in (("training", ["b", "a"]), ("validation", ["c"])):
        for name in names:
            picture(folder / "images" / part / f"ADE_{name}.jpg")
            mask(folder / "annotations" / part / f"ADE_{name}.png", 0, 1, 150)
    return folder


def make_cityscapes(folder: Path, ending: str = "labelIds") -> Path:
    frames = (("train", "ulm", 1), ("train", "aachen", 2), ("train", "aachen", 1), ("val", "lindau", 0))
    for split, city, frame in frames:
        name = f"{city}_00000{frame}_000019"
        picture(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        numbers = [7, 8, 33, 0, 255] if ending == "labelIds" else [0, 1, 18, 255, 255]
        mask(folder / "gtFine" / split / city / f"{name}_gtFine_{ending}.png", *numbers)
        (folder / "gtFine" / split / city / f"{name}_gtFine_polygons.json").write_text("{}")
    return folder


def make_camvid(folder: Path) -> Path:
    for split, names in (("train", ["b", "a"]), ("val", ["c"]), ("test", ["d"])):
        for name in names:
            picture(folder / split / f"{name}.png")
            mask(folder / f"{split}annot" / f"{name}.png", 0, 10, 11)
        (folder / f"{split}.txt").write_text("".join(f"{split}/{n}.png {split}annot/{n}.png\n" for n in names))
    return folder


MAKE = {"ade20k": make_ade20k, "cityscapes": make_cityscapes, "camvid": make_camvid}


@pytest.fixture(params=MAKE)
def name(request) -> str:
    return request.param


@pytest.fixture
def reader(name):
    return READERS[name]


@pytest.fixture
def folder(name, tmp_path) -> Path:
    return MAKE[name](tmp_path / name)


# --- what all have in common


def test_classes_are_those_of_the_protocol(name, reader):
    assert tuple(reader.CLASSES) == (0, *protocol.DATASETS[name])
    names = list(reader.CLASSES.values())
    assert len(set(names)) >= len(names) - (name == "ade20k") and all(n == n.strip() != "" for n in names)


def test_colours(name, reader):
    table = reader.DATASET.palette
    assert table.shape == (256, 3) and table.dtype == np.uint8
    classes = [tuple(table[c].tolist()) for c in reader.CLASSES]
    assert len(set(classes)) == len(classes) - (name == "ade20k"), "road and skyscraper share one"
    assert tuple(table[255]) == (255, 255, 255) and (255, 255, 255) not in classes and classes[0] == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "number", "called", "colour"),
    [
        ("ade20k", 1, "wall", (120, 120, 120)),
        ("ade20k", 13, "person", (150, 5, 61)),
        ("ade20k", 90, "television", (0, 255, 194)),
        ("ade20k", 92, "dirt track", (0, 10, 255)),
        ("ade20k", 150, "flag", (92, 0, 255)),
        ("cityscapes", 1, "road", (128, 64, 128)),
        ("cityscapes", 11, "sky", (70, 130, 180)),
        ("cityscapes", 19, "bicycle", (119, 11, 32)),
        ("camvid", 1, "sky", (128, 128, 128)),
        ("camvid", 5, "pavement", (0, 0, 192)),
        ("camvid", 11, "bicyclist", (0, 128, 192)),
    ],
)
def test_official_names_and_colours(name, number, called, colour):
    assert READERS[name].CLASSES[number] == called and tuple(READERS[name].DATASET.palette[number]) == colour


WANTED = {
    "ade20k": {"train": ["ADE_a", "ADE_b"], "val": ["ADE_c"]},
    "cityscapes": {
        "train": ["aachen_000001_000019", "aachen_000002_000019", "ulm_000001_000019"],
        "val": ["lindau_000000_000019"],
    },
    "camvid": {"train": ["b", "a"], "val": ["d"]},  # test.txt is what is scored
}
IDS = {"ade20k": {0, 1, 150}, "cityscapes": {1, 2, 19, 255}, "camvid": {1, 11, 255}}


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_splits(name, reader, folder, split):
    found = reader.pairs(folder, split)
    assert [pair.id for pair in found] == WANTED[name][split]
    assert all(raw(pair) == IDS[name] for pair in found)


FOREIGNERS = {"cityscapes": (34, 200, 254), "camvid": (12, 30, 254)}


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, numbers in FOREIGNERS.items() for n in numbers])
def test_a_number_that_is_no_class_is_named(name, reader, folder, number):
    pair = reader.pairs(folder, "val")[0]
    mask(pair.mask, 1, number)
    with pytest.raises(DataError, match=rf"{re.escape(str(pair.mask))}: id {number} is no class of the data set"):
        read(pair)


def test_ade20k_masks_hold_raw_ids(tmp_path):
    """What is no class is found where ids are compared with CLASSES, as for Pascal VOC."""
    pair = sets_ade20k.pairs(make_ade20k(tmp_path), "val")[0]
    mask(pair.mask, *range(151))
    assert pair.raw_id_table is None and set(read(pair).flat) == set(np.resize(range(151), SIZE).flat)


def fails(reader, folder: Path, split: str, kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as caught:
        reader.pairs(folder, split)
    message = str(caught.value)
    assert type(caught.value) is kind and "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_folder_is_named_with_the_layout(name, reader, tmp_path, split):
    layout = {"ade20k": "{images,annotations}", "cityscapes": "gtFine/{train,val}/CITY", "camvid": "trainannot/"}
    fails(reader, tmp_path, split, FileNotFoundError, str(tmp_path), layout[name])


PARTS = {"ade20k": ("annotations/training", "images/training"), "cityscapes": ("gtFine/train", "leftImg8bit/train")}


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, parts in PARTS.items() for part in parts])
@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_that_is_missing_or_empty_is_named(reader, folder, part, empty):
    (folder / part).rename(folder / "elsewhere")
    if empty:
        (folder / part).mkdir()
    fails(reader, folder, "train", FileNotFoundError, str(folder / part), "Fetch" if empty else "no such folder")
    assert reader.pairs(folder, "val")


@pytest.mark.parametrize("which", ["image", "mask"])
@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_a_missing_file_is_named(reader, folder, which):
    pair = reader.pairs(folder, "train")[0]
    getattr(pair, which).unlink()
    fails(reader, folder, "train", DataError, str(folder), f"the {which} of ", pair.id, "Complete the data set")


@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_missing_file_of_a_list_is_named_when_it_is_read(tmp_path, which):
    pair = sets_camvid.pairs(make_camvid(tmp_path), "train")[0]
    getattr(pair, which).unlink()
    with pytest.raises(DataError, match=f"{re.escape(str(getattr(pair, which)))}: the {which} is missing"):
        read(pair)


def test_hidden_copies_do_not_count(name, reader, folder):
    """macOS leaves a ._ file beside each file on foreign disks."""
    wanted = reader.pairs(folder, "train")
    for pair in wanted:
        for file in (pair.image, pair.mask):
            (file.parent / f"._{file.name}").write_bytes(b"x")
    assert reader.pairs(folder, "train") == wanted


# --- Cityscapes


@pytest.mark.parametrize("ending", ["labelIds", "labelTrainIds"])
def test_both_kinds_of_masks_mean_the_same(tmp_path, ending):
    folder = make_cityscapes(tmp_path, ending)
    pair = sets_cityscapes.pairs(folder, "train")[0]
    assert pair.mask.name.endswith(f"_{ending}.png")
    assert read(pair).flat[:5].tolist() == [1, 2, 19, 255, 255]


def test_label_ids_come_first_and_each_image_chooses(tmp_path):
    make_cityscapes(tmp_path, "labelTrainIds")
    make_cityscapes(tmp_path, "labelIds")
    found = sets_cityscapes.pairs(tmp_path, "train")
    assert all(pair.mask.name.endswith("labelIds.png") for pair in found)
    found[1].mask.unlink()
    again = sets_cityscapes.pairs(tmp_path, "train")
    kinds = [pair.mask.stem.rpartition("_")[2] for pair in again]
    assert kinds == ["labelIds", "labelTrainIds", "labelIds"]
    assert all(raw(pair) == {1, 2, 19, 255} for pair in again)


def test_every_number_of_cityscapes():
    train_ids, label_ids = (MASKS[f"*/*_gtFine_{kind}.png"] for kind in ("labelTrainIds", "labelIds"))
    assert list(label_ids) == CITYSCAPES + [FOREIGN] * 221 + [255]
    assert list(train_ids) == [*range(1, 20)] + [FOREIGN] * 236 + [255]


def test_domains_are_cities(tmp_path):
    make_cityscapes(tmp_path)
    domains = [pair.domain for split in ("train", "val") for pair in sets_cityscapes.pairs(tmp_path, split)]
    assert domains == ["aachen", "aachen", "ulm", "lindau"]
    assert len(set(CITIES)) == 21
    assert CITIES[10:12] == ["cologne", "dusseldorf"] and CITIES[-3:] == ["frankfurt", "lindau", "munster"]


# --- CamVid


def test_every_number_of_camvid():
    assert list(sets_camvid.IDS) == [*range(1, 12), 255] + [FOREIGN] * 243 + [255]


@pytest.mark.parametrize(
    "line",
    [
        "/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png",
        "./train/a.png\ttrainannot//a.png \r",
        "\ufeffCamVid/train/a.png CamVid/trainannot/a.png",
    ],
)
def test_longer_paths_lead_into_the_folder(tmp_path, line):
    make_camvid(tmp_path)
    (tmp_path / "train.txt").write_text(f"{line}\n\n", encoding="utf-8", newline="")
    (pair,) = sets_camvid.pairs(tmp_path, "train")
    assert (pair.id, pair.image, pair.mask) == ("a", tmp_path / "train" / "a.png", tmp_path / "trainannot" / "a.png")
    assert raw(pair) == {1, 11, 255}


@pytest.mark.parametrize(
    "line",
    [
        "../train/a.png trainannot/a.png",
        "train/a.png trainannot/../../a.png",
        "train/a.png ..",
        "/a.png trainannot/a.png",
        "a.png a.png",
        "train/a.png",
        "train/a.png trainannot/a.png train/b.png",
        "..\\train\\a.png trainannot/a.png",
        "train/a\0.png trainannot/a.png",
        "train/" + "a" * 300,
    ],
)
def test_a_line_that_names_no_pair_in_the_folder_is_named(tmp_path, line):
    make_camvid(tmp_path)
    (tmp_path / "train.txt").write_text(f"train/b.png trainannot/b.png\n{line}\n")
    words = (str(tmp_path / "train.txt"), "line 2: ", "train/x.png trainannot/x.png")
    fails(sets_camvid, tmp_path, "train", DataError, *words)


@pytest.mark.parametrize(("content", "words"), [(b" \n", "the list is empty"), (b"\xff\xfe", "the list is not UTF-8")])
def test_a_broken_list_is_named(tmp_path, content, words):
    (make_camvid(tmp_path) / "test.txt").write_bytes(content)
    fails(sets_camvid, tmp_path, "val", DataError, str(tmp_path / "test.txt"), words)


# --- the real data

DATA = Path(os.environ.get("CISS_DATA", "nowhere"))


@pytest.mark.parametrize(
    ("name", "place", "counts"),
    [
        ("ade20k", "ADEChallengeData2016", {"train": 1, "val": 3}),
        ("ade20k", "ADEChallengeData2016", {"train": 20_210, "val": 2_000}),
        ("cityscapes", "cityscapes", {"train": 2_975, "val": 500}),
        ("camvid", "CamVid", {"train": 367, "val": 233}),
    ],
)
def test_real_data(name, place, counts):
    if not (DATA / place).is_dir():
        pytest.skip(f"needs CISS_DATA with {place}")
    found = {split: READERS[name].pairs(DATA / place, split) for split in counts}
    if name == "ade20k" and len(found["train"]) != counts["train"]:
        pytest.skip("the other one of the whole data set and its sample is there")
    assert {split: len(pairs) for split, pairs in found.items()} == counts
    shown = set()
    for pair in [*found["train"][:40], *found["val"][:40]]:
        image, ids, _, _ = read_pair(pair)
        assert image.shape[:2] == ids.shape
        shown |= set(np.unique(ids).tolist())
    assert shown <= {*READERS[name].CLASSES, 255} and len(shown) > 10
    if name == "camvid":
        assert shown == {*range(1, 12), 255}
    listing = DATA / place / "objectInfo150.txt"
    if name == "ade20k" and listing.is_file():
        lines = [line.split("\t") for line in listing.read_text().splitlines()[1:]]
        assert {int(line[0]): line[4].partition(",")[0].strip() for line in lines} == {
            number: called for number, called in CLASSES.items() if number
        }
