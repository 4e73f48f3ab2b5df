"""What a step of a method costs beside plain output distillation, on the same network and images."""

import copy
import statistics
import time

import pytest
import torch

from ciss.config import Model
from ciss.losses import cross_entropy, output_distillation
from ciss.methods import METHODS, Batch, Method
from ciss.models import create_network
from ciss.study.bench.command import Request, run

OLD, NEW = 8, 1  # the last step of voc8 4-1
MODEL = Model(encoder="mobilenetv2_100", output_stride=16, width=128, atrous_rates=(6, 12, 18))


class Distil(Method):
    """Cross-entropy and knowledge distillation, nothing else."""

    def losses(self, student, teacher, batch):
        logits = student.upsample(batch.size)
        distillation = output_distillation(logits, teacher.upsample(batch.size))
        return {"cross_entropy": cross_entropy(logits, batch.labels), "distillation": 10 * distillation}


def make_batch(images: int, crop: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randint(0, 6, (images, crop // 16, crop // 16), generator=generator)
    labels = torch.where(blobs == 0, OLD, 0).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[:, :3] = 255
    pictures = torch.randn(images, 3, crop, crop, generator=generator).contiguous(memory_format=torch.channels_last)
    steps = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3, 4])
    return Batch(pictures, labels, labels, ["a"] * images, 4, OLD, steps, torch.tensor([OLD]))


class Trainer:
    """The engine's step, and nothing around it."""

    def __init__(self, method: Method, batch: Batch):
        torch.manual_seed(0)
        student = create_network(MODEL, [5, 1, 1, 1]).to(memory_format=torch.channels_last)
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)
        method.initialise(student, NEW)
        self.method, self.batch, self.student = method, batch, student.train()
        self.optimiser = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9)
        started = time.perf_counter()
        with torch.no_grad():
            method.before_step([batch], self.teacher, [])
        self.pass_seconds = time.perf_counter() - started  # of one batch

    def step(self) -> float:
        started = time.perf_counter()
        with torch.no_grad():
            old = self.teacher(self.batch.images)
        new = self.student(self.batch.images)
        self.batch.labels = self.method.labels(self.batch, old)
        sum(self.method.losses(new, old, self.batch).values()).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return time.perf_counter() - started


@pytest.mark.cost
@pytest.mark.parametrize("name", ["gsc", "plop"])
def test_a_step_costs_little_more_than_plain_distillation(name, capsys):
    """Median of ten interleaved pairs, 160-pixel crops, MobileNetV2, host included: at most 1.35."""
    torch.set_num_threads(2)
    batch = make_batch(16, 160)
    plain, method = Trainer(Distil(), batch), Trainer(METHODS[name](), batch)
    plain.step(), method.step()
    pairs = [(plain.step(), method.step()) for _ in range(10)]
    ratio = statistics.median(b / a for a, b in pairs)
    with capsys.disabled():
        seconds = statistics.median(a for a, _ in pairs)
        print(f"\n{name}: {ratio:.3f} of a plain step of {seconds:.2f} s; its pass {method.pass_seconds:.2f} s a batch")
    assert ratio <= 1.35
    torch.set_num_threads(1)


@pytest.mark.cost
@pytest.mark.parametrize(("classes", "time_bound", "memory_bound"), [(17, 1.05, 1.1), (112, 1.15, 1.3)])
def test_a_step_of_mbs_costs_little_more_than_its_parts(classes, time_bound, memory_bound, capsys):
    """ViT-B/16 at 256 pixels, batch 4, beside teacher, student and cross-entropy: `ciss bench`, without the update."""
    network = {"encoder": ["vit_base_patch16_384"], "image": [256], "classes": [f"{classes - 1}+1"], "batch": [4]}
    mbs, bare = run(Request(methods=["mbs", "bare"], **network, rounds=10))["rows"]
    steps = (
        [s - u for (s, _), (u, _) in zip(row["seconds"]["step"], row["seconds"]["update"], strict=True)]
        for row in (mbs, bare)
    )
    time_ratio = statistics.median(a / b for a, b in zip(*steps, strict=True))
    memory_ratio = mbs["bytes"]["step"] / bare["bytes"]["step"]
    with capsys.disabled():
        print(f"\nmbs, {classes} classes: time {time_ratio:.3f}, memory of a step {memory_ratio:.3f}")
    assert time_ratio <= time_bound
    assert memory_ratio <= memory_bound
