"""Data sets of one's own, domains and groups of one's own: from a folder to a trained run, every method."""

import os
import re
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ciss import cli, config, data, paths
from ciss.config import ConfigError
from ciss.data import DataError, Index, data_set, prepare
from ciss.data import scan as scanning
from ciss.data.index import content_hash
from ciss.data.notes import change_notes, list_notes
from ciss.methods import METHODS
from ciss.protocol import Classes
from ciss.runs import results as runs_results
from ciss.runs.check import check
from ciss.training import loop
from tests.helpers.gardens import GARDEN, SEASONS, benchmark, paint
from tests.helpers.project import DOCUMENT


def test_a_folder_with_a_description_is_a_data_set(garden):
    found = data_set("garden")
    assert found.classes == {0: "background", 1: "leaf", 2: "stem", 3: "flower", 4: "fruit"}
    assert found.palette[2].tolist() == [0, 128, 0] and found.background and found.order() == (1, 2, 3, 4)
    pairs = found.pairs(found.root(), "train")
    assert len(pairs) == 20 and [pair.id for pair in pairs] == sorted(pair.id for pair in pairs)
    assert {pair.domain for pair in pairs} == set(SEASONS)


def test_a_share_of_the_images_is_scored(garden):
    (garden / "dataset.yaml").write_text(GARDEN + "share: 0.3\n")
    found = data_set("garden")
    parts = {split: {pair.id for pair in found.pairs(garden, split)} for split in ("train", "val")}
    assert (len(parts["train"]), len(parts["val"])) == (14, 6) and not parts["train"] & parts["val"]


def test_a_share_that_is_not_used_is_noted(plot, garden, project):
    (garden / "dataset.yaml").write_text(GARDEN + "train: {images: images, masks: masks}\nshare: 0.2\n")
    shutil.rmtree(garden / "images/val")
    shutil.rmtree(garden / "masks/val")
    for kind in ("images", "masks"):
        (garden / kind / "train").rename(garden / "kept")
        (garden / kind).rmdir()
        (garden / "kept").rename(garden / kind)
    domain = {"setting": "domain", "protocol": "1-1"}
    assert list_notes(benchmark(project, **domain)) == list_notes(benchmark(project)) == ([], [])
    _, (note,) = list_notes(benchmark(project, **domain, legacy_split=True))
    assert note.endswith("`share` is not used with legacy_split, which scores 20 % of the images.")


def test_a_named_zero_is_a_class(garden):
    """Then nothing is background, and every id moves up by one; void is what the file says."""
    (garden / "dataset.yaml").write_text("classes: {0: sky, 1: leaf, 2: stem, 3: flower}\nvoid: 4\n")
    found = data_set("garden")
    assert found.classes == {0: "background", 1: "sky", 2: "leaf", 3: "stem", 4: "flower"} and not found.background
    pair = found.pairs(garden, "train")[0]
    stored = np.array(Image.open(pair.mask))
    read = data.pictures.read_pair(pair)[1]
    assert read.tolist() == np.array([1, 2, 3, 4, 255])[stored].tolist()


