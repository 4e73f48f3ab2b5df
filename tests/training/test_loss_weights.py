"""Losses of an update are means over the whole update: halves of a batch, weighed by `normalisers`, are the batch."""

import dataclasses

import pytest
import torch
from torch import nn

from ciss.methods import METHODS, Batch, Finetune, Method
from ciss.models import Output
from ciss.training.batches import loss_weights
from ciss.training.optimisation import GuardedSGD
from tests.helpers.variants import CASES, CHOICES, DECODERS, VARIANTS, begin, benchmark, build, leaves, outputs

FIRST = slice(0, 3)
SECOND = slice(3, 4)
CASE = dataclasses.replace(CASES["ordinary"], batch=4)


def part_of(output: Output, images: slice) -> Output:
    """The outputs of some images; class tokens are of all."""
    maps = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    cut = {name: value[images] for name, value in maps.items() if name in ("logits", "features", "class_features")}
    lists = {name: [value[images] for value in maps[name]] for name in ("stages", "before_activation")}
    extras = {name: rows[images] for name, rows in output.extras.items()}
    return dataclasses.replace(output, **cut, **lists, extras=extras, _upsampled={})


def part_of_batch(batch: Batch, images: slice) -> Batch:
    parts = {name: getattr(batch, name)[images] for name in ("images", "given", "labels", "ids")}
    return dataclasses.replace(batch, **parts, weights=None, logs={})


def uneven_labels(batch: Batch) -> None:
    """The halves differ in valid, background and new pixels."""
    batch.given[3, :10] = 255
    batch.given[0, :4] = 0
    batch.labels = batch.given.clone()


def check(decoder: str, method: Method) -> None:
    if method.sees_all or method.unsuited(benchmark(decoder, CASE)):
        return
    teacher, student = outputs(decoder, CASE.new, CASE.batch, CASE.size, method)
    teacher = leaves(teacher, learns=False)[0]
    student = leaves(student, learns=True)[0]
    batch = CASE.make_batch(CASE.labels())
    uneven_labels(batch)
    with torch.no_grad():
        begin(method, decoder, batch)
        method.before_step([batch], lambda _images: teacher, [batch])
        batch.labels = method.labels(batch, teacher)
    whole = method.losses(student, teacher, batch)
    pixel_weights = method.pixel_weights(student.upsample(batch.size), batch)
    halves = [part_of_batch(batch, images) for images in (FIRST, SECOND)]
    teachers = [part_of(teacher, images) for images in (FIRST, SECOND)]
    weights = loss_weights(method, teachers, halves)
    total = dict.fromkeys(whole, 0.0)
    for half, old, images, weight in zip(halves, teachers, (FIRST, SECOND), weights, strict=True):
        if pixel_weights is not None:  # whose group means are those of a batch: the same in both
            method.pixel_weights = lambda *_, images=images: pixel_weights[images]
        losses = weight.apply(method.losses(part_of(student, images), old, half))
        total = {name: value + losses[name] / 2 for name, value in total.items()}
    for name, value in whole.items():
        torch.testing.assert_close(
            total[name], value, rtol=2e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("name", "preset"), VARIANTS)
def test_halves_of_a_batch_make_the_batch(name, preset, decoder):
    check(decoder, build(name, preset))


@pytest.mark.parametrize(("name", "values", "decoder"), CHOICES)
def test_with_every_choice_of_a_coefficient(name, values, decoder):
    check(decoder, METHODS[name](**values))


def test_the_check_sees_a_wrong_normaliser():
    class Wrong(Finetune):
        def normalisers(self, teacher, batch):
            return {}

    with pytest.raises(AssertionError, match="cross_entropy"):
        check("deeplabv3", Wrong())


def test_weights_by_hand():
    """3 and 1 images, 30 and 10 valid pixels of 40: w = 2 n / sum n."""
    labels = torch.full((3, 2, 8), 1)
    labels[:, 0, :6] = 255  # 10 valid pixels an image
    batches = [
        Batch(part.float(), part, part, ["x"] * len(part), 0, 0, torch.zeros(2), torch.tensor([1]))
        for part in (labels, torch.where(torch.arange(8) < 5, labels[:1] * 0, 255))
    ]
    first, second = loss_weights(Finetune(), [None, None], batches)
    assert first.weights["cross_entropy"].item() == pytest.approx(2 * 30 / 40)
    assert second.weights["cross_entropy"].item() == pytest.approx(2 * 10 / 40)
    assert first.apply({"pod": torch.tensor(1.0)})["pod"].item() == pytest.approx(2 * 3 / 4), "a mean over images"
    assert loss_weights(Finetune(), [None], batches[:1]) is None


# --- the step of the optimiser


def stepped(finite: list[bool]) -> list[list[torch.Tensor]]:
    """Weights and momenta after each step, by gradients that are NaN where a step is not finite."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimiser = GuardedSGD([{"params": network.parameters()}], lr=0.1, momentum=0.9, weight_decay=0.01)
    states = []
    for number, good in enumerate(finite):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, number + 1.0 if good else torch.nan)
        optimiser.step(torch.tensor(good))
        momenta = [optimiser.state[p]["momentum_buffer"].clone() for p in network.parameters()]
        states.append([p.detach().clone() for p in network.parameters()] + momenta)
    return states


def test_a_guarded_step_is_a_plain_one_or_none(monkeypatch):
    guarded = stepped([True, True, True])
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for number, state in enumerate(guarded):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, number + 1.0)
        optimiser.step()
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), state, strict=False)), "the same bytes"
    kept = stepped([True, False])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    torch.manual_seed(0)
    first = stepped([False])[0]
    torch.manual_seed(0)
    start = list(nn.Linear(3, 2).parameters())
    assert all(torch.equal(a, b) for a, b in zip(start, first, strict=False))
    assert not any(value.any() for value in first[2:]), "no momentum yet"
