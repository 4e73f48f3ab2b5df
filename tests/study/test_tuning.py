"""`ciss tune`: proposals, interruptions, several workers, and what it leaves."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pandas as pd
import psutil
import pytest
import torch

from ciss import cli, config, paths
from ciss.config import ConfigError
from ciss.methods import METHODS
from ciss.ranges import declared, plain
from ciss.runs import live
from ciss.study import launch
from ciss.study.process import RunFailed
from ciss.study.tune import command, results, training
from ciss.study.tune.published import coefficients, search_space
from ciss.study.tune.trial import Trainer, diverged
from ciss.training.log import DivergenceError, LossLog
from tests.helpers.plans import load

optuna = pytest.importorskip("optuna", reason="the extra `tune` is not installed")
from ciss.study.tune.search import DATABASE, RANDOM, STARTUP, Search  # noqa: E402

ROOT = paths.project()
METHOD = "gsc"
COEFFICIENTS = {"gsc": ("clamp", "soft", "exponent", "features")}  # of each kind


def search(folder, method: str = METHOD, **identity) -> Search:
    folder = folder / "shapes-s9"
    folder.mkdir(exist_ok=True)
    every, defaults = declared(METHODS[method]), METHODS[method]()
    space = {name: every[name] for name in COEFFICIENTS.get(method, every)}
    published = {name: plain(getattr(defaults, name)) for name in space}
    return Search(folder, method, space, published, {"code": "a", **identity})


def score(values: dict) -> float:
    """Best for soft 1 and a clamp."""
    return 0.5 - 0.1 * abs(values["soft"] - 1) / 10 + (0.2 if values["clamp"] else 0)


def carry_out(searched: Search, trials: int, until: tuple[int, int] | None = None, log: list | None = None) -> None:
    """Trials of two steps. `until`: raises after this step of this trial was trained, before it is stored."""
    while True:
        with searched.claim(trials) as attempt:
            if attempt is None:
                return
            for step in range(len(attempt.scores) + 1, 3):
                if log is not None:
                    log.append((attempt.number, step))
                if until == (attempt.number, step):
                    raise KeyboardInterrupt
                attempt.report(step, dict.fromkeys(("all", "old", "new"), score(attempt.coefficients) / step))
                if step == 1 and attempt.should_prune():
                    attempt.stop("pruned")
                    break
            else:
                attempt.complete()


def proposals(searched: Search) -> list:
    return [(trial.number, trial.state.name, searched.values(trial), trial.value) for trial in searched.trials()]


# --- proposals and interruptions, without training


def test_interruptions_change_no_proposal(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed = search(tmp_path / "a")
    carry_out(undisturbed, 20)
    for until in ((3, 1), (3, 2), (15, 2)):
        with suppress(KeyboardInterrupt):
            carry_out(search(tmp_path / "b"), 20, until)
    carry_out(search(tmp_path / "b"), 16)
    with pytest.MonkeyPatch.context() as patch:  # killed after some values of a trial were stored
        suggest = Search._suggest
        stop = lambda self, trial, name: suggest(self, trial, name) if name != "soft" else 1 / 0  # noqa: E731
        patch.setattr(Search, "_suggest", stop)
        with pytest.raises(ZeroDivisionError):
            carry_out(search(tmp_path / "b"), 20)
    disturbed = search(tmp_path / "b")
    assert {trial.state.name for trial in disturbed.trials()} == {"COMPLETE", "PRUNED", "RUNNING"}
    carry_out(disturbed, 20)
    assert proposals(disturbed) == proposals(undisturbed) and len(proposals(disturbed)) == 20
    assert len({json.dumps(values) for _, _, values, _ in proposals(disturbed)}) == 20
    assert sum(state == "PRUNED" for _, state, *_ in proposals(disturbed)) > 2
    last = [values for number, _, values, _ in proposals(disturbed) if number >= RANDOM]
    assert sum(values["clamp"] is not None for values in last) > len(last) / 2, "better values come more often"


def test_the_first_trial_has_the_published_values(tmp_path):
    searched = search(tmp_path)
    carry_out(searched, 2)
    first, second = (values for _, _, values, _ in proposals(searched))
    assert first == searched.published == {"clamp": None, "soft": 0.3, "exponent": 1.0, "features": "stage"}
    for name, value in second.items():
        assert value in searched.space[name]
        assert not isinstance(value, float) or float(f"{value:.3g}") == value
    assert searched.importances() == {}, "of two trials"


def test_a_trial_below_the_median_of_its_step_is_pruned(tmp_path):
    searched = search(tmp_path)
    given = [0.5, 0.6, 0.4, 0.3, 0.45, 0.44, 0.46, 0.1]
    for expected in given:
        with searched.claim(len(given)) as attempt:
            attempt.report(1, dict.fromkeys(("all", "old", "new"), expected))
            if attempt.should_prune():
                attempt.stop("pruned")
            else:
                attempt.report(2, dict.fromkeys(("all", "old", "new"), expected / 10))
                attempt.complete()
    pruned = [trial.number for trial in searched.trials() if trial.state.name == "PRUNED"]
    # medians of the trials before: 0.45 of five, 0.445 with 0.44, 0.45 with 0.46
    assert STARTUP == 5 and pruned == [5, 7]


def test_a_trial_that_diverged_is_the_worst(tmp_path):
    searched = search(tmp_path)
    with searched.claim(1) as attempt:
        attempt.stop("diverged", "the loss is not finite")
    (trial,) = searched.trials()
    assert trial.state.name == "PRUNED" and trial.value is None and trial.user_attrs["state"] == "diverged"
    with searched.claim(1) as attempt:
        assert attempt is None, "it counts"


def test_trials_of_other_values_are_refused(tmp_path):
    carry_out(search(tmp_path), 1)
    with pytest.raises(ConfigError, match=r"trials of gsc were made with other values: code 'a', now 'b'. Restore"):
        search(tmp_path, code="b")
    assert len(search(tmp_path).trials()) == 1


def test_a_trial_that_ends_meanwhile_is_not_taken_over(tmp_path, monkeypatch):
    """Between reading the list of trials and taking the lock of one, another worker ends it."""
    searched = search(tmp_path)
    with searched.claim(1) as attempt:
        before = searched.study.get_trials()
        attempt.report(1, dict.fromkeys(("all", "old", "new"), 0.5))
        attempt.complete()
    listed = iter([before, *[searched.trials()] * 9])
    monkeypatch.setattr(searched, "trials", lambda: next(listed))
    with searched.claim(1) as attempt:
        assert attempt is None


def test_two_workers_share_the_trials(tmp_path):
    logs, errors = ([], []), []

    def work(log: list) -> None:
        try:
            carry_out(search(tmp_path), 12, log=log)
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(log,)) for log in logs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    steps = sorted(logs[0] + logs[1])
    assert len(steps) == len(set(steps)) and {number for number, _ in steps} == set(range(12))
    assert all(trial.state.is_finished() for trial in search(tmp_path).trials())


KILLED = """
import json, sys, time
from pathlib import Path
from ciss.study.tune.search import Search
from ciss.methods import METHODS
from ciss.ranges import declared, plain
folder, trials = Path(sys.argv[1]), int(sys.argv[2])
kind = METHODS["mib"]
space = declared(kind)
searched = Search(folder, "mib", space, {name: plain(getattr(kind(), name)) for name in space}, {})
print("ready", flush=True)
while True:
    with searched.claim(trials) as attempt:
        if attempt is None:
            break
        print("begins", attempt.number, flush=True)
        for step in (1, 2, 3):
            time.sleep(0.02)
            attempt.report(step, dict.fromkeys(("all", "old", "new"), 1 / attempt.coefficients["distillation"]))
        attempt.complete()
        print("ends", attempt.number, flush=True)
