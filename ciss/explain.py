"""What a trained increment's method sees in training images: labels before and after, and the method's own maps."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ciss import checkpoint, distributed
from ciss.data import evaluation_loader, training_loader
from ciss.data.loaders import stable_seed
from ciss.engine import BatchMaker, predecessor, previous_batches
from ciss.evaluation import precision_of
from ciss.models import Network
from ciss.runs import Run


@dataclass
class Explanation:
    """Lists with an array for each image. Labels (H,W) are positions, 255 is ignored; maps (.,.) are float32, some on
    a coarser grid."""

    given: list[np.ndarray] = field(default_factory=list)  # as the step is told
    labels: list[np.ndarray] = field(default_factory=list)  # as the method learns them
    truth: list[np.ndarray] = field(default_factory=list)
    maps: dict[str, list[np.ndarray]] = field(default_factory=dict)
    tokens: np.ndarray | None = None  # (C,D), the trained network's class tokens, or its classifier's rows


@torch.no_grad()
def explain(run: Run, numbers: list[int]) -> Explanation:
    """A finished increment's method on training images (`numbers` of the index), with the networks before and after.

    The method prepares itself anew (prototypes, thresholds), as it did at the start of the step. Raises CheckpointError
    for a missing run or predecessor, ValueError for a run that continues none.
    """
    if run.after is None:
        raise ValueError(f"{run.name} continues no run: there is no teacher to explain. Name an increment.")
    index, device, method = run.index(), distributed.device(), run.build_method()
    teacher = _load(run.build_network(run.step - 1), predecessor(run)).to(device)
    student = _load(run.build_network(), run.folder / "weights.safetensors").to(device)
    maker, precision = BatchMaker(run, index, teacher, device), precision_of(run.settings.train, device)
    told, truth = run.label_table(training=True), run.label_table(training=False)
    seed = stable_seed("data", run.seed, run.step)
    found = Explanation()
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        batches = maker.read(training_loader(run.settings, index, run.images(index), told, seed), epoch=0)
        method.before_step(batches, teacher, previous_batches(run, index, maker))
        for number in numbers:  # one by one: their sizes may differ
            (item,) = evaluation_loader(run.settings, index, "train", [number], truth)
            batch, true = maker.hide(item)
            old, new = teacher(batch.images), student(batch.images)
            batch.labels = method.labels(batch, old)
            found.tokens = new.class_tokens.float().cpu().numpy()
            for labels, into in ((batch.given, found.given), (batch.labels, found.labels), (true, found.truth)):
                into.append(labels[0].cpu().numpy().astype(np.uint8))
            for name, values in method.maps(new, old, batch).items():
                found.maps.setdefault(name, []).append(values[0].float().cpu().numpy())
    return found


def telling_images(run: Run, count: int) -> list[int]:
    """Training images of the step with old and new classes in them, those with most first."""
    index = run.index()
    old, new = {c for group in run.groups[: run.step] for c in group}, set(run.new_classes)

    def wealth(number: int) -> tuple[bool, int]:
        found = set(index.classes["train"][number])
        return bool(old & found), len((old | new) & found)

    return sorted(run.images(index), key=wealth, reverse=True)[:count]


def _load(network: Network, weights: Path) -> Network:
    checkpoint.restore(network, weights)
    return network.eval().requires_grad_(False)
