"""Notes on data that are not those of a preset, on small steps and on missing classes."""

import dataclasses
from types import SimpleNamespace

import pytest

from ciss import config
from ciss.config import validate
from ciss.data import DataError, Index, classes_of, data_set
from ciss.data import notes as data_notes
from ciss.data.loaders import ShuffledBatches
from ciss.data.notes import count_notes, epoch_images
from ciss.runs import run as runs_run
from ciss.runs.run import resolve
from ciss.study import presets
from tests.helpers.plans import load

PHASE = {"epochs": 1, "lr": 0.1}
# spec/protocols.md: data sizes
COUNTS = {"voc": (10_582, 1_449, 20), "ade20k": (20_210, 2_000, 150), "cityscapes": (2_975, 500, 19)}


def benchmark(**changes) -> config.Benchmark:
    train = {"base": PHASE, "increment": PHASE, "crop": 32, "batch": 2, **changes.pop("train", {})}
    values = {"dataset": "leaves", "protocol": "1-1", "train": train, **changes}
    return validate(config.Benchmark, values, "test", "")


def index(train=({1}, {1}, {2}, {2}, {3}, {3}), val=({1, 2}, {3}), **changes) -> Index:
    """Classes of each image; an image of training belongs to the step of its smallest class."""
    classes = {split: [sorted({0, *c}) for c in images] for split, images in (("train", train), ("val", val))}
    steps = [[i for i, c in enumerate(train) if min(c) == step + 1] for step in range(3)]
    values = {
        "dataset": "leaves",
        "selection": {},
        "groups": [[1], [2], [3]],
        "fingerprint": "",
        "ids": {split: [f"{split}{i}" for i in range(len(images))] for split, images in classes.items()},
        "classes": classes,
        "sizes": {},
        "digests": {split: [f"{split}{i}" for i in range(len(images))] for split, images in classes.items()},
        "pixels": {},
        "steps": steps,
        "joint": list(range(len(train))),
        "holdout": [],
        "validation": [list(range(len(val)))] * 3,
        "description": "",
        **changes,
    }
    return Index(**values)


@pytest.fixture(autouse=True)
def names(monkeypatch) -> dict[int, str]:
    """The class names of the data set `leaves`."""
    names = {0: "background", 1: "leaf", 2: "stem", 3: "flower"}
    leaves = SimpleNamespace(classes=names)
    monkeypatch.setattr(data_notes, "data_set", lambda name: leaves if name == "leaves" else data_set(name))
    return names


notes = data_notes.data_notes


def test_nothing_is_said_of_data_as_expected():
    assert notes(benchmark(), index()) == []
    assert notes(benchmark(expects={"train": 6, "val": 2, "classes": 3}), index()) == []


def test_fewer_images_than_the_preset_expects():
    """The sentence of the review: a VOC without SBD's masks was called ready for the paper's benchmark."""
    voc, _ = load("voc")
    assert count_notes(voc, 10_582, 1_449) == []
    assert count_notes(voc, 1_464, 1_449) == [
        "This preset expects 10,582 training images; 1,464 were found. Scores cannot be compared with the published "
        "ones. Run `ciss data fetch sbd`."
    ]
    train, val = count_notes(voc, 11_000, 445)
    assert train.endswith("11,000 were found. Scores cannot be compared with the published ones.")
    assert "1,449 validation images; 445 were found" in val and val.endswith("fetch voc`.")
    (domains,) = count_notes(load("cityscapes-domain")[0], 3_000, 3_000)
    assert domains.startswith("This preset expects 3,475 training and validation images; 3,000 were found.")
    assert count_notes(load("cityscapes-domain")[0], 3_475, 3_475) == []


def test_a_limit_is_named_instead_of_a_remedy_that_does_not_help():
    voc = dataclasses.replace(load("voc")[0], limit=60)
    assert count_notes(voc, 60, 60) == [
        "limit is 60, so only the first images are used. Scores cannot be compared with the published ones."
    ]


def test_other_classes_than_the_preset_expects():
    (note,) = notes(benchmark(expects={"train": 6, "val": 2, "classes": 4}), index())
    assert note.startswith("This preset expects 4 classes; the benchmark has 3. Scores cannot be compared")


def test_a_step_smaller_than_an_update():
    (note,) = notes(benchmark(), index(train=({1}, {1}, {2}, {3}, {3})))
    assert note == (
        "Step 1 has 1 training image, fewer than the 2 of an update (train.batch x accumulate). "
        "Each of its epochs is one update. One image has no batch statistics: set train.increment.norm to frozen."
    )
    (note,) = notes(benchmark(), index(train=({1}, {1}, {1}, {2}, {2}, {3}, {3})))
    assert note.startswith("An epoch of step 0 uses 2 of its 3 training images")


