"""PLOP: labels of the background where the teacher's entropy is low."""

import math
from typing import Literal

import torch
from torch import Tensor

from ciss import distributed
from ciss.protocol import VOID as IGNORE

Variant = Literal["paper", "released"]


@torch.no_grad()
def normalised_entropy(teacher_logits: Tensor, *, variant: Variant = "paper", channels: int | None = None) -> Tensor:
    """The teacher's uncertainty (B,H,W) of logits (B,K,H,W).

    `paper`: H(P') / log K, from 0 (certain) to 1 (uniform); PLOP eq. 9. `released`: the published code's, the *mean*
    over channels over log K, divided by log C once more; C = `channels`, the student's.
    """
    if variant not in ("paper", "released"):
        raise ValueError(f"variant is {variant!r}. Use 'paper' or 'released'.")
    if variant == "released" and channels is None:
        raise ValueError("the released variant divides by log C: pass channels=C, the student's.")
    p = teacher_logits.float().softmax(dim=1)
    old = teacher_logits.shape[1]
    if old == 1:
        return torch.zeros_like(p[:, 0])
    if variant == "paper":
        # u_i = -sum_c P'_c log P'_c / log K
        return torch.special.entr(p).sum(dim=1) / math.log(old)
    # e_i = -1/K sum_c P'_c log(P'_c + 1e-8) / log K / log C
    return -(p * (p + 1e-8).log()).mean(dim=1) / math.log(old) / math.log(channels)


class EntropyMedians:
    """Median uncertainty of the background pixels that the teacher calls c, for each old class c: PLOP's thresholds.

    From histograms over [0, 1], so that batches and processes add up. Args: classes: K; channels: C, the student's;
    bins: 100 as published. `released` walks the histogram as the published code does: it adds the bin's index, not its
    count, to the running sum, so that its thresholds are no medians.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        variant: Variant = "paper",
        bins: int = 100,
        device: torch.device | str | None = None,
    ):
        self.variant, self.channels = variant, channels
        self.histograms = torch.zeros(classes, bins, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, labels: Tensor, teacher_logits: Tensor) -> None:
        """Counts background pixels of labels (B,H,W) by the uncertainty of teacher_logits (B,K,H,W)."""
        classes, bins = self.histograms.shape
        values = normalised_entropy(teacher_logits, variant=self.variant, channels=self.channels)
        cell = teacher_logits.argmax(dim=1) * bins + (values * bins).long().clamp(0, bins - 1)
        cell = cell.masked_fill(labels != 0, classes * bins)  # one more cell for what does not count
        self.histograms += torch.bincount(cell.flatten(), minlength=classes * bins + 1)[:-1].view(classes, bins)

    def all_reduce(self) -> "EntropyMedians":
        distributed.all_sum(self.histograms)
        return self

    def thresholds(self, *, least: float = 0.001) -> Tensor:
        """(K,) float32, at least `least`; that, too, for a class that the teacher never called."""
        histograms = self.histograms.cpu().double()
        bins = histograms.shape[1]
        half = histograms.sum(dim=1) / 2
        if self.variant == "paper":
            before = histograms.cumsum(dim=1) - histograms
        else:
            before = torch.arange(bins).cumsum(0) - torch.arange(bins)  # the sum of the earlier bins' indices
            before = before.double().expand_as(histograms)
        # the bin that holds the half, and how far into it the half lies
        holds = (before <= half[:, None]) & (half[:, None] <= before + histograms)
        found = torch.where(holds.any(dim=1), holds.int().argmax(dim=1), bins - 1)
        rows = torch.arange(len(histograms))
        # a walk past the last bin (`released` only) has added that one, too
        before = torch.where(holds.any(dim=1), before[rows, found], before[rows, found] + found)
        medians = (found + (half - before) / histograms[rows, found]) / bins
        medians = torch.where(half > 0, medians, 0).nan_to_num(nan=0.0)
        return medians.clamp(min=least).float().to(self.histograms.device)


@torch.no_grad()
def confident(
    teacher_logits: Tensor, thresholds: Tensor, *, variant: Variant = "paper", channels: int | None = None
) -> Tensor:
    """Where the teacher is less uncertain than its class's threshold: (B,H,W) bool."""
    values = normalised_entropy(teacher_logits, variant=variant, channels=channels)
    return values < thresholds.to(values.device)[teacher_logits.argmax(dim=1)]


@torch.no_grad()
def entropy_labels(
    labels: Tensor,
    teacher_logits: Tensor,
    thresholds: Tensor,
    *,
    variant: Variant = "paper",
    channels: int | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """PLOP's pseudo labels: background pixels take the teacher's class where it is certain, else they are ignored.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,H,W), thresholds (K,) -> (B,H,W). Source: PLOP eq. 8 and 9.
    """
    certain = confident(teacher_logits, thresholds, variant=variant, channels=channels)
    found = teacher_logits.argmax(dim=1).masked_fill(~certain, ignore_index)
    return torch.where(labels == 0, found, labels)


@torch.no_grad()
def adaptive_factor(given: Tensor, labels: Tensor, *, variant: Variant = "paper", ignore_index: int = IGNORE) -> Tensor:
    """(B,1,1): the share of an image's background pixels that kept a label (PLOP eq. 10).

    Shapes: given and labels (B,H,W) int64, before and after pseudo-labelling. An image without background: 1 (`paper`),
    or 0, so that it teaches nothing (`released`).
    """
    background = given == 0
    kept = (background & (labels != ignore_index)).sum(dim=(1, 2)).float()
    total = background.sum(dim=(1, 2)).float()
    if variant == "released":
        factor = kept / (total + 1e-6)
    else:
        factor = torch.where(total > 0, kept / total.clamp(min=1), 1.0)
    return factor[:, None, None]
