"""Two processes are one that accumulates; they score once, write once, and stay equal."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from ciss import distributed, engine, results
from ciss.data import evaluation_loader

# What each process of torchrun does: trains runs and notes what it evaluated and whether it wrote.
PROGRAM = """
import sys, torch
from pathlib import Path
from ciss import config, distributed, engine, results, runs
from ciss.prototypes import ClassPrototypes
from ciss.pseudo_labels import EntropyMedians
from ciss.watch import Watch

evaluate, write = engine.evaluate, results.write

def evaluated(run, network, loader):
    total = evaluate(run, network, loader)
    mine = {"state": dict(network.state_dict()), "total": total, "batches": len(loader), "training": network.training}
    torch.save(mine, f"{run.name}-evaluated-{distributed.rank()}.pt")
    return total

def written(run, *arguments):
    Path(f"{run.name}-written-{distributed.rank()}").touch()
    write(run, *arguments)

engine.evaluate, results.write = evaluated, written
settings = config.load("params.yaml")
with distributed.session():
    for name in sys.argv[1:]:
        engine.train(runs.resolve(settings, name))
    # what a method collects of its part of the data, and what it logs
    rank = distributed.rank()
    centres = ClassPrototypes(2, 3)
    centres.update(torch.full((1, 3, 1, 2), 1.0 + rank), torch.tensor([[[0, rank]]]))
    medians = EntropyMedians(2, 3, bins=4)
    medians.update(torch.zeros(1, 1, 2, dtype=torch.int64), torch.tensor([[[[0.0, 9.0]], [[0.0, -9.0 * rank]]]]))
    watch = Watch()
    watch.see({"a": torch.tensor(1.0 + rank)}, ["x"], {"b": torch.tensor(float("nan") if rank else 5.0)})
    means, _ = watch.epoch(torch.nn.Linear(1, 1))
    collected = {"centres": centres.all_reduce().state_dict(), "histograms": medians.all_reduce().histograms}
    torch.save({**collected, "means": means}, f"collected-{rank}.pt")
