"""Training on a GPU: the losses of the CPU, the same run twice, and no wait for the device within an update."""

import pytest
import torch

from ciss import distributed
from ciss.methods import METHODS
from ciss.runs.state import TrainingState
from ciss.training import loop
from ciss.training.log import LossLog
from tests.helpers.training import distance, weights

pytestmark = pytest.mark.gpu
INCREMENTAL = [name for name, method in METHODS.items() if not method.sees_all]


def prepared(project, method: str):
    """The increment `first` of a method after a trained base step. Forward passes are in float32."""
    project.document["methods"][method] = {}
    entry = {"benchmark": "tiny", "method": method, "seed": 0, "after": "base", "step": 1}
    project.document["chain"] = {"first": entry}
    project.document["ends"] = {}
    project.set("train.precision", "float32")
    project.set("train.increment", {"epochs": 2, "lr": 0.02, "norm": "frozen"})
    loop.train(project.run("base"))
    return project.run("first")


def losses_on(run, device: str) -> torch.Tensor:
    """Losses (batches, terms) of three epochs on a device."""
    setup = loop.prepare_training(run, run.index())
    assert setup.device.type == device
    loop.prepare_step(setup, TrainingState())
    first, *others = (batch for epoch in range(3) for batch in setup.batches.read(setup.loader, epoch))
    log = LossLog()
    loop.train_update(setup, [first], log)  # it may set things up
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in others:
            loop.train_update(setup, [batch], log)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert len(others) >= 2
    return torch.stack(log.unchecked).cpu()[:, : len(log.names)]


@pytest.mark.parametrize("method", INCREMENTAL)
def test_an_update_has_the_losses_of_the_cpu_and_does_not_wait(project, monkeypatch, method):
    """To 2 %: convolutions on a GPU may use TF32, and updates carry the difference on."""
    run = prepared(project, method)
    on_gpu = losses_on(run, "cuda")
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cpu"))
    torch.testing.assert_close(on_gpu, losses_on(run, "cpu"), rtol=2e-2, atol=1e-3)


def test_a_seed_gives_nearly_the_same_weights_twice(make_project):
    """Whether they have the same bytes depends on the card: `ciss bench --gpu` reports it."""
    runs = []
    for name in ("one", "other"):
        run = prepared(make_project(name), "gsc")
        loop.train(run)
        runs.append(weights(run))
    assert distance(*runs) < 1e-2
