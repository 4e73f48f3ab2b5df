"""One run: what it leaves, that it is the same each time, that it survives being stopped, and the loop's arithmetic."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ciss import cli, config, paths
from ciss.data import Index, data_set
from ciss.data.loaders import evaluation_loader
from ciss.methods import METHODS, Finetune, MiB
from ciss.runs import results as runs_results
from ciss.runs import timings
from ciss.runs.results import ARRAYS
from ciss.runs.run import Run, index_folder
from ciss.store import weights as store_weights
from ciss.store.files import CheckpointError, Locked
from ciss.store.weights import _seal, load_weights, restore, save_weights
from ciss.study import trial
from ciss.training import log as training_log
from ciss.training import loop
from ciss.training.log import CHECK_EVERY, DivergenceError, LossLog
from ciss.training.optimisation import GuardedSGD
from ciss.training.progress import Progress
from tests.helpers.training import Stop, distance, interrupted, kept_epoch, left_by, raising, spy, stopped, weights

CLASSES = 9  # with the background; protocol 4-2 knows 5, then 7, then 9 of them


# --- what a run leaves


def test_documented_files(finished):
    for name in finished.config.runs():
        run = finished.run(name)
        assert sorted(file.name for file in run.folder.iterdir()) == ["log.json", "weights.safetensors"]
        assert sorted(file.name for file in run.results.iterdir()) == [
            "code.txt",
            "confusion.npz",
            "curves.npz",
            "labels.npz",
            "result.json",
            "samples.npz",
            "tokens.npz",
            "trace.npz",
        ]
        assert sorted(file.name for file in run.resume.iterdir()) == ["finished", "lock"]
    assert sorted(f.name for f in (finished.folder / "runs" / "tiny").iterdir()) == sorted(finished.config.runs())
    assert sorted(f.name for f in (finished.folder / "results" / "tiny").iterdir()) == sorted(finished.config.runs())


def test_a_checkpoint_says_what_made_it(finished):
    _, description = load_weights(finished.run("mib-1").folder / "weights.safetensors")
    assert description == json.loads(json.dumps(finished.run("mib-1").description()))
    assert description["channels"] == [5, 2]
    assert str(finished.folder) not in json.dumps(description)


@pytest.mark.parametrize(("name", "known"), [("base", 5), ("tune-1", 7), ("tune-2", 9), ("mib-1", 7), ("all", 9)])
def test_confusion_counts_every_class_and_predicts_the_seen_ones(finished, name, known):
    result = runs_results.read(finished.run(name))
    confusion = result["confusion"]
    assert confusion.shape == (CLASSES, CLASSES)
    assert confusion[:, known:].sum() == 0
    # the reader's own look at the masks: the truth is the same whatever the network knows
    index = finished.run(name).index()
    truth = np.zeros(256, int)
    for pair in index.pairs("val"):
        truth += np.bincount(np.asarray(Image.open(pair.mask)).ravel(), minlength=256)
    assert truth[known:CLASSES].sum() > 0 or known == CLASSES
    np.testing.assert_array_equal(confusion.sum(1), truth[:CLASSES])
    assert result["reached"] == {5: 0, 7: 1, 9: 2}[known]


def test_scores_follow_from_the_confusion_matrix(finished):
    for name in finished.config.runs():
        result = runs_results.read(finished.run(name))
        known = {0: 5, 1: 7, 2: 9}[result["reached"]]
        matrix = result["confusion"][:known, :known].astype(float)  # future classes' pixels do not count
        with np.errstate(invalid="ignore"):
            iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
        assert result["scores"]["all"] == pytest.approx(np.nanmean(iou))
        assert result["scores"]["old"] == pytest.approx(np.nanmean(iou[1:5]))
        if known > 5:
            assert result["scores"]["new"] == pytest.approx(np.nanmean(iou[5:]))
        else:
            assert result["scores"]["new"] is None
        assert "NaN" not in (finished.run(name).results / "result.json").read_text()


def test_a_result_is_that_of_the_checkpoint(finished):
    """Confusion, last point of the curve and samples: once more, from the file."""
    run = finished.run("mib-1")
    index, result, network = run.index(), runs_results.read(run), run.build_network()
    restore(network, run.folder / "weights.safetensors")
    truth = run.label_table(training=False)
    val = evaluation_loader(run.settings, index, "val", list(range(8)), truth)
    holdout = evaluation_loader(run.settings, index, "train", index.holdout, truth)
    np.testing.assert_array_equal(loop.evaluate(run, network, val), result["confusion"])
    np.testing.assert_array_equal(loop.evaluate(run, network, holdout), result["curve_confusions"][-1])
    for name, prediction in loop.predict_samples(run, network, index).items():
        np.testing.assert_array_equal(prediction, result["samples"][name])
        assert prediction.dtype == np.uint8 and prediction.shape == (64, 64)


def test_curves_at_the_asked_points(finished):
    result = runs_results.read(finished.run("base"))  # 17 images: 4 updates of 4 images an epoch
    epochs = finished.run().phase.epochs
    assert result["curve_epochs"].tolist() == [0, 0.5, *range(1, epochs + 1)]
    assert result["curve_confusions"].shape == (epochs + 2, CLASSES, CLASSES)
    assert len({matrix.tobytes() for matrix in result["curve_confusions"]}) > epochs / 3, "it learns"
    assert len(set(result["curve_confusions"].sum((1, 2)).tolist())) == 1, "the same pixels each time"
    assert runs_results.read(finished.run("tune-1"))["curve_epochs"].tolist() == [0, 1, 2], (
        "one update an epoch: no half"
    )


def test_angles_of_tokens_at_the_same_points(finished):
    for name, new in (("base", 4), ("mib-1", 2), ("tune-2", 2)):
        run = finished.run(name)
        result, network = runs_results.read(run), run.build_network()
        store_weights.restore(network, run.folder / "weights.safetensors")
        rows = torch.cat([group.weight[:, :, 0, 0] for group in network.decoder.classifier.groups]).double()
        lengths = rows.norm(dim=1)
        expected = (rows @ rows.T / lengths[:, None] / lengths)[-new:]
        np.testing.assert_allclose(result["token_cosines"][-1], expected.detach(), atol=1e-6)
        assert result["token_epochs"].tolist() == result["curve_epochs"].tolist()
        assert result["token_cosines"].shape == (len(result["token_epochs"]), new, len(rows))
    start = runs_results.read(finished.run("mib-1"))["token_cosines"][0]
    np.testing.assert_allclose(start[:, 0], 1, atol=1e-6, err_msg="MiB's new rows start as the background's")


def test_a_point_before_the_first_update_is_scored_after_it(project):
    project.set("train.curve", [0.01, 0.99])
    loop.train(project.run())
    assert runs_results.read(project.run())["curve_epochs"].tolist() == [0, 0.25, 1, 2]


def test_samples_of_the_same_images_in_each_run(finished):
    index = finished.run().index()
    known = set(range(1, 9))
    wealth = {i: len(known & set(found)) for i, found in zip(index.ids["val"], index.classes["val"], strict=True)}
    samples = {name: list(runs_results.read(finished.run(name))["samples"]) for name in finished.config.runs()}
    assert len({tuple(ids) for ids in samples.values()}) == 1
    assert len(samples["base"]) == 2
    others = [wealth[i] for i in wealth if i not in samples["base"]]
    assert min(wealth[i] for i in samples["base"]) >= max(others), "those with most classes"


def test_log(finished):
    run = finished.run("mib-1")
    log = json.loads((run.folder / "log.json").read_text())
    assert [row["epoch"] for row in log] == [1, 2]
    assert [row["updates"] for row in log] == [1, 2]
    for row in log:
        assert row["loss"] == pytest.approx(row["loss/cross_entropy"] + row["loss/distillation"])
        assert math.isfinite(row["loss"])
    result = runs_results.read(run)
    assert result["log"] == log
    assert result["processes"] == 1
    assert result["images"] == len(run.images(run.index()))
    assert result["classes"].names == list(data_set("shapes").classes.values())
    assert "second" not in (run.folder / "log.json").read_text(), "times would change the bytes"


# --- a trial


@pytest.mark.parametrize("name", ["base", "mib-1", "all"])
def test_a_trial_draws_the_figures_and_keeps_nothing(project, monkeypatch, name):
    loop.train(project.run())
    before = sorted(file for file in project.folder.rglob("*") if file.name != "params.yaml")
    seen = spy(monkeypatch, METHODS[project.run(name).code])
    results, drawn = [], []
    read, draw = runs_results.read, trial.draw_figures
    monkeypatch.setattr(runs_results, "read", lambda run: results.append(read(run)) or results[-1])
    monkeypatch.setattr(trial, "draw_figures", lambda *a: drawn.extend(draw(*a)) or drawn)
    message = trial.attempt(project.run(name))
    assert len(seen) <= 2, "updates of one batch"
    result = results[-1]
    assert [row["epoch"] for row in result["log"]] == [1]
    assert result["scores"].keys() >= {"all", "old", "new"} and result["samples"] and len(result["curve_epochs"]) >= 2
    assert before == sorted(file for file in project.folder.rglob("*") if file.name != "params.yaml")
    score = f"{100 * result['scores']['all']:.1f} %"
    assert f"(mIoU {score}), and {len(drawn)} figures were drawn. Nothing is kept." in message
    assert len(drawn) == (5 if name == "mib-1" else 3) and all(figure.axes for figure in drawn)


def test_a_trial_names_the_checkpoint_of_the_project(project):
    """And not its link in a temporary folder, which is gone when the message is read."""
    file = project.folder / "runs" / "tiny" / "base" / "weights.safetensors"
    with pytest.raises(CheckpointError) as missing:
        trial.attempt(project.run("mib-1"))
    loop.train(project.run())
    project.set("train.base.lr", 0.5)
    with pytest.raises(CheckpointError) as outdated:
        trial.attempt(project.run("mib-1"))
    assert [str(error.value).partition(": ")[0] for error in (missing, outdated)] == [str(file)] * 2


def test_a_trial_draws_what_the_notebooks_draw():
    """Every function of `analysis.figures` that `2_base` and `3_increment` call."""
    own = Path(trial.__file__).read_text(encoding="utf-8")
    for name in ("2_base", "3_increment"):
        book = json.loads((paths.project() / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        code = "".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
        for line in re.findall(r"from ciss\.analysis\.figures\.(?:masks|training) import (.*)", code):
            missing = [function for function in line.split(", ") if f".{function}(" not in own]
            assert not missing, f"{name} draws {missing}"


# --- the same every time


def test_same_seed_same_bytes(make_project):
    found = []
    for place in ("here", "there"):
        project = make_project(place)
        for name in ("base", "mib-1"):
            torch.rand(7)  # what was drawn before must not matter
            loop.train(project.run(name))
            found.append(left_by(project.run(name)))
    assert found[:2] == found[2:]


def test_another_seed_other_weights_and_batches(project, monkeypatch):
    project.document["bases"]["other"] = {"benchmark": "tiny", "method": "finetune", "seed": 1}
    seen = spy(monkeypatch)
    loop.train(project.run())
    loop.train(project.run("other"))
    ids = [batch.ids for _, _, batch, _ in seen]
    assert ids[:8] != ids[8:] and ids[:4] != ids[4:8]
    one, other = weights(project.run()), weights(project.run("other"))
    assert not [name for name in one if "num_batches" not in name and torch.equal(one[name], other[name])]


def test_points_of_the_curve_do_not_change_the_training(make_project):
    """Scoring in between leaves modes and random numbers as they were."""
    found = []
    for place, curve in (("often", [0.25, 0.5, 0.75, 1]), ("seldom", [1])):
        project = make_project(place)
        project.set("train.curve", curve)
        project.set("benchmarks.tiny.model.dropout", 0.3)
        loop.train(project.run())
        found.append(weights(project.run()))
    assert distance(*found) == 0


@pytest.mark.slow
def test_same_bytes_in_another_process(make_project):
    here = make_project("here")
    loop.train(here.run())
    there = make_project("there")
    process = there.command("-m", "ciss", "train", "base")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "base: epoch 2/2: cross_entropy" in out
    assert left_by(here.run()) == left_by(there.run())


# --- stopped and continued


@pytest.mark.parametrize(("name", "method", "call"), [("base", Finetune, 7), ("mib-1", MiB, 3)])
def test_continues_after_the_last_finished_epoch(make_project, capsys, name, method, call):
    """Weights, losses and curves end as if nothing had happened. Call 7 is in the second epoch of four batches."""
    found = []
    for place in ("whole", "stopped"):
        project = make_project(place)
        project.set("train.base.epochs", 3)
        project.set("train.increment.epochs", 3)
        project.set("benchmarks.tiny.model.dropout", 0.3)  # so that random numbers matter
        run = project.run(name)
        if run.after:
            loop.train(project.run(run.after))
        if place == "stopped":
            with stopped(method, call):
                loop.train(run)
            assert not run.folder.exists() and not run.results.exists()
            capsys.readouterr()
        loop.train(run)
        found.append(left_by(run))
    assert f"{name}: continuing after epoch {2 if call == 3 else 1} of 3." in capsys.readouterr().out
    assert found[0] == found[1]
    assert not (run.resume / "state.safetensors").exists()


@pytest.mark.slow
def test_continues_after_a_kill(make_project):
    whole, killed = make_project("whole"), make_project("killed")
    for project in (whole, killed):
        project.set("train.base.epochs", 40)
    state = killed.run().resume / "state.safetensors"
    process = killed.command("-m", "ciss", "train", "base")
    deadline = time.monotonic() + 100
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert state.exists() and not killed.run().folder.exists()
    for project in (whole, killed):
        loop.train(project.run())
    assert left_by(whole.run()) == left_by(killed.run())
    assert sorted(file.name for file in killed.run().resume.iterdir()) == ["finished", "lock"]


def test_a_changed_parameter_starts_afresh(make_project, capsys):
    fresh, changed = make_project("fresh"), make_project("changed")
    with stopped(Finetune, 6):
        loop.train(changed.run())
    for project in (fresh, changed):
        project.set("train.base.lr", 0.01)
    capsys.readouterr()
    loop.train(changed.run())
    said = capsys.readouterr().out
    assert "(parameters.benchmark.train.base.lr 0.05, now 0.01); starting afresh" in said
    assert str(changed.run().resume / "state.safetensors") in said
    loop.train(fresh.run())
    assert left_by(fresh.run()) == left_by(changed.run())


def test_a_state_of_other_code_names_the_functions(project, capsys, frozen_code):
    with stopped(Finetune, 6):
        loop.train(project.run())
    (project.folder / "ciss").unlink()
    package = shutil.copytree(frozen_code, project.folder / "ciss")
    file = package / "training" / "log.py"
    file.write_text(file.read_text().replace("CHECK_EVERY = 50", "CHECK_EVERY = 51"))
    capsys.readouterr()
    loop.train(project.run())
    assert "begun with other values (code: training.log.CHECK_EVERY); starting afresh" in capsys.readouterr().out


def test_another_number_of_processes_starts_afresh(project, capsys):
    with stopped(Finetune, 6):
        loop.train(project.run())
    file = project.run().resume / "state.safetensors"
    tensors, stored = store_weights._open(file.read_bytes())
    assert stored["identity"]["processes"] == 1
    stored["identity"]["processes"] = 2
    file.write_bytes(_seal(tensors, stored))
    loop.train(project.run())
    assert "begun with other values (processes 2, now 1); starting afresh" in capsys.readouterr().out


def test_a_truncated_state_starts_afresh(make_project, capsys):
    whole, project = make_project("whole"), make_project("damaged")
    with stopped(Finetune, 6):
        loop.train(project.run())
    file = project.run().resume / "state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    capsys.readouterr()
    loop.train(project.run())
    assert f"{file}: cannot be continued" in (said := capsys.readouterr().out) and "starting afresh" in said
    assert len(said.splitlines()) == 4, "one line, then one an epoch, and one with the scores"
    loop.train(whole.run())
    assert left_by(project.run()) == left_by(whole.run())


def test_a_result_file_that_is_gone_or_cut_off_is_put_back(project, monkeypatch):
    """The reading says "Train it again": that command has to help, and need not train."""
    run = project.run()
    loop.train(run)
    whole = {name: (run.results / name).read_bytes() for name in ARRAYS}
    assert sorted([*whole, "code.txt", "result.json"]) == sorted(file.name for file in run.results.iterdir())
    monkeypatch.setattr(loop, "run_training", None)
    for name, content in whole.items():
        for damaged in (None, b"", content[:-9]):
            (run.results / name).unlink()  # the kept file is the same one: a link
            if damaged is not None:
                (run.results / name).write_bytes(damaged)
            loop.train(run)
            assert (run.results / name).read_bytes() == content


def test_a_finished_run_is_not_trained_again(project, capsys, monkeypatch):
    loop.train(project.run())
    before = {file: file.stat().st_mtime_ns for file in project.run().folder.iterdir()}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_training", None)
        assert loop.train(project.run()) == project.run().folder
    assert capsys.readouterr().out.startswith("base: trained already with these parameters")
    assert before == {file: file.stat().st_mtime_ns for file in project.run().folder.iterdir()}


@pytest.mark.parametrize("damage", ["other weights", "half a result", "no result"])
def test_half_of_a_run_is_trained_again(project, damage):
    run = project.run()
    loop.train(run)
    before = left_by(run)
    file = run.folder / "weights.safetensors" if damage.endswith("weights") else run.results / "result.json"
    if damage.startswith("no"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"\x01" if damage == "other weights" else file.read_bytes()[:99])
    loop.train(run)
    assert left_by(run) == before


def test_a_changed_coefficient_replaces_the_result_only_at_the_end(project):
    for name in ("base", "mib-1"):
        loop.train(project.run(name))
    run, old = project.run("mib-1"), left_by(project.run("mib-1"))
    project.set("methods.mib.distillation", 500.0)
    changed = project.run("mib-1")
    assert changed.folder == run.folder
    with stopped(MiB, 2):
        loop.train(changed)
    assert left_by(run) == old
    with pytest.MonkeyPatch.context() as patch:  # and while the new one is written
        patch.setattr(runs_results, "save_arrays", raising)
        with pytest.raises(Stop):
            loop.train(changed)
    assert left_by(run) == old
    assert sorted(f.name for f in run.results.parent.iterdir()) == ["base", "mib-1"], "nothing half-written stays"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MiB, "losses", None)  # every epoch is finished: only the end is done again
        loop.train(changed)
    assert left_by(changed)["weights"] != old["weights"]
    assert left_by(changed)["log"] != old["log"]
    loop.train(project.run("base"))
    assert runs_results.finished(changed, loop.training_identity(changed, changed.index()))


def test_a_new_base_means_new_increments(project):
    for name in ("base", "tune-1"):
        loop.train(project.run(name))
    before = left_by(project.run("tune-1"))
    file = project.run().folder / "weights.safetensors"
    network = project.run().build_network()
    description = store_weights.restore(network, file)
    with torch.no_grad():
        network.decoder.classifier.groups[0].bias.add_(1)
    save_weights(file, network, description)
    loop.train(project.run("tune-1"))
    assert left_by(project.run("tune-1"))["weights"] != before["weights"]


def test_two_trainers_of_one_run(project):
    run = project.run()
    program = (
        "import sys, time; from pathlib import Path; from ciss.store.files import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'base'): print('held', flush=True); time.sleep(600)"
    )
    process = project.command("-c", program, str(run.resume / "lock"))
    try:
        assert process.stdout.readline() == "held\n"
        started = time.monotonic()
        with pytest.raises(Locked, match=f"base is being trained by process {process.pid}.*kill {process.pid}"):
            loop.train(run)
        assert time.monotonic() - started < 2, "at once"
        assert not (run.resume / "state.safetensors").exists()
    finally:
        process.kill()
        process.communicate()
    loop.train(run)  # the kill left the owner's file, but no lock
    assert run.folder.is_dir()


# --- divergence


def test_a_loss_that_is_not_finite(make_project, monkeypatch):
    whole, broken = make_project("whole"), make_project("broken")
    seen, original = [], Finetune.losses

    def losses(self, student, teacher, batch):
        seen.append(batch)
        (term,) = original(self, student, teacher, batch).values()
        return {"cross_entropy": term, "other": term * (math.nan if len(seen) in (6, 7) else 0)}

    run = broken.run()
    with monkeypatch.context() as patch:
        patch.setattr(Finetune, "losses", losses)
        with pytest.raises(DivergenceError) as caught:
            loop.train(run)
    text = str(caught.value)
    assert "after 2 batches of this epoch: cross_entropy " in text and ", other nan" in text
    assert f"Images: {', '.join(seen[5].ids)}." in text, "of the first batch that broke"
    assert "last finished epoch is kept" in text and "train.*.lr" in text
    assert not run.folder.exists()
    assert kept_epoch(run) == 1
    for project in (whole, broken):
        loop.train(project.run())
    assert distance(weights(whole.run()), weights(run)) == 0, "the kept epoch is a good one"


def test_a_loss_that_is_not_finite_never_reaches_the_weights(project, monkeypatch):
    """Its update is left out on the device; those that follow until the next check are taken."""
    states, original = [], Finetune.losses
    students = []
    prepare = loop.prepare_training
    monkeypatch.setattr(loop, "prepare_training", lambda *a: students.append(prepare(*a)) or students[-1])

    def losses(self, student, teacher, batch):
        setup = students[-1]
        momentum = [state["momentum_buffer"].clone() for state in setup.optimiser.state.values()]
        states.append([p.detach().clone() for p in setup.student.parameters()] + momentum)
        (term,) = original(self, student, teacher, batch).values()
        return {"cross_entropy": term * (math.nan if len(states) in (1, 3) else 1)}

    monkeypatch.setattr(Finetune, "losses", losses)
    with pytest.raises(DivergenceError):
        loop.train(project.run())
    count = len(states[0])
    same = [all(torch.equal(a, b) for a, b in zip(x, y, strict=False)) for x, y in itertools.pairwise(states)]
    assert same == [True, False, True]
    assert all(value.isfinite().all() for state in states for value in state) and count == len(states[1]) // 2


def test_weights_that_are_not_finite_are_not_kept(project, monkeypatch):
    """The last update of an epoch is seen by no loss of that epoch."""
    seen, original = [], Finetune.losses

    def losses(self, student, teacher, batch):
        seen.append(batch)
        nothing = 0 * student.logits.sum()
        # the last of the second epoch: finite, but its gradient is not
        return {**original(self, student, teacher, batch), "root": nothing.sqrt() if len(seen) == 8 else nothing}

    monkeypatch.setattr(Finetune, "losses", losses)
    with pytest.raises(DivergenceError, match=r"weights are not after this epoch: encoder.* and [0-9]+ more[.]"):
        loop.train(project.run())
    assert kept_epoch(project.run()) == 1
    assert not project.run().folder.exists()


def test_watch_looks_now_and_then(monkeypatch):
    looks, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: looks.append(self.shape) or cpu(self))
    watch, network = LossLog(), nn.Linear(1, 1)
    for k in range(2 * training_log.CHECK_EVERY + 3):
        watch.add({"a": torch.tensor(float(k)), "b": torch.tensor(1.0)}, ["x"])
        assert len(looks) == (k + 1) // training_log.CHECK_EVERY
    means, rows = watch.epoch_means(network)
    assert rows["columns"] == ["loss/a", "loss/b"] and rows["values"].shape == (2 * training_log.CHECK_EVERY + 3, 2)
    assert [shape[0] for shape in looks] == [training_log.CHECK_EVERY, training_log.CHECK_EVERY, 3]
    assert means == {"loss": 52.0, "loss/a": 51.0, "loss/b": 1.0}
    watch.add({"a": torch.tensor(5.0), "b": torch.tensor(2.0)}, ["x"])
    assert watch.epoch_means(network)[0] == {"loss": 7.0, "loss/a": 5.0, "loss/b": 2.0}, "each epoch by itself"


def test_watch_finds_the_batch():
    watch, every = LossLog(), CHECK_EVERY
    for k in range(2 * every - 1):
        watch.add({"a": torch.tensor(math.inf if k > every else 1.0)}, [f"image{k}"])
    with pytest.raises(
        DivergenceError, match=rf"after {every + 2} batches of this epoch: a inf\. Images: image{every + 1}\."
    ):
        watch.add({"a": torch.tensor(1.0)}, ["last"])


def test_the_loop_does_not_wait_for_the_device(project, monkeypatch):
    """Between the loader and the next batch nothing is read back, but for the losses of a whole epoch at its end."""
    inside, waits = [], []
    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"):
        original = getattr(torch.Tensor, name)

        def counted(self, *arguments, _name=name, _original=original, **options):
            if inside:
                waits.append(_name)
            return _original(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)

    read = loop.BatchMaker.read

    def watched(self, loader, epoch):
        for batch in read(self, loader, epoch):
            inside.append(1)  # the step runs while this generator waits
            yield batch
            inside.clear()

    monkeypatch.setattr(loop.BatchMaker, "read", watched)
    for name in ("base", "mib-1"):
        project.set("train.curve", [1.0])
        loop.train(project.run(name))
    assert waits == []


# --- the loop's arithmetic


def test_accumulated_batches_are_one_batch(make_project, monkeypatch):
    """Each image has its own number of valid pixels, and a loss is a mean over the pixels of the whole update."""
    found, logs, lots = [], [], []
    for place, batch, accumulate in (("one", 8, 1), ("two", 4, 2)):
        project = make_project(place)
        project.set("train.base.norm", "frozen")
        project.set("train.batch", batch)
        project.set("train.accumulate", accumulate)
        with monkeypatch.context() as patch:
            seen = spy(patch)
            loop.train(project.run())
        found.append(weights(project.run()))
        logs.append([row["loss"] for row in runs_results.read(project.run())["log"]])
        ids = [i for _, _, batch, _ in seen for i in batch.ids]
        valid = {int((batch.labels != 255).sum()) for _, _, batch, _ in seen}
        assert len(valid) > 1, "a mean of means is another number"
        lots.append([sorted(ids[k : k + 8]) for k in range(0, len(ids), 8)])
        assert [row["updates"] for row in runs_results.read(project.run())["log"]] == [2, 4]
    assert lots[0] == lots[1], "the same images in each update"
    assert 0 < distance(*found) < 1e-6
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


# The group means of GSC's compensation are those of a batch: it is tested without, and by itself in test_loss_weights.
ACCUMULATED = {
    "finetune": {},
    "frozen": {"cross_entropy": "unbiased", "distillation": 1.0},
    "mib": {},
    "mib-released": {"divisor": "all"},
    "plop": {"pod": 0.001},
    "gsc": {"pod": 0.001, "compensation": False, "sharp_where": "background"},
    "mbs": {"threshold": 0.3, "ignored": "left_out"},
    "gsc_mbs": {"compensation": False, "soft": 0.3, "sharp": 0.1},
    "lwf": {},
    "lwf_mc": {"divisor": "all"},
    "ilt": {},
    "dkd": {},
    "ssul": {},
    "fixbc": {},
    "ncm": {},
    "ridge": {},
    "stage_ridge": {},
    "select": {"statistics_from": "images"},
}


def test_accumulated_batches_are_one_batch_for_every_method(make_project, monkeypatch):
    monkeypatch.setattr(Run, "differences", lambda *_: [])  # one teacher for both, of other batches
    monkeypatch.setattr(loop, "require_current", lambda *_: None)
    assert {name.partition("-")[0] for name in ACCUMULATED} == set(METHODS) - {"joint"}
    projects = []
    for place, batch, accumulate in (("one", 4, 1), ("two", 2, 2)):
        project = make_project(place)
        project.set("train.increment", {"epochs": 2, "lr": 0.01, "norm": "frozen"})
        project.set("train.batch", batch)
        project.set("train.accumulate", accumulate)
        project.set("methods", {"joint": {}, "mib": {}, **ACCUMULATED})
        for name in ACCUMULATED:
            step = {"benchmark": "tiny", "method": name, "seed": 0, "after": "base", "step": 1}
            project.document["chain"][f"{name}-1"] = step
        projects.append(project)
    loop.train(projects[0].run())
    shutil.copytree(projects[0].folder / "runs" / "tiny" / "base", projects[1].folder / "runs" / "tiny" / "base")
    for name in ACCUMULATED:
        found, logs = [], []
        for project in projects:
            run = project.run(f"{name}-1")
            loop.train(run)
            found.append(weights(run))
            logs.append([row["loss"] for row in runs_results.read(run)["log"]])
        assert distance(*found) < 1e-6, name
        assert logs[0] == pytest.approx(logs[1], rel=1e-5), name


def test_an_epoch_shorter_than_an_update_still_learns(project):
    project.set("train.batch", 8)
    project.set("train.accumulate", 4)  # 32 images; there are 20
    loop.train(project.run("all"))
    log = runs_results.read(project.run("all"))["log"]
    assert [row["updates"] for row in log] == [1, 2]
    assert log[1]["loss"] != log[0]["loss"]


@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_learning_rates(project, monkeypatch, schedule):
    project.set("train.schedule", schedule)
    project.set("train.encoder_lr", 0.1)
    used, step = [], GuardedSGD.step
    monkeypatch.setattr(
        GuardedSGD, "step", lambda self, *a: used.append([g["lr"] for g in self.param_groups]) or step(self, *a)
    )
    loop.train(project.run())
    factors = [(1 - k / 8) ** 0.9 if schedule == "poly" else 1 for k in range(8)]  # 4 updates an epoch
    np.testing.assert_allclose(used, [[0.005 * f, 0.05 * f] for f in factors], rtol=1e-12)
    log = runs_results.read(project.run())["log"]
    assert [row["lr"] for row in log] == [used[3][1], used[7][1]], "that of the epoch's last update"


def test_optimiser(project, monkeypatch):
    """Every parameter is in one group, the encoder's in the first; momentum is Nesterov's."""
    groups, step = [], GuardedSGD.step
    monkeypatch.setattr(GuardedSGD, "step", lambda self, *a: groups.append(self.param_groups) or step(self, *a))
    loop.train(project.run())
    network = project.run().build_network()
    sizes = [sum(p.numel() for p in group["params"]) for group in groups[0]]
    encoder = sum(p.numel() for p in network.encoder.parameters())
    assert sizes == [encoder, sum(p.numel() for p in network.parameters()) - encoder]
    for group in groups[0]:
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 1e-4)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_frozen_normalisation_keeps_statistics(project, norm):
    project.set("train.increment.norm", norm)
    loop.train(project.run())
    loop.train(project.run("tune-1"))
    before, after = weights(project.run()), weights(project.run("tune-1"))
    names = [name for name in before if "running_" in name or "num_batches" in name]
    assert len(names) > 20
    same = [torch.equal(before[name], after[name]) for name in names]
    assert all(same) if norm == "frozen" else not any(same)
    assert not torch.equal(before["encoder.body.stem.bn.weight"], after["encoder.body.stem.bn.weight"]), "scale learns"


def test_a_method_says_what_learns(project, monkeypatch):
    project.set("train.increment.norm", "frozen")
    loop.train(project.run())
    monkeypatch.setattr(Finetune, "trainable", lambda self, network: network.decoder.classifier.parameters())
    loop.train(project.run("tune-1"))
    before, after = weights(project.run()), weights(project.run("tune-1"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder.classifier.groups.0.weight", "decoder.classifier.groups.0.bias"}


def test_the_base_step_learns_everything(finished):
    torch.manual_seed(loop.stable_seed("weights", 0, 0))
    start, end = finished.run().build_network().state_dict(), weights(finished.run())
    assert not [name for name in end if torch.equal(start[name], end[name])]


def test_hooks_in_their_order(project, monkeypatch):
    """initialise, before_step (the step's batches, the frozen teacher), labels and losses."""
    called, labels = [], []

    def before_step(self, batches, teacher, previous):
        batches = list(batches)
        called.append(("before_step", [type(self).__name__, teacher, sum(len(batch.ids) for batch in batches)]))

    def relabel(self, batch, teacher):
        labels.append(batch.given)
        assert not teacher.logits.requires_grad
        return batch.given.clone().fill_(6)

    initialise = Finetune.initialise
    loop.train(project.run())
    monkeypatch.setattr(Finetune, "initialise", lambda *a: called.append(("initialise", a)) or initialise(*a))
    monkeypatch.setattr(Finetune, "before_step", before_step)
    monkeypatch.setattr(Finetune, "labels", relabel)
    monkeypatch.setattr(Finetune, "uses_teacher", True)
    seen = spy(monkeypatch)
    loop.train(project.run("tune-1"))
    assert [name for name, _ in called] == ["initialise", "before_step"]
    assert called[0][1][2] == 2
    name, teacher, images = called[1][1]
    assert (name, images) == ("Finetune", len(project.run().index().steps[1])), "every image, not one batch of four"
    assert (len(labels), len(seen)) == (4, 2), "the hold-out, then the batches"
    for _, old, batch, _ in seen:
        assert (batch.labels == 6).all() and not (batch.given == 6).all()
        assert old.logits.shape[1] == 5 and not old.logits.requires_grad
    # the teacher is the base step, to the last bit, and so it was until the end
    base = weights(project.run())
    assert distance(base, teacher.state_dict()) == 0
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_the_student_starts_as_the_teacher(project, monkeypatch):
    """The same images give the same old logits before the first update."""
    project.set("train.increment.norm", "frozen")
    monkeypatch.setattr(Finetune, "uses_teacher", True)
    loop.train(project.run())
    seen = spy(monkeypatch)
    loop.train(project.run("tune-1"))
    student, teacher, _, _ = seen[0]
    torch.testing.assert_close(student.logits[:, :5], teacher.logits, rtol=0, atol=1e-6)
    assert (seen[1][0].logits[:, :5] - seen[1][1].logits).abs().max() > 1e-3, "and then learns"


@pytest.mark.parametrize(
    ("name", "labels", "new", "old", "steps"),
    [
        ("base", {0, 1, 2, 3, 4, 255}, [1, 2, 3, 4], 0, [0] * 5),
        ("tune-1", {0, 5, 6, 255}, [5, 6], 5, [0] * 5 + [1] * 2),
        ("all", {*range(9), 255}, [*range(1, 9)], 0, [0] * 9),
    ],
)
def test_what_a_step_sees(project, monkeypatch, name, labels, new, old, steps):
    project.set("train.crop", 64)
    if name == "tune-1":
        loop.train(project.run())
    seen = spy(monkeypatch)
    loop.train(project.run(name))
    assert {int(i) for _, _, batch, _ in seen for i in batch.labels.unique()} == labels
    for _, _, batch, _ in seen:
        assert batch.new_classes.tolist() == new
        assert batch.old_channels == old
        assert batch.class_steps.tolist() == steps
        assert batch.labels.dtype == torch.int64 and batch.images.dtype == torch.float32
    index = project.run().index()
    held = {index.ids["train"][i] for i in index.holdout}
    assert not held & {i for _, _, batch, _ in seen for i in batch.ids}, "the hold-out is never trained on"


def test_a_teacher_runs_only_for_methods_that_use_one(project, monkeypatch):
    loop.train(project.run())
    load, loaded = loop.load_network, []

    def noted(run, device, *, reader):
        loaded.append(reader.name)
        return load(run, device, reader=reader)

    monkeypatch.setattr(loop, "load_network", noted)
    seen = spy(monkeypatch)
    for name in ("tune-1", "mib-1"):
        loop.train(project.run(name))
    assert loaded == ["mib-1"] and all(teacher is None for _, teacher, _, _ in seen)
    assert {batch.old_channels for _, _, batch, _ in seen} == {5}
    log = runs_results.read(project.run("tune-1"))["log"][0]
    assert {"gradient/background", "gradient/step0", "gradient/step1"} <= log.keys(), "logged all the same"


def test_scoring_is_outside_the_training_clock(project, monkeypatch):
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *a: time.sleep(0.5) or evaluate(*a))
    started = time.perf_counter()
    loop.train(project.run())
    wall = time.perf_counter() - started
    points = len(runs_results.read(project.run())["curve_epochs"])
    assert points == 4 and timings.read(project.folder, "tiny", "base")["training_seconds"] < wall - 0.5 * points