"""


def integrity(folder) -> str:
    with sqlite3.connect(folder / DATABASE) as database:
        return database.execute("pragma integrity_check").fetchone()[0]


@pytest.mark.slow
def test_a_killed_worker_leaves_a_storage_that_is_readable(tmp_path):
    """Workers are killed at many moments, also while they write: no trial is lost, and none ends twice."""
    folder, text = tmp_path / "shapes-s9", ""
    folder.mkdir()
    for moment in (0.13, 0.37, 0.6, None):
        command = [sys.executable, "-c", KILLED, str(folder), "20"]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        if moment is not None:
            time.sleep(moment)
            for worker in workers:
                worker.kill()
        text += "".join(worker.communicate()[0] for worker in workers)
        assert integrity(folder) == "ok"
    study = optuna.load_study(study_name="mib", storage=f"sqlite:///{folder / DATABASE}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 20
    ended = re.findall(r"ends (\d+)", text)
    assert len(ended) == len(set(ended)) >= 20 - 2 * 3, "the line of a killed worker may be missing"
    assert len(re.findall(r"begins", text)) > 20, "some were interrupted"


# --- published values


@pytest.mark.parametrize(
    ("method", "preset", "expected"),
    [
        ("plop", "voc", {"initialisation": "balanced", "pod": 0.01, "pod_outputs": 0.0005, "least": 0.001}),
        ("plop", "ade20k", {"initialisation": "balanced", "pod": 0.001, "pod_outputs": 0.00001, "least": 0.001}),
        ("plop", "shapes", {"initialisation": "balanced", "pod": 0.01, "pod_outputs": 0.0005, "least": 0.001}),
        ("mib-released", "voc", {"initialisation": "balanced", "distillation": 10.0, "alpha": 1.0}),
    ],
)
def test_published_values_are_those_of_the_paper(method, preset, expected):
    """Those of the presets of shapes and voc8 are this project's."""
    assert search_space(method, load(preset)[0]) == expected


