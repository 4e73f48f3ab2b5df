"""The embedded benchmark: what is drawn, how often, and the folder it is written to."""

import hashlib
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from PIL import Image

from ciss.data.sets import shapes as sets_shapes
from ciss.data.sets import voc as sets_voc
from ciss.data.sets.shapes import CLASSES, COLUMNS, KINDS, ROWS, distance, second_colour, write

STEPS = ([1, 2, 3, 4], [5, 6], [7, 8])  # protocol 4-2

# Of the drawn arrays: of all, of 120 training and 24 validation images. If they ever change, every table is re-run and
# the README says so.
HASH = "4d6f94abd3a30a87519f6c8b3d31851a0a87676622e9eecaf05551907ee5cc38"
HASH_OF_FIRST = "650a3eeff60128139e06411a1956b5271f49e5a470a61de849766c63487d9a3d"


@cache
def masks(count: int = 600) -> np.ndarray:
    """(count, 64, 64) uint8: the first half of the training images."""
    return np.stack([sets_shapes.draw(index, "train")[1] for index in range(count)])


def presence() -> np.ndarray:
    """(images, 8) bool: class raw id - 1 has a pixel in the image."""
    return np.stack([(masks() == raw).any((1, 2)) for raw in CLASSES], 1)


def step_presence() -> np.ndarray:
    """(images, 3) bool: the image belongs to the step, overlapped setting."""
    return np.stack([presence()[:, np.array(group) - 1].any(1) for group in STEPS], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write(folder, train=6, val=3)
    return folder


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [(120, 24, HASH_OF_FIRST), pytest.param(sets_shapes.TRAIN, sets_shapes.VAL, HASH, marks=pytest.mark.slow)],
)
def test_content(train, val, expected):
    """SHA-256 over the drawn arrays, not over files: JPEG bytes change with the library that writes them."""
    digest = hashlib.sha256()
    for split, count in {"train": train, "val": val}.items():
        for index in range(count):
            image, mask = sets_shapes.draw(index, split)
            digest.update(f"{split}_{index:05d}".encode() + image.tobytes() + mask.tobytes())
    assert digest.hexdigest() == expected


def test_an_image_depends_on_seed_split_and_index_only():
    forwards = [sets_shapes.draw(index, "train") for index in range(5)]
    for index in reversed(range(5)):
        for again, first in zip(sets_shapes.draw(index, "train"), forwards[index], strict=True):
            np.testing.assert_array_equal(again, first)
    others = [sets_shapes.draw(0, "train", seed=1), sets_shapes.draw(0, "val"), sets_shapes.draw(1, "train")]
    assert len({image.tobytes() for image, _ in [forwards[0], *others]}) == 4
    with pytest.raises(KeyError, match="test"):
        sets_shapes.draw(0, "test")


def test_arrays():
    image, mask = sets_shapes.draw(7, "val")
    assert image.shape == (64, 64, 3) and mask.shape == (64, 64)
    assert image.dtype == mask.dtype == np.uint8
    assert image.flags.c_contiguous
    assert set(np.unique(masks())) == {*range(9), 255}


def test_classes_differ_and_share():
    looks = {(kind.outline, kind.texture) for kind in sets_shapes.KINDS.values()}
    assert len(looks) == len(set(sets_shapes.CLASSES.values())) == 8
    old = [KINDS[raw] for raw in STEPS[0]]
    for raw in STEPS[1] + STEPS[2]:  # each later class pulls on an old one
        new = sets_shapes.KINDS[raw]
        assert any(new.outline == kind.outline or new.texture == kind.texture for kind in old)


def test_classes_differ_in_frequency_and_each_has_its_share_of_images():
    share = presence().mean(0)
    assert share.min() > 0.14  # of 1,200 training images: more than 160 for the rarest
    order = share.argsort() + 1
    assert set(order[:2]) == {4, 8}  # plain cross, plain triangle
    assert order[-1] == 1  # plain disc
    assert share.max() > 1.6 * share.min()


def test_no_visible_object_is_a_sliver():
    pixels = np.stack([(masks() == raw).sum((1, 2)) for raw in sets_shapes.CLASSES], 1)
    assert pixels[pixels > 0].min() >= 60


def test_steps_have_their_share_of_images():
    np.testing.assert_allclose(step_presence().mean(0), [0.77, 0.46, 0.42], atol=0.04)


def test_classes_of_different_steps_stand_together():
    steps = step_presence()
    assert (steps.sum(1) >= 1).all()  # no image without an object
    together = [(steps[steps[:, step]].sum(1) > 1).mean() for step in range(3)]
    assert together[0] > 0.6 and min(together[1:]) > 0.75


