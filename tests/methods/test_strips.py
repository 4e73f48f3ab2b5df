"""Full-resolution maps in strips of rows: the same labels, losses and gradients, no whole map, nothing twice."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ciss.losses.strips import sum_of_strips
from ciss.methods import METHODS, Batch, Method, base
from ciss.models import Output
from tests.helpers.variants import CASES, CHOICES, DECODERS, VARIANTS, begin, benchmark, build, leaves, outputs

FEW = ("ordinary", "all void", "one image", "domain")


def in_float64(output: Output, learns: bool) -> tuple[Output, list[Tensor]]:
    lists = {name: [value.double() for value in getattr(output, name)] for name in ("stages", "before_activation")}
    single = ("logits", "features", "class_features", "class_tokens")
    maps = {name: getattr(output, name).double() for name in single}
    extras = {name: rows.double() for name, rows in output.extras.items()}
    return leaves(dataclasses.replace(output, **maps, **lists, extras=extras), learns=learns)


def step(method: Method, decoder: str, title: str) -> tuple[Batch, dict[str, Tensor], list[Tensor]]:
    """Batch, losses, and the leaves of the student's output, in float64."""
    case = CASES[title]
    teacher, student = outputs(decoder, case.new, case.batch, case.size, method)
    teacher, student = in_float64(teacher, False)[0], in_float64(student, True)
    batch = case.make_batch(case.labels())
    begin(method, decoder, batch)
    with torch.no_grad():
        method.before_step([batch], lambda _images: teacher.without_cache(), [batch])
        batch.labels = method.labels(batch, teacher)
    losses = method.losses(student[0], teacher, batch)
    batch.log_gradients(student[0])
    return batch, losses, student[1]


def gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return torch.autograd.grad(loss, tensors, retain_graph=True, materialize_grads=True)


def compare(create, decoder: str, title: str, monkeypatch) -> None:
    if create().sees_all or create().unsuited(benchmark(decoder, CASES[title])):
        return
    whole, expected, tensors = step(create(), decoder, title)
    with monkeypatch.context() as patch:
        patch.setattr(base, "STRIP_BYTES", 3 * 4 * whole.channels * len(whole.labels) * whole.size[1])
        assert [rows.stop - rows.start for rows in whole.strips] == [3, 3, 3, 3, 3, 1]
        strips, losses, leaves_of_strips = step(create(), decoder, title)
        assert strips.labels.equal(whole.labels) and losses.keys() == expected.keys()
        found = {name: gradients(value, leaves_of_strips) for name, value in losses.items() if value.requires_grad}
        found["sum"] = gradients(sum(losses.values()), leaves_of_strips)
    expected["sum"] = sum(expected.values())
    for name, values in found.items():  # of each loss alone, too: the factors of the losses then differ
        assert name == "sum" or losses[name].item() == pytest.approx(expected[name].item(), rel=1e-12, abs=1e-15)
        for value, reference in zip(values, gradients(expected[name], tensors), strict=True):
            torch.testing.assert_close(
                value, reference, rtol=1e-10, atol=1e-14, msg=lambda text, name=name: name + text
            )
    for name, value in whole.logs.items():
        torch.testing.assert_close(strips.logs[name], value, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("name", "preset"), VARIANTS)
def test_strips_are_the_whole(name, preset, decoder, monkeypatch):
    for title in FEW:
        compare(lambda: build(name, preset), decoder, title, monkeypatch)


@pytest.mark.parametrize(("name", "values", "decoder"), CHOICES)
def test_with_every_choice_of_a_coefficient(name, values, decoder, monkeypatch):
    compare(lambda: METHODS[name](**values), decoder, "ordinary", monkeypatch)


def test_the_check_sees_a_wrong_share(monkeypatch):
    class Wrong(METHODS["finetune"]):
        def pixel_counts(self, teacher, batch):
            return {}

    with pytest.raises(AssertionError):
        compare(Wrong, "deeplabv3", "ordinary", monkeypatch)


