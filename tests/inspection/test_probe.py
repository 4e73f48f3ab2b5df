"""What the networks around a step see: arrays against the networks asked one by one, and when they are asked again."""

import numpy as np
import pytest
import torch

from ciss import cli
from ciss.data.loaders import evaluation_loader
from ciss.data.normalisation import normalise
from ciss.inspection import probe
from ciss.store.files import CheckpointError
from ciss.store.weights import restore
from ciss.training import loop

BINS = probe.BINS


def asked(run, folder) -> tuple[list[torch.Tensor], list[torch.Tensor], list]:
    """Truth, and the outputs of a run's network on the hold-out, image by image."""
    network = run.build_network(run.step)
    restore(network, folder / "weights.safetensors")
    network.eval()
    index = run.index()
    loader = evaluation_loader(run.settings, index, "train", index.holdout, run.label_table(training=False))
    truths, outputs = [], []
    with torch.no_grad():
        for images, labels, _ in loader:
            truths.append(labels.long())
            outputs.append(network(normalise(images, torch.device("cpu"), False)))
    return truths, outputs


@pytest.fixture(scope="module")
def kept() -> dict:
    return {}


@pytest.fixture
def seen(finished, kept):
    """(run, its probe) of mib's first step."""
    run = finished.run("mib-1")
    if not kept:
        kept.update(probe.probe(finished.config, "mib-1"))
    return run, kept


def test_probabilities_of_the_background(seen):
    run, found = seen
    counts, sums = np.zeros((9, BINS), int), np.zeros((9, BINS))
    for truth, output in zip(*asked(run, run.folder), strict=True):
        chances = output.upsample(truth.shape[-2:]).softmax(1)[:, 0].double().numpy().ravel()
        for position, chance in zip(truth.numpy().ravel(), chances, strict=True):
            if position != 255:
                counts[position, min(int(chance * BINS), BINS - 1)] += 1
                sums[position, min(int(chance * BINS), BINS - 1)] += chance
    np.testing.assert_array_equal(found["background"], counts)
    np.testing.assert_allclose(found["background_sums"], sums, rtol=1e-6, atol=1e-9)
    assert counts[7:].sum() > 0, "future classes are among them"


@pytest.mark.parametrize(("name", "channels", "end"), [("base", 5, ""), ("mib-1", 7, "_after")])
def test_gradients_and_prototypes_by_class(finished, seen, name, channels, end):
    _, found = seen
    whole = finished.run(name)
    sizes, features = {}, {}
    for truth, output in zip(*asked(whole, whole.folder), strict=True):
        chances = output.upsample(truth.shape[-2:]).softmax(1)
        step = truth.shape[-1] // output.features.shape[-1]
        places = truth[:, ::step, ::step]
        for c in range(9):
            if c < channels:
                sizes.setdefault(c, []).append(1 - chances[:, c][truth == c])
            features.setdefault(c, []).append(output.features.permute(0, 2, 3, 1)[places == c])
    for c in range(9):
        mine = torch.cat(features[c])
        np.testing.assert_allclose(
            found[f"prototypes{end}"][c], mine.mean(0) if len(mine) else 0 * mine.sum(0), atol=1e-5
        )
        assert len(mine) == found["counts"][c]
        size = torch.cat(sizes[c]).mean().item() if c in sizes else np.nan
        np.testing.assert_allclose(found[f"gradients{end}"][c], size, rtol=1e-4, equal_nan=True)


def test_labels_of_each_rule_are_counted(finished, seen):
    _, found = seen
    before = finished.run("base")
    expected = np.zeros((9, 6), int)
    for truth, output in zip(*asked(before, before.folder), strict=True):
        labels = output.upsample(truth.shape[-2:]).argmax(1)
        told = (truth == 0) | ((truth != 5) & (truth != 6) & (truth != 255))  # all but the step's classes
        np.add.at(expected, (truth[told].numpy(), labels[told].numpy()), 1)
    np.testing.assert_array_equal(found["labels_argmax"], expected)
    for rule in probe.RULES:
        assert found[f"labels_{rule}"].sum() == expected.sum(), "the same pixels"
    assert found["labels_plop"][:, 5].sum() > 0 and found["labels_mbs"][:, 5].sum() > 0, "they ignore some"
    assert found["labels_gsc"][:, 5].sum() == 0
    # MBS keeps labels of which the teacher is sure: a part of the argmax's
    assert (found["labels_mbs"][:, 1:5] <= expected[:, 1:5]).all()


def test_the_file_says_which_coefficients_the_rules_have(finished, seen):
    finished.document["methods"]["mbs"] = {"threshold": 0.0}
    try:
        found = probe.probe(finished.config, "mib-1")
    finally:
        del finished.document["methods"]["mbs"]
    np.testing.assert_array_equal(found["labels_mbs"][:, 1:5], found["labels_argmax"][:, 1:5], "always sure enough")
    assert found["labels_mbs"][:, 1:5].sum() > seen[1]["labels_mbs"][:, 1:5].sum()


