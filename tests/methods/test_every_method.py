"""Every method, preset and choice of a coefficient on rare batches: finite losses and gradients, labels in range.

Methods, presets and choices come from `METHODS`: a new method joins by itself.
"""

import dataclasses
import typing

import pytest
import torch
from torch import Tensor

from ciss.methods import METHODS, Batch, Method
from tests.helpers.variants import (
    CASES,
    CHOICES,
    DECODERS,
    OLD,
    VARIANTS,
    VOID,
    Case,
    benchmark,
    build,
    leaves,
    outputs,
)

FEW = (
    "ordinary",
    "all void",
    "all background",
    "all new",
    "one image",
    "all logits of 1e4",
    "no old class in the statistics",
    "nothing in the statistics",
    "domain, more steps than channels",
)


def check(decoder: str, method: Method, case: Case) -> None:
    """Runs the hooks of a method as training does, on outputs whose tensors are leaves."""
    teacher_output, student_output = outputs(decoder, case.new, case.batch, case.size)
    teacher, _ = leaves(teacher_output, learns=False, scale=case.teacher_scale)
    if case.same:
        new = student_output.class_tokens[OLD:]
        student_output = dataclasses.replace(
            teacher_output,
            logits=torch.cat([teacher_output.logits, student_output.logits[:, OLD:]], dim=1),
            class_features=torch.cat([teacher_output.class_features, student_output.class_features[:, OLD:]], dim=1),
            class_tokens=torch.cat([teacher_output.class_tokens, new]),
        )
    student, tensors = leaves(student_output, learns=True, scale=case.student_scale)
    batch, seen = case.make_batch(case.labels()), teacher
    if case.unseen or case.nothing:
        # the teacher calls every pixel background
        certain = torch.zeros_like(teacher.logits)
        certain[:, 0] = 50
        seen = dataclasses.replace(teacher, logits=certain)
    statistics = torch.full_like(batch.given, VOID if case.nothing else 0) if case.unseen or case.nothing else None
    first = batch if statistics is None else case.make_batch(statistics)
    with torch.no_grad():
        method.before_step([first], lambda _images: seen, [first])
        batch.labels = method.labels(batch, teacher)
    assert batch.labels.dtype == torch.int64 and batch.labels.shape == batch.given.shape
    assert ((batch.labels >= 0) & (batch.labels < batch.channels) | (batch.labels == VOID)).all()
    kept = (batch.given != 0) & (batch.given != VOID)
    assert torch.equal(batch.labels[kept], batch.given[kept]), "a given label changed"
    losses = method.losses(student, teacher, batch)
    batch.log_gradients(student)
    verify(losses, tensors, batch)
    with torch.no_grad():
        for name, values in method.maps(student, teacher, batch).items():
            assert values.isfinite().all(), f"map {name}"


def verify(losses: dict[str, Tensor], tensors: list[Tensor], batch: Batch) -> None:
    for name, value in losses.items():
        assert value.ndim == 0 and value.isfinite(), f"{name} is {value}"
    sum(losses.values()).backward()
    for tensor in tensors:
        assert tensor.grad is None or tensor.grad.isfinite().all(), f"gradient of a tensor {tuple(tensor.shape)}"
    for name, value in batch.logs.items():
        assert not value.isinf(), f"log {name} is {value}"


def failures(decoder: str, create: typing.Callable[[], Method], cases: dict[str, Case]) -> list[str]:
    """What goes wrong, by case."""
    messages = []
    for title, case in cases.items():
        method = create()
        if method.sees_all or method.unsuited(benchmark(decoder, case)):
            continue
        try:
            check(decoder, method, case)
        except Exception as error:
            messages.append(f"{title}: {type(error).__name__}: {error}")
    return messages


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("name", "preset"), VARIANTS)
def test_rare_batches_have_finite_losses_and_gradients(name, preset, decoder):
    messages = failures(decoder, lambda: build(name, preset), CASES)
    assert not messages, "\n".join(messages)


@pytest.mark.parametrize(("name", "values", "decoder"), CHOICES)
def test_every_choice_of_a_coefficient(name, values, decoder):
    messages = failures(decoder, lambda: METHODS[name](**values), {title: CASES[title] for title in FEW})
    assert not messages, "\n".join(messages)


@pytest.mark.parametrize("name", METHODS)
def test_base_steps(name):
    for title in ("ordinary", "all void", "all background", "all new", "one image"):
        case = CASES[title]
        student, tensors = leaves(outputs("deeplabv3", case.new, case.batch, case.size)[1], learns=True)
        batch = case.make_batch(case.labels(), base=True)
        verify(METHODS[name]().losses(student, None, batch), tensors, batch)


def test_the_check_sees_a_loss_that_is_not_finite():
    class Broken(METHODS["finetune"]):
        def losses(self, student, teacher, batch):
            kept = batch.labels != VOID
            return {"mean": (student.upsample(batch.size).amax(dim=1) * kept).sum() / kept.sum()}

    check("deeplabv3", Broken(), CASES["ordinary"])
    with pytest.raises(AssertionError, match="mean is nan"):
        check("deeplabv3", Broken(), CASES["all void"])
