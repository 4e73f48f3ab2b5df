"""What a training shows and records while it runs: curve files, scores of fixed images, TensorBoard, notebooks."""

import hashlib
import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ciss import metrics
from ciss.config import ConfigError
from ciss.data.loaders import Images
from ciss.methods import Finetune
from ciss.runs import live
from ciss.runs.live import AGREEMENT, HOLDOUT
from ciss.runs.run import load_network
from ciss.runs.state import TrainingState
from ciss.training import board, curves, loop, progress
from ciss.training.curves import SHARE, Curves, Pace, fixed_images
from ciss.training.evaluation import evaluate
from tests.helpers.training import left_by, stopped


def curve_of(run) -> live.Curve:
    return live.read(live.folder(run.root, run.benchmark, run.name))


def lines_of(run) -> list[dict]:
    file = live.folder(run.root, run.benchmark, run.name) / live.CURVE
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def without_holdout(project, monkeypatch):
    """A project without a hold-out set, where scoring is cheap enough for every epoch."""
    project.set("benchmarks.tiny.holdout", 0)
    project.prepare()
    monkeypatch.setattr(curves, "SHARE", 1e9)
    return project


# --- the curve file


def test_every_epoch_is_a_line_with_what_the_run_records(project):
    run = project.run()
    loop.train(run)
    curve, log = curve_of(run), json.loads((run.folder / "log.json").read_text())
    assert curve.about["run"] == "base" and curve.about["score"] == HOLDOUT and curve.about["scored_images"] == 4
    assert [row["epoch"] for row in curve.epochs] == [0, 1, 2]
    for row, logged in zip(curve.trained, log, strict=True):
        assert {key: row[key] for key in logged} == logged
        assert 0 < row["seconds"] < row["wall_seconds"] and row["peak_memory_bytes"] > 1e7 and row["score_every"] == 1
    with np.load(run.results / "curves.npz") as stored:
        by_epoch = dict(zip(stored["epochs"].tolist(), stored["confusions"], strict=True))
    for row in curve.epochs:
        expected = metrics.scores(by_epoch[row["epoch"]], run.classes.sizes, 0)["all"]
        assert row["score"]["all"] == pytest.approx(expected, abs=1e-6) and row["score"]["new"] is None
    result = json.loads((run.results / "result.json").read_text())
    assert curve.result["scores"]["all"] == pytest.approx(result["scores"]["all"], abs=1e-6) and curve.message == ""


def test_curves_lie_in_no_output(project):
    """The same training leaves the same bytes in the folders that DVC keeps."""
    run = project.run()
    loop.train(run)
    assert not [file for file in (*run.folder.rglob("*"), *run.results.rglob("*")) if "curve.json" in file.name]
    assert "seconds" not in (run.folder / "log.json").read_text()
    assert "/live\n" in (Path(__file__).parents[2] / ".gitignore").read_text()


def test_a_resumed_run_continues_its_curve(project):
    project.set("train.base.epochs", 4)
    run = project.run()
    with stopped(Finetune, call=12, error=KeyboardInterrupt):  # 4 updates an epoch: in the third
        loop.train(run)
    assert curve_of(run).message == "stopped by the user"
    first = curve_of(run).trained
    assert [row["epoch"] for row in first] == [1, 2]
    loop.train(run)
    epochs = [line["epoch"] for line in lines_of(run) if "epoch" in line]
    assert epochs == [0, 1, 2, 3, 4], "none twice"
    assert curve_of(run).trained[:2] == first and curve_of(run).message == ""


def test_what_a_killed_process_left(project):
    """Half a line, an epoch whose state was not saved, and an epoch that was saved but not written."""
    project.set("train.base.epochs", 4)
    run = project.run()
    with stopped(Finetune, call=12):
        loop.train(run)
    place = live.folder(run.root, run.benchmark, run.name)
    about, *rows = lines_of(run)
    second = rows[2]
    text = "".join(f"{json.dumps(row)}\n" for row in (about, *rows[:2], {**second, "epoch": 3}))
    (place / live.CURVE).write_text(f'{text}{{"epoch": 4, "lo')
    assert [row["epoch"] for row in live.read(place).epochs] == [0, 1, 3]
    loop.train(run)
    curve = curve_of(run)
    assert [row["epoch"] for row in curve.epochs] == [0, 1, 2, 3, 4]
    filled = curve.trained[1]
    assert filled["loss"] == second["loss"] and filled["score"] == second["score"] and "seconds" not in filled


def test_a_new_training_begins_a_new_curve(project):
    loop.train(project.run())
    project.set("train.base.lr", 0.01)
    loop.train(project.run())
    log = json.loads((project.run().folder / "log.json").read_text())
    assert [row["loss"] for row in curve_of(project.run()).trained] == [row["loss"] for row in log]


