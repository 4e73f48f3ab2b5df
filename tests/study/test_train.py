"""Several runs at once: each after the one it continues, on a device of its own, and a failure takes only its own."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext

import pytest

from ciss import cli, config
from ciss.runs.run import index_folder
from ciss.store import files
from ciss.study import launch, process
from ciss.study.slurm import commands, queue
from ciss.study.slurm.queue import SlurmError
from ciss.training import loop
from tests.helpers.training import left_by

# A process in the place of a training: notes when it begins and ends, and on which device; does what its name says.
STAND_IN = """
import json, os, signal, sys, time
name, folder = sys.argv[1:]
def note(what):
    with open(os.path.join(folder, f"{time.monotonic_ns()}"), "w") as file:
        json.dump([what, name, os.environ.get("CUDA_VISIBLE_DEVICES")], file)
note("begins")
sys.stderr.write("a warning\\n" * 9999)  # more than a pipe holds
try:
    time.sleep(30 if "slow" in name else float(os.environ.get("SECONDS", 0.15)))
    if "bad" in name:
        sys.exit(f"error: {name}: a loss is not finite.")
    if "crashed" in name:
        raise RuntimeError("CUDA error: an illegal memory access")
    if "killed" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "aborted" in name:
        sys.stderr.write("CUDA says why")
        sys.stderr.flush()
        os.abort()
except KeyboardInterrupt:
    note("stopped")
    time.sleep(0.3)  # a second one would be seen
finally:
    note("ends")