"""
RUNS = ("base", "frozen", "whole")


@pytest.fixture(scope="module")
def _trained(tmp_path_factory, tiny_data, frozen_code):
    from conftest import environment, make

    with environment(tiny_data) as patch:
        project = make(tmp_path_factory.mktemp("torchrun") / "project", frozen_code, patch)
        tiny = project.document["benchmarks"]["tiny"]
        tiny["evaluation"]["batch"] = 1  # so that both processes predict samples
        tiny["train"]["batch"] = 2
        # the same, its statistics frozen; and with more accumulated batches than an epoch has
        for name, changes in {"frozen": {}, "whole": {"accumulate": 9}}.items():
            other = json.loads(json.dumps(tiny))
            other["train"] |= changes
            other["train"]["base"] |= {"norm": "frozen", "lr": 0.02}
            project.document["benchmarks"][name] = other
            part, method = ("bases", "finetune") if name == "frozen" else ("joints", "joint")
            project.document[part][name] = {"benchmark": name, "method": method, "seed": 0}
            project.prepare(name)
        (project.folder / "program.py").write_text(PROGRAM)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        process = project.command(*torchrun, "program.py", *RUNS, env={**os.environ, "PYTHONPATH": "."})
        try:
            out, error = process.communicate(timeout=100)
        finally:
            process.terminate()  # torchrun ends its processes
        assert process.returncode == 0, error
        (project.folder / "said").write_text(out)
    return project


@pytest.fixture
def trained(_trained, tiny_data):
    from conftest import environment

    with environment(tiny_data) as patch:
        patch.chdir(_trained.folder)
        yield _trained


def noted(project, name: str) -> list[dict]:
    return [torch.load(project.folder / f"{name}-evaluated-{rank}.pt") for rank in (0, 1)]


def distance(one: dict, other: dict) -> float:
    assert set(one) == set(other)
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def test_both_processes_have_the_same_network(trained):
    """Also its running statistics, which each process gathers from its own images."""
    for name in RUNS:
        one, other = noted(trained, name)
        assert distance(one["state"], other["state"]) == 0
        assert distance(one["state"], load_file(trained.run(name).folder / "weights.safetensors")) == 0


def test_one_of_them_writes_and_speaks(trained):
    said = (trained.folder / "said").read_text()
    for name in RUNS:
        assert (trained.folder / f"{name}-written-0").exists() and not (trained.folder / f"{name}-written-1").exists()
        assert said.count(f"{name}: epoch 2/2") == 1
        assert results.read(trained.run(name))["processes"] == 2
        assert not list(trained.run(name).resume.glob("state*"))


def test_counts_are_those_of_one_process(trained):
    for name in RUNS:
        run, (one, other) = trained.run(name), noted(trained, name)
        assert one["batches"] == other["batches"] == 4, "half of the eight images each"
        network, index = run.build_network(), run.index()
        network.load_state_dict(one["state"])
        loader = evaluation_loader(run.settings, index, "val", list(range(8)), run.label_table(training=False))
        alone = engine.evaluate(run, network, loader)
        assert torch.equal(one["total"], alone) and torch.equal(other["total"], alone)
        result = results.read(run)
        assert (result["confusion"] == alone.numpy()).all()
        samples = engine.predict_samples(run, network, index)
        assert list(samples) == list(result["samples"]) and len(samples) == 2
        assert all((samples[i] == result["samples"][i]).all() for i in samples)


@pytest.mark.parametrize("name", ["frozen", "whole"])
def test_two_processes_are_one_that_accumulates(trained, make_project, name):
    """The same half-batches, each with its own mean over pixels."""
    alone = make_project("alone")
    alone.document = json.loads(json.dumps(trained.document))
    alone.document["benchmarks"][name]["train"]["accumulate"] = 18 if name == "whole" else 2
    alone.prepare(name)
    engine.train(alone.run(name))
    mine, theirs = (load_file(project.run(name).folder / "weights.safetensors") for project in (alone, trained))
    assert distance(mine, theirs) < 1e-6
    log, other = (json.loads((project.run(name).folder / "log.json").read_text()) for project in (alone, trained))
    assert (
        [row["updates"] for row in log] == [row["updates"] for row in other] == ([4, 8] if name == "frozen" else [1, 2])
    )
    for row, theirs in zip(log, other, strict=True):
        assert row["loss"] == pytest.approx(theirs["loss"], abs=1e-5), "losses are means over all processes"


def test_what_methods_collect_is_added_up(trained):
    """Prototypes and thresholds are those of all the data; where one logs nothing, the other's number stands."""
    for rank in (0, 1):
        found = torch.load(trained.folder / f"collected-{rank}.pt", weights_only=True)
        # class 0: features 1, 1 here and 2 there; class 1: one feature 2 there
        assert found["centres"]["sums"].tolist() == [[4.0] * 3, [2.0] * 3]
        assert found["centres"]["counts"].tolist() == [3, 1]
        assert found["histograms"].tolist() == [[2, 0, 0, 2], [0, 0, 0, 0]]
        assert found["means"] == {"loss": 1.5, "loss/a": 1.5, "b": 5.0}


def test_one_process_needs_no_group(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.session():
        assert not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
        value = torch.tensor([1.0, 2.0])
        assert distributed.all_sum(value) is value
        assert distributed.total(value).tolist() == [1, 2]
        assert distributed.union({1: 2}) == {1: 2}
        distributed.share([value])
        distributed.barrier()
        distributed.say("hello")
    assert value.tolist() == [1, 2]
    assert capsys.readouterr().out == "hello\n"


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
        assert distributed.union({1: 2}) == {1: 2}
    assert not torch.distributed.is_initialized()
    with pytest.raises(KeyError), distributed.session():
        raise KeyError
    assert not torch.distributed.is_initialized()
