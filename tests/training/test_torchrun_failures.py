"""What becomes of a training of two processes when one of them, a node or torchrun itself fails."""

import os
import shutil
import signal
import socket
import time
from contextlib import contextmanager

import psutil
import pytest

from ciss.training import loop
from tests.helpers.project import environment, make

TORCHRUN = ("-m", "torch.distributed.run")
TWO = (*TORCHRUN, "--standalone", "--nproc-per-node", "2")
# A training whose process 1 fails at its sixth batch, in the second epoch of four batches.
FAILING = """
import os, signal, sys, time
from datetime import timedelta
from ciss import cli, distributed
from ciss.data import DataError
from ciss.methods import Finetune

losses, calls, mode = Finetune.losses, [], sys.argv.pop(1)

def failing(self, *arguments):
    calls.append(1)
    if len(calls) == 6 and os.environ["RANK"] == "1":
        if mode == "bug":
            raise KeyError("a bug of this method")
        if mode == "data":
            raise DataError("there.png: broken. Run: dvc repro -f prepare")
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "hang":
            time.sleep(600)
    if mode == "slow":
        time.sleep(0.3)
    return losses(self, *arguments)

Finetune.losses = failing
if mode in ("hang", "slow"):  # where nobody ends the one that is left
    distributed.GRACE = 1.0
if mode == "hang":
    distributed.TIMEOUT = timedelta(seconds=6)
cli.main(["train", *sys.argv[1:]])
"""


@pytest.fixture
def two(make_project):
    """two(name) -> a project whose `base` has two epochs of four updates by two processes, and the failing program."""
    return lambda name="project": prepared(make_project(name))


def prepared(project):
    project.set("train.batch", 4)
    (project.folder / "failing.py").write_text(FAILING)
    return project


@contextmanager
def started(project, *arguments: str):
    """A command in the project. At the end nothing of it is left: with torchrun killed, its processes go on."""
    process = project.command(*arguments, env={**os.environ, "PYTHONPATH": "."})
    try:
        yield process
    finally:
        for left in [*workers(project), process]:
            left.kill()
        process.communicate()