def test_rules_are_judged_once_for_runs_with_one_teacher(finished, monkeypatch):
    calls, real = [], probe.judge_labels
    monkeypatch.setattr(probe, "judge_labels", lambda run, *rest: calls.append(run.name) or real(run, *rest))
    judged: dict = {}
    first, second = (probe.probe(finished.config, name, judged) for name in ("mib-1", "tune-1"))
    assert calls == ["mib-1"]
    assert all((first[name] == second[name]).all() for name in first if name.startswith("labels_"))
    assert (first["background"] != second["background"]).any()
    probe.probe(finished.config, "tune-2", judged)
    assert calls[-1] == "tune-2", "another teacher"
    assert set(judged) == {("tiny", 0, "base", 1), ("tiny", 0, "tune-1", 2)}, "of this benchmark and seed"


def test_without_a_hold_out_validation_images(project, monkeypatch):
    project.set("benchmarks.tiny.holdout", 0)
    project.prepare()
    for name in ("base", "mib-1"):
        loop.train(project.run(name))
    monkeypatch.setattr(probe, "IMAGES", 3)
    run, ids, real = project.run("mib-1"), [], probe.judge_labels

    def judge(run, methods, teacher, pairs):
        pairs = list(pairs)
        ids.extend(name for batch, _ in pairs for name in batch.ids)
        return real(run, methods, teacher, pairs)

    monkeypatch.setattr(probe, "judge_labels", judge)
    assert 2 * 64 * 64 < probe.probe(project.config, "mib-1")["background"].sum() < 3 * 64 * 64, "three, without void"
    index = run.index()
    assert len(index.validation[1]) > 3
    assert ids == [index.ids["val"][number] for number in index.validation[1][:3]]


# --- files


def test_only_what_changed_is_looked_at_again(finished_copy, monkeypatch, capsys):
    probe.write(finished_copy.config, "tiny")
    assert capsys.readouterr().out.splitlines()[-2:] == ["tune-1: probed", "tune-2: probed"]
    folder = finished_copy.folder / "probes" / "tiny"
    assert {file.name for file in folder.iterdir()} == {"tune-1.npz", "tune-2.npz"}
    (folder / "gone.npz").touch()
    probe.write(finished_copy.config, "tiny")
    assert not capsys.readouterr().out and not (folder / "gone.npz").exists()

    monkeypatch.setattr(probe, "probe", lambda *_: pytest.fail("there is nothing new"))
    found = probe.read(finished_copy.config, finished_copy.config.path("tune"))
    assert list(found) == ["tune-1", "tune-2"] and "key" not in found["tune-1"]


def test_processes_that_share_the_runs_write_the_same_bytes(finished_copy, capfd):
    probe.write(finished_copy.config, "tiny")
    files = sorted((finished_copy.folder / "probes" / "tiny").iterdir())
    alone = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    capfd.readouterr()
    probe.write(finished_copy.config, "tiny", jobs=2)
    assert sorted(capfd.readouterr().out.splitlines()) == ["tune-1: probed", "tune-2: probed"]
    assert [file.read_bytes() for file in files] == alone


@pytest.mark.parametrize("change", ["missing", "cut off", "other coefficients", "other weights"])
def test_what_is_not_of_these_networks_is_refused(finished_copy, change):
    probe.write(finished_copy.config, "tiny")
    file = finished_copy.folder / "probes" / "tiny" / "tune-2.npz"
    if change == "missing":
        file.unlink()
    elif change == "cut off":
        file.write_bytes(file.read_bytes()[:-40])
    elif change == "other coefficients":
        finished_copy.set("methods.mbs", {"threshold": 0.9})
    else:
        finished_copy.set("train.increment", {"epochs": 1, "lr": 0.01})
        loop.train(finished_copy.run("tune-1"))
        loop.train(finished_copy.run("tune-2"))
    with pytest.raises(CheckpointError, match=r"tune-\d\.npz: missing, damaged, or made of other .*: ciss probe tiny"):
        probe.read(finished_copy.config, ["base", "tune-1", "tune-2"])
    finished_copy.document["complete"] = True
    assert set(probe.read(finished_copy.config, ["tune-2"])) == {"tune-2"}


def test_a_base_step_has_no_teacher(finished):
    with pytest.raises(ValueError, match="base continues no run: there is no teacher"):
        probe.probe(finished.config, "base")
    assert probe.read(finished.config, ["base", "all"]) == {}


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_that_are_not_trained_are_named(project, jobs):
    loop.train(project.run("base"))
    with pytest.raises(CheckpointError, match=r"tune-1/weights.safetensors: .*: ciss train tune-1"):
        probe.write(project.config, "tiny", jobs)


def test_the_command_names_an_unknown_benchmark(finished_copy):
    finished_copy.write()
    with pytest.raises(SystemExit, match=r"^error: .*there is no benchmark 'tinny'. Known: tiny\."):
        cli.main(["probe", "tinny"])