def test_gradients_of_a_sum_over_strips():
    """L_a = sum x^2, L_b = 3 sum x, by rows; also where only one of them is asked for, and in half the weight."""
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    calls = []

    def losses(values: Tensor, row: int) -> dict[str, Tensor]:
        calls.append(row)
        return {"a": values[row].square().sum(), "b": 3 * values[row].sum()}

    sums = sum_of_strips(losses, (0, 1), x)
    assert sums["a"].item() == 30 and sums["b"].item() == 30
    (found,) = torch.autograd.grad(0.5 * sum(sums.values()), x, retain_graph=True)
    assert found.equal(0.5 * (2 * x + 3)) and calls == [0, 1], "equal factors: nothing is computed again"
    (found,) = torch.autograd.grad(sums["a"] + 2 * sums["b"], x, retain_graph=True)
    assert found.equal(2 * x + 6)
    (found,) = torch.autograd.grad(sums["b"], x)
    assert found.equal(torch.full_like(x, 3))
    with torch.no_grad():
        assert not sum_of_strips(losses, (0, 1), x)["a"].requires_grad


# --- full-resolution work


class FullMaps(TorchDispatchMode):
    """Counts pixels x channels of the results of operators by name, and keeps the largest result."""

    def __init__(self):
        super().__init__()
        self.elements: dict[tuple[str, int], int] = {}
        self.largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, Tensor) and result.ndim == 4:
            key = (function.overloadpacket.__name__, result.shape[1])
            self.elements[key] = self.elements.get(key, 0) + result.numel()
            if result.untyped_storage().nbytes() >= result.nbytes:
                self.largest = max(self.largest, result.numel())
        return result


OLD, NEW, SIZE, GRID = 24, 7, 64, 4


def wide_step(name: str) -> tuple[Method, Output, Output, Batch]:
    """31 channels at 64 pixels, from a grid of 4 x 4: a full-resolution map is larger than any other."""
    generator = torch.Generator().manual_seed(0)

    def output(channels: int, learns: bool) -> Output:
        logits, features, tokens = (
            torch.randn(shape, generator=generator).requires_grad_(learns)
            for shape in ((2, channels, GRID, GRID), (2, 5, GRID, GRID), (channels, 5))
        )
        return Output(logits, features, [features], tokens.expand(2, -1, -1), tokens)

    given = torch.randint(OLD - 1, OLD + NEW, (2, SIZE, SIZE), generator=generator)
    given = given.masked_fill(given < OLD, 0)
    steps = torch.tensor([0] * OLD + [1] * NEW)
    batch = Batch(given, given, given, ["a", "b"], 1, OLD, steps, torch.arange(OLD, OLD + NEW))
    method, teacher = METHODS[name](), output(OLD, learns=False)
    with torch.no_grad():
        method.before_step([batch], lambda _images: teacher.without_cache(), [batch])
    return method, output(OLD + NEW, learns=True), teacher, batch


def work(name: str) -> FullMaps:
    method, student, teacher, batch = wide_step(name)
    with FullMaps() as maps:
        with torch.no_grad():
            batch.labels = method.labels(batch, teacher)
        losses = method.losses(student, teacher, batch)
        batch.log_gradients(student)
        sum(losses.values()).backward()
    return maps


# Full-resolution passes in a step: softmaxes of the student and of the teacher, enlargements of the two (GSC also
# enlarges its distance weights). MiB has sums of exponentials instead of a softmax of the student.
PASSES = {
    "finetune": (1, 0, 1, 0),
    "mib": (0, 1, 1, 1),
    "plop": (1, 1, 1, 1),
    "gsc": (1, 0, 1, 2),
    "mbs": (1, 1, 1, 1),
    "gsc_mbs": (1, 1, 1, 2),
}


@pytest.mark.parametrize("name", PASSES)
def test_every_full_resolution_map_is_computed_once(name):
    """Of whole images. The gradient log adds a 16th of a map, MiB's cross-entropy a softmax of a few channels."""
    elements = work(name).elements

    def passes(operators: tuple[str, ...], channels: int) -> int:
        found = sum(elements.get((operator, channels), 0) for operator in operators)
        return found // (2 * channels * SIZE * SIZE)

    softmaxes, enlargements = ("_softmax", "_log_softmax"), ("upsample_bilinear2d",)
    student, teacher = OLD + NEW, OLD
    counted = [passes(operators, c) for operators in (softmaxes, enlargements) for c in (student, teacher)]
    assert tuple(counted) == PASSES[name]


@pytest.mark.parametrize("name", PASSES)
def test_strips_make_no_whole_map(name, monkeypatch):
    monkeypatch.setattr(base, "STRIP_BYTES", 8 * 4 * 2 * (OLD + NEW) * SIZE)  # 8 rows
    maps = work(name)
    assert maps.largest == 2 * (OLD + NEW) * 8 * SIZE