def ended(project, *arguments: str, within: float = 120) -> tuple[int, str, str]:
    with started(project, *arguments) as process:
        out, error = process.communicate(timeout=within)
        deadline = time.monotonic() + 5
        while (left := workers(project)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left
    return process.returncode, out, error


def workers(project) -> list[psutil.Process]:
    """Running processes whose folder is the project's: torchrun's and what it started."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = process.cwd() == str(project.folder) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if inside and process.pid != os.getpid():
            found.append(process)
    return found


def left_by(project) -> dict[str, bytes]:
    run = project.run()
    files = [run.folder / "weights.safetensors", run.folder / "log.json", run.results / "confusion.npz"]
    return {file.name: file.read_bytes() for file in (*files, run.results / "curves.npz")}


def unfinished(project) -> list[str]:
    """Files that a stopped writer left."""
    return [
        file.name for file in project.folder.rglob(".*") if file.is_file() and file.name.startswith((".state", ".we"))
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_data, frozen_code):
    """What an undisturbed training leaves."""
    with environment(tiny_data) as patch:
        project = prepared(make(tmp_path_factory.mktemp("whole") / "project", frozen_code, patch))
        code, _, error = ended(project, *TWO, "-m", "ciss", "train", "base")
        assert code == 0, error
        return left_by(project)


@pytest.fixture(scope="module")
def loss_of_a_process(tmp_path_factory, tiny_data, frozen_code):
    """A training that lost a process in its second epoch: folder, exit status, message, seconds since its first."""
    with environment(tiny_data) as patch:
        project = prepared(make(tmp_path_factory.mktemp("killed") / "project", frozen_code, patch))
        code, _, error = ended(project, *TWO, "failing.py", "kill", "base")
        first = (project.run().resume / "state.safetensors").stat().st_mtime  # the start is that of any training
        return project.folder, code, error, time.time() - first


@pytest.fixture
def killed(two, loss_of_a_process):
    """killed(name) -> a project where that has happened."""

    def copied(name: str = "project"):
        project = two(name)
        shutil.copytree(loss_of_a_process[0] / "runs", project.folder / "runs")
        return project

    return copied


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_then_goes_on(killed, loss_of_a_process, whole):
    project, (_, code, error, seconds) = killed(), loss_of_a_process
    assert code != 0 and seconds < 30
    assert "Signal 9 (SIGKILL)" in error and "process 0" not in error, "torchrun names the cause, nobody else a symptom"
    assert (project.run().resume / "state.safetensors").exists() and not project.run().folder.exists()
    assert not unfinished(project)
    code, out, error = ended(project, *TWO, "-m", "ciss", "train", "base")
    assert code == 0, error
    assert "base: continuing after epoch 1 of 2." in out
    assert left_by(project) == whole and not unfinished(project)


def on_two_nodes(*projects, run: str = "base") -> list[tuple[int, str, str]]:
    """Trains a run by two agents with one process each, as two nodes would; exit status, output and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ("--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1]))
    both = ("--nnodes", "2", "--nproc-per-node", "1", *address)
    nodes = [(*TORCHRUN, *both, "--node-rank", rank, "-m", "ciss", "train", run) for rank in "01"]
    with started(projects[0], *nodes[0]) as first, started(projects[1], *nodes[1]) as second:
        spoken = [process.communicate(timeout=120) for process in (first, second)]
    return [(process.returncode, *said) for process, said in zip((first, second), spoken, strict=True)]


@pytest.mark.slow
def test_nodes_are_processes(two, whole):
    project = two()
    (code, out, error), (code_there, out_there, error_there) = on_two_nodes(project, project)
    assert code == code_there == 0, error + error_there
    assert "base: epoch 2/2" in out and "base: epoch" not in out_there, "one speaks"
    assert left_by(project) == whole


@pytest.mark.slow
def test_nodes_without_a_shared_folder_do_not_start_at_different_epochs(two, killed):
    """One has a stopped training, the other has not."""
    here, there = killed("here"), two("there")
    (code, out, error), (code_there, _, error_there) = on_two_nodes(here, there)
    assert code != 0 and code_there != 0
    said = error + error_there
    assert said.count("differs from process 0: epochs to continue after 0, not 1") == 1
    assert "epoch 2/2" not in out


@pytest.mark.slow
def test_a_node_without_the_predecessor_is_named(two):
    """One has the base step's weights, the other has not: a message, and nobody waits."""
    here, there = two("here"), two("there")
    loop.train(here.run())
    (code, out, error), (code_there, _, error_there) = on_two_nodes(here, there, run="tune-1")
    assert code != 0 and code_there != 0
    said = error + error_there
    name = "runs/tiny/base/weights.safetensors is there"
    assert said.count(f"differs from process 0: {name} False, not True") == 1
    assert "Let every node use one project folder, or a full copy of it" in said and "epoch 1/" not in out


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bug", "data"])
def test_an_error_is_said_once_by_its_process(two, mode):
    project = two()
    code, _, error = ended(project, *TWO, "failing.py", mode, "base")
    said = error[: error.index("closing signal SIGTERM")]  # what comes then is torchrun's
    assert code != 0
    assert said.startswith("process 1 of 2 on ") and "process 0" not in error
    if mode == "bug":
        assert error.count("KeyError: 'a bug of this method'") == said.count("Traceback") == 1
    else:
        assert error.count("error: there.png: broken. Run: dvc repro -f prepare\n") == 1 and "Traceback" not in said
    cause = error[error.index("Root Cause") :]
    assert "rank      : 1" in cause and "exitcode  : 1 " in cause


@pytest.mark.slow
def test_the_same_mistake_is_said_once(two):
    project = two()
    project.set("train.momentum", 3)
    code, _, error = ended(project, *TWO, "-m", "ciss", "train", "base")
    assert code != 0 and error.count("train.momentum") == 1


@pytest.mark.slow
def test_a_process_that_hangs_is_not_waited_for_for_ever(two):
    project = two()
    code, _, error = ended(project, *TWO, "failing.py", "hang", "base")
    assert code != 0
    assert "process 0 of 2" in error and "another process ended, or did not answer for 0.1 minutes" in error


@pytest.mark.slow
def test_torchrun_may_be_killed(two):
    """Its processes go on, as a training without it; the lock names the one to stop, which stops the other."""
    project = two()
    project.set("train.base.epochs", 50)
    state = project.run().resume / "state.safetensors"
    with started(project, *TWO, "failing.py", "slow", "base") as process:
        deadline = time.monotonic() + 60
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.wait()
        orphans = workers(project)
        assert len(orphans) == 2 and state.exists()
        holder = int((project.run().resume / "lock.pid").read_text().split()[0])
        assert holder in [orphan.pid for orphan in orphans]
        again = project.command(*TWO, "-m", "ciss", "train", "base", env={**os.environ, "PYTHONPATH": "."})
        _, error = again.communicate(timeout=120)
        assert again.returncode != 0
        assert (
            error.count(f"base is being trained by process {holder}, perhaps left over from a stopped pipeline.") == 1
        )
        assert f"Wait for it, or stop it: kill {holder}" in error
        assert len(workers(project)) == 2
        os.kill(holder, signal.SIGTERM)
        assert psutil.wait_procs(orphans, timeout=30)[1] == []


@pytest.mark.slow
def test_one_process_of_torchrun_is_a_plain_one(make_project):
    plain, project = make_project("plain"), make_project("torchrun")
    loop.train(plain.run())
    code, _, error = ended(project, *TORCHRUN, "--standalone", "--nproc-per-node", "1", "-m", "ciss", "train", "base")
    assert code == 0, error
    assert left_by(plain) == left_by(project)