"""


@pytest.fixture
def crew(project, tmp_path, monkeypatch):
    """crew(chain, jobs, devices, trained=()) -> (trained, failed, notes): runs are stand-ins; those of `trained` are
    there already. `chain`: the run that each continues."""
    notes = tmp_path / "notes"
    notes.mkdir()

    def noted() -> list:
        return [json.loads(file.read_text()) for file in sorted(notes.iterdir(), key=lambda file: int(file.name))]

    monkeypatch.setattr(launch, "command", lambda _, name: [sys.executable, "-c", STAND_IN, name, str(notes)])

    def carry_out(chain: dict[str, str], jobs: int, devices: list[str] = (), trained: tuple = ()):
        done = lambda run: run.name in trained or ["ends", run.name] in [note[:2] for note in noted()]  # noqa: E731
        monkeypatch.setattr(launch, "finished", lambda run: done(run) and "other" not in run.name)
        settings = planned(project, chain)
        return *launch.crew(settings, jobs, list(devices)).train(launch.order(settings)), noted()

    carry_out.noted = noted
    return carry_out


def planned(project, chain: dict[str, str]) -> config.Config:
    steps = {"base": 0}
    for name, after in chain.items():
        steps[name] = steps[after] + 1
    project.document["chain"] = {
        name: {"benchmark": "tiny", "method": "finetune", "seed": 0, "after": after, "step": steps[name]}
        for name, after in chain.items()
    }
    project.document["ends"] = {}
    project.set("benchmarks.tiny.protocol", "2-1")
    return project.config


def at_once(notes: list) -> list[set]:
    """The runs under way after every note."""
    found, now = [], set()
    for what, name, _ in notes:
        now = now | {name} if what == "begins" else now - {name}
        found.append(now)
    return found


def test_each_after_the_one_it_continues(crew):
    chain = {"a-1": "base", "a-2": "a-1", "b-1": "base", "b-2": "b-1", "c-1": "base"}
    trained, failed, notes = crew(chain, jobs=2)
    assert not failed and sorted(trained) == sorted(["base", "all", *chain])
    order = [(what, name) for what, name, _ in notes]
    for name, after in chain.items():
        assert order.index(("ends", after)) < order.index(("begins", name))
    under_way = at_once(notes)
    assert max(map(len, under_way)) == 2, "two at a time, and no more"
    assert {"a-1", "b-1"} in under_way or {"a-2", "b-1"} in under_way
    assert {device for *_, device in notes} == {os.environ.get("CUDA_VISIBLE_DEVICES")}, "left as it is"


def test_most_is_waiting_for_what_comes_first(project):
    settings = planned(project, {"a-1": "base", "b-1": "base", "b-2": "b-1", "b-3": "b-2"})
    # joint training is as long as the seven steps of its benchmark
    assert launch.order(settings) == ["all", "base", "b-1", "b-2", "a-1", "b-3"]


def test_a_failure_takes_only_what_continues_it(crew, capsys):
    chain = {"bad-1": "base", "bad-2": "bad-1", "bad-3": "bad-2", "b-1": "base", "b-2": "b-1"}
    chain |= {"killed": "base", "aborted": "base", "other": "base", "crashed": "base"}
    trained, failed, _ = crew(chain, jobs=3)
    assert sorted(trained) == ["all", "b-1", "b-2", "base"]
    assert failed["bad-1"] == "a loss is not finite."
    assert capsys.readouterr().out.count("bad-1 failed: a loss is not finite.\n") == 1, "said at once, too"
    assert failed["bad-2"] == "left out: it continues bad-1." and failed["bad-3"] == "left out: it continues bad-2."
    assert failed["killed"].startswith("its process was killed (Killed); is there memory enough? a warning")
    assert failed["aborted"].startswith("its process was killed (Aborted) a warning")
    assert failed["aborted"].endswith("CUDA says why")
    assert failed["other"].startswith("ended, but is not what this file asks for") and len(failed) == 7
    crashed = failed["crashed"].splitlines()
    assert crashed[0] == "Traceback (most recent call last):", "and not what follows the last 'error: '"
    assert crashed[-1] == "RuntimeError: CUDA error: an illegal memory access"
    assert all(len(message.splitlines()) <= process.LAST_LINES + 1 for message in failed.values()), "not 9,999 warnings"


def test_a_process_that_cannot_be_started_stops_no_other(crew, project, monkeypatch):
    started = launch.command

    def command(config_file, name):
        return ["/nowhere/python"] if name == "a-1" else started(config_file, name)

    monkeypatch.setattr(launch, "command", command)
    trained, failed, _ = crew({"a-1": "base", "b-1": "base"}, jobs=2)
    assert sorted(trained) == ["all", "b-1", "base"] and list(failed) == ["a-1"]
    assert failed["a-1"].startswith("its process could not be started: ") and "/nowhere/python" in failed["a-1"]


def test_nothing_waits_for_what_it_does_not_continue(crew, monkeypatch):
    """The base is there, joint training is long: the increments begin at once."""
    monkeypatch.setenv("SECONDS", "0.5")  # longer than a process takes to start
    chain = {"a-1": "base", "a-2": "a-1", "a-3": "a-2", "a-4": "a-3"}
    *_, notes = crew(chain, jobs=2, trained=("base",))
    assert {"all", "a-1"} in at_once(notes)


def test_what_is_trained_is_left_alone(crew):
    trained, failed, notes = crew({"a-1": "base", "a-2": "a-1"}, jobs=2, trained=("base", "all", "a-1"))
    assert (trained, failed) == (["a-2"], {}) and {name for _, name, _ in notes} == {"a-2"}


def test_each_job_has_a_device_of_its_own(crew):
    chain = {f"m{number}-1": "base" for number in range(6)}
    trained, _, notes = crew(chain, jobs=2, devices=["3", "5"])
    assert len(trained) == 8
    now: dict[str, str] = {}
    for what, name, device in notes:
        if what == "ends":
            del now[name]
            continue
        assert device in ("3", "5") and device not in now.values()
        now[name] = device


def test_ctrl_c_reaches_every_process(crew):
    """Once: the terminal's own does not. A run that waits is not begun."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        crew({"slow-1": "base", "slow-2": "base", "slow-3": "base"}, jobs=2)
    signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 10
    assert [name for what, name, _ in crew.noted() if what == "stopped"] in (["slow-1", "slow-2"], ["slow-2", "slow-1"])
    assert [what for what, *_ in crew.noted()].count("begins") == [what for what, *_ in crew.noted()].count("ends") == 4


def test_whatever_asks_it_to_end_is_heard():
    """Also where Ctrl-C is ignored by who started it, but for what `nohup` wants."""
    numbers = (signal.SIGINT, *launch.STOPPING)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:  # a shell's background jobs begin with some of them ignored
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        launch.handle_signals()
        found = {number: signal.getsignal(number) for number in numbers}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert found == {**dict.fromkeys(numbers, signal.default_int_handler), signal.SIGHUP: signal.SIG_IGN}


