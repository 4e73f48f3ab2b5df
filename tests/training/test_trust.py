"""Nothing finished is lost, nothing wrong goes unnoticed: a method's state, foreign results, no memory, Ctrl-C."""

import json
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ciss import paths
from ciss.config import ConfigError
from ciss.distributed import WorkerError
from ciss.methods import GSC, METHODS, Finetune
from ciss.runs.results import read, read_end
from ciss.runs.timings import device_name
from ciss.store import files, weights
from ciss.store.files import CheckpointError, DiskFull
from ciss.training import loop
from ciss.training.loop import MemoryShort
from tests.helpers.training import interrupted, kept_epoch, left_by, stopped

VARIANTS = {
    "gsc": {},
    "gsc-medians": {"relabelling": "entropy", "sharp_where": "certain", "prototypes": "previous"},
    "gsc-previous": {"prototypes": "previous", "gate": "two_stage"},
    "plop": {},
    "mbs": {},
}


def increments(project) -> None:
    """A step of every method that prepares itself or changes labels."""
    for name, values in VARIANTS.items():
        project.document["methods"][name] = values
        step = {"benchmark": "tiny", "method": name, "seed": 0, "after": "base", "step": 1}
        project.document["chain"][f"{name}-1"] = step
    project.set("train.increment.epochs", 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_method_goes_on_with_its_state(make_project, monkeypatch, name):
    """Weights, losses, label counts as if nothing had happened; what prepared the method is not done again."""
    found = []
    kind = METHODS[name.partition("-")[0]]
    for place in ("whole", "stopped"):
        project = make_project(place)
        increments(project)
        loop.train(project.run())
        run = project.run(f"{name}-1")
        if place == "stopped":
            batches = len(
                loop.training_loader(run.settings, run.index(), run.images(run.index()), run.label_table(True), 0)
            )
            with stopped(kind, batches + 1):
                loop.train(run)
            assert kept_epoch(run) == 1
            monkeypatch.setattr(kind, "before_step", None)
            monkeypatch.setattr(loop, "judge_labels", None)
        loop.train(run)
        labels = read(run)["labels"]
        found.append({**left_by(run), "labels": {name: counts.tolist() for name, counts in labels.items()}})
    assert found[0] == found[1]
    assert found[0]["labels"]


class Counting(Finetune):
    """A method whose state changes with every batch, and its loss with it."""

    def before_step(self, batches, teacher, previous):
        self.seen = torch.zeros(2)

    def losses(self, student, teacher, batch):
        self.seen = self.seen + 1
        (loss,) = super().losses(student, teacher, batch).values()
        return {"cross_entropy": loss * (1 + 0.1 * self.seen.sum())}


def test_a_state_that_changes_during_the_step(make_project, monkeypatch):
    monkeypatch.setitem(METHODS, "finetune", Counting)
    found = []
    for place in ("whole", "stopped"):
        project = make_project(place)
        project.set("train.increment.epochs", 3)
        monkeypatch.setitem(METHODS, "finetune", Finetune)
        loop.train(project.run())
        monkeypatch.setitem(METHODS, "finetune", Counting)
        run = project.run("tune-1")
        if place == "stopped":
            with stopped(Counting, 3):
                loop.train(run)
            assert kept_epoch(run) == 2
        loop.train(run)
        found.append(left_by(run))
    assert found[0] == found[1]


def test_the_state_is_what_is_no_coefficient():
    method = GSC(soft=0.5)
    assert method.state_dict() == {}
    method.means, method.thresholds = torch.ones(2), None
    state = method.state_dict()
    assert list(state) == ["means", "thresholds"]
    other = GSC()
    other.load_state_dict(state)
    assert other.soft == 0.3 and torch.equal(other.means, method.means) and other.thresholds is None


# --- foreign results


def test_results_of_other_parameters_are_not_read(project):
    loop.train(project.run())
    project.set("train.base.lr", 0.01)
    with pytest.raises(CheckpointError) as caught:
        read(project.run())
    assert "made with other parameters (benchmark.train.base.lr 0.05, now 0.01)" in str(caught.value)
    assert str(caught.value).endswith("ciss train base")
    project.set("train.base.lr", 0.05)
    project.set("train.workers", 3)  # changes no result
    assert read(project.run())["run"] == "base"


def test_results_of_another_teacher_are_not_read(project):
    """The base step was trained again, its increments were not."""
    for name in ("base", "tune-1", "tune-2"):
        loop.train(project.run(name))
    path = read_end(project.config, "tune")
    assert [result["run"] for result in path] == ["base", "tune-1", "tune-2"]
    file = project.run("tune-1").results / "result.json"
    text = file.read_text()
    file.write_text(text.replace(json.loads(text)["weights"], "f" * 64))
    with pytest.raises(CheckpointError, match="tune-2: continues another training of tune-1.*ciss train tune-2$"):
        read_end(project.config, "tune")


@pytest.mark.slow
def test_the_notebook_refuses_to_average(project):
    """Two seeds of one method, one of them by another version; then by the same one."""
    project.document["bases"]["base-1"] = {**project.document["bases"]["base"], "seed": 1}
    tune = project.document["chain"]["tune-1"]
    project.document["chain"] = {"tune-1": tune, "tune-1-1": {**tune, "seed": 1, "after": "base-1"}}
    project.document["ends"] = {name: {"run": name, "benchmark": "tiny"} for name in project.document["chain"]}
    for name in ("base", "base-1", "tune-1", "tune-1-1"):
        loop.train(project.run(name))
    file = project.run("tune-1-1").results / "result.json"
    right = json.loads(file.read_text())
    notebook = str(paths.project().parent / "6_compare.ipynb")
    shutil.copy(Path(__file__).parents[2] / "notebooks" / "6_compare.ipynb", notebook)
    (project.folder / "reports").mkdir(exist_ok=True)
    shutil.copy(Path(__file__).parents[2] / "reports" / "published.yaml", project.folder / "reports")
    codes = []
    for number in ("1.0.0", right["versions"]["torch"]):
        file.write_text(json.dumps({**right, "versions": {**right["versions"], "torch": number}}))
        process = project.command("-m", "ciss", "execute", notebook, "copy.ipynb", "-p", "config", "params.yaml")
        out, error = process.communicate(timeout=100)
        codes.append(process.returncode)
        if number == "1.0.0":
            line = error.strip().splitlines()[-2]
            assert line.startswith("error: tiny: tune-1, base and tune-1-1, tune-1-1 cannot share a table: torch ")
            assert f"{right['versions']['torch']!r}, now '1.0.0'" in line and "Traceback" not in error
    assert codes == [1, 0], out + error
    rows = (project.folder / "reports" / "compare" / "runs.csv").read_text().splitlines()
    for column in ("benchmark", "seed", "order", "configuration", "code", "data", "versions", "arithmetic"):
        assert column in rows[0].split(",")
    assert len(rows) == 3


def test_a_result_says_what_made_it(project):
    loop.train(project.run())
    result = read(project.run())
    assert set(result["identity"]) == {"parameters", "code", "data", "teacher", "torch", "device"}
    assert result["identity"]["data"] == project.run().index().fingerprint
    assert set(result["versions"]) == {"torch", "torchvision", "timm", "numpy"}
    assert result["precision"] == "float32" and result["processes"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is named alone")
def test_a_device_tells_kinds_of_processor_apart(monkeypatch):
    """Clouds call generations of them by one name; their last digits differ."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    lines = "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"{lines}\nmodel\t\t: 99\nmodel name\t: other\n")
    assert device_name() == "AMD EPYC (family 25, model 17), AVX2, 3 threads"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "Processor\t: ARMv8\n")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert device_name() == "aarch64, AVX2, 3 threads"


def test_training_again_says_why(project, capsys):
    loop.train(project.run())
    project.set("train.base.lr", 0.01)
    capsys.readouterr()
    loop.train(project.run())
    said = capsys.readouterr().out
    assert "base: trained before with other values (parameters.benchmark.train.base.lr 0.05, now 0.01); again." in said


@pytest.mark.parametrize("removed", ["both", "runs", "results"])
def test_a_finished_training_survives_the_pipeline(project, monkeypatch, capsys, removed):
    """A stopped `dvc repro` removes outputs that it has not noted, then starts the stage again."""
    loop.train(project.run())
    run, before = project.run(), left_by(project.run())
    for folder in (run.folder, run.results):
        if removed in ("both", folder.parents[1].name):
            shutil.rmtree(folder)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_training", None)
        loop.train(run)
    assert capsys.readouterr().out == "base: trained already with these parameters, code and data; nothing to do.\n"
    assert left_by(run) == before
    assert sorted(file.name for file in run.resume.iterdir()) == ["finished", "lock"]
    # other parameters, or a damaged copy: trained again
    shutil.rmtree(run.folder)
    kept = run.resume / "finished" / "runs" / "weights.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    loop.train(run)
    assert left_by(run) == before
    project.set("train.base.lr", 0.01)
    loop.train(project.run())
    assert left_by(project.run())["weights"] != before["weights"]


def test_a_kill_after_the_result_leaves_nothing_behind(project, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.train(project.run())
    assert kept_epoch(project.run()) == 2
    loop.train(project.run())
    assert sorted(file.name for file in project.run().resume.iterdir()) == ["finished", "lock"]


# --- what the machine lacks


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_no_memory(project, error):
    with (
        pytest.raises(MemoryShort, match="base: no memory left .*epoch is kept.*lower train.batch"),
        stopped(Finetune, 6, error),
    ):
        loop.train(project.run())
    assert kept_epoch(project.run()) == 1


def test_other_runtime_errors_stay_what_they_are(project):
    with stopped(Finetune, 1, RuntimeError("expected scalar type Float")):
        loop.train(project.run())


def test_no_room_for_a_run_is_said_before_it_trains(project, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10000}))
    with pytest.raises(DiskFull, match="no room: .* needed, .* free, .* missing"):
        loop.train(project.run())
    assert not (project.run().resume / "state.safetensors").exists()


@pytest.mark.parametrize("moment", ["an epoch", "the result"])
def test_a_disk_that_fills_up_leaves_the_epoch_before(make_project, monkeypatch, moment):
    whole, project = make_project("whole"), make_project("full")
    original = files.write_bytes

    def write(file, data):
        if file.name == "state.safetensors":  # the curve is written too
            written.append(file)
        if (moment == "an epoch" and len(written) == 2) or file.name == "weights.safetensors":
            raise files._full(file, len(data))
        original(file, data)

    written: list = []
    with monkeypatch.context() as patch:
        for module in (files, weights):
            patch.setattr(module, "write_bytes", write)
        with pytest.raises(DiskFull):
            loop.train(project.run())
    assert kept_epoch(project.run()) == (1 if moment == "an epoch" else 2)
    assert not project.run().folder.exists() and not project.run().results.exists()
    for each in (whole, project):
        loop.train(each.run())
    assert left_by(whole.run()) == left_by(project.run())


# --- several processes, asked for in the parameter file


@pytest.mark.slow
def test_processes_of_the_parameter_file(project, capfd):
    """What a notebook trains with `train.processes: 2` torchrun trains; an error arrives as one message."""
    project.set("train.processes", 2)
    project.write()
    with pytest.raises(WorkerError) as caught:
        loop.train(project.run("tune-1"))
    assert str(caught.value).endswith("Train it: ciss train base")
    assert "Traceback" not in str(caught.value)
    loop.train(project.run())
    assert read(project.run())["processes"] == 2
    assert capfd.readouterr().out.count("base: epoch 2/2") == 1


def test_another_number_of_processes_than_asked_for(project, monkeypatch):
    project.set("train.processes", 2)
    monkeypatch.setattr("ciss.distributed.under_torchrun", lambda: True)
    monkeypatch.setattr("ciss.distributed.session", nullcontext)
    with pytest.raises(ConfigError, match="train.processes is 2, but there are 1. Make them equal"):
        loop.train(project.run())


# --- Ctrl-C


@pytest.mark.slow
def test_control_c_stops_within_a_second(make_project):
    """As a terminal sends it; then the same command goes on and ends as if nothing had happened."""
    whole, project = make_project("whole"), make_project("stopped")
    for each in (whole, project):
        each.set("train.base.epochs", 60)
    started = time.monotonic()
    process = project.command("-m", "ciss", "train", "base")
    state = project.run().resume / "state.safetensors"
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    sent = time.monotonic()
    patience = max(1.0, (sent - started) / 5)  # a start takes five seconds, more beside other work
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert time.monotonic() - sent < patience
    assert process.returncode == 130, out + error
    assert error == "\nStopped. The same command goes on after the last finished epoch.\n"
    assert 1 <= kept_epoch(project.run()) < 60 and not project.run().folder.exists()
    assert not [file for file in state.parent.iterdir() if file.name not in ("lock", "state.safetensors")]
    for each in (whole, project):
        loop.train(each.run())
    assert left_by(whole.run()) == left_by(project.run())