def test_eight_images_are_learnt_by_heart(project):
    project.set("benchmarks.tiny.limit", 10)
    project.set("benchmarks.tiny.holdout", 2)
    project.set("benchmarks.tiny.evaluation.batch", 8)
    project.set("train.base.epochs", 30)
    project.prepare()
    loop.train(project.run("all"))
    log = runs_results.read(project.run("all"))["log"]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


# --- precision


def test_losses_are_computed_in_float32(project, monkeypatch):
    project.set("train.precision", "bfloat16")
    loop.train(project.run())
    seen, inside = spy(monkeypatch, MiB), []
    labels = MiB.labels
    monkeypatch.setattr(MiB, "labels", lambda *a: inside.append(torch.is_autocast_enabled("cpu")) or labels(*a))
    loop.train(project.run("mib-1"))
    assert inside == [False] * 4, "the hold-out, then the batches"
    for student, teacher, _, losses in seen:
        assert student.logits.dtype == teacher.logits.dtype == torch.bfloat16, "the network runs in bfloat16"
        assert student.upsample((32, 32)).dtype == torch.float32
        assert {value.dtype for value in losses.values()} == {torch.float32}
    stored = {value.dtype for name, value in weights(project.run("mib-1")).items() if "num_batches" not in name}
    assert stored == {torch.float32}
    assert all(math.isfinite(row["loss"]) for row in runs_results.read(project.run("mib-1"))["log"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first scale is too large on purpose
def test_float16_is_scaled(project, monkeypatch):
    project.set("train.precision", "float16")
    scales, scale = [], torch.amp.GradScaler.scale
    monkeypatch.setattr(
        torch.amp.GradScaler, "scale", lambda self, loss: scales.append(self.get_scale()) or scale(self, loss)
    )
    loop.train(project.run())
    assert min(scales) > 1
    assert all(math.isfinite(row["loss"]) for row in runs_results.read(project.run())["log"])


# --- evaluation


def test_evaluation_leaves_the_network_as_it_was(finished):
    run = finished.run()
    network, index = run.build_network(), run.index()
    network.train()
    network.encoder.body.stem.bn.eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    loader = evaluation_loader(run.settings, index, "val", [0, 1, 2, 3, 4], run.label_table(training=False))
    first = loop.evaluate(run, network, loader)
    assert torch.equal(first, loop.evaluate(run, network, loader))
    assert first.sum() > 0 and first.dtype == torch.int64
    assert modes == [module.training for module in network.modules()]
    assert distance(state, network.state_dict()) == 0


def test_evaluation_does_not_depend_on_the_batch(finished):
    run = finished.run()
    network = run.build_network()
    store_weights.restore(network, run.folder / "weights.safetensors")
    wide = replace(run.settings, evaluation=replace(run.settings.evaluation, batch=8))
    loader = evaluation_loader(wide, run.index(), "val", list(range(8)), run.label_table(training=False))
    found = loop.evaluate(run, network, loader).numpy()
    assert np.abs(found - runs_results.read(run)["confusion"]).sum() <= 4, "but for a tie or two"


# --- runs that others need


def test_complete_trains_what_is_missing_in_order(project, monkeypatch):
    trained = []
    monkeypatch.setattr(loop, "train", lambda run, train=loop.train: trained.append(run.name) or train(run))
    project.set("train.base.epochs", 1)
    project.set("train.increment.epochs", 1)
    loop.complete(project.config, ["tune-2"])
    assert trained == [], "only files of a few seconds ask for it"
    project.document["complete"] = True
    loop.complete(project.config, ["tune-2"])
    assert trained == ["base", "tune-1", "tune-2"]
    trained.clear()
    loop.complete(project.config)
    assert trained == ["all", "mib-1"]
    trained.clear()
    project.set("methods.mib.distillation", 1.0)
    loop.complete(project.config)
    assert trained == ["mib-1"], "what changed"


def test_complete_prepares_changed_data(project):
    project.document["complete"] = True
    project.set("benchmarks.tiny.limit", 20)
    loop.complete(project.config, ["base"])
    assert len(Index.load(index_folder(project.folder, "tiny")).ids["train"]) == 20


def test_a_missing_predecessor_names_the_remedy(project):
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: .*Train it: ciss train base$"):
        loop.train(project.run("tune-1"))


def test_command_line(project, monkeypatch, capsys):
    project.write()

    def call(*arguments):
        cli.main(["train", *arguments])

    call("base")
    assert "base: epoch 2/2: cross_entropy" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^error: params.yaml: there is no run 'bse'. Did you mean 'base'"):
        call("bse")
    with pytest.raises(SystemExit, match=r"^error: .*there is no such checkpoint"):
        call("tune-2")
    with pytest.raises(SystemExit, match=r"^error: .*other\.yaml: there is no such file"):
        call("base", "--config", "other.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", interrupted)
        patch.setattr(os, "_exit", sys.exit)
        with pytest.raises(SystemExit) as caught:
            call("all")
        assert caught.value.code == 130
        assert "same command goes on after the last finished epoch" in capsys.readouterr().err
    assert config.load().bases["base"].seed == 0


# --- what is said


def test_progress(capsys):
    with Progress("base", epochs=4, updates=10, first=1) as progress:
        progress.update()
        progress.started -= 6  # seconds for the epoch
        progress.epoch({"epoch": 2, "loss": 1.5, "loss/a": 1.0, "loss/b": 0.5, "lr": 0.1}, 5.04)
    with Progress("base", epochs=4, updates=10, first=1, enabled=False) as progress:
        progress.epoch({"epoch": 2, "loss/a": 1.0}, 5.0)
    printed = capsys.readouterr()
    assert printed.out == "base: epoch 2/4: a 1.000, b 0.500; 5.0 s, 12 s left\n"
    assert printed.err == "", "no bar in a file"


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"compile": True}, {"channels_last": False}, {"precision": "float16"}])
def test_training_on_a_gpu(project, monkeypatch, options):
    """`auto` is bfloat16 there."""
    for name, value in options.items():
        project.set(f"train.{name}", value)
    seen = spy(monkeypatch, MiB)
    for name in ("base", "mib-1"):
        loop.train(project.run(name))
    student, _, batch, losses = seen[0]
    assert batch.images.is_contiguous(memory_format=torch.channels_last) == options.get("channels_last", True)
    if torch.cuda.is_available():
        assert student.logits.is_cuda
        assert student.logits.dtype == getattr(torch, options.get("precision", "bfloat16"))
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(math.isfinite(row["loss"]) for row in runs_results.read(project.run("mib-1"))["log"])
    assert not [name for name in weights(project.run("mib-1")) if "_orig_mod" in name or "module." in name]


@pytest.mark.gpu
def test_a_gpu_continues_a_stopped_training(project):
    with stopped(Finetune, 7):
        loop.train(project.run())
    loop.train(project.run())
    assert [row["epoch"] for row in runs_results.read(project.run())["log"]] == [1, 2]


@pytest.mark.gpu
def test_the_loop_does_not_wait_for_a_gpu(project, monkeypatch):
    """CUDA itself reports every wait between a batch's arrival and the next; the first batches may set things up."""
    read = loop.BatchMaker.read

    def watched(self, loader, epoch):
        for batch in read(self, loader, epoch):
            torch.cuda.set_sync_debug_mode("warn" if epoch else "default")
            yield batch
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop.BatchMaker, "read", watched)
    project.set("train.curve", [1.0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("base", "mib-1"):
            loop.train(project.run(name))
    assert not [str(w.message) for w in caught if "synchronizing" in str(w.message)]