def test_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 3")
    assert launch.gpus() == ["GPU-a", "3"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,7")  # where there is one
    assert launch.gpus() == ["0"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for nothing in ("", "-1", "0,1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert launch.gpus() == []


def test_devices_of_runs_that_take_several(project, monkeypatch):
    project.set("train.batch", 60)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.gpus(2) == ["0,1", "2,3"], "the fifth is left over"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a,GPU-b,1,2")
    assert launch.gpus(2) == ["4,GPU-a", "GPU-b,1"] and launch.gpus(5) == ["4,GPU-a,GPU-b,1,2"]
    assert launch.gpus(6) == []

    assert launch.gpus_per_run(project.config, None) == 1 and launch.gpus_per_run(project.config, 5) == 5
    with pytest.raises(config.ConfigError, match="--per-run 6: this machine has 5 GPUs"):
        launch.gpus_per_run(project.config, 6)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(config.ConfigError, match="this machine has 0 GPUs. Leave --per-run out"):
        launch.gpus_per_run(project.config, 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    project.set("train.processes", 2)
    assert launch.gpus_per_run(project.config, None) == launch.gpus_per_run(project.config, 2) == 2
    with pytest.raises(config.ConfigError, match="--per-run 4: train.processes is 2"):
        launch.gpus_per_run(project.config, 4)


def test_one_run_on_all_gpus(project, monkeypatch):
    """Each run gets both GPUs and a process for each."""
    started = []

    def start(arguments, device):
        started.append((arguments[1:], device))
        raise process.RunFailed("no GPU here")

    project.write()
    monkeypatch.setattr(launch, "handle_signals", lambda: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("ciss.study.crew.start", start)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SystemExit):
        cli.main(["train", "base", "all", "--per-run", "2"])
    arguments = "-u -m torch.distributed.run --standalone --nproc-per-node=2 -m ciss train NAME --config params.yaml"
    commands = sorted(" ".join(command) for command, _ in started)
    assert commands == [arguments.replace("NAME", name) for name in ("all", "base")]
    assert {device for _, device in started} == {"0,1", "2,3"}


def test_too_many_threads_are_remarked_on(project):
    project.set("train.threads", 2)
    assert launch.crowded(project.config, 2, 4) is None and launch.crowded(project.config, 1, 1) is None
    assert launch.crowded(project.config, 2, 2).startswith("2 jobs of 2 threads on 2 cores wait for each other")


def test_the_command_says_what_is_wrong(project, monkeypatch):
    monkeypatch.setattr(launch, "handle_signals", lambda: None)
    project.write()
    with pytest.raises(SystemExit, match="^error: .*/other.yaml: there is no such file."):
        cli.main(["train", "--config", "other.yaml"])


@pytest.mark.parametrize("options", [[], ["--jobs", "1"], ["--try"]])
def test_one_run_prepares_its_data_as_all_runs_do(project, monkeypatch, options):
    """Data that were never prepared, a changed hold-out set, and a damaged index."""
    monkeypatch.setattr(launch, "handle_signals", lambda: None)
    folder = index_folder(project.folder, "tiny")
    shutil.rmtree(folder)
    for holdout in (4, 3):
        project.set("benchmarks.tiny.holdout", holdout)
        project.write()
        cli.main(["train", "base", *options])
        assert len(project.run().index().holdout) == holdout
    (folder / "index.json").write_text("{")
    cli.main(["train", "base", *options])
    project.run().index()


def test_one_run_without_a_data_set(project, monkeypatch, tmp_path):
    shutil.rmtree(index_folder(project.folder, "tiny"))
    monkeypatch.setenv("CISS_DATA", str(tmp_path))
    project.set("benchmarks.tiny.dataset", "voc")
    project.set("benchmarks.tiny.protocol", "15-1")
    project.write()
    with pytest.raises(SystemExit, match="^error: no VOCdevkit in .*set CISS_DATA"):
        cli.main(["train", "base"])


def test_a_predecessor_that_is_not_trained_is_named_once(project, monkeypatch, capsys):
    monkeypatch.setattr(launch, "handle_signals", lambda: None)
    project.write()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "tune-2", "mib-1", "--jobs", "2"])
    messages = [
        f"{name} continues {after}, which is not trained. Name both, or none for all runs."
        for name, after in (("tune-2", "tune-1"), ("mib-1", "base"))
    ]
    assert sorted(stopped.value.code.removeprefix("error: ").splitlines()) == sorted(messages)
    assert capsys.readouterr().out == ""


def test_the_command_when_it_is_stopped(project, monkeypatch, capsys):
    def stopped(crew, names):
        raise KeyboardInterrupt

    project.write()
    monkeypatch.setattr(launch, "handle_signals", lambda: None)
    monkeypatch.setattr(launch.Crew, "train", stopped)
    with pytest.raises(SystemExit) as caught:
        cli.main(["train"])
    assert caught.value.code == 130
    assert capsys.readouterr().err.startswith("\nStopped. The same command goes on after the last finished epoch")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("a warning\nerror: a: lr is 0.\nSet it.", "a: lr is 0.\nSet it."),
        ("process 1 of 2 on host-1: error: no memory left", "no memory left"),
        ("error: first\nerror: the disk: error: 5", "the disk: error: 5"),
        ("RuntimeError: CUDA error: x", "RuntimeError: CUDA error: x"),
        ("", ""),
    ],
)
def test_the_message_of_a_training(said, message):
    assert process.message(said) == message


