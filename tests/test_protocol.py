"""Which classes, which images, which labels: hand-made examples in any class order, and the published image counts."""

import os
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciss.protocol import (
    DATASETS,
    Classes,
    class_groups,
    domain_groups,
    own_groups,
    select_images,
    split_domains,
)

# Six classes arrive in an order that no rule over the size of an id gets right.
GROUPS = [[5, 2], [6], [1, 4]]  # 3 and 7 belong to no group
IMAGES = [[0, 5, 255], [2, 6], [1], [6, 3, 7], {4, 5, 6}, [3, 0], [], np.array([2, 1])]


def pick(*args, **kwargs):
    """The selection as a list; an empty one instead of the error about it."""
    try:
        chosen = select_images(*args, **kwargs)
    except ValueError as error:
        assert "without images" in str(error)
        return []
    assert chosen.dtype == np.int64 and (np.diff(chosen) > 0).all()
    return chosen.tolist()


@pytest.mark.parametrize(
    ("dataset", "protocol", "sizes"),
    [
        ("voc", "15-1", [15] + [1] * 5),
        ("voc", "15-5s", [15] + [1] * 5),
        ("voc", "19-1", [19, 1]),
        ("voc", "10-10", [10, 10]),
        ("voc", "2-2", [2] * 10),
        ("voc", "joint", [20]),
        ("ade20k", "100-10", [100] + [10] * 5),
        ("cityscapes", "13-6", [13, 6]),
        ("camvid", "offline", [11]),
        ("shapes", "4-2", [4, 2, 2]),
    ],
)
def test_groups_cut_the_classes_in_order(dataset, protocol, sizes):
    groups = class_groups(dataset, protocol)
    assert list(map(len, groups)) == sizes
    assert list(chain.from_iterable(groups)) == list(range(1, sum(sizes) + 1))


def test_groups_follow_the_order():
    assert class_groups("voc8", "4-2") == [[8, 9, 12, 15], [13, 17], [10, 18]]
    assert class_groups("voc8", "4-4", order=[18, 10, 17, 13, 15, 12, 9, 8]) == [[18, 10, 17, 13], [15, 12, 9, 8]]
    groups = class_groups("voc", "joint")
    groups[0].pop()
    assert class_groups("voc", "joint") == [list(range(1, 21))], "a caller changed the table of data sets"


@pytest.mark.parametrize(
    ("dataset", "protocol", "order", "words"),
    [
        ("pascal", "15-1", None, ["'pascal'", *DATASETS]),
        ("voc", "15+1", None, ["'15+1'", "voc", "'joint'", "'offline'", "A-B"]),
        ("shapes", "15-5s", None, ["'15-5s'", "shapes"]),
        ("voc", "15-2", None, ["voc 15-2", "the 5 classes", "15-1, 15-5;"]),
        ("voc", "15-0", None, ["voc 15-0", "15-1, 15-5;"]),
        ("voc", "20-1", None, ["voc 20-1", "0 < A < 20"]),
        ("voc", "0-5", None, ["voc 0-5", "0 < A < 20"]),
        ("shapes", "4-2", [1, 2, 3, 4, 5, 6, 9, 9], ["shapes", "missing [7, 8]", "foreign [9]", "double [9]"]),
        ("shapes", "joint", [1, 2, 3, 4, 5, 6, 7], ["no permutation", "missing [8]"]),
        ("shapes", "joint", [1, 2, 3, 4, 5, 6, 7, 8, 8], ["no permutation", "double [8]"]),
    ],
)
def test_groups_say_what_is_wrong(dataset, protocol, order, words):
    with pytest.raises(ValueError) as error:
        class_groups(dataset, protocol, order=order)
    for word in words:
        assert word in str(error.value)


def test_classes_by_position():
    classes = Classes(GROUPS, ["background", "e", "b", "f", "a", "d"], background=False)
    assert len(classes) == 6 and classes.sizes == [2, 1, 2] and not classes.background
    assert classes.raw.tolist() == [0, 5, 2, 6, 1, 4] and classes.raw.dtype == np.uint8
    assert classes.steps.tolist() == [0, 0, 0, 1, 2, 2] and classes.steps.dtype == np.int64
    assert [classes.names[position] for position in classes.new(1)] == ["f"]
    assert classes == Classes([[5, 2], [6], [1, 4]], classes.names, np.zeros((6, 3), np.uint8), background=False)
    assert classes != Classes([[5, 2], [6, 1], [4]], classes.names, background=False)


