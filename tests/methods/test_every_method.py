"""Every method, preset and choice of a coefficient on rare batches: finite losses and gradients, labels in range.

Methods, presets and choices come from `METHODS`: a new method joins by itself.
"""

import copy
import dataclasses
import typing

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ciss.methods import METHODS, Batch, Method
from ciss.models import Output
from tests.helpers.variants import (
    CASES,
    CHOICES,
    DECODERS,
    OLD,
    VARIANTS,
    VOID,
    Case,
    begin,
    benchmark,
    build,
    leaves,
    outputs,
    with_extras,
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
    teacher_output, student_output = outputs(decoder, case.new, case.batch, case.size, method)
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
    begin(method, decoder, first)
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


# --- nothing waits for the device


def prepared(method: Method, decoder: str) -> tuple[Output, Output, Batch]:
    """Student's and teacher's outputs and a batch, after `start` and `before_step`."""
    case = CASES["ordinary"]
    teacher, student = outputs(decoder, case.new, case.batch, case.size, method)
    teacher, _ = leaves(teacher, learns=False)
    student, _ = leaves(student, learns=True)
    batch = case.make_batch(case.labels())
    begin(method, decoder, batch)
    with torch.no_grad():
        method.before_step([batch], lambda _images: teacher, [batch])
    return student, teacher.without_cache(), batch


def learn(method: Method, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
    """One update's work, between two batches."""
    with torch.no_grad():
        batch.labels = method.labels(batch, teacher)
    losses = method.losses(student, teacher, batch)
    batch.log_gradients(student)
    sum(losses.values()).backward()
    return losses


def move_tensors(part: object, change: typing.Callable[[Tensor], Tensor]) -> None:
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            setattr(part, name, change(value))
        elif isinstance(value, list):
            setattr(part, name, [change(entry) if isinstance(entry, Tensor) else entry for entry in value])
        elif name == "extras":
            setattr(part, name, {row: change(entry) for row, entry in value.items()})
        elif isinstance(value, nn.Module):
            for module in value.modules():
                for tensors in (module._parameters, module._buffers):
                    tensors.update({key: change(entry) for key, entry in tensors.items() if entry is not None})


def check_without_values(method: Method, decoder: str) -> None:
    """Fake tensors have shapes and no values: `.item()`, boolean indexing and `unique` fail on them."""
    if method.unsuited(benchmark(decoder, CASES["ordinary"])):
        return
    parts = prepared(method, decoder)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        for part in (method, *parts):
            move_tensors(part, lambda value: mode.from_tensor(value))
        losses = learn(method, *parts)
        assert all(value.fake_mode is mode for value in losses.values())
        method.maps(*parts)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("name", "preset"), VARIANTS)
def test_no_preset_waits_for_the_device(name, preset, decoder):
    check_without_values(build(name, preset), decoder)


@pytest.mark.parametrize(("name", "values", "decoder"), CHOICES)
def test_no_choice_waits_for_the_device(name, values, decoder):
    check_without_values(METHODS[name](**values), decoder)


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("name", "preset"), VARIANTS)
def test_no_step_waits_for_a_gpu(name, preset, decoder):
    """On a device, a synchronising call is an error. Labels and losses are those of the CPU."""
    method = build(name, preset)
    if method.unsuited(benchmark(decoder, CASES["ordinary"])):
        return
    parts = prepared(method, decoder)
    moved = [copy.deepcopy(part) for part in parts]
    expected = learn(method, *parts)
    for part in (method, *moved):
        move_tensors(part, lambda value: value.detach().cuda().requires_grad_(value.requires_grad))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = learn(method, *moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (moved[2].labels.cpu() == parts[2].labels).float().mean() > 0.99
    for loss, value in expected.items():
        torch.testing.assert_close(losses[loss].cpu(), value, rtol=1e-2, atol=1e-3)


# --- base steps, and the check itself


@pytest.mark.parametrize("name", METHODS)
def test_base_steps(name):
    for title in ("ordinary", "all void", "all background", "all new", "one image"):
        case = CASES[title]
        method = METHODS[name]()
        student = with_extras(outputs("deeplabv3", case.new, case.batch, case.size)[1], method, 0)
        student, tensors = leaves(student, learns=True)
        batch = case.make_batch(case.labels(), base=True)
        losses = method.losses(student, None, batch)
        assert losses and all(value.dtype == torch.float32 for value in losses.values())
        verify(losses, tensors, batch)
        assert title == "all void" or student.logits.grad.abs().sum() > 0


def test_the_check_sees_a_loss_that_is_not_finite():
    class Broken(METHODS["finetune"]):
        def losses(self, student, teacher, batch):
            kept = batch.labels != VOID
            return {"mean": (student.upsample(batch.size).amax(dim=1) * kept).sum() / kept.sum()}

    check("deeplabv3", Broken(), CASES["ordinary"])
    with pytest.raises(AssertionError, match="mean is nan"):
        check("deeplabv3", Broken(), CASES["all void"])