def test_what_is_not_tuned_keeps_its_published_value():
    benchmark = load("voc")[0]
    assert coefficients("mib-released", benchmark)["divisor"] == "all"
    assert "orthogonality" not in search_space("mbs-no-orthogonality", benchmark), "0 is in no logarithmic range"
    assert coefficients("mbs-no-orthogonality", benchmark)["orthogonality"] == 0
    assert (
        coefficients("mib", benchmark, {"distillation": 3.0}).items()
        >= {**{"initialisation": "balanced", "distillation": 3.0, "alpha": 1.0, "divisor": "valid"}}.items()
    )
    with pytest.raises(ConfigError, match="finetune: no coefficient has a range"):
        search_space("finetune", benchmark)
    with pytest.raises(ConfigError, match="mib has no preset 'relased'. Did you mean 'released'?"):
        search_space("mib-relased", benchmark)


# --- the command, with stand-ins for trainings


@pytest.fixture
def tuned(project, monkeypatch, capsys):
    """tuned(*arguments) -> what `ciss tune` prints. `tuned.trained`: runs in their order."""
    trained = []

    def scores(trainer, name):
        values = trainer.files[name].methods[trainer.files[name].chain[name].method]
        high = 0.5 if values["initialisation"] == "default" else 0.4
        return {"all": high, "old": 0.3, "new": 0.2}

    def train(trainer, name):
        trained.append(name)
        if tuned.error and name.endswith(tuned.error[0]):
            raise RunFailed(tuned.error[1])

    def tuned(*arguments: str) -> str:
        project.write()
        cli.main(["tune", *arguments])
        return capsys.readouterr().out

    draw = results.draw
    monkeypatch.setattr(results, "draw", lambda *_: draw(*_) if tuned.draws else None)
    monkeypatch.setattr(launch, "handle_signals", lambda: None)
    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(Trainer, "scores", scores)
    tuned.trained, tuned.error, tuned.draws = trained, None, False
    project.document["methods"]["plop"] = {"pod": 0.5}
    return tuned


def test_each_method_gets_as_many_trials(project, tuned):
    tuned.draws = True
    out = tuned("mib", "plop", "--trials", "4")
    tuned.draws = False
    folder = project.folder / "tuning" / "tiny-s9"
    table = pd.read_csv(folder / "trials.csv")
    assert table["method"].tolist() == ["mib"] * 4 + ["plop"] * 4 and table["comparable"].all()
    assert tuned.trained[:3] == ["tiny-s9", "tiny-s9-mib-0-1", "tiny-s9-mib-0-2"] and len(tuned.trained) == 1 + 16
    assert json.loads(table["coefficients"][4])["pod"] == 0.01, "published, whatever the file has"
    assert re.search(r"^mib: trial 0 of 4, complete: 40.0 %; initialisation balanced, distill", out, re.MULTILINE)
    pictures = {"best_so_far", "mib_slices", "mib_importance", "plop_slices", "plop_importance"}
    assert {file.stem for file in folder.glob("*.png")} == pictures
    assert {name.name for name in project.folder.iterdir()} >= {"tuning"} and not (project.folder / "reports").exists()
    out = tuned("mib", "plop", "--trials", "4")
    assert tuned.trained[17:] in ([], ["tiny-s9"]) and "mib, 4 trials: published 40.0" in out
    out = tuned("mib", "--trials", "5")
    assert "mib, 5 trials" in out and "plop" not in out
    out = tuned()
    assert "Not comparable: the numbers of trials differ. Run: ciss tune plop --trials 5" in out
    assert not pd.read_csv(folder / "trials.csv")["comparable"].any()
    trial = config.load(folder / "trials" / "plop-3.yaml")
    assert trial.methods["plop-3"] == coefficients(
        "plop", trial.benchmarks["tiny"], json.loads(table["coefficients"][7])
    )
    assert trial.benchmarks == project.config.benchmarks, "the same but for coefficients"