@pytest.mark.parametrize(
    ("step", "known", "old", "new"),
    [
        (0, 3, [], [1, 2]),
        (1, 4, [1, 2], [3]),
        (2, 6, [1, 2, 3], [4, 5]),
        (3, 6, [1, 2, 3, 4, 5], []),  # a step of domains
        (9, 6, [1, 2, 3, 4, 5], []),
    ],
)
def test_classes_of_a_step(step, known, old, new):
    classes = Classes(GROUPS)
    assert (classes.known(step), [*classes.old(step)], [*classes.new(step)]) == (known, old, new)
    assert classes.raw[classes.old(step)].tolist() == [5, 2, 6, 1, 4][: len(old)]


def test_steps_before_the_base_step():
    assert Classes(GROUPS).known(-1) == 1, "the background alone"
    with pytest.raises(ValueError, match="step -2 is below -1"):
        Classes(GROUPS).known(-2)


@pytest.mark.parametrize(("groups", "words"), [([[1], [0]], "[0]"), ([[255]], "[255]"), ([[1, 2], [3, 2]], "[2]")])
def test_impossible_groups_are_refused(groups, words):
    for use in (Classes, lambda groups: select_images([[0, 1, 2, 255]], groups, 0, "overlapped")):
        with pytest.raises(ValueError) as error:
            use(groups)
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("overlapped", [[0, 1, 4, 7], [1, 3, 4], [2, 4, 7]]),
        ("disjoint", [[0], [1, 3], [2, 4, 7]]),
        ("sequential", [[0], [1, 3], [2, 4, 7]]),
    ],
)
def test_selection_by_hand(setting, expected):
    assert [pick(IMAGES, GROUPS, step, setting) for step in range(3)] == expected


def test_domains_choose_without_looking_at_classes():
    domains = [0, 2, 2, 0, 1, 1, 2, 0]
    assert [pick(IMAGES, [[5]], step, "domain", domains=domains) for step in range(3)] == [[0, 3, 7], [4, 5], [1, 2, 6]]


@pytest.mark.parametrize(
    ("step", "setting", "domains", "words"),
    [
        (0, "overlap", None, ["'overlap'", "overlapped", "disjoint", "sequential", "partitioned", "domain"]),
        (3, "disjoint", None, ["step 3", "[0, 1, 2]"]),
        (-1, "disjoint", None, ["step -1", "[0, 1, 2]"]),
        (0, "domain", None, ["domain", "each image, 8 in all"]),
        (0, "domain", [0, 1], ["domain", "each image, 8 in all"]),
        (4, "domain", [0, 1, 3, 3, 3, 3, 3, 3], ["step 4", "[0, 1, 2, 3]"]),
        (2, "domain", [0, 1, 3, 3, 3, 3, 3, 3], ["step 2", "without images"]),
    ],
)
def test_selection_says_what_is_wrong(step, setting, domains, words):
    with pytest.raises(ValueError) as error:
        select_images(IMAGES, GROUPS, step, setting, domains=domains)
    for word in words:
        assert word in str(error.value)


def test_an_empty_step_names_itself_and_its_classes():
    with pytest.raises(ValueError, match=r"step 1 \(classes \[7, 8\]\) is left without images in the overlapped"):
        select_images(IMAGES[:3], [[5], [7, 8]], 1, "overlapped")
    for foreign in ([[-1]], [[256]]):
        with pytest.raises(ValueError, match="0..255"):
            select_images(foreign, GROUPS, 0, "overlapped")


