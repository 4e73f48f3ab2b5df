"""Outputs of networks and batches of a step, as methods see them."""

import copy

import torch
import torch.nn.functional as F

from ciss.config import Model
from ciss.methods import Batch
from ciss.models import Output, create_network

OLD, NEW, SIZE = 3, 2, (8, 12)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output(channels, seed=0, grid=(4, 6), width=5):
    """What a network of so many channels might give, logits being the leaf."""
    logits = random(2, channels, *grid, seed=seed).requires_grad_()
    features = random(2, width, *grid, seed=seed + 1)
    tokens = random(channels, width, seed=seed + 2)
    return Output(logits, features, [features], tokens.expand(2, -1, -1), tokens)


def bare(logits):
    return Output(logits, logits, [logits], logits, logits)


def make_batch(old=OLD, new=NEW, size=SIZE, seed=0):
    """Images and labels as a step sees them: background, the step's classes, ignored pixels."""
    known = max(old, 1)
    labels = torch.randint(known, known + new, (2, *size), generator=torch.Generator().manual_seed(seed))
    labels[:, : size[0] // 2], labels[:, -1, 0] = 0, 255
    return Batch(
        images=random(2, 3, *size, seed=seed),
        given=labels,
        labels=labels.clone(),
        ids=["a", "b"],
        step=int(old > 0),
        old_channels=old,
        class_steps=torch.tensor([0] * known + [int(old > 0)] * new),
        new_classes=torch.arange(known, known + new),
    )


def network(*groups, seed=0):
    torch.manual_seed(seed)
    return create_network(Model(width=8, atrous_rates=(1, 2)), list(groups))


def full(logits, size=SIZE):
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def prepared(method, batch=None, seed=5, **changes):
    """A method after its pass over one batch, with student's and teacher's outputs."""
    batch = batch or make_batch(**changes)
    student, teacher = output(OLD + NEW), output(OLD, seed=seed)
    teacher.logits, teacher.features = (3 * teacher.logits).detach(), output(OLD, seed=seed + 9).features
    with torch.no_grad():
        method.before_step(iter([batch]), lambda images: teacher, iter([batch]))
        batch.labels = method.labels(batch, teacher)
    return student, teacher, batch


def on_gpu(part):
    """A copy of an output or a batch, its tensors on the device; logits are leaves again."""
    moved = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, torch.Tensor):
            setattr(moved, name, value.detach().cuda().requires_grad_(value.requires_grad))
        elif isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            setattr(moved, name, [item.detach().cuda() for item in value])
        elif isinstance(value, dict):
            setattr(moved, name, {})
    return moved


def step(method, size=SIZE, grid=(4, 6), **changes):
    """Student's and teacher's outputs and a batch with the method's labels; the teacher is sure of some, not of all."""
    batch = make_batch(size=size, **changes)
    student, teacher = output(OLD + NEW, grid=grid), output(OLD, seed=5, grid=grid)
    teacher.logits = (3 * teacher.logits).detach()
    student.class_features = student.class_features * torch.tensor([1.0, 1.5])[:, None, None]
    with torch.no_grad():
        batch.labels = method.labels(batch, teacher)
    return student, teacher, batch


def decoder_network(decoder, *groups, encoder="ciss_tiny", **options):
    torch.manual_seed(0)
    defaults = {"encoder": encoder, "width": 8, "atrous_rates": (1, 2), "layers": 1, "drop_path": 0.0}
    if encoder == "test_vit":
        defaults |= {"output_stride": 16, "image_size": 32}
    return create_network(Model(**{**defaults, "decoder": decoder, **options}), list(groups))
