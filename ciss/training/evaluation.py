"""Evaluation of networks and pseudo-labels: confusion matrices, sample predictions, precision of forward passes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import distributed, metrics, protocol
from ciss.config import Train
from ciss.data import Index
from ciss.data.loaders import Loader, evaluation_loader
from ciss.methods import Batch, Method
from ciss.models import Network
from ciss.runs.run import Run
from ciss.training.inference import predict


@torch.inference_mode()
def evaluate(run: Run, network: Network, loader: Loader) -> Tensor:
    """Confusion matrix (T,T) int64 over all classes of the benchmark, rows truth, summed over all processes."""
    classes = len(run.classes)
    total = torch.zeros(classes, classes, dtype=torch.int64, device=next(network.parameters()).device)
    with _evaluating(network):
        for labels, predictions, _ in _predict(run, network, loader):
            total += metrics.confusion_matrix(labels, predictions, classes)
    return distributed.all_sum(total).cpu()


def predict_samples(run: Run, network: Network, index: Index) -> dict[str, np.ndarray]:
    """Predictions (H,W) uint8 as positions for the images of `sample_images`, by image id."""
    images = sample_images(run, index)
    loader = evaluation_loader(run.settings, index, "val", images, run.label_table(training=False))
    samples = predict_images(run, network, loader)
    return {index.ids["val"][number]: samples[number] for number in images}


@torch.inference_mode()
def predict_images(run: Run, network: Network, loader: Loader) -> dict[int, np.ndarray]:
    """Predictions (H,W) uint8 as positions for the images of an evaluation loader, by image number."""
    predictions = {}
    with _evaluating(network):
        for _, positions, numbers in _predict(run, network, loader):
            predictions |= zip(numbers.tolist(), positions.to(torch.uint8).cpu().numpy(), strict=True)
    return distributed.gather_dict(predictions)


@torch.no_grad()
def token_cosines(network: Network, new: int) -> Tensor:
    """Cosines (N,C) float32 of the last `new` class tokens, or rows of a classifier, to all C of them."""
    unit = F.normalize(network.decoder.tokens.float(), dim=1)
    return (unit[len(unit) - new :] @ unit.T).cpu()


@torch.no_grad()
def judge_labels(
    run: Run, methods: dict[str, Method], teacher: Network, pairs: Iterable[tuple[Batch, Tensor]]
) -> dict[str, np.ndarray]:
    """Compares methods' labels for the background, and the teacher's argmax, with the true labels.

    Args:
        methods: by name, prepared for the step.
        pairs: batches with the labels that the step is given, and true labels (B,H,W).

    Returns: by the method's name and under `argmax`, (T,K+1) int64 counts of the pixels given as background. Rows are
    true classes; columns are labels, the last one ignored.
    """
    classes = len(run.classes)
    device = next(teacher.parameters()).device
    precision = precision_of(run.settings.train, device)
    columns = run.old_channels + 1
    counts = {name: torch.zeros(classes, columns, dtype=torch.int64, device=device) for name in (*methods, "argmax")}
    for batch, truth in pairs:
        with autocast(device, precision):
            output = teacher(batch.images)
        labels = {name: method.labels(batch, output) for name, method in methods.items()}
        labels["argmax"] = output.upsample(batch.size).argmax(dim=1)
        background = (batch.given == 0) & (truth != protocol.VOID)
        for name, positions in labels.items():
            cell = truth * columns + positions.clamp(max=columns - 1)
            # Other pixels share one more cell: masking and bincount would make the host wait for the device.
            cell = torch.where(background, cell, classes * columns).flatten()
            cells = torch.zeros(classes * columns + 1, dtype=torch.int64, device=device)
            counts[name] += cells.scatter_add_(0, cell, torch.ones_like(cell))[:-1].view(classes, columns)
    return {name: distributed.all_sum(matrix).cpu().numpy() for name, matrix in counts.items()}


def sample_images(run: Run, index: Index) -> list[int]:
    """Validation images for the figures: those with most classes of the benchmark, the same in every step."""
    known = set(run.classes.raw[1:].tolist())
    images = sorted(index.validation[-1], key=lambda number: -len(known & set(index.classes["val"][number])))
    return sorted(images[: run.settings.evaluation.samples])


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    """Evaluation mode, with rank 0's running statistics in all processes. Restores every layer's mode at the end."""
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
    """The data type of forward passes on a device; see `automatic_precision` for `auto`."""
    return automatic_precision(device) if options.precision == "auto" else getattr(torch, options.precision)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The context of forward passes with a data type; off for float32."""
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
