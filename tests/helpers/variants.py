"""Every method, preset and choice of a coefficient, and rare batches."""

import copy
import dataclasses
import functools
import typing

import pytest
import torch
from torch import Tensor

from ciss.config import Benchmark, Model, Phase, Train
from ciss.methods import METHODS, Batch, Method
from ciss.models import Network, Output, create_network

VOID = 255
SIZE = 16
OLD = 4  # the teacher's channels: background and three old classes
NEW = 2
SIZES = [OLD - 1, NEW, 2]  # classes of every step of the benchmark
VARIANTS = [
    pytest.param(name, preset, id=f"{name}-{preset}" if preset else name)
    for name, method in METHODS.items()
    for preset in ("", *method.presets)
]


DECODERS = {
    "deeplabv3": {"decoder": "deeplabv3", "width": 8, "atrous_rates": (1, 2)},
    "mask_transformer": {"decoder": "mask_transformer", "width": 8, "heads": 2, "layers": 1},
}


def choices(method: type[Method]) -> list[dict]:
    """Coefficients that differ from the default in one choice: every other literal, the other boolean."""
    if not dataclasses.is_dataclass(method):
        return []
    hints, others = typing.get_type_hints(method), []
    for field in dataclasses.fields(method):
        hint = hints[field.name]
        for option in (hint, *typing.get_args(hint)):
            if typing.get_origin(option) is typing.Literal:
                others += [{field.name: value} for value in typing.get_args(option) if value != field.default]
        if hint is bool:
            others.append({field.name: not field.default})
    return others


CHOICES = [
    pytest.param(name, values, list(DECODERS)[number % 2], id=f"{name}-{next(iter(values.items()))}")
    for name, method in METHODS.items()
    for number, values in enumerate(choices(method))
]


def build(name: str, preset: str) -> Method:
    return METHODS[name](**(METHODS[name].presets[preset] if preset else {}))


@functools.cache
def networks(decoder: str, new: int) -> tuple[Network, Network]:
    """Teacher and student."""
    torch.manual_seed(0)
    teacher = create_network(Model(encoder="ciss_tiny", output_stride=4, **DECODERS[decoder]), [OLD])
    teacher.return_before_activation()
    student = create_network(Model(encoder="ciss_tiny", output_stride=4, **DECODERS[decoder]), [OLD])
    student.return_before_activation()
    if new:
        student.grow(new)
    return teacher.eval(), student.eval()


@torch.no_grad()
def begin(method: Method, decoder: str, batch: Batch) -> Network:
    """Calls `start` with networks of the method, as training does before `before_step`. Returns the student."""
    torch.manual_seed(0)
    model = Model(encoder="ciss_tiny", output_stride=4, **DECODERS[decoder])
    teacher = create_network(model, [OLD], extras=method.extras(SIZES, 0)).eval()
    student = copy.deepcopy(teacher)
    if len(batch.new_classes):
        method.initialise(student, len(batch.new_classes))
    before = batch.given.masked_fill((batch.given >= OLD) & (batch.given != VOID), 1)
    method.start(student, teacher, [batch], [dataclasses.replace(batch, given=before)])
    assert all(value.isfinite().all() for value in student.state_dict().values())
    return student


def outputs(decoder: str, new: int, batch: int, size: int, method: Method | None = None) -> tuple[Output, Output]:
    """What teacher and student return for random images. With a method: with the logits of its extra rows."""
    teacher, student = _outputs(decoder, new, batch, size)
    return (teacher, student) if method is None else (with_extras(teacher, method, 0), with_extras(student, method, 1))


def with_extras(output: Output, method: Method, step: int) -> Output:
    """The output with random logits of the method's extra rows after a step, see `Method.extras`."""
    generator = torch.Generator().manual_seed(11)
    shapes = {
        name: (len(output.logits), extra.rows, *output.logits.shape[2:])
        for name, extra in method.extras(SIZES, step).items()
    }
    extras = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items() if shape[1]}
    return dataclasses.replace(output, extras=extras, prediction=method.prediction)


@functools.cache
@torch.no_grad()
def _outputs(decoder: str, new: int, batch: int, size: int) -> tuple[Output, Output]:
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
    teacher, student = networks(decoder, new)
    return teacher(images), student(images)


