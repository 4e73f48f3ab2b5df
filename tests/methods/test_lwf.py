"""LwF, LwF-MC and ILT as methods: the released losses, put together."""

import dataclasses

import pytest
import torch

from ciss.methods import ILT, LwF, LwFMC
from ciss.models import Output
from tests.helpers.batches import make_batch
from tests.helpers.golden import case, close


def step(name: str) -> tuple[Output, Output, dict]:
    """Outputs at full resolution, the logits and the last stage being leaves, and a batch."""
    values = case(name)

    def output(logits: torch.Tensor, stage: torch.Tensor) -> Output:
        tokens = logits.mean(dim=(2, 3))
        return Output(logits, logits, [stage], tokens, tokens)

    student = output(values["logits"].requires_grad_(), values.get("features", torch.zeros(1)).requires_grad_())
    teacher = output(values["teacher"], values.get("teacher_features", torch.zeros(1)))
    given = values["labels"]
    batch = dataclasses.replace(make_batch(4, 2), images=given, given=given, labels=given)
    return student, teacher, batch, values


@pytest.mark.parametrize(
    ("kind", "name"), [(LwF, "lwf.seed"), (LwF, "lwf.void_image"), (LwFMC, "lwf_mc.seed"), (ILT, "ilt.seed")]
)
def test_the_released_losses(kind, name):
    student, teacher, batch, values = step(name)
    losses = kind(divisor="all").losses(student, teacher, batch)
    total = sum(losses.values())
    close(total, values["loss"])
    total.backward()
    close(student.logits.grad, values["grad"])
    if kind is ILT:
        close(losses["features"], values["de"])
        close(student.stages[-1].grad, values["grad_features"])
    assert kind.presets["released"] == {"divisor": "all"}


def test_the_default_is_the_mean_over_valid_pixels():
    student, teacher, batch, _ = step("lwf.void_image")
    share = (batch.labels != 255).float().mean()
    for kind in (LwF, LwFMC):
        valid, whole = (kind(divisor=divisor).losses(student, teacher, batch) for divisor in ("valid", "all"))
        close(valid["cross_entropy"] * share, whole["cross_entropy"])
        assert valid["distillation"].equal(whole["distillation"])


def test_ilt_by_hand():
    """Stages (1,2), (0,-1) against (1.5,2), (0,1): 1.0625; without it, LwF."""
    student, teacher, batch, _ = step("lwf.seed")
    student.stages[-1] = torch.tensor([[1.0, 2], [0, -1]])
    teacher.stages[-1] = torch.tensor([[1.5, 2], [0, 1]])
    assert ILT().losses(student, teacher, batch)["features"].item() == pytest.approx(106.25)
    assert ILT(features=0.0).losses(student, teacher, batch).keys() == LwF().losses(student, teacher, batch).keys()


def test_the_base_step_of_lwf_mc_is_binary():
    student, _, batch, _ = step("lwf_mc.seed")
    batch = dataclasses.replace(batch, old_channels=0, step=0)
    losses = LwFMC().losses(student, None, batch)
    assert losses.keys() == {"cross_entropy"}
    assert losses["cross_entropy"] > LwF().losses(student, None, batch)["cross_entropy"]
