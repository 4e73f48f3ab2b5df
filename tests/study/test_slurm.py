"""Runs as jobs of a real Slurm of one node: killed, out of time, drained, cancelled, and the same command again."""

import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from ciss import cli
from ciss.runs.run import resolve
from ciss.study import launch
from ciss.training import loop
from tests.helpers import slurm
from tests.helpers.training import left_by

if not importlib.util.find_spec("submitit"):
    pytest.skip("submitit is not installed: uv sync --extra slurm", allow_module_level=True)

# In the place of a training: notes when it begins and ends, and does what its name says.
STAND_IN = """
import json, os, sys, time

name = sys.argv[2]


def note(what):
    with open(os.path.join("notes", f"{time.monotonic_ns()}-{os.getpid()}"), "w") as file:
        json.dump([what, name], file)


note("begins")
time.sleep(60 if "slow" in name else 0.1)
if "bad" in name:
    sys.exit(f"error: {name}: a loss is not finite.")
note("ends")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm.missing():
        pytest.skip(reason)
    started = slurm.Cluster(tmp_path_factory.mktemp("slurm"))
    yield started
    started.stop()


@pytest.fixture
def queued(cluster, project, monkeypatch):
    """A tiny project whose commands know the cluster, with resources for two jobs at a time."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(project.folder), os.environ.get("PYTHONPATH", "")]))
    (project.folder / "cluster.yaml").write_text("tiny: {gpus: 0, cpus: 1, memory: 0.5, hours: 1}\n")
    return project


@pytest.fixture
def stand_ins(queued, monkeypatch):
    """stand_ins(chain) -> the notes so far: what runs left. They are stand-ins in the place of trainings."""
    project = queued
    package = (project.folder / "ciss").resolve()
    (project.folder / "ciss").unlink()
    shutil.copytree(package, project.folder / "ciss")
    (project.folder / "ciss" / "__main__.py").write_text(STAND_IN)
    (project.folder / "notes").mkdir()

    def notes() -> list:
        return [json.loads(file.read_text()) for file in sorted((project.folder / "notes").iterdir())]

    monkeypatch.setattr(launch, "finished", lambda run: ["ends", run.name] in notes())
    monkeypatch.setattr("ciss.study.slurm.status._trained", lambda run: ["ends", run.name] in notes())

    def plan(chain: dict[str, str]):
        steps = {"base": 0}
        for name, after in chain.items():
            steps[name] = steps[after] + 1
        project.document["joints"], project.document["ends"] = {}, {}
        project.document["chain"] = {
            name: {"benchmark": "tiny", "method": "finetune", "seed": 0, "after": after, "step": steps[name]}
            for name, after in chain.items()
        }
        project.set("benchmarks.tiny.protocol", "2-1")
        project.prepare()
        project.write()
        return notes

    return plan


def ciss(capsys, *arguments: str) -> str:
    capsys.readouterr()
    cli.main(list(arguments))
    return capsys.readouterr().out


def states(capsys) -> dict[str, str]:
    """The state of each run, as the command shows it."""
    rows = [line.split() for line in ciss(capsys, "train", "--status").splitlines()[:-1]]
    return {name: state for name, state, *_ in rows}


@pytest.mark.slow
def test_fifty_runs_queued_at_once(cluster, stand_ins, capsys):
    """All end, each after the one it continues, and nothing begins twice, although the command is given twice."""
    chain = {"more-1": "base"}
    for number in range(8):
        names = ["base", *(f"m{number}-{step}" for step in range(1, 7))]
        chain |= dict(zip(names[1:], names, strict=False))
    notes = stand_ins(chain)
    assert len(chain) == 49
    assert "50 of 50 runs queued, 0 were in the queue, 0 are trained." in ciss(capsys, "train", "--slurm")
    again = ciss(capsys, "train", "--slurm")
    assert "0 of 50 runs queued" in again
    cluster.wait(lambda: not cluster.queue())
    found = notes()
    assert sorted(found) == sorted([what, name] for what in ("begins", "ends") for name in ("base", *chain))
    for name, after in chain.items():
        assert found.index(["ends", after]) < found.index(["begins", name])
    assert "0 of 50 runs queued, 0 were in the queue, 50 are trained." in ciss(capsys, "train", "--slurm")


def test_a_failure_takes_only_what_continues_it(cluster, stand_ins, capsys):
    """A failed and a cancelled run; the same command queues exactly what is missing."""
    chain = {"bad-1": "base", "bad-2": "bad-1", "slow-1": "base", "slow-2": "slow-1", "a-1": "base", "a-2": "a-1"}
    notes = stand_ins(chain)
    ciss(capsys, "train", "--slurm")
    cluster.wait(lambda: ["begins", "slow-1"] in notes() and not {"a-2", "bad-2"} & {*cluster.queue()})
    found = ciss(capsys, "train", "--status").splitlines()
    assert [line.split()[:2] for line in found[:-1]] == [
        ["base", "trained"],
        ["bad-1", "failed"],
        ["bad-2", "missing"],
        ["slow-1", "training"],
        ["slow-2", "queued"],
        ["a-1", "trained"],
        ["a-2", "trained"],
    ]
    assert found[1].endswith("a loss is not finite.") and found[2].endswith("before it began: bad-1 is not trained")
    assert found[4].endswith("after slow-1") and found[-1].startswith("7 runs: 3 trained, 1 failed, 1 missing")

    # --- cancelled, with what continues it
    assert ciss(capsys, "train", "slow-1", "--cancel").startswith("2 runs removed from the queue.")
    cluster.wait(lambda: not cluster.queue())
    assert states(capsys)["slow-1"] == "stopped" and states(capsys)["slow-2"] == "missing"

    # --- again: what is missing, and nothing else
    again = ciss(capsys, "train", "--slurm")
    assert [line.partition(":")[0] for line in again.splitlines()[:-2]] == ["bad-1", "slow-1", "bad-2", "slow-2"]
    ciss(capsys, "train", "--cancel")
    cluster.wait(lambda: not cluster.queue())
    assert ["begins", "a-2"] in notes() and notes().count(["begins", "a-2"]) == 1


