"""`cluster.yaml`, the options of `ciss train`, and what `--status` reads from files: without Slurm."""

import socket
import time

import pytest

from ciss import cli
from ciss.config import ConfigError
from ciss.store import files
from ciss.study.slurm import commands, queue, resources, status
from ciss.study.slurm.queue import Job
from ciss.study.slurm.resources import Resources
from ciss.training import loop
from tests.helpers.training import stopped


def test_the_file_that_is_written_can_be_read(project, capsys):
    project.set("train.processes", 4)
    project.write()
    cli.main(["train", "--slurm", "--write"])
    assert capsys.readouterr().out.startswith("cluster.yaml: sections added: tiny.")
    file = project.folder / "cluster.yaml"
    assert resources.read(file, project.config, ["tiny"]) == {"tiny": Resources(gpus=4)}

    # --- comments and changed values stay
    file.write_text(file.read_text().replace("hours: 24.0", "hours: 3  # our queue is short"))
    before = file.read_text()
    assert resources.write(file, project.config) == [] and file.read_text() == before
    assert resources.read(file, project.config, ["tiny"])["tiny"].hours == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other: {}", "cluster.yaml: the section tiny is missing. Write it with: ciss train --slurm --write"),
        ("tiny: {gpu: 1}", "cluster.yaml: tiny.gpu: unknown key. Did you mean 'gpus'?"),
        ("tiny: {hours: 0}", "cluster.yaml: tiny.hours: found 0, but it should be greater than 0."),
        ("tiny: {gpus: 2}", "tiny: nodes: 1 with gpus: 2 train in 2 processes, but train.processes is 4."),
        ("tiny: {gpus: 2, nodes: 2, options: {array: 3}}", "tiny.options.array: this command sets it itself."),
        ("tiny: {gpus: 2, nodes: 2, options: {kill-on-invalid-dep: no}}", "options.kill-on-invalid-dep: this command"),
    ],
)
def test_mistakes_in_the_file(project, text, message):
    project.set("train.processes", 4)
    (project.folder / "cluster.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        resources.read(project.folder / "cluster.yaml", project.config, ["tiny"])
    assert message in str(caught.value)


def test_processes_on_each_node():
    assert Resources(gpus=0).processes(1) == Resources(gpus=1).processes(1) == 1
    assert Resources(gpus=4, nodes=2).processes(1) == Resources(gpus=4, nodes=2).processes(8) == 4
    assert Resources(gpus=0, nodes=2).processes(8) == 4, "without GPUs, the plan's"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--status --cancel", "--cancel: not allowed with --status"),
        ("--slurm --jobs 2", "--jobs: not allowed with --slurm"),
        ("--status --per-run 2", "--per-run: not allowed with --status"),
        ("--write", "--write: only allowed with --slurm"),
        ("base --try --per-run 2", "--try: name one run, without --jobs or --per-run"),
    ],
)
def test_options_that_exclude_each_other(capsys, options, message):
    with pytest.raises(SystemExit):
        cli.main(["train", *options.split()])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--slurm base", "--slurm takes one FILE.yaml, but found base. Write names of runs before --slurm."),
        ("--slurm", "cluster.yaml: there is no such file. Write it with: ciss train --slurm --write"),
        ("--slurm a.yaml", "a.yaml: there is no such file."),
        ("other --status", "there is no run 'other'"),
        ("--cancel", "squeue is not installed. Run this command on a machine with Slurm."),
    ],
)
def test_messages(project, monkeypatch, options, message):
    project.write()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="^error: ") as caught:
        cli.main(["train", *options.split()])
    assert message in str(caught.value)