@pytest.mark.parametrize(
    ("trained", "failed", "summary"),
    [
        (["base"], {}, "1 of 5 runs trained, 4 were trained before. Next: dvc repro\n"),
        ([], {}, "0 of 5 runs trained, 5 were trained before. Next: dvc repro\n"),
        (["base"], {"all": "no", "mib-1": "no"}, "1 of 5 runs trained, 2 were trained before, 2 failed:\n"),
    ],
)
def test_the_summary(project, monkeypatch, capsys, trained, failed, summary):
    project.write()
    monkeypatch.setattr(launch, "handle_signals", lambda: None)
    monkeypatch.setattr(launch.Crew, "train", lambda crew, names: (trained, failed))
    with pytest.raises(SystemExit) if failed else nullcontext() as stopped:
        cli.main(["train"])
    assert capsys.readouterr().out == summary
    if failed:
        assert stopped.value.code == "error: all: no\nerror: mib-1: no"


def test_a_run_that_a_pipeline_removed_was_trained_before(project):
    run = project.run()
    loop.train(run)
    before = left_by(run)
    for folder in (run.folder, run.results):
        shutil.rmtree(folder)
    assert launch.finished(run) and left_by(run) == before
    shutil.rmtree(run.resume / "finished")
    with files.exclusive(run.resume / "lock", run.name), pytest.raises(files.Locked):
        launch.finished(run)
    assert not (run.resume / "finished").exists(), "nothing is kept while another process may train it"


@pytest.mark.slow
def test_runs_trained_together_are_those_trained_alone(make_project):
    """Weights, losses and results; a second time there is nothing to do."""
    alone, together = make_project("alone"), make_project("together")
    for project in (alone, together):
        project.document["joints"], project.document["ends"] = {}, {}
        del project.document["chain"]["tune-2"]
    for name in alone.config.runs():
        loop.train(alone.run(name))
    for trained, there in ((3, 0), (0, 3)):
        process = together.command("-m", "ciss", "train", "--jobs", "2")
        out, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
        assert out.endswith(f"{trained} of 3 runs trained, {there} were trained before. Next: dvc repro\n")
        assert ("mib-1: epoch 2/2" in out) == bool(trained)
    for name in alone.config.runs():
        assert left_by(alone.run(name)) == left_by(together.run(name)), name


def test_status_where_slurm_does_not_answer(project, monkeypatch, capsys):
    """Programs of Slurm are installed, but no controller runs: the files of the runs still tell."""

    def ask(*command):
        raise SlurmError("squeue: no controller")

    project.write()
    monkeypatch.setattr(queue, "ask", ask)
    monkeypatch.setattr("shutil.which", lambda name: name)
    commands.show_status([], "params.yaml")
    shown = capsys.readouterr()
    assert "Slurm does not answer" in shown.err and "squeue: no controller" in shown.err
    assert shown.out.splitlines()[-1] == f"{len(project.config.runs())} runs: {len(project.config.runs())} missing"