def test_background_is_four_fifths():
    assert 0.79 < (masks() == 0).mean() < 0.84
    assert 0.02 < (masks() == 255).mean() < 0.05


def test_a_void_border_closes_every_object():
    for one, other in ((masks()[:, 1:], masks()[:, :-1]), (masks()[:, :, 1:], masks()[:, :, :-1])):
        neighbours_differ = one != other
        assert neighbours_differ.any()
        assert ((one == 255) | (other == 255))[neighbours_differ].all()


@pytest.mark.parametrize("outline", sorted({kind.outline for kind in sets_shapes.KINDS.values()}))
def test_outlines_fill_their_circle_and_not_more(outline):
    away = distance(outline, sets_shapes.COLUMNS - 32, sets_shapes.ROWS - 32, 12.0)
    radius = np.hypot(sets_shapes.COLUMNS - 32, sets_shapes.ROWS - 32)
    assert 10.5 < radius[away < 0].max() < 13.0
    assert max(np.abs(np.diff(away, axis=axis)).max() for axis in (0, 1)) <= 1 + 1e-9


@pytest.mark.parametrize(("texture", "share"), [("plain", 0.0), ("striped", 0.5), ("checked", 0.5), ("dotted", 0.3)])
def test_textures_show_both_colours(texture, share):
    second = second_colour(texture, COLUMNS, ROWS)
    assert second.min() >= 0 and second.max() <= 1
    assert second.mean() == pytest.approx(share, abs=0.03)


def test_two_processes_may_draw_at_once(tmp_path):
    """Without the lock one of them deletes the other's unfinished folder."""
    program = "import sys, pathlib; from ciss.data.sets.shapes import write; write(pathlib.Path(sys.argv[1]), 40, 4)"
    command = [sys.executable, "-c", program, tmp_path / "shapes"]
    drawing = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate()[1].decode() for process in drawing]
    assert [process.returncode for process in drawing] == [0, 0, 0], errors
    assert len(list((tmp_path / "shapes" / "JPEGImages").iterdir())) == 44


def test_folder_reads_as_voc(folder):
    for split, count in (("train", 6), ("val", 3)):
        pairs = sets_voc.pairs(folder, split)
        assert [pair.id for pair in pairs] == [f"{split}_{index:05d}" for index in range(count)]
        for index, pair in enumerate(pairs):
            image, mask = sets_shapes.draw(index, split)
            with Image.open(pair.image) as photo, Image.open(pair.mask) as labels:
                assert (photo.format, photo.mode, labels.format, labels.mode) == ("JPEG", "RGB", "PNG", "P")
                assert photo.layer[0][1:3] == photo.layer[1][1:3] == (1, 1)  # sampling of light and colour: 4:4:4
                np.testing.assert_array_equal(np.asarray(labels), mask)
                assert np.abs(np.asarray(photo, dtype=int) - image).mean() < 4
    assert sorted(path.name for path in folder.parent.iterdir()) == [".shapes.lock", "shapes"]


def test_masks_have_the_colours_of_voc(folder):
    with Image.open(folder / "SegmentationClassAug" / "val_00000.png") as labels:
        colours = np.array(labels.getpalette()).reshape(-1, 3)
    for label, colour in {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 255: (224, 224, 192)}.items():
        assert tuple(colours[label]) == colour


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def draw(index, split, seed=0, draw=sets_shapes.draw):
        if split == "val":
            raise KeyboardInterrupt
        return draw(index, split, seed)

    with monkeypatch.context() as patch:
        patch.setattr(sets_shapes, "draw", draw)
        with pytest.raises(KeyboardInterrupt):
            sets_shapes.write(tmp_path / "shapes", train=3, val=1)
    assert [path.name for path in tmp_path.iterdir()] == [".shapes.lock"]
    (tmp_path / ".shapes.partial" / "JPEGImages").mkdir(parents=True)  # of a process that was killed
    sets_shapes.write(tmp_path / "shapes", train=3, val=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shapes.lock", "shapes"]


def test_an_earlier_copy_is_replaced_and_anything_else_is_kept(tmp_path):
    sets_shapes.write(tmp_path / "shapes", train=3, val=1)
    sets_shapes.write(tmp_path / "shapes", train=2, val=1)
    assert len(list((tmp_path / "shapes" / "JPEGImages").iterdir())) == 3
    (tmp_path / "VOC2012" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="VOC2012"):
        sets_shapes.write(tmp_path / "VOC2012", train=1, val=1)
    assert [path.name for path in (tmp_path / "VOC2012").iterdir()] == ["JPEGImages"]
