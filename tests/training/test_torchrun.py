"""Two processes are one with the same batches; they score once, write once, and stay equal."""

import json
import os
import re
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ciss.data.loaders import evaluation_loader
from ciss.runs import results as runs_results
from ciss.runs.results import read
from ciss.training import loop
from tests.helpers import torchrun_program
from tests.helpers.project import environment, make
from tests.helpers.torchrun_program import COMPENSATIONS, compensate, gathered, note_images, note_methods, state_of

pytestmark = pytest.mark.slow  # `test_distributed` holds what one process can show
RUNS = ("base", "frozen", "whole")
VARIANTS = {
    "finetune": {},
    "mib": {},
    "plop": {"pod": 0.001},
    "gsc": {"pod": 0.001, "statistics": "global"},
    "gsc-own": {"pod": 0.001},  # mean gradients of the pixels of one process
    "gsc-gated": {"pod": 0.001, "gate": "two_stage", "prototypes": "previous", "statistics": "global"},
    "gsc-entropy": {"pod": 0.001, "relabelling": "entropy", "sharp_where": "certain", "statistics": "global"},
    "mbs": {"threshold": 0.3},
    "mib-memory": {"memory": {"images": 4}},
}
DECODERS = {"deep": {}, "masks": {"decoder": "mask_transformer", "heads": 2, "layers": 1, "drop_path": 0.0}}
PACE = {"deep": 0.003, "masks": 0.05}
CHAIN = [f"deep-{name}" for name in VARIANTS] + [
    f"masks-{name}" for name in VARIANTS if name not in ("gsc-gated", "gsc-own")
]
JOINTS = [f"{network}-joint" for network in DECODERS]


def plan(document: dict) -> None:
    """Steps of every method on both decoders, normalisation frozen, ten updates or more."""
    tiny = document["benchmarks"]["tiny"]
    document["methods"] = {**VARIANTS, "joint": {}}
    for network, model in DECODERS.items():
        benchmark = deepcopy(tiny)
        benchmark["protocol"] = "4-4"
        benchmark["model"] |= model
        benchmark["train"] |= {"curve": [1], "increment": {"epochs": 5, "lr": PACE[network], "norm": "frozen"}}
        joint = deepcopy(benchmark)
        joint["train"]["base"] |= {"epochs": 3, "norm": "frozen"}
        document["benchmarks"] |= {network: benchmark, f"{network}-all": joint}
        document["bases"][f"{network}-base"] = {"benchmark": network, "method": "finetune", "seed": 0}
        document["joints"][f"{network}-joint"] = {"benchmark": f"{network}-all", "method": "joint", "seed": 0}
        for method in VARIANTS:
            after = {"after": f"{network}-base", "step": 1}
            document["chain"][f"{network}-{method}"] = {"benchmark": network, "method": method, "seed": 0, **after}
    document["benchmarks"]["deep"]["evaluation"] = {"batch": 1}
    document["benchmarks"]["masks"]["evaluation"] = {"batch": 16}  # one process has no batch to score


def gives(project, donor) -> None:
    """The bases of another project: increments continue the same teacher."""
    for network in DECODERS:
        shutil.copytree(donor.folder / "runs" / network, project.folder / "runs" / network)


@pytest.fixture(scope="module")
def _alone(tmp_path_factory, tiny_data, frozen_code):
    """One process; its bases are trained."""
    with environment(tiny_data) as patch:
        alone = make(tmp_path_factory.mktemp("alone") / "project", frozen_code, patch)
        plan(alone.document)
        for name in alone.document["benchmarks"]:
            alone.prepare(name)
        for network in DECODERS:
            loop.train(alone.run(f"{network}-base"))
    return alone


@pytest.fixture(scope="module")
def _trained(tmp_path_factory, tiny_data, frozen_code, _alone):
    with environment(tiny_data) as patch:
        project = make(tmp_path_factory.mktemp("torchrun") / "project", frozen_code, patch)
        tiny = project.document["benchmarks"]["tiny"]
        tiny["evaluation"]["batch"] = 1  # so that both processes predict samples
        plan(project.document)
        # the same, its statistics frozen; and with more accumulated batches than an epoch has
        for name, changes in {"frozen": {}, "whole": {"accumulate": 9}}.items():
            other = deepcopy(tiny)
            other["train"] |= changes
            other["train"]["base"] |= {"norm": "frozen", "lr": 0.02}
            project.document["benchmarks"][name] = other
            part, method = ("bases", "finetune") if name == "frozen" else ("joints", "joint")
            project.document[part][name] = {"benchmark": name, "method": method, "seed": 0}
        for name in project.document["benchmarks"]:
            project.prepare(name)
        gives(project, _alone)
        program = Path(torchrun_program.__file__)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        names = (*RUNS, *CHAIN, *JOINTS)
        process = project.command(*torchrun, str(program), *names, env={**os.environ, "PYTHONPATH": "."})
        try:
            out, error = process.communicate(timeout=500)
        finally:
            process.terminate()  # torchrun ends its processes
        assert process.returncode == 0, error
        (project.folder / "said").write_text(out)
    return project


