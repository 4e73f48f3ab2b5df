"""Methods with rows, weights or stored images continue where they were stopped, with the same bytes at the end."""

import signal

import pytest

from ciss.methods import METHODS, code_of
from ciss.methods.hosts import EWF
from ciss.training import loop
from tests.helpers.training import kept_epoch, left_by, stopped

MEMORY = {"memory": {"images": 6}}
# `ciss train increment`, killed in the losses of a method at a call, counted from 1
KILLED = """
import os, signal, sys
from ciss import cli
from ciss.methods import METHODS
kind, calls = METHODS[sys.argv[1]], []
losses = kind.losses
def killed(*arguments):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(*arguments)
kind.losses = killed
cli.main(["train", "increment"])
"""


def with_increment(project, method: str, values: dict):
    """The project with a run `increment` of the method, whose base step is trained."""
    project.set("train.base.epochs", 1)
    project.set("benchmarks.tiny.model.dropout", 0.3)  # so that random numbers matter
    project.document["methods"][method] = values
    own = METHODS[code_of(method)](**values).own_base
    project.document["methods"].setdefault(own or "finetune", {})
    project.set("bases.own", {"benchmark": "tiny", "method": own or "finetune", "seed": 0})
    step = {"benchmark": "tiny", "method": method, "seed": 0, "after": "own", "step": 1}
    project.document["chain"]["increment"] = step
    loop.train(project.run("own"))
    return project


@pytest.mark.parametrize(("method", "values"), [("dkd", {}), ("ssul", {}), ("fixbc", {}), ("mib-ewf", EWF["ewf"])])
def test_a_stopped_increment_ends_as_a_whole_one(make_project, method, values):
    ends = []
    for place in ("whole", "stopped"):
        run = with_increment(make_project(place), method, values).run("increment")
        if place == "stopped":
            with stopped(METHODS[code_of(method)], 2):  # in the second epoch of one batch
                loop.train(run)
            assert (run.resume / "state.safetensors").exists()
        loop.train(run)
        ends.append(left_by(run))
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "values"), [("dkd", {}), ("ssul-memory", MEMORY), ("select", {}), ("mib-ewf", EWF["ewf"])]
)
def test_an_increment_that_is_killed_in_its_last_epoch_ends_as_a_whole_one(make_project, capsys, method, values):
    """`ciss train` is killed; started again, in another process, it leaves the same bytes."""
    whole, killed = make_project("whole"), make_project("killed")
    for project in (whole, killed):
        project.set("train.increment.epochs", 3)
        project.set("train.batch", 2)  # several batches in an epoch
        with_increment(project, method, values)
    run = killed.run("increment")
    batches = len(run.images(run.index())) // 2
    assert batches > 1
    process = killed.command("-c", KILLED, code_of(method), str(2 * batches + 2))
    _, error = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL and kept_epoch(run) == 2 and not run.folder.exists(), error
    loop.train(run)  # what the command calls, in another process
    assert "increment: continuing after epoch 2 of 3." in capsys.readouterr().out
    loop.train(whole.run("increment"))
    assert left_by(whole.run("increment")) == left_by(run)
