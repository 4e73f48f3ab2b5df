"""`train.batch` counts the images of all processes: shares, refusals, and batch statistics over processes."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from ciss import config, distributed, updates
from ciss.config import ConfigError
from ciss.models import create_network, set_norm_mode, synchronised
from ciss.study import launch
from ciss.study.slurm import resources
from ciss.training import loop
from tests.helpers.project import DOCUMENT


@pytest.mark.parametrize(
    ("batch", "processes", "problem"),
    [
        (16, 1, None),
        (16, 4, None),
        (16, 3, "16 images do not divide among 3 processes. Write 15 or 18, or use 2 or 4 processes."),
        (24, 5, "24 images do not divide among 5 processes. Write 20 or 25, or use 4 or 6 processes."),
        (2, 4, "2 images do not divide among 4 processes. Write 4, or use 2 processes."),
        (7, 2, "7 images do not divide among 2 processes. Write 6 or 8, or use 1 or 7 processes."),
        (1, 2, "1 image does not divide among 2 processes. Write 2, or use 1 process."),
    ],
)
def test_what_divides(batch, processes, problem):
    assert updates.undivided(batch, processes) == problem


def document(**train) -> dict:
    result = deepcopy(DOCUMENT)
    result["benchmarks"]["tiny"]["train"] |= train
    return result


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError) as caught:
        config.parse(document(batch=16, processes=3), "a.yaml")
    assert str(caught.value).startswith(
        "a.yaml: benchmarks.tiny.train.batch: 16 images do not divide among 3 processes."
    )
    assert config.parse(document(batch=16, processes=4)).benchmarks["tiny"].train.processes == 4


def test_older_files_are_refused_with_the_number_to_write(project):
    """A file without version; with one process nothing changes."""
    project.set("train.processes", 2)
    project.set("train.batch", 6)
    del project.document["version"]
    project.write()
    with pytest.raises(ConfigError) as caught:
        config.load("params.yaml")
    text = str(caught.value)
    assert text.startswith("params.yaml: line ") and "benchmarks.tiny.train.batch: 6 images with 2 processes" in text
    assert "write batch: 12. Then add the line `version: 2`" in text
    project.set("train.processes", 1)
    project.write()
    older = config.load("params.yaml")
    project.document["version"] = 2
    project.write()
    assert older.benchmarks == config.load("params.yaml").benchmarks


def test_the_version_changes_no_identity(project):
    identity = project.run().identity("data", None)
    del project.document["version"]
    assert project.run().identity("data", None) == identity


def test_gpus_that_do_not_divide_the_batch(project, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert launch.gpus_per_run(project.config, 4) == 4
    with pytest.raises(ConfigError, match="--per-run 3: params.yaml: benchmarks.tiny.train.batch: 4 images do not"):
        launch.gpus_per_run(project.config, 3)
    (project.folder / "cluster.yaml").write_text("tiny: {gpus: 3, nodes: 2}\n")
    with pytest.raises(ConfigError, match=r"nodes: 2, gpus: 3: params.yaml: benchmarks.tiny.train.batch: 4 images do"):
        resources.read(project.folder / "cluster.yaml", project.config, ["tiny"])


def test_torchrun_with_a_number_that_does_not_divide_the_batch(project, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(ConfigError, match=r"benchmarks.tiny.train.batch: 4 images do not divide among 3 processes"):
        loop.train(project.run())


def both_halves(layer: nn.Module, halves: list[torch.Tensor], monkeypatch) -> list[torch.Tensor]:
    """What two processes compute, each of its half: `all_sum` gets the other's terms, computed before."""
    terms: list[list[torch.Tensor]] = [[], []]
    for known in range(3):  # sums, then squared deviations, then both
        outputs = []
        for rank, half in enumerate(halves):
            mine, calls = [], iter(range(known))

            def all_sum(tensor, rank=rank, mine=mine, calls=calls):
                mine.append(tensor.clone())
                number = next(calls, None)
                return tensor if number is None else tensor + terms[1 - rank][number]

            monkeypatch.setattr(distributed, "all_sum", all_sum)
            outputs.append(deepcopy(layer)(half))
            terms[rank] = mine
    return outputs


def test_batch_statistics_are_those_of_all_processes(monkeypatch):
    """Halves of three and two images are normalised as the five together."""
    images = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    plain = nn.BatchNorm2d(4)
    layer = synchronised.synchronise(deepcopy(plain))
    together = plain(images)
    output = torch.cat(both_halves(layer, [images[:3], images[3:]], monkeypatch))
    assert torch.allclose(output, together, atol=1e-6)
    assert not torch.allclose(
        torch.cat([deepcopy(plain)(images[:3]), deepcopy(plain)(images[3:])]), together, atol=0.01
    )


def test_a_synchronised_network_is_the_same_in_one_process(monkeypatch):
    """Outputs, gradients and running statistics, also of timm's layers with an activation; parameters keep names."""
    torch.manual_seed(0)
    plain = create_network(config.Model(width=8), [5]).train()
    network = deepcopy(plain)
    names = [name for name, _ in network.named_parameters()]
    monkeypatch.setattr(distributed, "world", lambda: 2)
    network = set_norm_mode(network, "batch")
    assert [name for name, _ in network.named_parameters()] == names
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(layers) > 5 and all(isinstance(layer, synchronised.BatchNormOfAllProcesses) for layer in layers)
    assert set_norm_mode(network, "batch") is network, "once"
    images = torch.randn(3, 3, 32, 32)
    results = []
    for one in (plain, network):
        logits = one(images).logits
        logits.square().mean().backward()
        results.append((logits, [parameter.grad for parameter in one.parameters()], one.state_dict()))
    (logits, gradients, state), (others, other_gradients, other_state) = results
    assert torch.allclose(logits, others, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(gradients, other_gradients, strict=True))
    assert state.keys() == other_state.keys()
    assert all(torch.allclose(state[name], other_state[name], atol=1e-5) for name in state)
    assert network.eval()(images).logits.allclose(plain.eval()(images).logits, atol=1e-5)
    frozen = set_norm_mode(create_network(config.Model(width=8), [5]), "frozen")
    assert not any(isinstance(module, synchronised.BatchNormOfAllProcesses) for module in frozen.modules())