def leaves(output: Output, *, learns: bool, scale: float | None = None) -> tuple[Output, list[Tensor]]:
    """The output with every tensor detached, and these; `scale`: logits of that size and random sign instead."""
    tensors = []

    def leaf(values: Tensor) -> Tensor:
        tensors.append(values.detach().clone().requires_grad_(learns))
        return tensors[-1]

    logits = output.logits
    if scale is not None:
        signs = torch.rand(logits.shape, generator=torch.Generator().manual_seed(3)) < 0.5
        logits = torch.where(signs, -scale, scale)
    copied = Output(
        leaf(logits),
        leaf(output.features),
        [leaf(stage) for stage in output.stages],
        leaf(output.class_features),
        leaf(output.class_tokens),
        output.padding,
        [leaf(stage) for stage in output.before_activation],
        extras={name: leaf(rows) for name, rows in output.extras.items()},
        prediction=output.prediction,
    )
    return copied, tensors


@dataclasses.dataclass
class Case:
    """Labels to draw from, and what else is rare."""

    classes: tuple[int, ...] = (0, 0, OLD, OLD + NEW - 1, VOID)
    new: int = NEW
    batch: int = 2
    size: int = SIZE
    step: int = 1
    teacher_scale: float | None = None
    student_scale: float | None = None
    unseen: bool = False  # the statistics of `before_step` see no old class
    nothing: bool = False  # they see no valid pixel
    same: bool = False  # student and teacher have equal features
    domain: bool = False

    def labels(self) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        drawn = torch.randint(len(self.classes), (self.batch, self.size, self.size), generator=generator)
        return torch.tensor(self.classes)[drawn]

    def make_batch(self, given: Tensor, *, base: bool = False) -> Batch:
        channels = OLD + self.new
        steps = torch.tensor([0] * OLD + [self.step] * self.new)
        return Batch(
            images=torch.zeros(len(given), 3, self.size, self.size),
            given=given,
            labels=given.clone(),
            ids=[str(number) for number in range(len(given))],
            step=0 if base else self.step,
            old_channels=0 if base else OLD,
            class_steps=torch.zeros_like(steps) if base else steps,
            new_classes=torch.arange(1 if base else OLD, channels),
        )


CASES = {
    "ordinary": Case(),
    "all void": Case((VOID,)),
    "all background": Case((0,)),
    "background and void": Case((0, VOID)),
    "no background": Case((OLD, OLD + 1, VOID)),
    "old classes and no new pixel": Case((0, 1, 2, VOID)),
    "all new": Case((OLD, OLD + 1)),
    "one new class everywhere": Case((OLD,)),
    "one image": Case(batch=1),
    "one image, all void": Case((VOID,), batch=1),
    "one class in the step": Case((0, 0, OLD, VOID), new=1),
    "fifth step": Case(step=5),
    "teacher's logits of 1e4": Case(teacher_scale=1e4),
    "all logits of 1e4": Case(teacher_scale=1e4, student_scale=1e4),
    "all logits 0": Case(teacher_scale=0.0, student_scale=0.0),
    "no old class in the statistics": Case(unseen=True),
    "nothing in the statistics": Case(nothing=True),
    "student equals teacher": Case(same=True),
    "500 crops of 90 % foreground": Case((0, *[OLD, OLD + 1] * 4, VOID), batch=500, size=8),
    "domain": Case((0, 1, 2, 3, VOID), new=0, domain=True),
    "domain, more steps than channels": Case((0, 1, 2, 3, VOID), new=0, step=9, domain=True),
    "domain, all void": Case((VOID,), new=0, domain=True),
    "domain, all background": Case((0,), new=0, domain=True),
}


def benchmark(decoder: str, case: Case) -> Benchmark:
    phase = Phase(epochs=1, lr=0.01, norm="frozen")
    return Benchmark(
        dataset="shapes",
        protocol="4-2",
        setting="domain" if case.domain else "overlapped",
        model=Model(encoder="ciss_tiny", output_stride=4, **DECODERS[decoder]),
        train=Train(crop=SIZE, batch=2, base=phase, increment=phase),
    )