def test_the_chosen_coefficients_are_written_on_request(project, tuned):
    project.write()
    file = project.folder / "params.yaml"
    text = (
        file.read_text()
        .replace("distillation: 10.0", "distillation: 77.0 # of mine")
        .replace("methods:", "methods: # m")
    )
    project.write = lambda: None
    file.write_text(text)
    tuned("mib", "--trials", "6")
    assert file.read_text() == text
    out = tuned("mib", "--write")
    table = pd.read_csv(project.folder / "tuning" / "tiny-s9" / "trials.csv")
    best = json.loads(table[table["chosen"]]["coefficients"].item())
    written = config.load().methods["mib"]
    assert best["initialisation"] == "default" and written.items() >= best.items()
    assert "# of mine" in file.read_text() and "methods: # m" in file.read_text()
    assert f"params.yaml: methods.mib, trial {table[table['chosen']]['trial'].item()}: " in out
    assert "nothing changes" in tuned("mib", "--write")


def test_writing_trains_nothing_unless_trials_are_asked_for(project, tuned):
    tuned("mib", "--trials", "3")
    count = len(tuned.trained)
    assert "params.yaml: methods.mib, trial " in tuned("mib", "--write") and len(tuned.trained) == count
    assert "mib, 5 trials" in tuned("mib", "--write", "--trials", "5") and len(tuned.trained) > count
    count = len(tuned.trained)
    with pytest.raises(SystemExit) as caught:
        tuned("plop", "--write")
    message = "--write: no complete trial of plop. Train some first: ciss tune plop --trials 20"
    assert str(caught.value) == f"error: {message}" and len(tuned.trained) == count
    assert "plop" not in tuned(), "it has no trials"


@pytest.mark.parametrize("damage", [lambda data: b"no database" * 99, lambda data: data[:8192]])
def test_a_damaged_storage_is_named_in_one_line(project, tuned, damage):
    tuned("mib", "--trials", "2")
    folder = project.folder / "tuning" / "tiny-s9"
    (folder / DATABASE).write_bytes(damage((folder / DATABASE).read_bytes()))
    for arguments in (["mib"], []):
        with pytest.raises(SystemExit) as caught:
            tuned(*arguments)
        text = str(caught.value)
        assert text.startswith(f"error: {folder / DATABASE}: damaged (") and "\n" not in text
        assert text.endswith(f"Put back a copy of the file, or move {folder} away to start again.")


def test_a_storage_that_cannot_be_written_is_not_called_damaged(project, tuned, monkeypatch):
    def ask(*_):
        cause = sqlite3.OperationalError("database or disk is full")
        raise optuna.exceptions.StorageInternalError("An exception") from cause

    monkeypatch.setattr(Search, "_new", ask)
    with pytest.raises(SystemExit) as caught:
        tuned("mib")
    file = project.folder / "tuning" / "tiny-s9" / DATABASE
    assert str(caught.value).startswith(f"error: {file}: database or disk is full. Check the disk")


@pytest.mark.parametrize("name", ["tuning", "tuning/tiny-s9"])
def test_a_file_in_place_of_the_folder_is_named(project, tuned, name):
    (project.folder / name).parent.mkdir(exist_ok=True)
    (project.folder / name).write_text("")
    for arguments in (["mib"], []):
        with pytest.raises(SystemExit) as caught:
            tuned(*arguments)
        message = f"{project.folder / name}: a file, but trials need a folder of this name. Move the file away."
        assert str(caught.value) == f"error: {message}"