def test_resources_that_no_node_has(stand_ins, capsys):
    """Slurm refuses some jobs, in one message, and lets others wait for ever, which the table says."""
    stand_ins({})
    resources = Path("cluster.yaml")
    resources.write_text("tiny: {gpus: 1, cpus: 1, memory: 0.5, hours: 1}\n")
    with pytest.raises(SystemExit, match=r"^error: base: sbatch refused the job. Correct cluster.yaml. sbatch: "):
        cli.main(["train", "--slurm"])
    assert capsys.readouterr().err == ""
    resources.write_text("tiny: {gpus: 0, cpus: 99, memory: 0.5, hours: 1}\n")
    ciss(capsys, "train", "--slurm")
    (row, _) = ciss(capsys, "train", "--status").splitlines()
    assert row.endswith("has what it asks for: cancel it, correct cluster.yaml, and queue it again")
    ciss(capsys, "train", "--cancel")


@pytest.mark.slow
def test_a_disturbed_chain_ends_as_an_undisturbed_one(cluster, make_project, queued, capsys):
    """One run killed within an epoch, one stopped by its time limit, and the node drained: the same bytes."""
    alone = make_project("alone")
    for project in (alone, queued):
        project.document["joints"], project.document["ends"] = {}, {}
        del project.document["chain"]["mib-1"]
        for phase in ("base", "increment"):
            project.set(f"train.{phase}.epochs", 12)
    names = list(alone.config.runs())
    for name in names:
        loop.train(alone.run(name))
    queued.write()
    os.chdir(queued.folder)

    # --- the base step is killed in the middle of an epoch: what continues it leaves the queue
    ciss(capsys, "train", "--slurm")
    process = training(cluster, queued, "base")
    process.send_signal(signal.SIGKILL)
    cluster.wait(lambda: not cluster.queue())
    assert states(capsys) == {"base": "failed", "tune-1": "missing", "tune-2": "missing"}
    assert "its process was killed (Killed)" in ciss(capsys, "train", "--status")

    # --- the same command again; then a time limit of two minutes, of which Slurm tells the job 60 to 90 seconds before
    assert "3 of 3 runs queued" in ciss(capsys, "train", "--slurm")
    process = training(cluster, queued, "tune-1")
    process.suspend()  # so that it does not end before: Slurm looks every 30 seconds
    job = cluster.run("squeue", "--noheader", "--name=tune-1", "--format=%i")
    cluster.run("scontrol", "update", f"jobid={job}", "timelimit=2")
    cluster.run("scontrol", "update", f"nodename={cluster.host}", "state=drain", "reason=test")
    cluster.wait(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    cluster.wait(lambda: states(capsys)["tune-1"] == "queued")
    assert states(capsys) == {"base": "trained", "tune-1": "queued", "tune-2": "queued"}
    time.sleep(7)  # longer than a job that was queued again has to wait
    assert states(capsys)["tune-1"] == "queued", "the node is drained"
    cluster.run("scontrol", "update", f"nodename={cluster.host}", "state=resume")
    cluster.wait(lambda: not cluster.queue())

    assert states(capsys) == dict.fromkeys(names, "trained")
    for name in names:
        assert left_by(alone.run(name)) == left_by(resolve_in(queued, name)), name
    log = next((queued.folder / "runs" / ".slurm" / "tiny" / "tune-1").glob("*_0_log.out")).read_text()
    assert "tune-1: continuing after epoch" in log


@pytest.mark.slow
def test_a_preempted_run_of_two_processes_goes_on(cluster, make_project, queued, capsys):
    """Slurm signals all processes of a job: the one that stops the training hears it, torchrun and its own do not."""
    alone = make_project("alone")
    for project in (alone, queued):
        project.document["joints"], project.document["chain"], project.document["ends"] = {}, {}, {}
        project.set("train.base.epochs", 12)
        project.set("train.processes", 2)
        project.write()
    os.chdir(alone.folder)
    loop.train(alone.run("base"))
    os.chdir(queued.folder)
    (queued.folder / "cluster.yaml").write_text("tiny: {gpus: 0, cpus: 2, memory: 1, hours: 1}\n")
    ciss(capsys, "train", "--slurm")
    process = training(cluster, queued, "base")
    job = cluster.run("squeue", "--noheader", "--name=base", "--format=%i")
    cluster.run("scancel", "--signal=TERM", job)  # as a preemption begins
    cluster.run("scancel", "--signal=USR2", job)
    cluster.wait(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    cluster.wait(lambda: not cluster.queue())
    assert states(capsys) == {"base": "trained"}
    log = next((queued.folder / "runs" / ".slurm" / "tiny" / "base").glob("*_0_log.out")).read_text()
    assert "base: continuing after epoch" in log
    assert left_by(resolve_in(queued, "base")) == left_by(alone.run("base"))


def resolve_in(project, name: str):
    os.chdir(project.folder)
    return resolve(project.config, name)


def training(cluster, project, name: str) -> psutil.Process:
    """The process that trains a run, once two epochs are saved."""
    folder = project.folder / "runs" / ".slurm" / "tiny" / name
    cluster.wait(lambda: any(f"{name}: epoch 2/" in file.read_text() for file in folder.glob("*_0_log.out")))
    owner = (project.folder / "runs" / ".resume" / "tiny" / name / "lock.pid").read_text()
    return psutil.Process(int(owner.split()[0]))