@st.composite
def worlds(draw):
    """Groups in any order over some of the ids 1..9, images over 0, all of these ids and 255, and a renaming of ids."""
    order = draw(st.permutations(range(1, 10)))[: draw(st.integers(2, 9))]
    cuts = sorted(draw(st.sets(st.integers(1, len(order) - 1), max_size=4)))
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    images = draw(st.lists(st.sets(st.sampled_from([*range(10), 255])), max_size=12))
    return (
        groups,
        images,
        dict(zip([0, *range(1, 10), 255], [0, *draw(st.permutations(range(1, 10))), 255], strict=True)),
    )


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_selection_in_any_order(world):
    groups, images, rename = world
    steps = range(len(groups))
    arrival = {raw: step for step, group in enumerate(groups) for raw in group}
    held = [{arrival[raw] for raw in image if raw in arrival} for image in images]
    everything = [i for i, mine in enumerate(held) if mine]

    parts = {s: [pick(images, groups, t, s, seed=3) for t in steps] for s in ("overlapped", "disjoint", "partitioned")}
    assert parts["overlapped"] == [[i for i, mine in enumerate(held) if step in mine] for step in steps]
    assert parts["disjoint"] == [[i for i in everything if max(held[i]) == step] for step in steps]
    assert sorted(chain(*parts["partitioned"])) == everything, "not every image in exactly one part"
    assert all(step in held[i] for step in steps for i in parts["partitioned"][step])

    renamed = [[rename[raw] for raw in image] for image in images], [[rename[raw] for raw in group] for group in groups]
    for setting, expected in parts.items():
        assert [pick(*renamed, step, setting, seed=3) for step in reversed(steps)] == expected[::-1]


def test_partition_is_drawn_evenly_and_by_its_seed():
    images, groups = [[1, 2, 3]] * 3000, [[2], [3], [1]]
    parts = [select_images(images, groups, step, "partitioned", seed=1) for step in range(3)]
    assert all(900 < len(part) < 1100 for part in parts)
    other = select_images(images, groups, 0, "partitioned", seed=2)
    assert 200 < len(np.intersect1d(parts[0], other)) < 470, "another seed should draw anew (a ninth in both)"


@pytest.mark.parametrize(
    ("setting", "step", "training", "kept"),
    [
        ("overlapped", 1, True, {6: 3}),
        ("disjoint", 2, True, {1: 4, 4: 5}),
        ("partitioned", 0, True, {5: 1, 2: 2}),
        ("sequential", 1, True, {5: 1, 2: 2, 6: 3}),
        ("domain", 1, True, {5: 1, 2: 2, 6: 3}),
        ("domain", 7, True, {5: 1, 2: 2, 6: 3, 1: 4, 4: 5}),
        ("overlapped", 0, False, {5: 1, 2: 2, 6: 3, 1: 4, 4: 5}),
        ("sequential", 1, False, {5: 1, 2: 2, 6: 3, 1: 4, 4: 5}),
    ],
)
def test_labels_in_shuffled_order(setting, step, training, kept):
    table = Classes(GROUPS).label_table(step, setting, training=training)
    assert table.shape == (256,) and table.dtype == np.uint8
    assert {raw: int(position) for raw, position in enumerate(table) if position} == {**kept, 255: 255}


def test_labels_equal_the_published_mapping():
    """VOC 15-1, step 3, as the published MBS maps it (its validation makes raw ids 21..254, which VOC lacks, void)."""
    classes = Classes(class_groups("voc", "15-1"))
    raw = np.array([*range(21), 255], dtype=np.uint8)
    assert classes.label_table(3, "overlapped", training=True)[raw].tolist() == [0] * 18 + [18, 0, 0, 255]
    assert classes.label_table(3, "overlapped", training=False)[raw].tolist() == [*range(21), 255]


@pytest.mark.parametrize(("setting", "step"), [("overlaped", 0), ("overlapped", 3), ("domain", -1)])
def test_labels_refuse_unknown_steps_and_settings(setting, step):
    with pytest.raises(ValueError, match=r"there are (overlapped, .*domain|\[0, 1, 2\])"):
        Classes(GROUPS).label_table(step, setting, training=True)