def test_a_trial_prints_no_scores_of_the_validation_images(project, monkeypatch, capsys):
    def train():
        assert sys.argv[1:] == ["train", "a-1", "--config", "p.yaml"]
        print("a-1: epoch 1/1: 0.5", flush=True)
        print(f"a-1  {live.sentence({'all': 0.574})}", flush=True)
        print("a-1: the estimate", flush=True)

    monkeypatch.setattr(cli, "main", train)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # set back at the end
    monkeypatch.setattr(sys, "argv", ["ciss"])
    training.main("a-1", "--config", "p.yaml")
    assert capsys.readouterr().out == "a-1: epoch 1/1: 0.5\na-1: the estimate\n"
    trainer = Trainer(project.config, "tiny", 9, project.folder / "tuning" / "tiny-s9")
    file = trainer.write("mib", 0, {}).file
    name = trainer.run("mib", 0, 1)
    assert trainer.crew.command(name)[1:] == ["-m", "ciss.study.tune.training", name, "--config", file]


def test_ctrl_c_says_how_to_get_the_table(project, tuned, monkeypatch, capsys):
    monkeypatch.setattr(command, "train", interrupted)
    with pytest.raises(SystemExit):
        tuned("mib")
    assert "Without its methods it trains nothing and writes trials.csv" in capsys.readouterr().err


def interrupted(*_) -> None:
    raise KeyboardInterrupt


def test_a_diverged_trial_counts_and_another_error_stops(project, tuned):
    tuned.error = ("mib-1-1", "the loss is not finite after 3 batches of this epoch: a nan. Images: b.")
    tuned("mib", "--trials", "3")
    table = pd.read_csv(project.folder / "tuning" / "tiny-s9" / "trials.csv")
    assert table["state"].tolist() == ["complete", "diverged", "complete"] and table["steps"].tolist() == [2, 0, 2]
    tuned.error = ("mib-3-2", "CUDA out of memory")
    with pytest.raises(SystemExit) as caught:
        tuned("mib", "--trials", "5")
    assert str(caught.value) == "error: tiny-s9-mib-3-2: CUDA out of memory"
    tuned.error, first = None, len(tuned.trained)
    tuned("mib", "--trials", "5")
    again = [name for name in tuned.trained[first:] if name != "tiny-s9"]
    assert again[:2] == ["tiny-s9-mib-3-1", "tiny-s9-mib-3-2"], "the command continues with the same trial"
    table = pd.read_csv(project.folder / "tuning" / "tiny-s9" / "trials.csv")
    assert table["trial"].tolist() == [0, 1, 2, 3, 4]


def test_the_messages_of_divergence_are_recognised():
    log = LossLog()
    log.add({"a": torch.tensor(float("nan"))}, ["x"])
    with pytest.raises(DivergenceError) as caught:
        log.check()
    assert diverged(str(caught.value))
    network = torch.nn.Linear(1, 1).requires_grad_(False)
    network.weight.fill_(float("inf"))
    log = LossLog()
    log.add({"a": torch.tensor(1.0)}, ["x"])
    with pytest.raises(DivergenceError) as caught:
        log.epoch_means(network)
    assert diverged(str(caught.value))
    assert not diverged("CUDA out of memory") and not diverged("params.yaml: train.lr: nan")


def test_a_base_step_of_a_methods_own_is_shared_by_its_trials(project, tuned, monkeypatch):
    monkeypatch.setattr(METHODS["plop"], "own_base", "plop-released")
    tuned("mib", "plop", "--trials", "2")
    assert tuned.trained[:2] == ["tiny-s9", "tiny-s9-plop-released"]
    trial = config.load(project.folder / "tuning" / "tiny-s9" / "trials" / "plop-1.yaml")
    assert trial.chain["tiny-s9-plop-1-1"].after == "tiny-s9-plop-released"
    assert trial.methods["plop-released"]["variant"] == "released"


