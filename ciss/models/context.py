"""The start of a new class's token from a few old ones (SELECT, Gupta et al., BMVC 2026)."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.models.deeplabv3 import DeepLabV3

Mixture = Literal["attended", "average"]


def token_distances(class_features: Tensor, tokens: Tensor) -> Tensor:
    """Distances of the class features of images to the tokens.

    Shapes: class_features (B,K,D), tokens (K,D) or (B,K,D) -> (B,K).
    """
    return (class_features.double() - tokens.double()).norm(dim=-1)


def row_distances(features: Tensor, inside: Tensor, rows: Tensor) -> Tensor:
    """Distances of the direction of each image's mean feature to those of a classifier's rows.

    Shapes: features (B,D,h,w), inside (B,h,w) bool: where the mean is over, rows (K,D) -> (B,K).
    """
    sums = (features.double() * inside[:, None]).sum(dim=(2, 3))  # of the direction of the mean
    return torch.cdist(F.normalize(sums, dim=-1), F.normalize(rows.double(), dim=-1))


def count_votes(batches: Iterable, distances: Callable[[Tensor, Tensor], Tensor], *, first: int) -> Tensor:
    """Number of images by new class and the old class that is nearest to it, (n,K) int64.

    Args:
        batches: with `images`, `given`, `new_classes` and `old_channels`, see `methods.base.Batch`.
        distances: from images (B,3,H,W) and where they have a new class (B,H,W) to their distances (.,K).
        first: the first candidate: 1 leaves out the background.
    """
    votes = None
    for batch in batches:
        new, old = len(batch.new_classes), batch.old_channels
        votes = torch.zeros(new, old, dtype=torch.int64, device=batch.given.device) if votes is None else votes
        for number in range(new):
            present = batch.given == old + number
            images = present.flatten(1).any(dim=1).nonzero()[:, 0]
            if len(images):
                nearest = first + distances(batch.images[images], present[images])[:, first:].argmin(dim=1)
                votes[number] += torch.bincount(nearest, minlength=old)
    return votes


def choose_sources(votes: Tensor, *, epsilon: float, first: int = 1, best: bool = False) -> list[int]:
    """Old classes with more than a share `epsilon` of the votes; without one, the class with most votes.

    Args:
        votes: (K,) number of images that each class is nearest to.
        first: the first candidate: 1 leaves out the background.
        best: the class with most votes alone.

    Returns: positions; none without a vote.
    """
    candidates = votes[first:].cpu()
    total = int(candidates.sum())
    if not total:
        return []
    chosen = [] if best else (candidates.double() / total > epsilon).nonzero()[:, 0].tolist()
    return [first + position for position in chosen or [int(candidates.argmax())]]


def mixture_weights(sources: Tensor, *, mixture: Mixture = "attended") -> Tensor:
    """Weights (s,) of the source tokens (s,D): by attention of their mean to each, or equal.

    The new token is their weighted sum.
    """
    sources = sources.double()
    if mixture == "average":
        return torch.full_like(sources[:, 0], 1 / len(sources))
    if mixture != "attended":
        raise ValueError(f"mixture is {mixture!r}. Use 'attended' or 'average'.")
    # g = softmax(S q / sqrt(D)),   q = mean of the rows of S
    return (sources @ sources.mean(dim=0) / sources.shape[1] ** 0.5).softmax(dim=0)


def context_token(
    tokens: Tensor, biases: Tensor, *, mixture: Mixture, deviation: float, seed: int
) -> tuple[Tensor, Tensor]:
    """A new token (D,), the mixture of its sources with noise, and the mixture of their biases.

    Shapes: tokens (s,D), biases (s,). `deviation`: of the noise, which is drawn on the CPU from the seed.
    """
    weights = mixture_weights(tokens, mixture=mixture)
    noise = torch.randn(tokens.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # theta = g S
    return weights @ tokens.double() + deviation * noise.to(tokens.device), weights @ biases.double()


def write_context(
    decoder: nn.Module, chosen: list[list[int]], *, mixture: Mixture, deviation: float, seeds: list[int]
) -> None:
    """Writes `context_token` into the newest classes, of DeepLabV3 with the biases. Classes without sources stay.

    Args:
        chosen: positions of the sources of each new class.
        deviation, seeds: of the noise, a seed for each new class.
    """
    rows, tokens = decoder.rows(new=True), decoder.tokens
    adapted = isinstance(decoder, DeepLabV3)
    biases = decoder.biases if adapted else tokens.new_zeros(len(tokens))
    for number, (sources, seed) in enumerate(zip(chosen, seeds, strict=True)):
        if sources:
            options = {"mixture": mixture, "deviation": deviation, "seed": seed}
            token, bias = context_token(tokens[sources], biases[sources], **options)
            rows[0][number].copy_(token.view_as(rows[0][number]))
            if adapted:
                rows[1][number] = bias