@pytest.mark.parametrize("images", [1, 4, 15, 16, 31, 32, 33, 100])
@pytest.mark.parametrize(("batch", "accumulate"), [(16, 1), (4, 2), (17, 1)])
def test_an_epoch_uses_as_many_images_as_the_loader_gives(images, batch, accumulate):
    settings = benchmark(train={"batch": batch, "accumulate": accumulate})
    given = [image for batch in ShuffledBatches(list(range(images)), batch, accumulate, 0) for image in batch]
    assert epoch_images(settings, images) == len(given)


def test_thirty_one_images_in_batches_of_sixteen():
    assert epoch_images(benchmark(train={"batch": 16}), 31) == 16
    assert epoch_images(benchmark(train={"batch": 16, "processes": 2}), 31) == 16, "the batch is that of both"


def test_classes_that_lack_are_named():
    found = index(train=({1}, {1}, {2}, {2}, {1, 3}, {1, 3}), val=({1}, {3}), holdout=[0])
    assert notes(benchmark(), dataclasses.replace(found, steps=[[0, 1], [2, 3], [0, 1]])) == [
        "No training image of step 2 contains: flower.",
        "No image of the hold-out set contains: stem, flower. The hold-out set has no score for them.",
        "No validation image contains: stem. Their IoU cannot be measured.",
    ]


def test_images_that_are_scored_and_trained_on_are_named():
    """A copy has the same content under another name; it may be in the folders of both splits, or twice in one."""
    found = index(
        train=({1}, {1}, {2}, {2}, {3}, {3}, {1, 2, 3}),
        digests={"train": ["a", "b", "c", "d", "e", "f", "b"], "val": ["x", "d"]},
        holdout=[6],
    )
    steps = [[0, 1], [2, 3], [4, 5]]
    assert notes(benchmark(), dataclasses.replace(found, steps=steps)) == [
        "1 of the 2 validation images are trained on too: image and mask have the same content (first: val1, as "
        "train3). Scores are too high. Remove these images from one of the two.",
        "1 of the 1 hold-out images are trained on too: image and mask have the same content (first: train6, as "
        "train1). Scores are too high. Remove these images from one of the two.",
    ]


@pytest.mark.parametrize("val", [(set(), set()), ({4},)], ids=["background alone", "other classes"])
def test_validation_images_without_any_class_are_an_error(val):
    with pytest.raises(DataError, match=f"^leaves: none of the {len(val)} validation images contains a class"):
        notes(benchmark(), index(val=val))


def test_domains_bring_no_classes():
    """There a city without a class is usual; all of them without it is not."""
    found = index(
        train=({1}, {1}, {2}, {2}), val=({1, 2},), groups=[[1, 2, 3]], steps=[[0, 1], [2, 3]], joint=[0, 1, 2, 3]
    )
    assert notes(benchmark(setting="domain"), found) == [
        "No training image contains: flower.",
        "No validation image contains: flower. Their IoU cannot be measured.",
    ]


def test_long_lists_are_cut(names):
    names |= {c: f"class_{c}" for c in range(100)}
    found = index(train=({1}, {1}), val=({1},), groups=[list(range(1, 31))], steps=[[0, 1]])
    note = notes(benchmark(), found)[0]
    assert note == f"No training image of step 0 contains: {', '.join(names[c] for c in range(2, 10))} and 21 more."


@pytest.mark.parametrize("name", [name for name in presets.presets() if name.split("-")[0] in COUNTS])
def test_paper_presets_state_the_papers_counts(name):
    settings, _ = load(name)
    expected = settings.expects
    assert (expected.train, expected.val, expected.classes) == COUNTS[settings.dataset]


@pytest.mark.parametrize("name", [name for name in presets.presets() if name != "own"])
def test_presets_expect_the_classes_that_they_plan(name):
    settings, _ = load(name)
    if settings.expects:
        planned = 19 if settings.setting == "domain" else len(classes_of(settings)) - 1
        assert settings.expects.classes == planned


def test_what_a_preset_expects_is_planned_and_changes_no_run(planned):
    planned("voc", "15-1")
    document = planned.document
    assert document["benchmarks"]["voc"]["expects"] == {"train": 10_582, "val": 1_449, "classes": 20}
    description = resolve(planned.config, "voc-s0").description()
    del document["benchmarks"]["voc"]["expects"]
    assert runs_run.resolve(config.parse(document), "voc-s0").description() == description


def test_another_data_set_does_not_inherit_the_expectation(planned):
    planned("camvid", "6-5", "--preset", "voc", "--name", "b")
    assert "expects" not in planned.document["benchmarks"]["b"]


def test_a_wrong_expectation_is_named():
    with pytest.raises(config.ConfigError, match=r"expects\.trian: unknown key\. Did you mean 'train'"):
        benchmark(expects={"trian": 6, "val": 2, "classes": 3})
