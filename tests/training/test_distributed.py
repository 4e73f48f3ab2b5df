"""Calls that several processes share, in one; shares of images in any number of them."""

import io
import shutil
import sys
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ciss import cli, config, distributed
from ciss.data import DataError, loaders
from ciss.data.loaders import evaluation_loader
from ciss.methods.finetune import Finetune
from ciss.runs import results as runs_results
from ciss.runs.results import read
from ciss.training import loop
from tests.helpers.project import DOCUMENT


def test_one_process_needs_no_group(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.session():
        assert not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
        value = torch.tensor([1.0, 2.0])
        assert distributed.all_sum(value) is value
        assert distributed.total(value).tolist() == [1, 2]
        assert distributed.gather_dict({1: 2}) == {1: 2}
        distributed.broadcast([value])
        distributed.barrier()
        distributed.log("hello")
    assert value.tolist() == [1, 2]
    assert capsys.readouterr().out == "hello\n"


def test_a_line_is_one_write(monkeypatch):
    """Several runs write to one pipe. With PYTHONUNBUFFERED every write of the text layer reaches it by itself."""
    written = []
    raw = SimpleNamespace(
        write=lambda data: written.append(bytes(data)) or len(data),
        flush=lambda: None,
        readable=lambda: False,
        writable=lambda: True,
        seekable=lambda: False,
        closed=False,
    )
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, write_through=True))
    distributed.log("base  mIoU 44.1")
    assert written == [b"base  mIoU 44.1\n"]


def test_the_group_is_left_after_an_error(monkeypatch):
    """A group of one, as torchrun starts it with one process; a notebook may train again afterwards."""
    values = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with distributed.session():
        assert torch.distributed.is_initialized()
        with distributed.session():  # as `complete` inside of a session
            assert distributed.world() == 1
        assert torch.distributed.is_initialized(), "the inner one does not end it"
        assert distributed.total(torch.tensor([3.0])).tolist() == [3]
        assert distributed.gather_dict({1: 2}) == {1: 2}
    assert not torch.distributed.is_initialized()
    with pytest.raises(KeyError), distributed.session():
        raise KeyError
    assert not torch.distributed.is_initialized()


