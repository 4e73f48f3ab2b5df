"""`ciss data init FOLDER` writes a `dataset.yaml` that can be used as it is."""

import numpy as np
import pytest
from PIL import Image

from ciss import cli
from ciss.data import DataError, data_set
from ciss.data.describe import describe, name_conflicts
from ciss.data.sets import shapes
from ciss.data.sets.own import load


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "data" / "leaves").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CISS_DATA", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "data" / "leaves"


def put(folder, images: str, masks: str, name: str, ids: list[int], palette: bool = False) -> None:
    """An image of 8x8 pixels, and a mask with a row of each id above the background."""
    for part in (images, masks):
        (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / images / f"{name}.jpg")
    labels = np.zeros((8, 8), np.uint8)
    for row, number in enumerate(ids):
        labels[row] = number
    mask = Image.fromarray(labels)
    if palette:
        mask.putpalette([value for number in range(256) for value in ((number, 10, 20) if number != 9 else (0, 0, 0))])
    mask.save(folder / masks / f"{name}.png")


@pytest.mark.parametrize(
    "layout", ["images/{split} masks/{split}", "{split}/images {split}/masks", "images/{split}ing labels/{split}ing"]
)
def test_training_and_validation_folders(leaves, layout):
    for split, ids in (("train", [1, 2]), ("val", [1, 3])):
        images, masks = layout.format(split=split).replace("valing", "validation").split()
        put(leaves, images, masks, "a", ids)
    out = describe(leaves)
    assert out.startswith(f"{leaves}/dataset.yaml: written. 2 masks hold 3 classes (1, 2, 3).")
    assert out.endswith("then: ciss plan leaves 1-1")
    assert load(leaves / "dataset.yaml").classes == {0: "background", 1: "class_1", 2: "class_2", 3: "class_3"}
    found = data_set("leaves")
    assert [len(found.pairs(leaves, split)) for split in ("train", "val")] == [1, 1]
    text = (leaves / "dataset.yaml").read_text()
    assert "  1: class_1 # 2 masks, 12.50% of the pixels\n  2: class_2 # 1 mask, 6.25%" in text


def test_images_without_a_split_give_a_share(leaves):
    for number in range(10):
        put(leaves, "images", "masks", f"garden/{number}", [1 + number % 2])
    describe(leaves)
    found = data_set("leaves")
    assert [len(found.pairs(leaves, split)) for split in ("train", "val")] == [8, 2]
    assert "share: 0.2" in (leaves / "dataset.yaml").read_text()


def test_void_and_the_colours_of_a_palette(leaves):
    put(leaves, "images/train", "masks/train", "a", [7, 255], palette=True)
    put(leaves, "images/train", "masks/train", "b", [9], palette=True)
    assert "2 masks hold 2 classes (7, 9) and 255 as void." in describe(leaves)
    described = load(leaves / "dataset.yaml")
    assert described.palette[7].tolist() == [7, 10, 20] and described.own.described.void == 255
    assert described.own.described.classes["9"].colour is None, "black in the palette, as the background is"


def test_the_one_number_above_the_classes_is_void(leaves):
    put(leaves, "images/train", "masks/train", "a", [1, 254])
    put(leaves, "images/train", "masks/train", "b", [2])
    text = describe(leaves)
    assert "hold 2 classes (1, 2) and 254 as void." in text
    assert "If 254 is a class, renumber it: classes are 1 to 250." in text
    assert load(leaves / "dataset.yaml").own.described.void == 254


@pytest.mark.parametrize("numbers", [[1, 254, 255], [1, 252, 254]])
def test_two_numbers_above_the_classes_are_an_error(leaves, numbers):
    put(leaves, "images/train", "masks/train", "a", numbers)
    with pytest.raises(DataError, match=r"Use 1 to 250 for classes and one larger number for void"):
        describe(leaves)
    assert not (leaves / "dataset.yaml").exists()


def test_images_without_masks_are_counted(leaves):
    for name in ("a", "b"):
        put(leaves, "images/train", "masks/train", name, [7, 9])
    (leaves / "masks/train/b.png").rename(leaves / "masks/train/b_mask.png")
    text = describe(leaves)
    image, mask = leaves / "images/train/b.jpg", leaves / "masks/train/b.png"
    assert f"1 image has no mask of the same name (first: {image} needs {mask}). Rename the masks" in text
    assert f"1 mask is not used, because no image of the same name is there (first: {mask.with_stem('b_mask')})" in text
    assert text.splitlines()[-1].startswith("Next: give the classes names in dataset.yaml, then: ciss plan")


