"""Stored images: which are chosen, how they are labelled and drawn, and what the record of a run says."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ciss.config import ConfigError
from ciss.data import loaders
from ciss.data.stored import BREAKS_PROTOCOL, Memory, Stored, choose_images
from ciss.methods import METHODS
from ciss.runs import check as runs_check
from ciss.runs import results as runs_results
from ciss.store.files import CheckpointError
from ciss.study import launch
from ciss.training import loop
from ciss.training.memory import stored_before
from tests.helpers.training import left_by, stopped

CANDIDATES = dict(zip("abcdef", [{1, 2}, {1}, {3}, {2, 3}, {1}, {2}], strict=True))
WITHOUT_TRAINING = ("ncm", "ridge", "stage_ridge")
TRAINS = [name for name, kind in METHODS.items() if not kind.sees_all and name not in WITHOUT_TRAINING]


def chain(project, method: str = "mib", steps: int = 1, norm: str = "batch", **memory):
    """A method with memory in a project, and its base step."""
    name, values = f"{method}-memory", METHODS[method].variants()["memory"]
    values = {**values, "memory": {**values["memory"], "images": 6, **memory}}
    project.document["methods"][name] = values
    own = METHODS[method]().own_base or "finetune"
    project.document["methods"].setdefault(own, {})
    project.set("bases.own", {"benchmark": "tiny", "method": own, "seed": 0})
    project.set("train.increment.norm", norm)
    after = "own"
    for step in range(1, steps + 1):
        run = {"benchmark": "tiny", "method": name, "seed": 0, "after": after, "step": step}
        project.document["chain"][after := f"stored-{step}"] = run
    project.set("ends.stored", {"benchmark": "tiny", "run": after})
    return project


def record(run) -> dict:
    result = runs_results.read(run)
    assert json.loads((run.folder / "memory.json").read_text()) == result["memory"]
    return result["memory"]


# --- the choice


@pytest.mark.parametrize(
    ("order", "size", "chosen"),
    [
        ([2, 1, 3], 4, "abcd"),
        ([3, 1, 2], 5, "cadbf"),
        ([1, 2, 3], 10, "adcbfe"),  # all, then the loop ends
        ([4, 1], 3, "abe"),  # no image shows class 4
        ([4], 3, ""),
    ],
)
def test_worked_examples_of_the_choice(order, size, chosen):
    found = choose_images(list(CANDIDATES.values()), order, Memory(images=size))
    assert "".join("abcdef"[i] for i in found) == chosen


def test_classes_have_equal_parts_while_images_last():
    dice = np.random.default_rng(0)
    candidates = [{int(dice.integers(1, 6))} for _ in range(200)]
    found = choose_images(candidates, [3, 1, 5, 2, 4], Memory(images=52))
    counts = [sum(wanted in candidates[i] for i in found) for wanted in (3, 1, 5, 2, 4)]
    assert counts == [11, 11, 10, 10, 10] and len(set(found)) == 52
    assert choose_images(candidates, [3, 1], Memory(images=7, selection="random")) == list(range(7))


# --- the draws


def test_a_random_half_of_every_batch_is_stored_images():
    stored = Stored(Memory(images=3), None, 100, [7, 8, 9])
    sampler = loaders.ShuffledBatches(list(range(20)), 5, 1, 0, stored)
    plain = loaders.ShuffledBatches(list(range(20)), 5, 1, 0)
    for epoch in (0, 1):
        batches = [batch.tolist() for batch in sampler.of_all_processes(epoch)]
        again = [batch.tolist() for batch in sampler.of_all_processes(epoch)]
        without = [batch.tolist() for batch in plain.of_all_processes(epoch)]
        assert batches == again and [len(batch) for batch in batches] == [5, 5, 5, 5]
        draws = [number for batch in batches for number in batch if number >= 100]
        assert [sum(number >= 100 for number in batch) for batch in batches] == [2, 2, 2, 2], "an odd batch rounds down"
        rounds = [sorted(n % 100 for n in draws if n // 100 == k) for k in (1, 2, 3)]
        assert rounds[0] == rounds[1] == [7, 8, 9] and len(set(rounds[2])) == 2, "every round has other views"
        kept = [(a, b) for one, other in zip(batches, without, strict=True) for a, b in zip(one, other, strict=True)]
        assert all(a == b or a >= 100 for a, b in kept), "the others are those of a training without memory"
    with pytest.raises(ValueError, match="not chosen yet"):
        list(loaders.ShuffledBatches([1, 2], 2, 1, 0, Stored(Memory(images=3), None, 100)))


def test_appended_images_make_the_epoch_longer():
    stored = Stored(Memory(images=4, mix="append"), None, 100, [1, 2, 3, 4])
    sampler = loaders.ShuffledBatches(list(range(8)), 4, 1, 0, stored)
    assert len(sampler) == 3
    drawn = torch.cat(list(sampler.of_all_processes(0))).tolist()
    assert sorted(drawn) == [*range(8), 101, 102, 103, 104], "an image of the step may be stored, too"


def test_processes_share_a_mixed_batch(monkeypatch):
    def batches(rank: int, world: int) -> list:
        monkeypatch.setattr(loaders.distributed, "rank", lambda: rank)
        monkeypatch.setattr(loaders.distributed, "world", lambda: world)
        return list(loaders.ShuffledBatches(list(range(12)), 4, 1, 0, Stored(Memory(images=2), None, 50, [3, 5])))

    halves, whole = [batches(rank, 2) for rank in (0, 1)], batches(0, 1)
    assert [one + other for one, other in zip(*halves, strict=True)] == whole


@pytest.mark.parametrize(("labels", "kept"), [("seen", {0, 1, 2, 3, 4, 5, 6}), ("step", {0, 5, 6})])
def test_labels_of_stored_images(project, labels, kept):
    """Step 1 of 4-2: positions 5 and 6 are new. Images of the step have labels of the step."""
    run = chain(project, labels=labels).run("stored-1")
    index = run.index()
    table = run.label_table(training=True, stored=True)
    assert set(table[run.classes.raw].tolist()) == kept
    total, first = len(index.ids["train"]), index.steps[0][0]
    stored = Stored(run.memory, table, total, [first])
    loader = loop.training_loader(run.settings, index, [first], run.label_table(training=True), 0, stored=stored)
    numbers = (first, first + total, first + 2 * total)
    plain, once, again = (set(loader.dataset[0, number][1].unique().tolist()) - {255} for number in numbers)
    assert plain <= {0, 5, 6} and once | again <= kept
    assert labels == "step" or once - {0, 5, 6}, "an old class"


@pytest.mark.parametrize("labels", ["seen", "step"])
def test_stored_images_are_the_same_on_the_device(project, labels):
    """`train.augment_on: device`, here with the processor as the device: images, labels and numbers."""
    found = {}
    for where in ("cpu", "device"):
        project.set("train.augment_on", where)
        run = chain(project, labels=labels).run("stored-1")
        index = run.index()
        tables = [run.label_table(training=True, stored=stored) for stored in (False, True)]
        stored = Stored(run.memory, tables[1], len(index.ids["train"]), index.steps[0][:3])
        found[where] = list(
            loaders.training_loader(run.settings, index, run.images(index), tables[0], 0, stored=stored)
        )
    for one, other in zip(*found.values(), strict=True):
        assert (one[2] >= stored.total).any() and all(map(torch.equal, one, other))


# --- trainings


@pytest.mark.parametrize("method", TRAINS)
def test_every_method_trains_a_step_with_memory(project, method):
    """Also with labels of old classes, which some methods see in the sequential setting only."""
    project.set("train.base.epochs", 1)
    project.set("train.increment.epochs", 1)
    norm = "frozen" if method == "frozen" else "batch"
    run = chain(project, method, norm=norm, labels="seen").run("own")
    loop.train(run)
    run = project.run("stored-1")
    runs_check.check(project.config)
    loop.train(run)
    result = runs_results.read(run)
    assert all(np.isfinite(row["loss"]) for row in result["log"])
    assert len(record(run)["stored"]) == 6 and 0 < result["memory"]["stored_draws"] < result["memory"]["all_draws"]
    assert result["title"].startswith(f"{method}-M (") and "6 stored images" in result["title"]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, tiny_data, frozen_code):
    """A chain of two increments with memory."""
    from tests.helpers.project import environment, make

    with environment(tiny_data) as patch:
        project = chain(make(tmp_path_factory.mktemp("memory") / "project", frozen_code, patch), steps=2)
        for name in ("own", "stored-1", "stored-2"):
            loop.train(project.run(name))
        yield project


def test_what_the_record_says(two_steps):
    os.chdir(two_steps.folder)
    first, second = (two_steps.run(f"stored-{step}") for step in (1, 2))
    index = first.index()
    numbers = {image: number for number, image in enumerate(index.ids["train"])}
    one, two = record(first), record(second)
    assert one["note"] == f"{BREAKS_PROTOCOL}: {first.memory.words()}."
    assert one["images"] == 6 and one["mix"] == "half" and one["labels"] == "seen" and one["threshold"] == 0.7
    assert {numbers[image["id"]] for image in one["stored"]} <= set(index.steps[0])
    earlier = {numbers[image["id"]] for image in one["stored"]} | set(index.steps[1])
    assert {numbers[image["id"]] for image in two["stored"]} <= earlier
    for image in one["stored"]:  # in step 1 by labels alone
        table = two_steps.run("own").label_table(training=True)
        raw = index.classes["train"][numbers[image["id"]]]
        assert image["classes"] == sorted(set(table[raw].tolist()) - {0, 255}) and image["classes"]
    assert not {numbers[image["id"]] for image in one["stored"] + two["stored"]} & set(index.holdout)
    assert all(set(image["classes"]) <= set(range(1, 7)) for image in two["stored"])
    epochs = [batch for epoch in (0, 1) for batch in _batches(first, index, epoch)]
    assert one["all_draws"] == sum(map(len, epochs)) and one["stored_draws"] == sum(len(b) // 2 for b in epochs)
    assert "memory" not in runs_results.read(two_steps.run("own"))
    assert not (two_steps.run("own").folder / "memory.json").exists()


def _batches(run, index, epoch: int) -> list:
    train = run.settings.train
    return list(loaders.ShuffledBatches(run.images(index), train.batch, 1, 0).of_all_processes(epoch))


def test_the_list_is_needed_and_part_of_what_a_run_is(two_steps, tmp_path):
    project = two_steps.copy(tmp_path / "copy")
    run, file = project.run("stored-2"), project.run("stored-1").folder / "memory.json"
    identity = loop.training_identity(run, run.index())
    assert runs_results.finished(run, identity)
    text = file.read_text()
    changed = json.loads(text)
    changed["stored"].pop()
    file.write_text(json.dumps(changed))
    assert not runs_results.finished(run, loop.training_identity(run, run.index()))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"memory\.json: the list of stored images is missing.*stored-1"):
        stored_before(run)
    before = project.run("stored-1")
    assert not runs_results.finished(before, loop.training_identity(before, before.index())), "it is trained again"
    file.write_text(text)


@pytest.mark.parametrize(("method", "mix"), [("mib", "half"), ("dkd", "append"), ("finetune", "half")])
def test_a_stopped_step_ends_as_a_whole_one(make_project, method, mix):
    """The second increment, which needs the stored images of the first one and the classes that the teacher finds."""
    ends = []
    for place in ("whole", "stopped"):
        project = chain(make_project(place), method, steps=2, mix=mix, threshold=0.0)
        project.set("train.base.epochs", 1)
        for name in ("own", "stored-1"):
            loop.train(project.run(name))
        run = project.run("stored-2")
        if place == "stopped":
            updates = len(loaders.ShuffledBatches(run.images(run.index()), 4, 1, 0)) + 2 * (mix == "append")
            with stopped(METHODS[method], updates + 1):
                loop.train(run)
            assert (run.resume / "state.safetensors").exists()
        loop.train(run)
        ends.append({**left_by(run), "memory": (run.folder / "memory.json").read_bytes()})
    assert ends[0] == ends[1]


def test_the_choice_depends_on_the_seed(make_project):
    stored = []
    for seed in (0, 0, 1):
        project = chain(make_project(f"seed-{len(stored)}"))
        project.set("train.base.epochs", 1)
        project.set("bases.own.seed", seed)
        project.set("chain.stored-1.seed", seed)
        for name in ("own", "stored-1"):
            loop.train(project.run(name))
        stored.append([image["id"] for image in record(project.run("stored-1"))["stored"]])
    assert stored[0] == stored[1] and stored[0] != stored[2]


# --- messages


def problem(project) -> str:
    with pytest.raises(ConfigError) as caught:
        runs_check.check(project.config)
    return str(caught.value)


def test_what_memory_cannot_be_used_for(make_project):
    place = "params.yaml: methods.mib-memory.memory"
    project = chain(make_project("many"), images=500)
    most = len(project.run("own").index().steps[0])
    found = f"found 500, but step 0 has {most} training images. Use at most {most}"
    assert problem(project) == f"{place}.images: on tiny, {found}, under methods.mib-memory."
    project = chain(make_project("one"))
    project.set("train.batch", 1)
    project.set("train.base.norm", "frozen")
    project.set("train.increment.norm", "frozen")
    assert problem(project).startswith(f"{place}.mix: on tiny, a batch of one image has no half. Use `append`")
    project.set("methods.mib-memory.memory.mix", "append")
    runs_check.check(project.config)
    for method in WITHOUT_TRAINING:
        project = chain(make_project(method), method)
        assert "nothing is trained after the base step, so no image would be drawn" in problem(project)
    project = make_project("joint")
    project.document["methods"]["joint-memory"] = {"memory": {"images": 4}}
    project.set("joints.all.method", "joint-memory")
    assert "joint-memory has memory, but no step is before this run. Name one without it." in problem(project)
    project = chain(make_project("unknown"), size=3)
    assert "methods.mib-memory.memory.size: unknown key." in problem(project)


def test_names_that_tables_could_not_tell_apart(make_project):
    project = chain(make_project("twice"))
    project.document["methods"]["mib"] = {"memory": {"images": 3}}
    assert "its name in tables is mib-M, as that of mib. Rename one of the sections." in problem(project)
    project = make_project("marked")
    project.document["methods"]["mib-M"] = {}
    assert "-M marks methods with memory, and this one has none" in problem(project)


def test_domains_store_no_images(garden, tmp_path, monkeypatch):
    from tests.helpers.project import Project

    project = Project(tmp_path / "domains")
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("CISS_DATA", str(Path(garden).parent))
    project.document["benchmarks"]["tiny"] |= {"dataset": Path(garden).name, "setting": "domain", "protocol": "1-1"}
    assert "images are stored by their classes, and a domain brings none. Remove the key" in problem(chain(project))


def test_the_plan_says_that_the_protocol_is_broken(project):
    (line,) = runs_check.notices(chain(project).config)
    assert line == f"tiny, mib-M: {BREAKS_PROTOCOL}: {Memory(images=6).words()}."


def test_the_command_knows_a_finished_run_with_memory(two_steps):
    os.chdir(two_steps.folder)
    assert all(launch.finished(two_steps.run(name)) for name in ("own", "stored-1", "stored-2"))