def test_the_state_of_runs_without_slurm(project, monkeypatch, capsys):
    """From their own files, and without taking a lock."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    project.write()
    loop.train(project.run("base"))
    run = project.run("tune-1")
    killed = project.run("mib-1").resume
    killed.mkdir(parents=True)
    (killed / "lock.pid").write_text(f"{2**22 + 1} {socket.gethostname()}")  # no process has this number
    capsys.readouterr()
    with files.exclusive(project.run("base").resume / "lock", "base"), files.exclusive(run.resume / "lock", run.name):
        cli.main(["train", "--status"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["base", "trained"],
        ["all", "missing"],
        ["tune-1", "training"],
        ["tune-2", "missing"],
        ["mib-1", "missing"],
        ["5", "runs:"],
    ]
    assert " process " in lines[2] and lines[-1] == "5 runs: 1 trained, 3 missing, 1 training"


@pytest.mark.parametrize(
    ("log", "ended", "expected"),
    [
        (None, None, ("missing", "its job was removed before it began")),
        (
            "--- job 9, try 1, on a\nerror: base: lr is 0.\nSet it.\nsrun: error: a: task 0",
            None,
            ("failed", "lr is 0."),
        ),
        ("--- job 9, try 1, on a\nerror: old\n--- job 9, try 2, on b\n", None, ("failed", "ended without a message")),
        ("--- job 9, try 1, on a\nTraceback (most recent call last):\nE: x", "FAILED", ("failed", "E: x")),
        ("--- job 9, try 1, on a\nsrun: error: a: task 0: Killed", "OUT_OF_MEMORY", ("failed", "task 0: Killed")),
        ("--- job 9, try 1, on a\nslurmstepd: error: CANCELLED", "CANCELLED", ("stopped", "its job was cancelled")),
    ],
)
def test_the_state_of_a_run_whose_job_ended(project, monkeypatch, log, ended, expected):
    run = project.run("base")
    folder = status.log_folder(run.root, run)
    folder.mkdir(parents=True)
    for number in (9, 8, 10):
        (folder / f"{number}_submission.sh").touch()
    if log is not None:
        (folder / "10_0_log.err").write_text(log)
    monkeypatch.setattr(queue, "last_state", lambda job_id: ended if job_id == "10" else None)
    row = status.describe(project.config, "base", {})
    assert (row.state, row.job) == (expected[0], "10") and row.details.endswith(expected[1])


def test_the_state_of_a_run_in_the_queue(project):
    run, before = project.run("tune-1"), project.run("base")
    (folder := status.log_folder(run.root, run)).mkdir(parents=True)
    (folder / "7_0_log.out").write_text("base: epoch 1/3: a\nbase: epoch 2/3: a\n")
    live = {
        str(before.folder): Job("6", "RUNNING", "None", "n1", str(before.folder)),
        str(run.folder): Job("7", "PENDING", "Dependency", "", str(run.folder)),
    }
    assert status.describe(project.config, "tune-1", live).details == "after base"
    assert status.describe(project.config, "base", live).details == "on n1"
    live[str(run.folder)] = Job("7", "RUNNING", "None", "n2", str(run.folder))
    assert status.describe(project.config, "tune-1", live).details == "epoch 2/3, on n2"


def test_a_run_whose_predecessor_is_neither_trained_nor_queued(project, monkeypatch):
    monkeypatch.setattr(queue, "jobs", dict)
    with pytest.raises(ConfigError, match="tune-1 continues base, which is neither trained nor queued. Name both."):
        commands._submit(project.config, ["tune-1"], {"tiny": Resources()})


def test_what_waits_for_an_earlier_training_is_queued_again(project, monkeypatch):
    """And what waits for one that is still in the queue stays."""
    folder = {name: str(project.run(name).folder) for name in project.config.runs()}
    live = {folder[name]: Job(name, "PENDING", "Dependency", "", folder[name]) for name in ("tune-1", "tune-2", "all")}
    cancelled, submitted = [], []
    monkeypatch.setattr(queue, "jobs", lambda: live)
    monkeypatch.setattr(queue, "cancel", cancelled.extend)
    monkeypatch.setattr(
        commands, "_submit_run", lambda run, asked, after: submitted.append((run.name, after)) or run.name
    )
    names = ["base", "all", "tune-1", "tune-2"]
    assert commands._submit(project.config, names, {"tiny": Resources()}) == (["base", "tune-1", "tune-2"], [], ["all"])
    assert cancelled == ["tune-1", "tune-2"]
    assert submitted == [("base", None), ("tune-1", "base"), ("tune-2", "tune-1")]


def test_a_run_without_progress_is_not_tried_for_ever(project):
    pytest.importorskip("submitit", reason="submitit is not installed: uv sync --extra slurm")
    from ciss.study.slurm.job import Training

    run = project.run()
    work = Training("base", "params.yaml", run.resume / loop.STATE, nodes=1, processes=1, limit=100.0)
    work.started, work.saved = time.monotonic() - 90, work._saved()
    with pytest.raises(SystemExit, match="error: no epoch ended within 0.0277778 hours. Increase `hours`"):
        work.checkpoint()
    work.started = time.monotonic()  # preempted soon after it began
    assert work.checkpoint().function == work
    work.started = time.monotonic() - 90
    with stopped(type(run.build_method()), call=6, error=KeyboardInterrupt):
        loop.train(run)
    assert work.checkpoint().function == work, "an epoch was saved"


def test_several_nodes_are_one_torchrun(project):
    pytest.importorskip("submitit", reason="submitit is not installed: uv sync --extra slurm")
    from ciss.study.slurm.job import Training

    class Job:
        raw_job_id, node, hostnames = "40123", 1, ["n3", "n4"]

    def options(**sizes) -> str:
        work = Training("base", "params.yaml", project.run().resume / loop.STATE, limit=100.0, **sizes)
        return " ".join(work._torchrun(Job()))

    assert options(nodes=1, processes=1) == ""
    assert options(nodes=1, processes=4) == "--standalone --nproc-per-node=4"
    address = "--master-addr=n3 --master-port=20123"
    assert options(nodes=2, processes=4) == f"--nnodes=2 --node-rank=1 --nproc-per-node=4 {address}"