def test_a_worker_that_failed_is_one_message(project, monkeypatch, capsys):
    """What the processes of `train.processes` said, not a traceback around it."""
    project.set("train.processes", 2)
    project.write()
    program = project.folder / "torchrun"
    program.write_text("#!/bin/sh\necho 'process 1 of 2 on here: error: no memory left'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "base"])
    assert str(caught.value) == "error: no memory left"
    assert capsys.readouterr().out == "process 1 of 2 on here: error: no memory left\n"


def test_control_c_waits_for_the_processes(tmp_path, monkeypatch):
    """They hold the run's lock: the same command at once would be refused."""
    program = tmp_path / "torchrun"
    program.write_text(
        f"#!/bin/sh\ntrap 'sleep 0.6; touch {tmp_path}/ended; exit 0' TERM\necho begun\nwhile :; do sleep 0.02; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(distributed, "print_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distributed.launch(2, "ciss.training.loop", "base")
    assert (tmp_path / "ended").exists()


# --- every image once, whatever the number of processes


def shares(make, world: int) -> list:
    """What each process makes."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world", lambda: world)
        for rank in range(world):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            found.append(make())
    return found


few = st.integers(1, 4)


@settings(max_examples=150, deadline=None)
@given(world=st.integers(1, 8), share=few, accumulate=few, count=st.integers(1, 150), epoch=st.integers(0, 3))
def test_shares_of_an_epoch(world, share, accumulate, count, epoch):
    """Batch by batch the images that one process has, in its order."""
    images, batch = [3 * number + 1 for number in range(count)], share * world

    def batches():
        sampler = loaders.ShuffledBatches(images, batch, accumulate, seed=5)
        sampler.epoch = epoch
        found = list(sampler)
        assert len(found) == len(sampler)
        return found

    if count < world:
        with pytest.raises(DataError, match=f"{count} training images? cannot feed {world} processes"):
            shares(batches, world)
        return
    parts, (alone,) = shares(batches, world), shares(batches, 1)
    assert len({len(part) for part in parts}) == 1, "they meet at every update"
    together = [[image for part in parts for image in part[k]] for k in range(len(parts[0]))]
    assert list(chain(*together)) == list(chain(*alone)), "the same images, in the same order"
    for k in range(len(together)):
        sizes = [len(part[k]) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0, "equal shares"
    if count >= batch * accumulate:
        assert together == alone
        assert len(alone) % accumulate == 0 and {len(share) for share in alone} == {batch}
        assert count - sum(map(len, alone)) < batch * accumulate
    else:  # shorter than an update: all of it
        assert sum(map(len, alone)) == count and len(together) <= len(alone) <= accumulate


@settings(max_examples=150, deadline=None)
@given(
    world=st.integers(1, 8),
    batch=st.integers(1, 5),
    sizes=st.lists(st.sampled_from([(8, 8), (8, 9), (7, 8)]), max_size=40),
    crop=st.booleans(),
)
def test_shares_of_an_evaluation(world, batch, sizes, crop):
    benchmark = config.parse(DOCUMENT).benchmarks["tiny"]
    evaluation = type(benchmark.evaluation)(size="crop" if crop else "full", batch=batch)
    index = SimpleNamespace(pairs=lambda split: [], sizes={"val": sizes}, digests={"val": []})
    chosen = list(range(len(sizes)))[::-1]

    def batches():
        fields = SimpleNamespace(train=benchmark.train, evaluation=evaluation)
        table = torch.zeros(256).numpy()
        return list(evaluation_loader(fields, index, "val", chosen, table).batch_sampler)

    parts, (alone,) = shares(batches, world), shares(batches, 1)
    dealt = [share for part in parts for share in part]
    assert sorted(dealt) == sorted(alone), "the same batches, so the same bits"
    assert sorted(number for share in dealt for _, number in share) == sorted(chosen)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if not crop:
        assert all(len({tuple(sizes[number]) for _, number in share}) == 1 for share in dealt)


# --- errors of several processes


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_store", torch.distributed.HashStore())


def left(capsys, text: str) -> str:
    with pytest.raises(SystemExit) as end:
        distributed.exit_process(text)
    assert end.value.code == 1
    return capsys.readouterr().err


def test_what_several_say_is_said_once(second_of_two, capsys):
    said = left(capsys, "error: a.yaml: no such key")
    assert said.startswith("process 1 of 2 on ") and said.endswith(": error: a.yaml: no such key\n")
    assert left(capsys, "error: a.yaml: no such key") == ""
    assert "something else" in left(capsys, "error: something else")


def test_without_the_others_an_error_is_said_anyway(second_of_two, capsys, monkeypatch):
    """Torchrun, which keeps what was said, may be gone; or not have been reached yet."""

    class Gone:
        def add(self, *_):
            raise torch.distributed.DistNetworkError("Connection reset by peer")

    for board in (Gone(), None):
        monkeypatch.setattr(distributed, "_store", board)
        assert "error: mine" in left(capsys, "error: mine")


def test_one_process_just_says_it(monkeypatch):
    for value in ("1", None):
        monkeypatch.setenv("WORLD_SIZE", value) if value else monkeypatch.delenv("WORLD_SIZE")
        with pytest.raises(SystemExit, match="^error: mine$"):
            distributed.exit_process("error: mine")


def test_an_error_of_ones_own_stays_what_it_is(monkeypatch):
    """Only what the library of the processes raises means that another one is lost."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(distributed, "GRACE", 0)
    with pytest.raises(RuntimeError, match="shapes"), distributed.session():
        raise RuntimeError("shapes cannot be multiplied")
    for error in (
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3"),
        torch.distributed.DistBackendError("NCCL communicator was aborted"),
    ):
        with pytest.raises(distributed.Lost, match="another process ended.*30 minutes"), distributed.session():
            raise error


def test_alone_there_is_nothing_to_agree_on(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.check_equal({"any": "thing"}, "run")
    assert distributed.broadcast_result(lambda: "mine") == "mine"


def test_processes_agree_before_they_train(project, monkeypatch, capsys):
    """On the run before anything is done, on the epoch before the first; and the first says whether it is done."""
    asked, train = [], Finetune.losses
    monkeypatch.setattr(distributed, "check_equal", lambda value, what: asked.append((what, value)))
    monkeypatch.setattr(Finetune, "losses", lambda *arguments: asked.append("batch") or train(*arguments))
    run = project.run()
    loop.train(run)
    (what, same), epoch, first = asked[:3]
    assert (what, epoch, first) == ("base", ("epochs to continue after", 0), "batch")
    assert same["parameters"]["benchmark"]["train"]["crop"] == 32 and same["data"] == run.index().fingerprint
    assert same == read(run)["identity"]
    shutil.rmtree(run.results)  # on this node
    shutil.rmtree(run.resume / "finished")
    monkeypatch.setattr(distributed, "broadcast_result", lambda question: not question())
    monkeypatch.setattr(runs_results, "keep", lambda *_: None)
    loop.train(run)
    assert "nothing to do" in capsys.readouterr().out and not run.results.exists()