# Images per step: overlapped | disjoint | official validation images with a class of the step | with one seen so far.
# Recomputed from the class lists of the published index files.
COUNTS = """
voc 19-1 | 10410 548 | 10034 548 | 1421 74 | 1421 1449
voc 15-5 | 9568 2145 | 8437 2145 | 1240 354 | 1240 1449
voc 15-1 | 9568 487 299 491 500 548 | 8437 378 299 420 500 548 | 1240 85 57 90 84 74 | 1240 1277 1329 1353 1421 1449
voc 10-10 | 6139 6876 | 3706 6876 | 869 897 | 869 1449
voc 10-5 | 6139 5542 2145 | 3706 4731 2145 | 869 647 354 | 869 1240 1449
voc 10-1 | 6139 528 1177 444 482 3898 487 299 491 500 548 | 3706 188 868 227 201 3247 378 299 420 500 548 \
| 869 75 128 79 76 446 85 57 90 84 74 | 869 893 1005 1081 1140 1240 1277 1329 1353 1421 1449
voc 5-5 | 2836 3604 5542 2145 | 1753 1953 4731 2145 | 433 479 647 354 | 433 869 1240 1449
voc 5-3 | 2836 2331 1542 2095 4484 1468 | 1753 1517 624 1296 3924 1468 | 433 296 226 281 562 238 \
| 433 699 893 1140 1329 1449
voc 5-1 | 2836 385 1086 1000 1081 264 528 1177 444 482 3898 487 299 491 500 548 \
| 1753 139 566 812 220 216 188 868 227 201 3247 378 299 420 500 548 \
| 433 74 127 119 123 71 75 128 79 76 446 85 57 90 84 74 \
| 433 499 583 699 802 869 893 1005 1081 1140 1240 1277 1329 1353 1421 1449
voc 4-4 | 2216 2956 2665 4668 1767 | 1589 1681 1492 4053 1767 | 341 385 345 580 295 | 341 699 1005 1277 1449
voc 2-2 | 1072 1151 1039 2080 1345 1701 925 4236 790 1048 | 653 936 303 1378 436 1056 428 3625 719 1048 \
| 169 173 169 246 194 200 155 508 147 158 | 169 341 499 699 869 1005 1140 1277 1353 1449
ade20k 100-50 | 20192 9390 | 10806 9390 | 2000 1018 |
ade20k 100-10 | 20192 1710 2294 2747 4279 2844 | 10806 861 1009 1445 3231 2844 | 2000 163 268 368 466 317 |
ade20k 100-5 | 20192 1142 600 1234 1204 1151 1874 1807 2943 1238 1898 \
| 10806 597 264 499 510 493 952 1040 2191 946 1898 | 2000 109 61 137 147 189 217 193 332 119 233 |
ade20k 50-50 | 20177 13186 9390 | 4838 5968 9390 | 1997 1341 1018 |
""".strip().splitlines()


@cache
def class_lists(name):
    """Raw ids of every image of a list; the files count classes from 0."""
    root = os.environ.get("CISS_DATA")
    path = Path(root or "", "lists", f"{name}_cls.txt")
    if not root or not path.is_file():
        pytest.skip(f"the class lists of the real data are needed: CISS_DATA/lists/{path.name}")
    return [[int(raw) + 1 for raw in line.split()[1:]] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: row.split(" |")[0])
def test_published_image_counts(row):
    task, overlapped, disjoint, val_new, val_seen = ([*cells.split()] for cells in row.split("|"))
    groups = class_groups(*task)
    short = task[0].removesuffix("20k")
    train, val = class_lists(f"{short}_train"), class_lists(f"{short}_val")
    expected = {"overlapped": overlapped, "disjoint": disjoint, "sequential": disjoint}
    for setting, counts in expected.items():
        assert [len(select_images(train, groups, t, setting)) for t in range(len(groups))] == list(map(int, counts))
    assert [len(select_images(val, groups, t, "overlapped")) for t in range(len(groups))] == list(map(int, val_new))
    seen = [[[*chain(*groups[: t + 1])]] for t in range(len(val_seen))]
    assert [len(select_images(val, group, 0, "overlapped")) for group in seen] == list(map(int, val_seen))


@pytest.mark.parametrize(
    ("name", "classes", "images", "empty"), [("voc_train", 20, 10582, 0), ("ade_train", 150, 20210, 14)]
)
def test_disjoint_and_partitioned_parts_are_complete(name, classes, images, empty):
    lists = class_lists(name)
    groups = [part.tolist() for part in np.array_split(np.random.default_rng(0).permutation(classes) + 1, 3)]
    assert len(lists) == images
    for setting in ("disjoint", "partitioned"):
        parts = np.concatenate([select_images(lists, groups, step, setting) for step in range(3)])
        assert len(parts) == len(np.unique(parts)) == images - empty, "14 images of ADE20K hold no class at all"


# --- domains, groups of one's own