def test_the_reason_of_a_failure_is_in_the_curve(project):
    run = project.run()
    with stopped(Finetune, call=2, error=OSError("no space")):
        loop.train(run)
    assert curve_of(run).message == "no space" and curve_of(run).trained == []


def test_a_curve_that_cannot_be_written_stops_no_training(project, monkeypatch, capsys):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(live, "add", full)
    run = project.run()
    loop.train(run)
    assert (run.results / "result.json").is_file()
    assert capsys.readouterr().out.count("the curve cannot be written, the training goes on: disk full") == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]\n", b'{"epoch": 1}\n', b'{"run": "a'])
def test_no_curve(tmp_path, content):
    assert live.read(tmp_path) is None
    (tmp_path / live.CURVE).write_bytes(content)
    assert live.read(tmp_path) is None


# --- scores without a hold-out set


def test_without_a_holdout_given_labels_are_compared(without_holdout):
    """With labels as the step gives them: in an increment, old and future classes are background there."""
    for key, value in {"base.epochs": 9, "base.lr": 0.1, "crop": 64}.items():  # enough to learn something
        without_holdout.set(f"train.{key}", value)
    for name, new in (("base", [1, 2, 3, 4]), ("mib-1", [5, 6])):
        run = without_holdout.run(name)
        loop.train(run)
        curve, index = curve_of(run), run.index()
        assert curve.about["score"] == AGREEMENT == "agreement with the given labels"
        assert curve.about["scored_images"] == min(16, len(run.images(index)))
        assert len(curve.epochs) == run.phase.epochs and set(curve.last_score) == {"agreement"}
        loader = curves._loader(run, index, fixed_images(run.images(index), 16))
        assert {*torch.cat([labels.flatten() for _, labels, _ in loader]).tolist()} == {0, *new, 255}
        iou = metrics.class_iou(evaluate(run, load_network(run, torch.device("cpu")), loader))
        assert curve.last_score["agreement"] == pytest.approx(float(iou[new].mean()), abs=1e-6)
        assert name != "base" or curve.last_score["agreement"] > 0.01


def test_validation_images_are_not_read_while_training(without_holdout, monkeypatch):
    """Also with TensorBoard's pictures. They are read once, after the last epoch."""
    monkeypatch.setenv(board.SWITCH, "1")
    read, original = [], Images._read_decoded

    def noted(self, number):
        read.append(self.pairs[number].id)
        return original(self, number)

    finish, at_end = loop.finish, []
    monkeypatch.setattr(Images, "_read_decoded", noted)
    monkeypatch.setattr(loop, "finish", lambda *parts: (at_end.append(set(read)), finish(*parts)))
    run = without_holdout.run()
    loop.train(run)
    validation = {*run.index().ids["val"]}
    assert not at_end[0] & validation and validation < {*read}
    assert len(curve_of(run).last_score) == 1


@pytest.mark.parametrize("tensorboard", ["", "1"])
def test_scoring_changes_no_byte_of_a_training(make_project, monkeypatch, tensorboard):
    """The same weights, losses and scores as without scoring, and the same random state after each call."""
    states = []

    def random_state() -> str:
        parts = (torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate()))  # noqa: NPY002
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def trained(name: str) -> list:
        project = make_project(name)
        project.set("benchmarks.tiny.holdout", 0)
        project.prepare()
        left = []
        for run in ("base", "mib-1"):
            loop.train(project.run(run))
            left.append(left_by(project.run(run)))
        return left

    def watched(self, state, seconds):
        student = {key: value.clone() for key, value in self.student.state_dict().items()}
        modes, before = [module.training for module in self.student.modules()], random_state()
        epoch(self, state, seconds)
        assert before == random_state() and modes == [module.training for module in self.student.modules()]
        assert all(torch.equal(value, student[key]) for key, value in self.student.state_dict().items())
        states.append(curve_of(self.run).last_score)

    epoch = Curves.epoch
    monkeypatch.setenv(board.SWITCH, tensorboard)
    monkeypatch.setattr(curves, "SHARE", 1e9)
    monkeypatch.setattr(Curves, "epoch", watched)
    with_scores = trained("with")
    assert len(states) == 4 and all(states), "every epoch was scored"
    monkeypatch.setattr(Curves, "epoch", lambda *_: None)
    assert trained("without") == with_scores