@pytest.mark.parametrize(
    ("key", "value", "arguments", "message"),
    [
        ("methods.mib.distillation", -1.0, ["mib"], "params.yaml: methods.mib.distillation: "),
        (
            "benchmarks.tiny.holdout",
            0,
            ["mib"],
            "params.yaml: benchmarks.tiny.holdout: 0, so there are no images to choose by. Set it, for example to a "
            "tenth of the training images.",
        ),
        ("methods.joint", {}, ["mbi"], "there is no method 'mbi'. Did you mean"),
        ("methods.joint", {}, ["finetune"], "finetune: no coefficient has a range, so there is nothing to tune."),
        ("methods.joint", {}, ["mib", "--seed", "0"], "--seed 0: params.yaml reports it (all). Tune on another seed."),
        (
            "methods.joint",
            {},
            ["mib", "--benchmark", "tyni"],
            "params.yaml: there is no benchmark 'tyni'. There are: tiny.",
        ),
        ("methods.joint", {}, [], "{folder}/tuning/tiny-s9: no trials yet. Name a method: ciss tune mib --trials 20"),
        ("methods.joint", {}, ["frozen"], "params.yaml: benchmarks.tiny.train."),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_trained(project, tuned, key, value, arguments, message):
    project.set(key, value)
    with pytest.raises(SystemExit) as caught:
        tuned(*arguments)
    text = str(caught.value)
    assert text.startswith(f"error: {message.format(folder=project.folder)}") and "\n" not in text
    assert not tuned.trained


def test_without_optuna_the_message_says_how_to_install_it(project, tuned, monkeypatch):
    monkeypatch.delitem(sys.modules, "ciss.study.tune.search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as caught:
        tuned("mib")
    assert str(caught.value).startswith("error: ciss tune needs the package optuna. Install it: uv sync --extra tune")


# --- the command with trainings


def wait_for(logs: list, text: str, count: int) -> None:
    """Waits until files have a text so many times."""
    for _ in range(6000):
        if sum(len(re.findall(text, log.read_text())) for log in logs) >= count:
            return
        time.sleep(0.1)
    raise TimeoutError("\n".join(log.read_text() for log in logs))


def kill(process: subprocess.Popen, *, alone: bool) -> None:
    """Kills a command, `alone` or with the trainings that it started."""
    trainings = [] if alone else psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in trainings:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


@pytest.mark.slow
def test_trials_are_neither_lost_nor_trained_twice(project, tmp_path):
    """Killed twice, the second time with two workers, it ends with the same trials as undisturbed."""
    project.set("benchmarks.tiny.protocol", "4-4")
    project.document |= {"chain": {}, "joints": {}, "ends": {"base": {"run": "base", "benchmark": "tiny"}}}
    disturbed = project.copy(tmp_path / "disturbed")
    logs = [tmp_path / f"{number}.log" for number in range(2)]

    def start(where, log) -> subprocess.Popen:
        arguments = ("-m", "ciss", "tune", "mib", "--trials", "4")
        with open(log, "a") as stream:
            return where.command(*arguments, stdout=stream, stderr=subprocess.STDOUT)

    def trials(where) -> list:
        storage = f"sqlite:///{where.folder / 'tuning' / 'tiny-s9' / DATABASE}"
        study = optuna.load_study(study_name="mib", storage=storage)
        return [(trial.number, trial.state.name, trial.params, trial.value) for trial in study.trials]

    assert start(project, tmp_path / "undisturbed.log").wait() == 0
    for part in ("data", "runs/tiny/tiny-s9", "results/tiny/tiny-s9"):  # the same base step
        shutil.copytree(project.folder / "tuning/tiny-s9" / part, disturbed.folder / "tuning/tiny-s9" / part)
    for number, workers in enumerate(([logs[0]], logs, logs)):
        commands = [start(disturbed, log) for log in workers]
        if number < 2:
            wait_for(workers, r"mib: trial \d of 4", number + 1)
            time.sleep(1)
            for command in commands:
                kill(command, alone=number == 0)
            assert integrity(disturbed.folder / "tuning" / "tiny-s9") == "ok"
            assert len(trials(disturbed)) > number
        assert number < 2 or [command.wait() for command in commands] == [0, 0], logs[0].read_text()
    assert trials(disturbed) == trials(project) and len(trials(project)) == 4
    text = "".join(log.read_text() for log in logs)
    trained = re.findall(r"^(\S+): epoch 2/2", text, re.MULTILINE)
    assert sorted(trained) == [f"tiny-s9-mib-{number}-1" for number in range(4)]
    table = pd.read_csv(disturbed.folder / "tuning" / "tiny-s9" / "trials.csv")
    assert table.equals(pd.read_csv(project.folder / "tuning" / "tiny-s9" / "trials.csv"))