CITIES = {  # of Cityscapes' training and validation parts, in the order of arrival: images
    "aachen": 174, "bremen": 316, "darmstadt": 85, "erfurt": 109, "hanover": 196, "krefeld": 99, "strasbourg": 365,
    "tubingen": 144, "weimar": 142, "bochum": 96, "cologne": 154, "dusseldorf": 221, "hamburg": 248, "jena": 119,
    "monchengladbach": 94, "stuttgart": 196, "ulm": 95, "zurich": 122, "frankfurt": 267, "lindau": 59, "munster": 174,
}  # fmt: skip
VALIDATION = ("frankfurt", "lindau", "munster")


def cityscapes(protocol: str) -> tuple[list[int], int]:
    """The step of each of the 3,475 images, listed city by city, training before validation."""
    groups = domain_groups("cityscapes", protocol, list(CITIES))
    step_of = {city: step for step, cities in enumerate(groups) for city in cities}
    listed = [*sorted(set(CITIES) - set(VALIDATION)), *VALIDATION]
    return [step_of[city] for city in listed for _ in range(CITIES[city])], len(groups)


@pytest.mark.parametrize(("name", "steps", "leaked"), [("11-5", 3, 496), ("11-1", 11, 501), ("1-1", 21, 541)])
def test_published_split_of_domains_leaks(name, steps, leaked):
    """The numbers of images in the published code's split, and how many of its final test images were trained on."""
    where, count = cityscapes(name)
    training, tests = split_domains(where, legacy=True)
    assert count == steps == len(training) and len(where) == 3475 and len(tests[-1]) == 695
    if name == "11-5":
        assert [len(images) for images in training] == [1504, 702, 573]
    assert len(set(tests[-1]) & set(np.concatenate(training))) == leaked


@pytest.mark.parametrize("name", ["11-5", "11-1", "1-1"])
def test_domains_are_divided_without_a_leak(name):
    where, steps = cityscapes(name)
    training, tests = split_domains(where)
    trained = np.concatenate(training)
    assert len(set(trained)) == len(trained) and not set(trained) & set(tests[-1])
    assert sorted([*trained, *tests[-1]]) == list(range(3475))
    for step in range(steps):
        assert {where[i] for i in training[step]} == {step} and {where[i] for i in tests[step]} == set(range(step + 1))
    if name == "11-5":
        assert [len(tests[0]), len(tests[1]) - len(tests[0]), len(tests[2]) - len(tests[1])] == [376, 176, 144]


def test_a_domain_of_one_image_cannot_be_divided():
    with pytest.raises(ValueError, match=r"step 1 is left without images to train on in the domain setting\. Give"):
        split_domains([0, 0, 0, 1])
    with pytest.raises(ValueError, match="step 1 is left without images to train on"):
        split_domains([0, 0, 0, 2, 2])
    with pytest.raises(ValueError, match="cityscapes 11-3: the 10 domains after the base do not divide"):
        domain_groups("cityscapes", "11-3", list(CITIES))


def test_groups_of_ones_own():
    assert own_groups(((15, 3), (8,)), range(1, 21)) == [[15, 3], [8]]
    for groups, words in (
        (((1, 2), (2,)), "more than once"),
        (((1, 2), (21,)), r"ids \[21\] are no classes of the data set; there are"),
        (((1, 2), ()), r"groups \[1\] have no classes"),
        (((1, 2),), "one group leaves no step"),
        (((0,), (1,)), "0 is the background"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            own_groups(groups, range(1, 21))
        assert str(caught.value).rstrip(".").rpartition(". ")[2][0].isupper(), "ends with what to do"


@pytest.mark.parametrize(("dataset", "names"), [
    ("voc", "15-5 10-2 8-2 5-5 4-4 2-1 2-2 19-1 10-5 10-10 5-3 5-1 4-2"),
    ("ade20k", "100-50 100-10 100-5 50-50 50-20 50-10 25-25"),
    ("cityscapes", "14-1 14-5 13-1 13-6 10-9 17-2 18-1"),
    ("camvid", "8-1 6-5"),
])  # fmt: skip
def test_every_published_protocol_divides(dataset, names):
    classes = len(DATASETS[dataset])
    for name in names.split():
        base, width = map(int, name.split("-"))
        groups = class_groups(dataset, name)
        assert [len(group) for group in groups] == [base] + [width] * ((classes - base) // width) and len(groups) > 1
        assert sorted(chain(*groups)) == sorted(DATASETS[dataset])