@pytest.fixture
def alone(_alone, tiny_data):
    with environment(tiny_data) as patch:
        patch.chdir(_alone.folder)
        yield _alone


@pytest.fixture
def trained(_trained, tiny_data):
    with environment(tiny_data) as patch:
        patch.chdir(_trained.folder)
        yield _trained


def noted(project, name: str) -> list[dict]:
    return [torch.load(project.folder / f"{name}-evaluated-{rank}.pt") for rank in (0, 1)]


def distance(one: dict, other: dict) -> float:
    assert set(one) == set(other)
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def test_both_processes_have_the_same_network(trained):
    """Also its running statistics."""
    for name in RUNS:
        one, other = noted(trained, name)
        assert distance(one["state"], other["state"]) == 0
        assert distance(one["state"], load_file(trained.run(name).folder / "weights.safetensors")) == 0


def test_one_of_them_writes_and_speaks(trained):
    said = (trained.folder / "said").read_text()
    for name in RUNS:
        assert (trained.folder / f"{name}-written-0").exists() and not (trained.folder / f"{name}-written-1").exists()
        assert said.count(f"{name}: epoch 2/2") == 1
        assert runs_results.read(trained.run(name))["processes"] == 2
        assert not list(trained.run(name).resume.glob("state*"))


def test_counts_are_those_of_one_process(trained):
    for name in RUNS:
        run, (one, other) = trained.run(name), noted(trained, name)
        assert one["batches"] == other["batches"] == 4, "half of the eight images each"
        network, index = run.build_network(), run.index()
        network.load_state_dict(one["state"])
        loader = evaluation_loader(run.settings, index, "val", list(range(8)), run.label_table(training=False))
        alone = loop.evaluate(run, network, loader)
        assert torch.equal(one["total"], alone) and torch.equal(other["total"], alone)
        result = runs_results.read(run)
        assert (result["confusion"] == alone.numpy()).all()
        samples = loop.predict_samples(run, network, index)
        assert list(samples) == list(result["samples"]) and len(samples) == 2
        assert all((samples[i] == result["samples"][i]).all() for i in samples)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one_with_the_same_batches(trained, make_project, monkeypatch, name):
    """Each update has the same images. `base` has statistics of its batches, `whole` several batches in an update."""
    alone = make_project("alone")
    alone.document = json.loads(json.dumps(trained.document))
    alone.prepare(alone.run(name).benchmark)
    note_images(images := [], monkeypatch.setattr)
    loop.train(alone.run(name))
    halves = [torch.load(trained.folder / f"{name}-images-{rank}.pt") for rank in (0, 1)]
    assert images == [[a + b for a, b in zip(*both, strict=True)] for both in zip(*halves, strict=True)]
    mine, theirs = (load_file(project.run(name).folder / "weights.safetensors") for project in (alone, trained))
    assert distance(mine, theirs) < (0.02 if name == "base" else 1e-6), (
        "1e-7 in the starting weights moves `base` as far"
    )
    log, other = (json.loads((project.run(name).folder / "log.json").read_text()) for project in (alone, trained))
    assert (
        [row["updates"] for row in log] == [row["updates"] for row in other] == ([1, 2] if name == "whole" else [4, 8])
    )
    for row, theirs in zip(log, other, strict=True):
        close = pytest.approx(theirs["loss"], abs=0.01 if name == "base" else 1e-5)
        assert row["loss"] == close, "losses are means over all processes"


def test_what_methods_collect_is_added_up(trained):
    """Prototypes and thresholds are those of all the data; where one logs nothing, the other's number stands."""
    for rank in (0, 1):
        found = torch.load(trained.folder / f"collected-{rank}.pt", weights_only=True)
        # class 0: features 1, 1 here and 2 there; class 1: one feature 2 there
        assert found["centres"]["sums"].tolist() == [[4.0] * 3, [2.0] * 3]
        assert found["centres"]["counts"].tolist() == [3, 1]
        assert found["histograms"].tolist() == [[2, 0, 0, 2], [0, 0, 0, 0]]
        assert found["means"] == {"loss": 1.5, "loss/a": 1.5, "b": 5.0}


# --- steps with a teacher: the same batches, in two processes and in one


def weights(project, name: str) -> dict:
    return load_file(project.run(name).folder / "weights.safetensors")