def test_scoring_lies_outside_the_training_clock(without_holdout, monkeypatch):
    original = curves.evaluate

    def slow(*arguments):
        time.sleep(1)
        return original(*arguments)

    monkeypatch.setattr(curves, "evaluate", slow)
    run = without_holdout.run()
    loop.train(run)
    rows = curve_of(run).trained
    assert all(row["score_seconds"] > 1 and row["wall_seconds"] > row["seconds"] + 1 for row in rows)
    timing = json.loads((run.root / "timings" / "tiny" / "base.json").read_text())
    assert timing["training_seconds"] == pytest.approx(sum(row["seconds"] for row in rows), abs=0.01)
    assert timing["wall_seconds"] > timing["training_seconds"] + 2


@pytest.mark.parametrize(
    ("cost", "seconds", "every"),
    [(0.05, 1.0, 1), (0.051, 1.0, 2), (1.0, 1.0, 20), (0.0, 1.0, 1), (1.0, 100.0, 1), (3.0, 0.0, 1)],
)
def test_scoring_takes_at_most_a_twentieth(cost, seconds, every):
    pace = Pace(share=0.01)
    pace.cost = cost
    assert SHARE == 0.05 and pace.every(seconds) == every


def test_the_first_score_waits_until_it_is_cheap():
    """16 of 80 images without a backward pass: a tenth of an epoch."""
    pace = Pace(share=16 / 80)
    assert [epoch for epoch in range(1, 7) if pace.due(epoch, 3.0)] == [2, 3, 4, 5, 6]
    with pace.measured(2):
        pass
    assert pace.last == 2 and pace.cost < 0.1 and pace.due(3, 3.0)


def test_how_often_is_in_the_file(project):
    """16 of 21 images cost half of 0.76 epochs before they are measured: every eighth epoch."""
    project.set("benchmarks.tiny.holdout", 0)
    project.prepare()
    run = project.run()
    loop.train(run)
    rows = curve_of(run).trained
    images = curve_of(run).about["images"]
    assert [row["score_every"] for row in rows] == [-(-8 * 20 // images)] * 2 and not curve_of(run).last_score


def test_fixed_images_are_spread_evenly():
    assert fixed_images(list(range(100)), 4) == [0, 25, 50, 75]
    assert fixed_images([3, 5], 16) == [3, 5]
    assert fixed_images([3, 5, 9], 2) == [3, 5]


@pytest.mark.slow
def test_two_processes_score_together_and_write_once(project, monkeypatch):
    """The clock of one process decides when both score. Its file has one line an epoch, and so has the output."""
    monkeypatch.setenv(board.SWITCH, "1")
    project.set("benchmarks.tiny.holdout", 0)
    project.set("train.base.epochs", 10)  # 16 of 21 images: scored once or twice
    project.prepare()
    launcher = "-m torch.distributed.run --standalone --nproc-per-node=2 -m ciss train base".split()
    out, error = project.command(*launcher).communicate(timeout=600)
    run = project.run()
    curve = curve_of(run)
    assert [row["epoch"] for row in curve.epochs] == list(range(1, 11)), error
    assert [line for line in out.splitlines() if line.startswith("base")] == out.splitlines()
    assert out.count(": epoch ") == 10 and out.count("base  mIoU") == 1
    assert len([*live.folder(run.root, "tiny", "base").glob("events*")]) == 1
    assert 0 < curve.last_score["agreement"] <= 1 or curve.last_score == {"agreement": 0.0}
    assert {"picture_seconds", "score_seconds"} <= {key for row in curve.trained for key in row}


# --- TensorBoard


def test_tensorboard_shows_losses_scores_and_pictures(without_holdout, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(board.SWITCH, "1")
    run = without_holdout.run()
    with stopped(Finetune, call=8):  # in the second of two epochs of 5 updates
        loop.train(run)
    loop.train(run)
    events = EventAccumulator(str(live.folder(run.root, "tiny", "base")))
    events.Reload()
    log = json.loads((run.folder / "log.json").read_text())
    losses = events.Scalars("loss/cross_entropy")
    assert [event.step for event in losses] == [1, 2], "none twice"
    assert [event.value for event in losses] == pytest.approx([row["loss/cross_entropy"] for row in log])
    assert [event.step for event in events.Scalars("score/agreement")] == [1, 2]
    pictures = events.Tags()["images"]
    assert len(pictures) == 4 and all(name.startswith("image, given labels, prediction/") for name in pictures)
    image = events.Images(pictures[0])[-1]
    assert (image.height, image.width) == (64, 3 * 64 + 2 * board.GAP)


def test_tensorboard_does_not_change_what_a_run_is(project, monkeypatch, capsys):
    loop.train(project.run())
    monkeypatch.setenv(board.SWITCH, "1")
    loop.train(project.run())
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "on"), [("", False), ("0", False), ("off", False), ("1", True), ("yes", True)])
def test_the_switch_of_tensorboard(monkeypatch, value, on):
    monkeypatch.setenv(board.SWITCH, value)
    assert board.wanted() == on


def test_a_missing_tensorboard_is_named(monkeypatch):
    monkeypatch.setenv(board.SWITCH, "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"CISS_TENSORBOARD is set.* uv sync --extra live"):
        board.wanted()


def test_pictures_beside_one_another():
    black, grey = np.zeros((2, 3, 3), np.uint8), np.full((2, 1, 3), 9, np.uint8)
    row = board.beside([black, grey])[0, :, 0].tolist()
    assert row == [0, 0, 0, *[255] * board.GAP, 9]


# --- what is printed


def test_one_line_for_a_finished_run(project, capsys):
    for name in ("base", "mib-1"):
        loop.train(project.run(name))
    lines = capsys.readouterr().out.splitlines()
    scores = json.loads((project.run("mib-1").results / "result.json").read_text())["scores"]
    parts = f"old {100 * scores['old']:.1f}, new {100 * scores['new']:.1f}"
    assert lines[-1] == f"mib-1  mIoU {100 * scores['all']:.1f} ({parts})"
    assert [line for line in lines if line.startswith("base  mIoU ") and "(" not in line], "no new classes yet"


@pytest.mark.parametrize(
    ("score", "text"),
    [
        ({"all": 0.574, "old": 0.567, "new": 0.482}, "mIoU 57.4 (old 56.7, new 48.2)"),
        ({"all": 0.5, "old": 0.25, "new": None}, "mIoU 50.0"),
        ({"agreement": 0.125}, "agreement with the given labels 12.5"),
        ({"agreement": None}, "agreement with the given labels -"),
        ({}, ""),
        ({"all": None}, ""),
    ],
)
def test_scores_in_words(score, text):
    assert live.sentence(score) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3590, "1 h 00 min"), (11100, "3 h 05 min"),
     (187200, "2 d 4 h")],
)  # fmt: skip
def test_durations_in_words(seconds, text):
    assert live.duration(seconds) == text