def test_what_is_there_is_not_overwritten(leaves):
    put(leaves, "images", "masks", "a", [1])
    (leaves / "dataset.yaml").write_text("classes: {1: leaf}\n")
    with pytest.raises(DataError, match="exists and is not overwritten"):
        describe(leaves)
    assert (leaves / "dataset.yaml").read_text() == "classes: {1: leaf}\n"


def put_colours(folder) -> None:
    put(folder, "images", "masks", "a", [1])
    Image.new("RGB", (8, 8)).save(folder / "masks" / "a.png")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: None, "no folders of images and masks. Make images/train and masks/train"),
        (lambda folder: put(folder, "images", "masks", "a", []), "the masks hold 0 and no class"),
        (lambda folder: put(folder, "images", "masks", "a", [1, 252, 255]), "the masks hold 252. Use 1 to 250"),
        (
            lambda folder: (put(folder, "images", "masks", "a", [1]), (folder / "masks/a.png").unlink()),
            "no PNG masks in masks",
        ),
        (
            lambda folder: (put(folder, "images", "masks", "a", [1]), (folder / "masks/a.png").write_text("x")),
            "a.png: the mask cannot be read (no image of a known format). Fetch it again, or move it away.",
        ),
        (put_colours, "a.png: mode RGB, not one id a pixel (P or L)."),
    ],
)  # fmt: skip
def test_what_cannot_be_described_is_named_and_nothing_is_written(leaves, prepare, words):
    prepare(leaves)
    with pytest.raises(DataError) as caught:
        describe(leaves)
    assert words in str(caught.value)
    assert not (leaves / "dataset.yaml").exists()


def test_the_command(leaves, monkeypatch, capsys):
    put(leaves, "images", "masks", "a", [1])
    cli.main(["data", "init", "data/leaves"])
    out = capsys.readouterr().out
    assert "One class leaves no step after the first." in out
    with pytest.raises(SystemExit, match="error: .*is not overwritten"):
        cli.main(["data", "init", "data/leaves"])


def test_a_folder_that_no_plan_would_find(leaves, tmp_path):
    put(tmp_path / "elsewhere", "images", "masks", "a", [1, 2])
    assert "Put the folder elsewhere into data/ of the project" in describe(tmp_path / "elsewhere")


def test_a_folder_whose_name_dvc_refuses(leaves):
    put(leaves, "images/train", "masks/train", "a", [7, 9])
    last = describe(leaves.rename(leaves.with_name("树叶"))).splitlines()[-1]
    assert last.startswith("Next: rename the folder to letters from A to Z, digits, '-' and '_'; then give the classes")


@pytest.mark.parametrize("name", ["shapes", "voc"])
def test_a_folder_with_the_name_of_a_known_data_set(leaves, name, capsys):
    """`init` named a plan of the known data set as the next step, and the pipeline removed data/shapes to draw it."""
    folder = leaves.rename(leaves.with_name(name))
    put(folder, "images/train", "masks/train", "a", [1, 2])
    with pytest.raises(DataError, match=f"{name} is the name of another data set, .* Rename the folder"):
        describe(folder)
    assert not (folder / "dataset.yaml").exists()

    (folder / "dataset.yaml").write_text("classes: {1: leaf, 2: stem}\n")  # by hand
    with pytest.raises(SystemExit, match=f"error: .*data/{name}: {name} is the name of another data set"):
        cli.main(["plan", "shapes", "1-1"])
    assert not (leaves.parents[1] / "params.yaml").exists()


def test_images_that_the_drawings_would_replace(leaves):
    """DVC deletes data/shapes before the data set is drawn."""
    folder = leaves.rename(leaves.with_name("shapes"))
    assert name_conflicts() == [], "an empty folder"
    put(folder, "images/train", "masks/train", "a", [1, 2])
    with pytest.raises(SystemExit, match="error: .*data/shapes: the pipeline draws .* would delete your files. Rename"):
        cli.main(["plan", "shapes", "4-2"])
    shapes.write(leaves.with_name("drawn"), train=1, val=1)
    folder.rename(folder.with_name("images"))
    leaves.with_name("drawn").rename(folder)
    assert name_conflicts() == []