def moved(one: dict, other: dict) -> float:
    """The largest change of a parameter that both have; statistics are not parameters."""
    learnt = [name for name in one if name in other and one[name].shape == other[name].shape and "running" not in name]
    return distance({name: one[name] for name in learnt}, {name: other[name] for name in learnt})


@pytest.mark.parametrize("name", [*CHAIN, *JOINTS])
def test_every_method_learns_the_same_in_two_processes(trained, alone, monkeypatch, name):
    made: dict = {}
    note_methods(made, monkeypatch.setattr)
    loop.train(run := alone.run(name))
    mine, log = weights(alone, name), json.loads((run.folder / "log.json").read_text())
    found = read(run)
    others = trained.run(name)
    apart = distance(mine, weights(trained, name))
    if name == "deep-gsc-own":
        assert apart > 3e-6, "mean gradients of the pixels of one process"
        return
    assert apart < (1e-4 if name in JOINTS else 1e-6)  # joint training has more updates, in which rounding grows
    there = json.loads((others.folder / "log.json").read_text())
    assert [row["updates"] for row in log] == [row["updates"] for row in there] and log[-1]["updates"] >= 10
    for row, other in zip(log, there, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            if key.startswith(("loss", "lr", "epoch", "updates")):
                assert value == other[key] or value == pytest.approx(other[key], rel=1e-5, abs=1e-6), key
            else:  # means of halves, which are not weighed by their pixels
                assert None in (value, other[key]) or value == pytest.approx(other[key], rel=0.2, abs=0.1), key
    if run.after:
        assert 1e-3 < moved(mine, weights(alone, run.after)) < 10, "something was learnt, nothing diverged"
    # what was made of the teacher before the step, and how its labels were judged
    for rank in (0, 1):
        state = torch.load(trained.folder / f"{name}-method-{rank}.pt", weights_only=True)
        here = state_of(made[name])
        assert state.keys() == here.keys()
        assert all(torch.equal(state[key], here[key]) for key in state)
    assert bool(here) == name.partition("-")[2].startswith(("gsc", "plop"))
    labels = runs_results.read(others)["labels"]
    assert labels.keys() == found["labels"].keys()
    assert all((labels[key] == found["labels"][key]).all() for key in labels)


def test_a_process_may_have_nothing_to_score(trained):
    one, other = noted(trained, "masks-mbs")
    assert (one["batches"], other["batches"]) == (1, 0)
    assert torch.equal(one["total"], other["total"]) and one["total"].sum() > 0


# --- what processes add up, and what they tell each other


def compensated(project, name: str) -> list[dict]:
    return [torch.load(project.folder / f"{name}-compensated-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_global_statistics_are_those_of_the_whole_batch(trained):
    """Weights with any divisor; the gradient, too, where each process divides by the same number of pixels."""
    for name in ("global", "valid"):
        halves, whole = compensated(trained, name), compensate(0, 1, **COMPENSATIONS[name])
        both = torch.cat([half["weights"] for half in halves])
        assert torch.allclose(both, whole["weights"], rtol=1e-6, atol=0) and both.std() > 0.1
        alike = torch.allclose(halves[0]["gradient"], whole["gradient"], rtol=1e-5, atol=1e-7)
        assert alike == (name == "global"), "a mean over valid pixels is one over those of a process"
        assert torch.equal(halves[0]["gradient"], halves[1]["gradient"])


def test_statistics_of_a_process_are_its_own(trained):
    halves, whole = compensated(trained, "process"), compensate(0, 1, **COMPENSATIONS["process"])
    both = torch.cat([half["weights"] for half in halves])
    assert (both - whole["weights"]).abs().max() > 1e-3


def test_prototypes_of_parts_are_those_of_all(trained):
    alone = gathered(range(7))
    for rank in (0, 1):
        found = torch.load(trained.folder / f"collected-{rank}.pt", weights_only=True)["many"]
        assert torch.equal(found["counts"], alone.counts)
        assert torch.allclose(found["sums"], alone.sums, rtol=1e-14, atol=1e-9)


def test_processes_agree_before_they_train(trained):
    one, other = (torch.load(trained.folder / f"talk-{rank}.pt") for rank in (0, 1))
    assert one == other, "each hears the same"
    assert one["first"] == "the answer of 0"
    start = r"^process 1 on \S+ differs from process 0: "
    assert re.search(f"{start}run 1, not 0$", one["plain"], re.MULTILINE)
    assert re.search(f"{start}run.train.batch 3, not 2$", one["sections"], re.MULTILINE)
    assert "crop" not in one["sections"] and "abc" not in one["sections"], "only what differs"
    assert re.search(f"{start}run.train.crop 32, not None$", one["missing"], re.MULTILINE)
