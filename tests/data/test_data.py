"""The data: broken files are named before training, and a batch depends on what it should and on nothing else."""

import dataclasses
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ciss import cli, config, distributed, paths, protocol
from ciss.config import Model
from ciss.data import DATASETS, DataError, Index, prepare
from ciss.data.index import SELECTION
from ciss.data.loaders import ShuffledBatches, evaluation_loader, picture, stable_seed, training_loader
from ciss.data.normalisation import IMAGENET, input_statistics, normalise
from ciss.data.sets import voc as sets_voc
from ciss.data.sets.voc import CLASSES, LISTS
from ciss.data.steps import draw_holdout
from ciss.data.transforms import View, evaluation_view, training_view
from ciss.protocol import Classes

IDENTITY = np.arange(256, dtype=np.uint8)
CPU = torch.device("cpu")


def make(**changes) -> config.Benchmark:
    """A benchmark; `train__batch=3` changes `train.batch`."""
    document = {
        "dataset": "shapes",
        "protocol": "4-2",
        "holdout": 4,
        "train": {"base": {"epochs": 1, "lr": 1}, "increment": {"epochs": 1, "lr": 1}, "crop": 64, "batch": 4},
        "evaluation": {"batch": 3},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = document
        for parent in parents:
            section = section[parent]
        section[last] = value
    return config.validate(config.Benchmark, document, "test", "benchmark")


@pytest.fixture(autouse=True)
def sets(tiny_data, monkeypatch) -> Path:
    """The folder of data sets, to read from."""
    monkeypatch.setenv("CISS_DATA", str(tiny_data))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tiny_data


@pytest.fixture
def own(sets, tmp_path, monkeypatch) -> Path:
    """A copy of the data set, to break."""
    folder = shutil.copytree(sets / "shapes", tmp_path / "sets" / "shapes")
    monkeypatch.setenv("CISS_DATA", str(tmp_path / "sets"))
    return folder


@pytest.fixture
def ready(tmp_path):
    """ready(benchmark) -> its index."""
    return lambda benchmark: prepare(benchmark, tmp_path / "index", progress=False)


def write_set(folder: Path, images: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> None:
    """A data set in VOC's layout, lossless whatever its files are called: Pillow looks at the bytes."""
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for split, pairs in images.items():
        names = [f"{split}_{number}" for number in range(len(pairs))]
        (folder / "ImageSets" / "Segmentation" / LISTS[split][0]).write_text("\n".join(names))
        for name, (image, mask) in zip(names, pairs, strict=True):
            Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", format="png")
            Image.fromarray(mask).save(folder / "SegmentationClassAug" / f"{name}.png")


def speaking(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random mask, and an image whose colours say what the mask says."""
    mask = np.random.RandomState(seed).randint(0, 9, (height, width)).astype(np.uint8)
    return np.stack([mask, 10 * mask, 20 * mask], axis=-1), mask


# --- the index


def test_the_index_comes_back_as_it_was(ready, tmp_path):
    index = ready(make())
    assert Index.load(tmp_path / "index") == index
    assert Index.load(tmp_path / "index", make(train__batch=9)) == index
    assert sorted(os.listdir(tmp_path / "index")) == ["code.txt", "index.json"]


def test_the_index_says_what_is_in_the_files(ready, sets):
    index, totals = ready(make()), {}
    for split, count in (("train", 24), ("val", 8)):
        assert index.ids[split] == [f"{split}_{n:05d}" for n in range(count)]
        for number, pair in enumerate(index.pairs(split)):
            mask = np.array(Image.open(pair.mask))
            assert index.classes[split][number] == sorted(set(np.unique(mask).tolist()) - {255})
            assert index.sizes[split][number] == list(mask.shape)
            if split == "train" and number not in index.holdout:
                for raw in np.unique(mask).tolist():
                    totals[str(raw)] = totals.get(str(raw), 0) + int((mask == raw).sum())
    assert index.pixels == totals
    assert index.groups == [[1, 2, 3, 4], [5, 6], [7, 8]]
    assert index.selection == {**dict.fromkeys(SELECTION), **{k: getattr(make(), k) for k in SELECTION}}


@pytest.mark.parametrize("setting", ["overlapped", "disjoint", "sequential", "partitioned"])
@pytest.mark.parametrize("holdout", [0, 4])
def test_steps_see_the_images_of_their_setting(ready, setting, holdout):
    index = ready(make(setting=setting, holdout=holdout))
    held = [set(present) for present in index.classes["train"]]
    assert len(index.holdout) == holdout and index.holdout == sorted(index.holdout)
    for step, images in enumerate(index.steps):
        new, future = set(index.groups[step]), set().union(*index.groups[step + 1 :])
        assert images and images == sorted(images) and set(images).isdisjoint(index.holdout)
        assert all(held[i] & new for i in images)
        if setting in ("disjoint", "sequential"):
            assert not any(held[i] & future for i in images)
        if setting != "partitioned":
            rest = set(range(24)) - set(images) - set(index.holdout)
            assert all(not held[i] & new or (setting != "overlapped" and held[i] & future) for i in rest)
    everything = [i for i in range(24) if held[i] - {0} and i not in index.holdout]
    assert index.joint == everything
    if setting == "partitioned":
        assert sorted(i for images in index.steps for i in images) == everything


def test_the_holdout_depends_on_the_ids_alone(ready):
    ids = [f"image{n}" for n in range(50)]
    first = {ids[i] for i in draw_holdout(ids, 10)}
    assert len(first) == 10 and first != set(ids[:10])
    assert {ids[::-1][i] for i in draw_holdout(ids[::-1], 10)} == first
    assert first < {ids[i] for i in draw_holdout(ids, 11)}
    assert draw_holdout(ids, 0).tolist() == []
    assert len(draw_holdout(ids, 49)) == 49
    for images in (50, 60):
        with pytest.raises(
            DataError, match=rf"^holdout is {images}, but the data set has only 50 training images\. Make it"
        ):
            draw_holdout(ids, images)
    held = [ready(make(**changes)).holdout for changes in ({}, {"setting": "disjoint"}, {"protocol": "4-4"})]
    assert held[0] == held[1] == held[2]


def test_an_order_of_classes(ready):
    index = ready(make(order=[8, 7, 6, 5, 4, 3, 2, 1]))
    assert index.groups == [[8, 7, 6, 5], [4, 3], [2, 1]]
    assert all(set(index.classes["train"][i]) & {4, 3} for i in index.steps[1])


def test_a_limit(ready):
    index = ready(make(limit=6, holdout=1))
    assert [len(index.ids[split]) for split in ("train", "val")] == [6, 6]
    assert [pair.id for pair in index.pairs("train")] == [f"train_{n:05d}" for n in range(6)]


def test_the_fingerprint(own, ready):
    def change(part: str, name: str, edit) -> None:
        file = own / part / name
        with Image.open(file) as opened:
            image = opened.copy()
        edit(image)
        image.save(file)

    first = ready(make())
    seen = {first.fingerprint}
    os.utime(own / "JPEGImages" / "train_00000.jpg", (0, 0))
    for changes in ({}, {"train__batch": 9}, {"evaluation__batch": 9}, {"model": {"width": 9}}):
        assert ready(make(**changes)).fingerprint in seen, changes
    for changes in (
        {"protocol": "4-4"},
        {"holdout": 5},
        {"setting": "disjoint"},
        {"order": [2, 1, 3, 4, 5, 6, 7, 8]},
        {"limit": 20},
    ):
        fingerprint = ready(make(**changes)).fingerprint
        assert fingerprint not in seen, changes
        seen.add(fingerprint)
    for split in ("train", "val"):
        for part, name in (("SegmentationClassAug", f"{split}_00003.png"), ("JPEGImages", f"{split}_00003.jpg")):
            file = own / part / name
            whole = file.read_bytes()
            if part == "JPEGImages":
                file.write_bytes(whole + b"\0")
            else:
                change(part, name, lambda mask: mask.putpixel((0, 0), 255 if mask.getpixel((0, 0)) == 0 else 0))
            fingerprint = ready(make()).fingerprint
            assert fingerprint not in seen, name
            seen.add(fingerprint)
            file.write_bytes(whole)
    assert ready(make()) == first


# --- what is refused


def save(file: Path, mode: str, size: tuple[int, int], value: int = 0) -> None:
    Image.new(mode, size, value).save(file)


IMAGE, MASK = "JPEGImages/train_00002.jpg", "SegmentationClassAug/train_00002.png"
FETCH = "Fetch it again, or take train_00002 off its list."
BROKEN = {  # of each kind one; test_bad_pictures has all
    "no image": (IMAGE, lambda file: file.unlink(), "the image is missing. Complete the data set, or take train_00002"),
    "no mask": (MASK, lambda file: file.unlink(), "the mask is missing. Complete the data set, or take train_00002"),
    "torn image": (IMAGE, lambda file: file.write_bytes(file.read_bytes()[:900]), FETCH),
    "torn mask": (MASK, lambda file: file.write_bytes(file.read_bytes()[:-30]), FETCH),
    "broken bytes": (
        MASK,
        lambda file: file.write_bytes(file.read_bytes()[:60] + b"\0" + file.read_bytes()[61:]),
        FETCH,
    ),
    "colours": (
        MASK,
        lambda file: save(file, "RGB", (64, 64)),
        "one channel (palette or grey): pixel value = class id, 255 = void",
    ),
    "wide mask": (MASK, lambda file: save(file, "L", (65, 64)), "the mask is 65x64, its image 64x64 pixels. Replace"),
    "high image": (IMAGE, lambda file: save(file, "L", (64, 65)), "the mask is 64x64, its image 64x65 pixels. Replace"),
    "foreign id": (MASK, lambda file: save(file, "L", (64, 64), 9), "id 9 is no class of the data set (0 to 8, or 255"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(own, ready, tmp_path, case):
    index = ready(make())
    name, damage, words = BROKEN[case]
    damage(own / name)
    with pytest.raises(DataError) as caught:
        ready(make())
    first, line = str(caught.value).splitlines()
    assert first == "1 of 24 images cannot be used:"
    assert words in line and line.startswith(str(own / (MASK if "Replace" in words else name)))
    assert Index.load(tmp_path / "index") == index, "what was prepared before is still there"


def test_many_broken_files(own, ready):
    for file in sorted((own / "SegmentationClassAug").glob("train*"))[3:]:
        file.unlink()
    (own / "JPEGImages" / "train_00000.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        ready(make())
    lines = str(caught.value).splitlines()
    assert lines[0] == "22 of 24 images cannot be used:" and lines[-1] == "... and 17 more"
    assert len(lines) == 7 and "train_00000.jpg" in lines[1] and "train_00003.png" in lines[2]


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda own: empty(own), ["ImageSets/Segmentation: no trainaug.txt or train_aug.txt", "list of train images"]),
        (
            lambda own: (own / "ImageSets/Segmentation/val.txt").unlink(),
            ["ImageSets/Segmentation: no val.txt", "list of val images there"],
        ),
        (
            lambda own: (own / "ImageSets/Segmentation/val.txt").write_text("\n"),
            ["Segmentation/val.txt: the list is empty. Fetch it again."],
        ),
        (
            lambda own: shutil.rmtree(own / "SegmentationClassAug"),
            ["no folder SegmentationClassAug or SegmentationClass. Put the masks there."],
        ),
        (lambda own: shutil.rmtree(own / "JPEGImages"), ["24 of 24 images cannot be used", "the image is missing"]),
        (
            lambda own: (own / "ImageSets/Segmentation/trainaug.txt").write_text("train_00000\ntrain_00000\n"),
            ["the list of train images names an image twice. Remove the repetition."],
        ),
    ],
)
def test_half_a_data_set(own, ready, damage, words):
    damage(own)
    with pytest.raises((DataError, FileNotFoundError)) as caught:
        ready(make())
    for word in [str(own), *words]:
        assert word in str(caught.value)


def test_no_data_set(tmp_path, monkeypatch, ready):
    monkeypatch.setenv("CISS_DATA", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    with pytest.raises(FileNotFoundError) as caught:
        ready(make(dataset="voc", protocol="15-1"))
    for word in ("no VOCdevkit in", str(tmp_path / "nowhere"), str(tmp_path / "data"), "set CISS_DATA"):
        assert word in str(caught.value)


def test_the_embedded_data_set_is_drawn_where_it_is_missing(tmp_path, monkeypatch, sets, capsys):
    monkeypatch.setenv("CISS_DATA", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    drawn = []

    def draw(folder: Path) -> None:
        drawn.append(folder)
        shutil.copytree(sets / "shapes", folder)

    dataset = dataclasses.replace(DATASETS["shapes"], draw=draw)
    assert dataset.root() == dataset.root() == tmp_path / "data" / "shapes"
    assert drawn == [tmp_path / "data" / "shapes"]

    (tmp_path / "data" / "shapes" / "JPEGImages" / "train_00000.jpg").unlink()
    with pytest.raises(SystemExit, match="error: .*shapes: the folder has other files than the drawn data set"):
        cli.main(["data", "shapes"])


def test_steps_without_images(own, ready):
    lists = own / "ImageSets" / "Segmentation" / "trainaug.txt"
    index = ready(make())
    alone = [i for i in range(24) if set(index.classes["train"][i]) <= {0, 1, 2, 3, 4}]
    lists.write_text("\n".join(index.ids["train"][i] for i in alone))
    with pytest.raises(DataError) as caught:
        ready(make(holdout=0))
    assert str(caught.value) == (
        f"{own}: step 1 (classes [5, 6]) is left without images in the overlapped setting. "
        "Change the benchmark's setting, protocol, order, groups, holdout or limit."
    )


def test_a_list_that_changed(own, ready):
    index = ready(make())
    file = own / "ImageSets" / "Segmentation" / "val.txt"
    file.write_text("\n".join(reversed(file.read_text().split())))
    index.pairs("train")
    with pytest.raises(DataError, match=r"the list of val images changed\. Run: dvc repro -f prepare"):
        index.pairs("val")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", ["other size", "torn", "other mode", "broken bytes"])
def test_a_file_that_changed_since(own, ready, case, workers):
    index = ready(make())
    if case in BROKEN:
        BROKEN[case][1](own / MASK)
    elif case == "torn":
        BROKEN["torn image"][1](own / IMAGE)
    else:
        save(own / MASK, *{"other size": ("L", (64, 32)), "other mode": ("RGB", (64, 64))}[case])
    loader = evaluation_loader(make(train__workers=workers), index, "train", [0, 2], IDENTITY)
    with pytest.raises(DataError) as caught:
        list(loader)
    if workers:
        loader._iterator._shutdown_workers()  # torch would wait for them when the error is forgotten
    message = str(caught.value)
    assert message.startswith(str(own)) and "train_00002" in message
    assert message.endswith("Run: dvc repro -f prepare") and len(message.splitlines()) == 1


# --- training batches


def epoch_of(benchmark, index, images, epoch=0, seed=0, table=IDENTITY) -> list[tuple[torch.Tensor, ...]]:
    loader = training_loader(benchmark, index, images, table, seed)
    loader.batch_sampler.epoch = epoch
    return list(loader)


def by_number(batches) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    found = {}
    for images, labels, numbers in batches:
        assert images.dtype == labels.dtype == torch.uint8
        assert images.shape[1:] == (3, *labels.shape[1:]) and len(images) == len(labels) == len(numbers)
        found |= {n: (image, label) for n, image, label in zip(numbers.tolist(), images, labels, strict=True)}
    return found


def same(a: dict, b: dict) -> list[bool]:
    return [all(x.equal(y) for x, y in zip(a[n], b[n], strict=True)) for n in sorted(set(a) & set(b))]


AUGMENTED = {"train__augmentation": "scaled_crop", "train__crop": 40, "train__transpose": True}


def test_a_batch_depends_on_seed_epoch_and_image_alone(ready):
    index, images = ready(make()), list(range(24))
    first = by_number(epoch_of(make(**AUGMENTED), index, images))
    assert set(first) == set(images)
    torch.manual_seed(5)
    for changes in (
        {},
        {"train__workers": 2},
        {"train__batch": 6},
        {"train__batch": 3, "train__accumulate": 2},
        {"train__cache": True},
        {"train__base": {"epochs": 9, "lr": 0.5}},
    ):
        assert all(same(first, by_number(epoch_of(make(**AUGMENTED, **changes), index, images)))), changes
    assert all(same(first, by_number(epoch_of(make(**AUGMENTED), index, images[::-1])))), "another order"
    few = by_number(epoch_of(make(**AUGMENTED), index, images[:8]))
    assert set(few) == set(range(8)) and all(same(first, few)), "fewer images"
    for other in ({"epoch": 1}, {"seed": 1}):
        assert sum(same(first, by_number(epoch_of(make(**AUGMENTED), index, images, **other)))) <= 2, other


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_of_one_loader(ready, workers):
    """Loader processes live through the epochs; each shuffles and draws anew, and again the same."""
    index = ready(make())
    benchmark = make(**AUGMENTED, train__workers=workers, train__cache=True)
    loader = training_loader(benchmark, index, list(range(24)), IDENTITY, 0)
    for epoch in (0, 1, 0):
        loader.batch_sampler.epoch = epoch
        batches = list(loader)
        again = epoch_of(benchmark, index, list(range(24)), epoch)
        assert [n.tolist() for *_, n in batches] == [n.tolist() for *_, n in again]
        assert all(same(by_number(batches), by_number(again)))
    orders = [[n.tolist() for *_, n in epoch_of(benchmark, index, list(range(24)), epoch)] for epoch in (0, 1)]
    assert orders[0] != orders[1] and orders[0] != [list(range(i, i + 4)) for i in range(0, 24, 4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_random_numbers_alone(ready, workers, monkeypatch):
    """Dropout is the same with other numbers of loader processes, on a GPU as well."""
    index = ready(make())
    benchmark = make(**AUGMENTED, train__workers=workers)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the GPU"))
    torch.default_generator.manual_seed(3)
    before = torch.get_rng_state()
    epoch_of(benchmark, index, list(range(8)))
    list(evaluation_loader(benchmark, index, "val", list(range(8)), IDENTITY))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("images", "batch", "accumulate", "sizes"),
    [
        (24, 4, 1, [4] * 6),
        (24, 4, 3, [4] * 6),
        (23, 4, 1, [4] * 5),
        (23, 4, 3, [4] * 3),
        (24, 24, 1, [24]),
        (5, 8, 1, [5]),
        (1, 8, 4, [1]),
        (9, 8, 2, [5, 4]),  # not 8 and 1: normalisation over one image fails
        (21, 5, 5, [5, 4, 4, 4, 4]),
        (16, 8, 4, [8, 8]),
    ],
)
def test_an_epoch(images, batch, accumulate, sizes):
    numbers = list(range(100, 100 + images))
    shuffle = ShuffledBatches(numbers, batch, accumulate, seed=0)
    for epoch in range(3):
        shuffle.epoch = epoch
        batches = list(shuffle)
        assert [len(b) for b in batches] == sizes and len(shuffle) == len(sizes)
        drawn = [number for b in batches for _, number in b]
        assert len(set(drawn)) == len(drawn) and set(drawn) <= set(numbers), "no image twice"
        assert {e for b in batches for e, _ in b} == {epoch}
        assert batches == list(shuffle)


@pytest.mark.parametrize(("images", "sizes"), [(24, [4] * 6), (23, [4] * 5), (8, [4, 4]), (7, [4]), (3, [3])])
def test_processes_share_every_batch(monkeypatch, images, sizes):
    def batches(rank: int, world: int, batch: int) -> list[list[int]]:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world", lambda: world)
        return [[number for _, number in b] for b in ShuffledBatches(list(range(images)), batch, 1, seed=0)]

    shares = [batches(rank, 2, 4) for rank in (0, 1)]
    assert [len(a) + len(b) for a, b in zip(*shares, strict=True)] == sizes
    assert all(0 <= len(a) - len(b) <= 1 for a, b in zip(*shares, strict=True)), "the same work for everybody"
    assert [a + b for a, b in zip(*shares, strict=True)] == batches(0, 1, 4), "the images of one process"
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(DataError, match=r"1 training image cannot feed 2 processes\. Start fewer of them\."):
        ShuffledBatches([0], 2, 1, seed=0)


def test_labels_go_through_the_table(ready):
    index = ready(make())
    table = Classes(index.groups).label_table(1, "overlapped", training=True)
    raw, seen = (by_number(epoch_of(make(), index, index.steps[1], table=t)) for t in (IDENTITY, table))
    for number, (_, labels) in seen.items():
        assert set(labels.unique().tolist()) <= {0, 5, 6, 255}
        assert labels.equal(torch.from_numpy(table)[raw[number][1].long()])


def test_old_labels_show_in_the_sequential_setting(ready):
    index = ready(make(setting="sequential"))
    table = Classes(index.groups).label_table(1, "sequential", training=True)
    seen = by_number(epoch_of(make(setting="sequential"), index, index.steps[1], table=table))
    shown = set().union(*(labels.unique().tolist() for _, labels in seen.values()))
    assert shown & {1, 2, 3, 4} and shown & {5, 6} and not shown & {7, 8}


def test_a_data_set_can_be_sent_to_another_process(ready):
    """Where processes are started afresh, as on macOS, also with a cache."""
    index = ready(make())
    for cache in (False, True):
        images = training_loader(make(train__cache=cache), index, [0, 1], IDENTITY, 0).dataset
        first = images[0, 1]
        copy = pickle.loads(pickle.dumps(images))
        assert copy[0, 1][0].equal(first[0]) and copy[0, 1][1].equal(first[1])


def test_the_cache_reads_once(own, ready):
    index = ready(make())
    kept = training_loader(make(train__cache=True), index, [0], IDENTITY, 0).dataset
    fresh = training_loader(make(), index, [0], IDENTITY, 0).dataset
    before = kept[0, 2]
    fresh[0, 2]
    (own / IMAGE).unlink()
    assert kept[0, 2][0].equal(before[0])
    with pytest.raises(DataError):
        fresh[0, 2]


# --- augmentation


def augment(seed: int, image: np.ndarray, mask: np.ndarray, **train) -> tuple[np.ndarray, np.ndarray]:
    options = make(**{f"train__{key}": value for key, value in train.items()}).train
    view = training_view(*mask.shape, torch.Generator().manual_seed(seed), options)
    return applied(view, image, mask)


def applied(view: View, image: np.ndarray, mask: np.ndarray, colour=IMAGENET.colour) -> tuple[np.ndarray, np.ndarray]:
    image = view.image(torch.from_numpy(image), torch.tensor(colour, dtype=torch.uint8)).numpy()
    mask = view.mask(torch.from_numpy(mask)).numpy()
    assert image.dtype == mask.dtype == np.uint8
    return image, mask


@pytest.mark.parametrize("augmentation", ["none", "resized_crop", "scaled_crop"])
@pytest.mark.parametrize("size", [(30, 50), (64, 64)])
def test_masks_gain_no_ids(augmentation, size):
    image, mask = speaking(*size)
    mask[mask % 2 == 0] = 7  # nothing between ids: 1, 3, 5, 7
    for seed in range(20):
        options = {"augmentation": augmentation, "crop": 40, "transpose": True}
        seen, labels = augment(seed, image, mask, **options)
        assert seen.shape == (40, 40, 3) and labels.shape == (40, 40)
        assert set(np.unique(labels)) <= {1, 3, 5, 7, 255}
        if augmentation == "resized_crop" or (augmentation == "none" and size == (64, 64)):
            assert 255 not in labels, "nothing to pad"


def test_what_is_padded_is_ignored():
    image, mask = speaking(16, 20)
    for seed in range(10):
        seen, labels = augment(seed, image, mask, augmentation="scaled_crop", scale=[0.5, 0.5], crop=40)
        assert (labels != 255).sum() == 8 * 10
        assert (seen[labels == 255] == (124, 116, 104)).all(), "the mean colour, which normalises to nothing"
        seen, labels = augment(seed, image, mask, augmentation="scaled_crop", scale=[2, 2], crop=40)
        assert (labels != 255).sum() == 32 * 40


@pytest.mark.parametrize("size", [(40, 40), (30, 50), (60, 45)])
def test_image_and_mask_stay_together(size):
    image, mask = speaking(*size)
    views = set()
    for seed in range(40):
        seen, labels = augment(seed, image, mask, transpose=True, crop=40)
        real = labels != 255
        assert (seen[real] == np.stack([labels, 10 * labels, 20 * labels], axis=-1)[real]).all()
        views.add(labels.tobytes())
    if size == (40, 40):
        grids = [np.rot90(m, k) for m in (mask, mask.T) for k in range(4)]
        assert views == {grid.tobytes() for grid in grids}, "the eight symmetries of a square"
        still = {augment(seed, image, mask, flip=False, crop=40)[1].tobytes() for seed in range(5)}
        assert still == {mask.tobytes()}
        flips = {augment(seed, image, mask, crop=40)[1].tobytes() for seed in range(20)}
        assert flips == {mask.tobytes(), mask[:, ::-1].tobytes()}


@pytest.mark.parametrize("augmentation", ["resized_crop", "scaled_crop"])
def test_image_and_mask_are_resized_together(augmentation):
    mask = np.ones((60, 60), np.uint8)
    mask[:, 23:], mask[37:, 23:] = 5, 8
    image = np.stack([20 * mask] * 3, axis=-1)
    areas = []
    for seed in range(20):
        seen, labels = augment(seed, image, mask, augmentation=augmentation, scale=[0.3, 0.9], crop=60)
        real = labels != 255
        assert (np.abs(seen[..., 0][real] / 20.0 - labels[real]) < 0.5).mean() > 0.8
        areas.append(int(real.sum()))
    assert (len(set(areas)) > 3 and max(areas) < 3600) == (augmentation == "scaled_crop")


# --- evaluation batches and pictures


@pytest.fixture
def sizes(tmp_path, monkeypatch):
    """A data set whose images have three sizes."""
    shapes = [(20, 30), (30, 20), (20, 30), (25, 25), (20, 30), (20, 30), (30, 20)]
    pairs = [speaking(*size, seed=n) for n, size in enumerate(shapes)]
    write_set(tmp_path / "mixed" / "shapes", {"train": pairs, "val": pairs})
    monkeypatch.setenv("CISS_DATA", str(tmp_path / "mixed"))
    return shapes


def test_evaluation_sees_every_image_whole_and_once(sizes, ready):
    index = ready(make(holdout=0))
    loader = evaluation_loader(make(), index, "val", list(range(7)), IDENTITY)
    batches = list(loader)
    assert sorted(n for *_, numbers in batches for n in numbers.tolist()) == list(range(7))
    assert [len(numbers) for *_, numbers in batches] == [3, 1, 2, 1]
    for number, (image, labels) in by_number(batches).items():
        expected, mask = speaking(*sizes[number], seed=number)
        assert labels.equal(torch.from_numpy(mask)) and image.permute(1, 2, 0).equal(torch.from_numpy(expected))
    chosen = list(evaluation_loader(make(), index, "val", [6, 3], IDENTITY))
    assert [numbers.tolist() for *_, numbers in chosen] == [[6], [3]]
    assert list(evaluation_loader(make(), index, "train", [], IDENTITY)) == []


def test_evaluation_crops_the_centre(sizes, ready):
    index = ready(make(holdout=0))
    benchmark = make(evaluation__size="crop", train__crop=10)
    batches = list(evaluation_loader(benchmark, index, "val", list(range(7)), IDENTITY))
    assert [len(numbers) for *_, numbers in batches] == [3, 3, 1], "one size, whatever the images'"
    for number, (image, labels) in by_number(batches).items():
        assert image.shape == (3, 10, 10) and labels.shape == (10, 10)
        assert set(labels.unique().tolist()) <= set(range(9)), "nothing is padded"
        seen, shown = picture(benchmark, index, "val", number, IDENTITY)
        assert (seen == image.permute(1, 2, 0).numpy()).all() and (shown == labels.numpy()).all()
    mask = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 10, 0), 10, 1)
    image, labels = applied(evaluation_view(*mask.shape, 30), np.stack([mask] * 3, axis=-1), mask)
    assert (labels == mask[:, 5:35]).all() and (image == mask[:, 5:35, None]).all()


def test_processes_share_the_evaluation(sizes, ready, monkeypatch):
    index, seen = ready(make(holdout=0)), []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loader = evaluation_loader(make(), index, "val", list(range(7)), IDENTITY)
        seen += [n for *_, numbers in loader for n in numbers.tolist()]
    assert sorted(seen) == list(range(7))


def test_a_picture_is_what_is_scored(sizes, ready):
    index = ready(make(holdout=0))
    image, labels = picture(make(), index, "val", 1, Classes(index.groups).label_table(2, "overlapped", training=False))
    expected, mask = speaking(30, 20, seed=1)
    assert (image == expected).all() and image.dtype == np.uint8 and (labels == mask).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalise(channels_last):
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8).permute(0, 3, 1, 2)  # as a loader's
    images[0, :, 0, 0] = torch.tensor([124, 116, 104])
    before = images.clone()
    found = normalise(images, CPU, channels_last)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(found, (images / 255 - mean) / deviation)
    assert found[0, :, 0, 0].abs().max() < 0.02, "what is padded is nothing"
    assert found.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert images.equal(before)


AUGREG = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, IMAGENET),
        ({"encoder": "vit_base_patch16_384"}, IMAGENET),  # from scratch
        ({"encoder": "vit_base_patch16_384", "pretrained": True}, AUGREG),
        ({"encoder": "vit_base_patch16_384", "weights": "a.safetensors"}, AUGREG),
        ({"encoder": "vit_base_patch16_384", "pretrained": True, "input_statistics": "imagenet"}, IMAGENET),
        ({"encoder": "resnet101", "pretrained": True}, IMAGENET),
        ({"encoder": "ciss_tiny", "weights": "a.safetensors"}, IMAGENET),
    ],
)
def test_input_statistics_are_those_of_the_weights(model, expected):
    found = input_statistics(Model(**model))
    assert found == expected
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    mean, deviation = (torch.tensor(values) for values in expected)
    shown = normalise(images, CPU, False, found).flatten()
    torch.testing.assert_close(shown, (images.flatten() / 255 - mean) / deviation)


def test_padding_is_zero_after_normalisation():
    """Also with other statistics than ImageNet's: the windows of the evaluation are padded with zeros."""
    statistics = input_statistics(Model(encoder="vit_base_patch16_384", pretrained=True))
    for options in ({}, {"colour": statistics.colour}):
        colour = options.get("colour", IMAGENET.colour)
        view = training_view(4, 8, torch.Generator(), make(train__crop=8, train__flip=False).train)
        image, mask = applied(view, np.full((4, 8, 3), 77, np.uint8), np.zeros((4, 8), np.uint8), colour)
        assert np.unique(image[mask == 255], axis=0).tolist() == [list(colour)]
    shown = normalise(torch.tensor(statistics.colour, dtype=torch.uint8).view(1, 3, 1, 1), CPU, False, statistics)
    assert shown.abs().max() < 0.01


def test_seeds_are_the_same_everywhere():
    assert stable_seed(0, 0, 0) == 6764053549521246338
    assert len({stable_seed(a, b) for a in range(9) for b in range(9)}) == 81
    assert stable_seed("data", 1) != stable_seed("weights", 1)
    assert all(0 <= stable_seed(n) < 2**63 for n in range(99))


# --- Pascal VOC


def test_the_palette_and_the_names():
    """Entries of VOC's development kit."""
    palette = sets_voc.palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0), 15: (192, 128, 128)}
    known |= {20: (0, 64, 128), 21: (128, 64, 128), 64: (32, 0, 0), 255: (224, 224, 192)}
    assert {i: tuple(palette[i].tolist()) for i in known} == known
    assert palette.shape == (256, 3) and palette.dtype == np.uint8 and len(np.unique(palette, axis=0)) == 256
    names = {0: "background", 1: "aeroplane", 8: "cat", 15: "person", 20: "tvmonitor"}
    assert len(CLASSES) == 21 and {i: sets_voc.CLASSES[i] for i in names} == names


def test_every_data_set_has_names_and_colours():
    for name, dataset in DATASETS.items():
        assert dataset.classes[0] in ("background", "unlabelled")
        assert set(protocol.DATASETS[name]) <= set(dataset.order())
        assert dataset.palette.shape == (256, 3) and dataset.void not in dataset.classes


REAL = paths.Path(os.environ.get("CISS_DATA", "nowhere")) / "VOCdevkit" / "VOC2012"


@pytest.mark.skipif(not REAL.is_dir(), reason="needs CISS_DATA with VOCdevkit/VOC2012")
def test_real_photographs(monkeypatch, ready):
    monkeypatch.setenv("CISS_DATA", str(REAL.parents[1]))
    if (REAL / "ImageSets" / "Segmentation" / "trainaug.txt").read_text().count("\n") < 2000:  # the reduced set
        assert [len(sets_voc.pairs(REAL, split)) for split in ("train", "val")] == [1464, 445]
    index = ready(make(dataset="voc8", protocol="4-1", limit=100, holdout=10, train__crop=48))
    assert index.groups == [[8, 9, 12, 15], [13], [17], [10], [18]]
    assert len(index.holdout) == 10 and all(index.steps)
    assert min(size for sizes in index.sizes["train"] for size in sizes) >= 100
    images, labels, _ = next(iter(training_loader(make(**AUGMENTED), index, index.steps[0], IDENTITY, 0)))
    assert images.shape == (4, 3, 40, 40) and set(labels.unique().tolist()) <= {*range(21), 255}