# --- in notebooks


def kernel(**content) -> SimpleNamespace:
    """IPython with a kernel whose cell was asked for with this content."""
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda: {"content": content}))
    return SimpleNamespace(get_ipython=lambda: shell)


@pytest.mark.parametrize(
    ("ipython", "by_hand", "by_program"),
    [
        (kernel(allow_stdin=True), True, False),
        (kernel(allow_stdin=False), False, True),
        (kernel(), False, True),
        (SimpleNamespace(get_ipython=lambda: SimpleNamespace()), False, False),  # IPython on a terminal
        (SimpleNamespace(get_ipython=lambda: None), False, False),
        (None, False, False),
    ],
)
def test_whether_a_person_runs_the_cell(monkeypatch, ipython, by_hand, by_program):
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert (progress.runs_by_hand(), progress.runs_without_person()) == (by_hand, by_program)


CELL = """
from ciss import config
from ciss.runs.run import resolve
from ciss.training import loop
loop.train(resolve(config.load(), "base"))
"""


def displays(client, source: str) -> list[dict]:
    """The messages of a cell that a person runs."""
    messages = []
    client.execute_interactive(source, allow_stdin=True, output_hook=messages.append, timeout=120)
    return messages


def test_by_hand_the_curves_redraw_in_their_cell(project):
    from jupyter_client.manager import start_new_kernel

    project.write()
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(project.folder))
    try:
        messages = displays(client, CELL)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    kinds = [message["header"]["msg_type"] for message in messages]
    assert kinds.count("display_data") == 1 and kinds.count("update_display_data") == 1, "two epochs in one place"
    shown = [m["content"] for m in messages if m["header"]["msg_type"].endswith("display_data")]
    assert len({content["transient"]["display_id"] for content in shown}) == 1
    assert "<svg" in shown[1]["data"]["text/html"] and "epoch 2/2" in shown[1]["data"]["text/html"]
    printed = "".join(m["content"]["text"] for m in messages if m["content"].get("name") == "stdout")
    assert ": epoch" not in printed and "base  mIoU" in printed


def test_executed_by_papermill_it_is_one_line_an_epoch(project):
    import nbformat
    import papermill

    project.write()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, project.folder / "a.ipynb")
    papermill.execute_notebook("a.ipynb", "b.ipynb", progress_bar=False, cwd=str(project.folder))
    outputs = nbformat.read(project.folder / "b.ipynb", as_version=4).cells[0].outputs
    text = "".join(output.get("text", "") for output in outputs)
    assert text.count(": epoch ") == 2 and not [o for o in outputs if o.output_type == "display_data"]


def test_state_without_epochs_has_no_rows(project):
    """A training that begins draws no score of an earlier one."""
    run = project.run()
    loop.train(run)
    shown = Curves(run, run.index(), None, 4, TrainingState())
    assert curve_of(run).epochs == []
    shown.progress.close()