@pytest.mark.parametrize(("text", "words"), [
    ("", "found no sections. Write `classes"),
    ("classes: {1: leaf, 300: stem}", "classes: found the number '300'"),
    ("classes: {1: leaf, leaf: stem}", "classes: found the number 'leaf'"),
    ("classes: {1: leaf, 2: leaf}", "classes: 1 and 2 have the same name, 'leaf'. Change one."),
    ("classes: {1: {nme: leaf}}", "classes.1.nme: unknown key. Did you mean 'name'?"),
    ("classes: {1: {name: leaf, colour: [0, 0]}}", "classes.1.colour"),
    ("classes: {1: {name: leaf, colour: [0, 0, 256]}}", "classes.1.colour"),
    ("clases: {a: leaf}", "clases: unknown key. Did you mean 'classes'?"),
    ("classes: {1: leaf, 2: stem}\nshare: 1.5", "share: found 1.5"),
    (
        "classes: {1: leaf, 2: stem}\nval: {share: 0.2}",
        "val.share: `share` is a key of its own. Write either `val: {images: images/val, masks: masks/val}` for "
        "folders of validation images, or `share: 0.2` in place of `val`.",
    ),
    ("classes: {255: leaf}", "classes.255: 255 is `void` too. Remove the class, or change `void`."),
    ("classes: [leaf, stem]", "classes: found a list, but each class needs its number. Write {1: NAME, 2: NAME}."),
    ("classes: {1: leaf, 2: 12}", "classes.2: found 12, but it should be a name. Write 2: NAME"),
    ("classes: {1: leaf, 2: ' '}", "classes.2.name: found ' ', but it should be a name."),
    ("classes: {1: leaf, 2: ''}", "classes.2.name: found '', but it should have at least 1 character."),
    ("classes: {1: leaf, '01': stem}", "classes: found the number '01', but masks have classes from 0 to 250."),
    (
        "classes: {1: {name: leaf, colour: [0, 0, 0]}}",
        "classes.1.colour: found [0, 0, 0], but it should be another colour, because the background is black.",
    ),
    ("classes: {1: leaf, 2: }", "classes.2: found nothing, but it should be a name. Write 2: NAME"),
    ("classes: {1: leaf, 2: stem}\nshare: 20", "share: found 20, but 0.2 stands for 20 %. Write a number below 1."),
    (
        "classes: {1: leaf, 2: stem}\nshare: 0.2\nval: {images: a, masks: b}",
        "`val` and `share` are both set, but only one can give the scored images. Remove one.",
    ),
    ("{1: leaf}", "found the name 1, but it should be text."),
    ("classes: [", "line 1, column"),
])  # fmt: skip
def test_a_wrong_description_is_named(garden, text, words):
    (garden / "dataset.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        data_set("garden")
    message = str(caught.value)
    assert words in message
    for line in message.splitlines():
        assert line.startswith(f"{garden / 'dataset.yaml'}: ") and line.endswith((".", "?")), line


def test_names_that_no_data_set_can_have(garden):
    """DVC reads the name. The message once denied a folder that the user sees."""
    garden.rename(garden.with_name("树叶"))
    with pytest.raises(ConfigError, match=r"no data set '树叶': .* letters from A to Z, .* Rename the folder\."):
        data_set("树叶")
    garden.with_name("树叶").rename(garden)
    with pytest.raises(ConfigError, match=r"no data set 'data/garden'\. Give the name of the folder alone: garden\."):
        data_set("data/garden")
    with pytest.raises(ConfigError, match=r"no data set 'gardn'\. Did you mean 'garden'\?"):
        data_set("gardn")


def test_two_images_of_one_mask_and_no_validation_images(garden):
    image = garden / "images" / "train" / "spring" / "00.jpg"
    image.with_suffix(".png").write_bytes(image.read_bytes())
    with pytest.raises(DataError, match=r"00\.png and 00\.jpg share the mask .*00\.png\. Remove one image\."):
        data_set("garden").pairs(garden, "train")
    (garden / "images" / "val").rename(garden / "elsewhere")
    (garden / "images" / "val").mkdir()
    with pytest.raises(DataError, match=r"no images .* or remove `val` from .*dataset\.yaml and set `share: 0\.2`\."):
        data_set("garden").pairs(garden, "val")


def test_what_lacks_is_named(garden):
    (garden / "masks" / "train" / "spring" / "00.png").unlink()
    with pytest.raises(DataError, match=r"spring/00\.png: the mask is missing"):
        data.scan.scan(data_set("garden").pairs(garden, "train"), data_set("garden"))
    (garden / "dataset.yaml").write_text(GARDEN + "train: {images: pictures, masks: masks/train}\n")
    with pytest.raises(FileNotFoundError, match=r"pictures: there is no such folder\. Make it, or name another in"):
        data_set("garden").pairs(garden, "train")
    for name in ("gardens", "../garden", "", "a/b"):
        with pytest.raises(ConfigError, match="no data set"):
            data_set(name)


def test_a_number_without_a_class_is_foreign(garden):
    (garden / "dataset.yaml").write_text("classes: {1: leaf, 2: stem, 3: flower}\n")
    with pytest.raises(DataError, match=r"id 4 is no class of the data set \(0 to 3, or 255\)\. Correct the m"):
        data.scan.scan(data_set("garden").pairs(garden, "train"), data_set("garden"))


def test_images_that_are_not_read_are_named(plot, garden, project):
    """An image of another format, or of another name than its mask, is not trained on: its mask is left over."""
    assert list_notes(benchmark(project)) == ([], [])
    (garden / "images/train/spring/00.jpg").rename(garden / "images/train/spring/00.heic")
    errors, (note,) = list_notes(benchmark(project))
    assert errors == [] and note.startswith("1 mask is not used, because no image of the same name is there (first: ")
    assert str(garden / "masks/train/spring/00.png") in note and ".webp files: convert or rename them." in note
    (garden / "masks/train/spring/00.png").unlink()
    for number in (3, 6):
        (garden / f"masks/train/spring/{number:02d}.png").unlink()
    _, (note,) = list_notes(benchmark(project))
    assert note.startswith("2 images have no mask of the same name (first: ") and "03.jpg needs " in note


def test_images_beside_the_folders_of_domains(plot, garden, project):
    paint(garden, "train/b", [1], 1)
    paint(garden, "train/a", [1], 2)
    assert data.step_count(benchmark(project)) == 2, "other settings have no domains"
    problem = f"{garden}/images/train/a.jpg: the image lies beside the folders of domains, and has no domain. Move"
    with pytest.raises(DataError, match=problem):
        data.step_count(benchmark(project, setting="domain", protocol="1-1"))


def test_a_link_to_its_own_folder_is_not_followed(plot, garden, project):
    before = data_set("garden").pairs(garden, "train")
    (garden / "images/train/spring/again").symlink_to(garden / "images/train")
    assert data_set("garden").pairs(garden, "train") == before


@pytest.mark.parametrize("layout", ["one folder of masks", "share"])
def test_masks_that_another_split_uses_are_no_surplus(plot, garden, project, layout):
    text = {"share": "train: {images: images, masks: masks}\nshare: 0.2\n"}
    text["one folder of masks"] = "".join(f"{s}: {{images: images/{s}, masks: masks}}\n" for s in ("train", "val"))
    if layout != "share":
        for split in ("train", "val"):
            for mask in (garden / "masks" / split).rglob("*.png"):
                target = garden / "masks" / mask.parent.name / f"{split}{mask.name}"
                target.parent.mkdir(exist_ok=True)
                image = garden / "images" / split / mask.parent.name / f"{mask.stem}.jpg"
                image.rename(image.with_name(f"{split}{image.name}"))
                mask.rename(target)
    (garden / "dataset.yaml").write_text(GARDEN + text[layout])
    assert list_notes(benchmark(project)) == ([], [])


def test_the_check_names_data_that_changed_since(plot, garden, project, tmp_path):
    folder, again = tmp_path / "data/index/plot", "Run: dvc repro"
    settings = benchmark(project)
    assert change_notes(settings, folder) == [], "not prepared"
    prepare(settings, folder, progress=False)
    assert change_notes(settings, folder) == []
    paint(garden, "train/spring/00", [1, 2, 3], 99)
    (note,) = change_notes(settings, folder)
    assert note.startswith("1 of 20 train images or their masks changed since the data were prepared (first: ")
    assert "spring/00.jpg). " in note and note.endswith(again)
    paint(garden, "train/spring/77", [1], 7)
    (note,) = change_notes(settings, folder)
    assert "the list of train images changed. " in note and note.endswith(again) and note.count("Run:") == 1
    (garden / "dataset.yaml").write_text(GARDEN.replace("leaf", "blade"))
    (note,) = change_notes(settings, folder)
    assert "dataset.yaml changed. " in note and note.endswith(again)


def test_the_content_hash_follows_what_images_and_description_mean(plot, garden, project, tmp_path):
    folder, settings = tmp_path / "data/index/plot", benchmark(project)
    index, first = prepare(settings, folder, progress=False), content_hash(settings, folder)
    text = GARDEN.replace("  1: leaf", "  1: {name: leaf} # the largest") + "void: 255\n# a remark\n"
    (garden / "dataset.yaml").write_text(text)
    os.utime(garden / "images/train/spring/00.jpg")
    assert content_hash(settings, folder) == first, "a comment, another form, a default, a time"
    assert index.pairs("train") and change_notes(settings, folder) == []
    assert prepare(settings, folder, progress=False) == index
    hashes = {first}
    for change in (
        lambda: (garden / "dataset.yaml").write_text(text.replace("leaf", "blade")),
        lambda: paint(garden, "train/spring/00", [1, 2, 3], 99),
        lambda: paint(garden, "val/spring/00", [1, 2, 3], 99),
        lambda: paint(garden, "train/spring/77", [1], 7),
        lambda: (garden / "images/train/spring/77.jpg").rename(garden / "images/train/spring/78.jpg"),
    ):
        change()
        if (renamed := garden / "images/train/spring/78.jpg").exists():
            (garden / "masks/train/spring/77.png").rename(garden / f"masks/train/spring/{renamed.stem}.png")
        hashes.add(content_hash(settings, folder))
    assert len(hashes) == 6


def test_an_index_belongs_to_its_description(plot, garden, project, tmp_path):
    folder = tmp_path / "data" / "index" / "garden"
    settings = benchmark(project)
    index = prepare(settings, folder, progress=False)
    assert index.groups == [[1, 2], [3, 4]] and Index.load(folder, settings).pairs("train")
    (garden / "dataset.yaml").write_text(GARDEN.replace("leaf", "sheet"))
    with pytest.raises(DataError, match=r"dataset\.yaml changed\. Run: dvc repro -f prepare"):
        index.pairs("train")
    assert prepare(settings, folder, progress=False).fingerprint != index.fingerprint


def test_what_was_read_is_not_read_again(plot, garden, project, tmp_path, monkeypatch):
    folder, settings = tmp_path / "data" / "index" / "garden", benchmark(project)
    first = prepare(settings, folder, progress=False)
    read, original = [], scanning._read
    monkeypatch.setattr(scanning, "_read", lambda pair: read.append(pair.id) or original(pair))
    assert prepare(settings, folder, progress=False) == first and not read
    assert prepare(benchmark(project, protocol="1-1"), folder, progress=False).groups != first.groups and not read
    paint(garden, "train/spring/00", [4], 99)
    changed = prepare(settings, folder, progress=False)
    assert read == ["train_spring_00"] and changed.classes["train"][0] == [0, 4]
    for damage in ("", "{", '{"rules": 1}', '{"rules": "x", "pairs": {}}'):
        (tmp_path / "data" / ".scan" / "garden.json").write_text(damage)
        read.clear()
        assert prepare(settings, folder, progress=False) == changed and len(read) == 28


def test_what_is_broken_is_not_kept(plot, garden, project, tmp_path):
    folder, file = tmp_path / "data" / "index" / "garden", garden / "images" / "train" / "spring" / "00.jpg"
    sound = file.read_bytes()
    file.write_bytes(sound[:100])
    for _ in range(2):
        with pytest.raises(DataError, match="00.jpg: the image cannot be read"):
            prepare(benchmark(project), folder, progress=False)
    file.write_bytes(sound)
    prepare(benchmark(project), folder, progress=False)


def trained(project, garden, method: str, **changes):
    """The base step and all increments of a method."""
    project.document["benchmarks"]["tiny"] |= {"dataset": "garden", "protocol": "2-2", "holdout": 2, **changes}
    project.document["methods"][method] = {}
    project.document["joints"] = {}
    for phase in ("base", "increment"):
        project.set(f"train.{phase}.epochs", 1)
    chain, after = {}, "base"
    steps = data.step_count(project.config.benchmarks["tiny"])
    for step in range(1, steps):
        chain[f"m-{step}"] = {"benchmark": "tiny", "method": method, "seed": 0, "after": after, "step": step}
        after = f"m-{step}"
    project.document["chain"], project.document["ends"] = chain, {"m": {"run": after, "benchmark": "tiny"}}
    jobs = [project.run(name) for name in ("base", *chain)]
    prepare(project.config.benchmarks["tiny"], jobs[0].root / "data" / "index" / "tiny", progress=False)
    for job in jobs:
        loop.train(job)
    return jobs, [runs_results.read(job) for job in jobs]


METHODS_OF_STEPS = [name for name in METHODS if not METHODS[name].sees_all]
# Methods that are refused in the domain setting.
ROWS_OF_NEW_CLASSES = {"dkd", "ssul", "fixbc", "ncm", "ridge", "select", "stage_ridge"}


@pytest.mark.parametrize("method", sorted(set(METHODS_OF_STEPS) - ROWS_OF_NEW_CLASSES))
def test_domains_are_learnt_one_after_the_other(plot, garden, method):
    """All classes from the start, images of one season a step: no channel is added, the test grows with the steps."""
    jobs, found = trained(plot, garden, method, setting="domain", protocol="1-1")
    index = jobs[0].index()
    assert len(jobs) == 3 and not index.leaked() and [len(group) for group in index.groups] == [4]
    domains = [pair.domain for pair in index.pairs("train")]
    scored = [pair.domain for pair in index.pairs("val")]
    for step, (job, result) in enumerate(zip(jobs, found, strict=True)):
        assert job.channel_groups == [5] and {domains[i] for i in job.images(index)} == {SEASONS[step]}
        assert {scored[i] for i in index.validation[step]} == set(SEASONS[: step + 1])
        assert all(np.isfinite(row["loss"]) for row in result["log"])
        assert result["confusion"].sum() == 32 * 32 * len(index.validation[step])
    assert found[0]["scores"]["new"] is None and found[-1]["scores"]["all"] is not None


@pytest.mark.parametrize("text", [GARDEN, GARDEN + "train: {images: images, masks: masks}\nshare: 0.3\n"])
def test_validation_images_are_never_trained_on_in_the_domain_setting(plot, garden, project, tmp_path, text):
    """The published rule of Cityscapes draws the test images from all; data of one's own are divided already."""
    (garden / "dataset.yaml").write_text(text)
    if "share" in text:  # the domains are the folders of the seasons, whatever lies above them
        for kind in ("images", "masks"):
            for split in ("train", "val"):
                for season in SEASONS:
                    (garden / kind / season).mkdir(exist_ok=True)
                    for file in (garden / kind / split / season).iterdir():
                        file.rename(garden / kind / season / f"{split}{file.name}")
                    (garden / kind / split / season).rmdir()
                (garden / kind / split).rmdir()
    settings = benchmark(project, setting="domain", protocol="1-1")
    index = prepare(settings, tmp_path / "data/index/plot", progress=False)
    pairs = {split: data_set("garden").pairs(garden, split) for split in ("train", "val")}
    assert list_notes(settings) == ([], [])
    assert index.ids == {split: [pair.id for pair in pairs[split]] for split in pairs}
    assert sorted(i for images in index.steps for i in images) == list(range(len(pairs["train"])))
    assert index.validation[-1] == list(range(len(pairs["val"]))) and not index.leaked()


def test_domains_without_images_to_train_on_or_to_score(plot, garden, project, tmp_path):
    settings, folder = benchmark(project, setting="domain", protocol="1-1"), tmp_path / "data/index/plot"
    for kind in ("images", "masks"):
        (garden / kind / "val" / "spring").rename(garden / kind / "val" / "autumn")
    problem = r"the validation images of domain 'autumn' belong to no step: the domains are spring, summer, winter\. "
    with pytest.raises(DataError, match=problem):
        prepare(settings, folder, progress=False)
    for kind in ("images", "masks"):
        shutil.rmtree(garden / kind / "val" / "autumn")
    with pytest.raises(DataError, match=r"no validation image is of a domain of step 0 \(spring\)"):
        prepare(settings, folder, progress=False)


def test_the_published_division_is_asked_for_by_name(plot, garden):
    jobs, _ = trained(plot, garden, "finetune", setting="domain", protocol="1-2", legacy_split=True)
    assert jobs[0].index().leaked()


@pytest.mark.parametrize("method", METHODS_OF_STEPS)
def test_groups_in_any_order_and_of_some_classes(plot, garden, method):
    """Raw ids and positions differ: 4 arrives first, 1 never, and is background."""
    jobs, found = trained(plot, garden, method, protocol="own", groups=[[4], [2, 3]])
    assert found[-1]["classes"].names == ["background", "fruit", "stem", "flower"] and jobs[1].channel_groups == [2, 2]
    truth = found[-1]["confusion"].sum(axis=1)
    counts = {raw: 0 for raw in range(5)}
    for pair in data_set("garden").pairs(garden, "val"):
        for raw, count in zip(*np.unique(np.array(Image.open(pair.mask)), return_counts=True), strict=True):
            counts[raw] += int(count)
    assert truth.tolist() == [counts[0] + counts[1], counts[4], counts[2], counts[3]]
    assert all(np.isfinite(row["loss"]) for result in found for row in result["log"])


@pytest.mark.parametrize(("changes", "words"), [
    ({"groups": [[4], [9]]}, "benchmarks.tiny.groups: the groups' ids [9] are no classes"),
    ({"groups": [[4], [2]], "order": [1, 2, 3, 4]}, "benchmarks.tiny.groups: groups say which class comes when"),
    ({"setting": "domain", "groups": [[4], [2]]}, "benchmarks.tiny.groups: groups say which class comes when"),
    ({"setting": "domain", "protocol": "3-1"}, "benchmarks.tiny.protocol: garden 3-1: 3 base domains"),
    ({"order": [1, 2, 3]}, "benchmarks.tiny.order: the order is no permutation of the 4 classes of garden"),
])  # fmt: skip
def test_what_does_not_fit_is_named(plot, garden, changes, words):
    plot.document["benchmarks"]["tiny"] |= {"dataset": "garden", "protocol": "2-2", **changes}
    with pytest.raises(ConfigError) as caught:
        check(plot.config)
    assert words in str(caught.value)


@pytest.mark.cost
def test_ten_thousand_images_are_read_in_a_minute(tmp_path, capsys):
    """500x375 pixels, as VOC's; on two cores. The second time their list is looked through, and nothing is read."""
    dice = np.random.default_rng(0)
    blocks = [
        np.kron(dice.integers(0, 255, (47, 63, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(20)
    ]
    for number, block in enumerate(blocks):
        noise = dice.integers(0, 12, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(block[:375, :500] // 2 + noise + 60).save(tmp_path / f"{number}.jpg", quality=90)
        Image.fromarray((block[:375, :500, 0] > 128).astype(np.uint8) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "all").mkdir()
    for number in range(10_000):
        for suffix in ("jpg", "png"):
            os.link(tmp_path / f"{number % 20}.{suffix}", tmp_path / "all" / f"{number}.{suffix}")
    found = [data.voc.Pair(str(n), tmp_path / "all" / f"{n}.jpg", tmp_path / "all" / f"{n}.png") for n in range(10_000)]
    seconds, kept = [], tmp_path / "kept.json"
    for _ in range(2):
        started = time.perf_counter()
        results = scanning.scan(found, data_set("voc"), cache=kept)
        seconds.append(time.perf_counter() - started)
    with capsys.disabled():
        print(f"\n10,000 images: {seconds[0]:.1f} s, again {seconds[1]:.2f} s")
    assert len(results) == 10_000 and seconds[0] <= 60 and seconds[1] < 1


def test_training_and_scoring_see_the_numbers_that_the_scan_saw(plot, garden, project, tmp_path):
    """Of masks whose numbers are no raw ids, through the loaders: each pixel has the position of its class."""
    (garden / "dataset.yaml").write_text("classes: {0: sky, 1: leaf, 2: stem, 4: fruit}\nvoid: 3\n")
    settings = benchmark(project, protocol="own", groups=[[5, 1], [2, 3]])
    index = prepare(settings, tmp_path / "data" / "index" / "garden", progress=False)
    pair, position = index.pairs("val")[0], {0: 2, 1: 3, 2: 4, 3: 255, 4: 1}
    table = Classes(index.groups).label_table(1, "overlapped", training=False)
    for labels, numbers in (batch[1:] for batch in data.loaders.evaluation_loader(settings, index, "val", [0], table)):
        stored = np.array(Image.open(pair.mask))
        assert numbers.tolist() == [0] and labels[0].tolist() == np.vectorize(position.get)(stored).tolist()
    assert data.loaders.picture(settings, index, "val", 0, table)[1].tolist() == labels[0].tolist()


# --- names that nearly fit, ids that no class has


def message(folder) -> str:
    with pytest.raises(DataError) as caught:
        data.scan.scan(data_set("garden").pairs(folder, "train"), data_set("garden"))
    return str(caught.value).splitlines()[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("00.PNG", "00.PNG is there. Rename it to 00.png."),
        ("00_mask.png", "00_mask.png is there. Rename it to 00.png."),
        ("00-labels.png", "00-labels.png is there. Rename it to 00.png."),
        ("00.jpg", "00.jpg is there, but masks have to be PNG files. Convert the original to 00.png."),
        (None, "Complete the data set, or move the image away."),
    ],
)
def test_a_mask_whose_name_nearly_fits(garden, name, words):
    mask = garden / "masks" / "train" / "spring" / "00.png"
    if name:
        mask.rename(mask.with_name(name))
    else:
        mask.unlink()
    assert message(garden) == f"{mask}: the mask is missing. {words}"


def test_names_of_two_unicode_forms(garden):
    """They look equal: macOS writes NFD, most others NFC."""
    paint(garden, "train/spring/caf\u00e9", [1], 0)
    mask = garden / "masks" / "train" / "spring" / "caf\u00e9.png"
    mask.rename(mask.with_name("cafe\u0301.png"))
    assert message(garden) == (
        f"{mask}: the mask is missing. A name that looks the same is there in another Unicode form (NFD, not NFC). "
        "Rename it to caf\u00e9.png."
    )


def test_an_image_beside_its_mask_is_no_similar_name(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    pair = data.pictures.Pair("a", tmp_path / "a.jpg", tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: the mask is missing\. Complete the data set, or take a off its list"):
        data.pictures.read_pair(pair)


def test_all_ids_that_no_class_has_are_named(garden):
    """Masks drawn in grey: 0, 85, 170, 255."""
    (garden / "dataset.yaml").write_text("classes: {1: leaf, 2: stem}\n")
    grey = np.repeat(np.array([0, 85, 170, 255], np.uint8), 256).reshape(32, 32)
    mask = garden / "masks" / "train" / "spring" / "00.png"
    Image.fromarray(grey).save(mask)
    assert message(garden) == (
        f"{mask}: ids 85, 170 are no classes of the data set (0 to 2, or 255). Correct the mask, or name them under "
        "`classes` in dataset.yaml."
    )


@pytest.mark.parametrize(
    ("classes", "setting", "words"),
    [
        ("{1: leaf}", "overlapped", "garden has one class, so no increment is possible. Use the protocol 'joint'."),
        ("{1: leaf, 2: stem}", "domain", "garden has one domain, but the domain setting needs two or more."),
    ],
)
def test_too_few_for_a_step(garden, classes, setting, words):
    (garden / "dataset.yaml").write_text(f"classes: {classes}\n")
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            for season in SEASONS:
                for file in (garden / kind / split / season).iterdir():
                    file.rename(garden / kind / split / file.name)
                (garden / kind / split / season).rmdir()
    settings = benchmark(SimpleNamespace(document=DOCUMENT), protocol="1-1", setting=setting)
    with pytest.raises(data.ChoiceError) as caught:
        data.step_count(settings)
    assert words in str(caught.value)


# --- the recipe of docs/own_data.md, literally


RECIPE = (paths.project() / "docs" / "own_data.md").read_text(encoding="utf-8")
EXAMPLES = [part.split("```")[0] for part in RECIPE.split("```yaml")[1:]]


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    """A project with nothing but the recipe's folder data/leaves; no network asks for weights."""
    folder = tmp_path / "data" / "leaves"
    folder.mkdir(parents=True)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CISS_DATA", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


def plan_command(monkeypatch, capsys, *arguments: str) -> str:
    cli.main(["plan", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("example", range(len(EXAMPLES)))
def test_the_recipe_for_own_data(leaves, monkeypatch, capsys, example):
    """Plan, check and prepare. Its pretrained weights need a network, so this plan takes none."""
    (command,) = re.findall(r"uv run ciss plan (leaves .+) &&", RECIPE)
    for number in range(12):
        for split in ("train/", "val/") if "images/val" in EXAMPLES[example] else ("",):
            paint(leaves, f"{split}{number:02d}", [1 + number % 3], number)
    (leaves / "dataset.yaml").write_text(EXAMPLES[example])
    out = plan_command(monkeypatch, capsys, *command.split(), "--set", "model.pretrained=false")
    assert out.splitlines()[-1] == "params.yaml: leaves-1-1; 12 runs. Next: dvc repro"
    assert "note:" not in out
    assert config.load().own == ["leaves-1-1"], "which makes DVC compare the images"
    assert "no error found" in plan_command(monkeypatch, capsys, "--check")
    settings = config.load().benchmarks["leaves-1-1"]
    index = prepare(settings, leaves.parent / "index" / "leaves", progress=False)
    assert (
        len(index.steps) == 3
        and all(index.steps)
        and len(index.validation[-1]) == (2 if "share" in EXAMPLES[example] else 12)
    )


def test_the_recipe_for_masks_in_colours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coloured" / "train").mkdir(parents=True)
    colours = np.array([[[255, 0, 0], [0, 255, 0], [9, 9, 9]]], dtype=np.uint8)
    Image.fromarray(colours).save("coloured/train/a.png")
    exec(RECIPE.split("```python")[1].split("```")[0], {})
    with Image.open("data/leaves/masks/train/a.png") as mask:
        assert mask.mode == "L"
        assert np.array(mask).tolist() == [[1, 2, 0]]


def test_the_readme_has_two_complete_examples_and_init():
    assert len(EXAMPLES) == 2 and "share:" in EXAMPLES[1] and "val:" in EXAMPLES[0]
    assert "ciss data init data/leaves" in RECIPE


def test_a_plan_for_domains_leaves_out_what_is_refused_there(plot, garden, project, monkeypatch, capsys):
    command = ("garden", "1-1", "--setting", "domain", "--set", "model.pretrained=false")
    out = plan_command(monkeypatch, capsys, *command)
    assert "methods: finetune, mib, plop, mbs and joint training." in out
    with pytest.raises(SystemExit, match=r"methods\.gsc\.compensation: on .* no class is new in the domain setting"):
        plan_command(monkeypatch, capsys, *command, "--methods", "gsc")


def test_own_data_that_the_pipeline_would_not_compare(leaves, monkeypatch, capsys):
    (leaves / "dataset.yaml").write_text(EXAMPLES[0])
    plan_command(monkeypatch, capsys, "leaves", "1-1", "--set", "model.pretrained=false")
    for number in range(12):
        for split in ("train", "val"):
            paint(leaves, f"{split}/{number:02d}", [1 + number % 3], number)
    file = leaves.parents[1] / "params.yaml"
    text = file.read_text()
    file.write_text(text.replace("own: [leaves-1-1]", "own: []"))
    with pytest.raises(SystemExit) as caught:
        plan_command(monkeypatch, capsys, "--check")
    assert str(caught.value) == (
        "error: params.yaml: own: found [], but the benchmarks on data of your own are ['leaves-1-1']. "
        "Write `own: [leaves-1-1]`."
    )
    (leaves.parents[1] / ".data").mkdir()
    (leaves.parents[1] / ".data" / "other").touch()
    file.write_text(text)
    plan_command(monkeypatch, capsys, "--check")
    assert [path.name for path in (leaves.parents[1] / ".data").iterdir()] == ["checked"]
    plan_command(monkeypatch, capsys, "shapes")
    assert config.load().own == []


def test_a_plan_before_the_images_are_there(leaves, monkeypatch, capsys):
    (leaves / "dataset.yaml").write_text(EXAMPLES[0])
    out = plan_command(monkeypatch, capsys, "leaves", "1-1", "--set", "model.pretrained=false")
    assert "note: benchmarks.leaves-1-1: The data of 'leaves' are not complete: " in out
    assert "images/train: there is no such folder. Make it, or name another in" in out


def test_nothing_is_written_beside_the_data(leaves, monkeypatch, capsys):
    """A data root may be read-only: planning, checking and preparing write into the project alone."""
    for number in range(6):
        paint(leaves, f"{number:02d}", [1 + number % 3], number)
    (leaves / "dataset.yaml").write_text(EXAMPLES[1])
    root = leaves.parent.rename(leaves.parents[1] / "root")
    monkeypatch.setenv("CISS_DATA", str(root))
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    plan_command(monkeypatch, capsys, "leaves", "1-1", "--set", "model.pretrained=false")
    plan_command(monkeypatch, capsys, "--check")
    prepare(config.load().benchmarks["leaves-1-1"], leaves.parents[1] / "data" / "index" / "leaves-1-1", progress=False)
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before
