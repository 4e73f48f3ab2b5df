"""What a network says of images it is not trained on: confusion matrices and sample predictions."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import distributed, metrics, protocol
from ciss.config import Train
from ciss.data import Index, Loader, evaluation_loader
from ciss.methods import Batch, Method
from ciss.models import Network
from ciss.runs.run import Run
from ciss.training.inference import predict


@torch.inference_mode()
def evaluate(run: Run, network: Network, loader: Loader) -> Tensor:
    """Confusion matrix (T,T) int64 over all classes of the benchmark, rows truth: future classes have rows only.

    Counts the batches of all processes. The network is left in the mode it was in.
    """
    classes = len(run.classes)
    total = torch.zeros(classes, classes, dtype=torch.int64, device=next(network.parameters()).device)
    with _evaluating(network):
        for labels, predictions, _ in _predict(run, network, loader):
            total += metrics.confusion_matrix(labels, predictions, classes)
    return distributed.all_sum(total).cpu()


@torch.inference_mode()
def predict_samples(run: Run, network: Network, index: Index) -> dict[str, np.ndarray]:
    """Predictions (H,W) uint8 as positions for the images of `sample_images`, by image id."""
    images, found = sample_images(run, index), {}
    loader = evaluation_loader(run.settings, index, "val", images, run.label_table(training=False))
    with _evaluating(network):
        for _, predictions, numbers in _predict(run, network, loader):
            found |= zip(numbers.tolist(), predictions.to(torch.uint8).cpu().numpy(), strict=True)
    found = distributed.gather_dict(found)
    return {index.ids["val"][number]: found[number] for number in images}


@torch.no_grad()
def token_cosines(network: Network, new: int) -> Tensor:
    """Cosines (N,C) float32 of the last `new` class tokens, or rows of a classifier, to all C of them."""
    unit = F.normalize(network.decoder.tokens.float(), dim=1)
    return (unit[-new:] @ unit.T).cpu() if new else unit.new_empty(0, len(unit)).cpu()


@torch.no_grad()
def judge_labels(
    run: Run, methods: dict[str, Method], teacher: Network, pairs: Iterable[tuple[Batch, Tensor]]
) -> dict[str, np.ndarray]:
    """Methods' labels for the background, and the teacher's plain argmax, against the truth, in one pass.

    `methods`: by name, prepared for the step. `pairs`: batches as the step is told them, each with true positions
    (B,H,W). Returns, under the methods' names and `argmax`, (T,K+1) int64 counts of the pixels given as background:
    rows true classes, columns labels, the last one ignored.
    """
    classes = len(run.classes)
    device = next(teacher.parameters()).device
    precision = precision_of(run.settings.train, device)
    columns = run.old_channels + 1
    # Zeros first: a process without a batch adds nothing.
    counts = {name: torch.zeros(classes, columns, dtype=torch.int64, device=device) for name in (*methods, "argmax")}
    for batch, truth in pairs:
        with autocast(device, precision):
            output = teacher(batch.images)
        found = {name: method.labels(batch, output) for name, method in methods.items()}
        found["argmax"] = output.upsample(batch.size).argmax(dim=1)
        asked = (batch.given == 0) & (truth != protocol.VOID)
        for name, labels in found.items():
            cell = truth * columns + labels.clamp(max=columns - 1)
            counts[name] += torch.bincount(cell[asked], minlength=classes * columns).view(classes, columns)
    return {name: distributed.all_sum(matrix).cpu().numpy() for name, matrix in counts.items()}


def sample_images(run: Run, index: Index) -> list[int]:
    """Validation images for the figures: those with most of the benchmark's classes, so that steps can be compared."""
    known = set(run.classes.raw[1:].tolist())
    scored = np.array(index.validation[-1])
    wealth = [-len(known & set(index.classes["val"][number])) for number in scored]
    return sorted(scored[np.argsort(wealth, kind="stable")[: run.settings.evaluation.samples]].tolist())


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    """Evaluation mode, with one process's running statistics in all; afterwards every layer's mode is as before."""
    modes = [(module, module.training) for module in network.modules()]
    distributed.broadcast(network.buffers())
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _predict(run: Run, network: Network, loader: Loader) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Labels and predictions (B,H,W) and image numbers, batch by batch."""
    options = run.settings.train
    device = next(network.parameters()).device
    precision = precision_of(options, device)
    for images, labels, numbers in loader:
        with autocast(device, precision):
            images = run.normalise(images, device)
            predictions = predict(network, images, run.settings.evaluation, options.crop)
        yield labels.to(device).long(), predictions, numbers


def precision_of(options: Train, device: torch.device) -> torch.dtype:
    """The precision of a training on a device; see `automatic_precision` for `auto`."""
    return automatic_precision(device) if options.precision == "auto" else getattr(torch, options.precision)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Forward passes in this precision; off for float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def automatic_precision(device: torch.device) -> torch.dtype:
    """bfloat16 on an NVIDIA GPU of compute capability 8.0 or more and on AMD's GPUs, else float32.

    Older NVIDIA GPUs only emulate bfloat16, slower than float32, but `torch.cuda.is_bf16_supported` is true for them.
    """
    if device.type != "cuda":
        return torch.float32
    if torch.version.hip:
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
