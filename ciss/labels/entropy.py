"""PLOP: pseudo-labels for the background where the teacher's entropy is low."""

import math
from typing import Literal

import torch
from torch import Tensor

from ciss import distributed
from ciss.labels.channels import largest_channel
from ciss.protocol import VOID as IGNORE

Variant = Literal["paper", "released"]


@torch.no_grad()
def normalised_entropy(teacher_logits: Tensor, *, variant: Variant = "paper", channels: int | None = None) -> Tensor:
    """The teacher's uncertainty (B,H,W) of logits (B,K,H,W).

    Args:
        variant: `paper`: PLOP eq. 9, from 0 (certain) to 1 (uniform). `released`: that of the published code.
        channels: C, the student's; for `released`.
    """
    if variant not in ("paper", "released"):
        raise ValueError(f"variant is {variant!r}. Use 'paper' or 'released'.")
    if variant == "released" and channels is None:
        raise ValueError("the released variant divides by log C: pass channels=C, the student's.")
    log_p = teacher_logits.float().log_softmax(dim=1)
    old = teacher_logits.shape[1]
    if old == 1:
        return torch.zeros_like(log_p[:, 0])
    p = log_p.exp()
    if variant == "paper":
        # u_i = -sum_c p'_{i,c} log p'_{i,c} / log K;   bounded, because 0 times infinity would be NaN
        return -(p * log_p.clamp_(min=-1e4)).sum(dim=1) / math.log(old)
    # e_i = -1/K sum_c p'_{i,c} log(p'_{i,c} + 1e-8) / log K / log C
    return -(p * (p + 1e-8).log()).mean(dim=1) / math.log(old) / math.log(channels)


class EntropyMedians:
    """PLOP's thresholds: for each old class, the median uncertainty of background pixels predicted as that class.

    Collects histograms over [0, 1], which can be added up over batches and processes.

    Args:
        classes: K.
        channels: C, the student's.
        variant: `released` adds a bin's index instead of its count, as the published code does. Its thresholds are
            therefore no medians.
        bins: 100 in the published code.
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
        self.variant = variant
        self.channels = channels
        self.histograms = torch.zeros(classes, bins, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, labels: Tensor, teacher_logits: Tensor) -> None:
        """Counts background pixels of labels (B,H,W) by the uncertainty of teacher_logits (B,K,H,W)."""
        classes, bins = self.histograms.shape
        values = normalised_entropy(teacher_logits, variant=self.variant, channels=self.channels)
        cell = largest_channel(teacher_logits)[1] * bins + (values * bins).long().clamp(0, bins - 1)
        cell = cell.masked_fill(labels != 0, classes * bins).flatten()  # an extra cell, dropped below
        # not bincount: on CUDA it reads the largest value back to size its result
        counts = torch.zeros(classes * bins + 1, dtype=torch.int64, device=cell.device)
        counts.scatter_add_(0, cell, torch.ones_like(cell))
        self.histograms += counts[:-1].view(classes, bins)

    def all_reduce(self) -> "EntropyMedians":
        distributed.all_sum(self.histograms)
        return self

    def thresholds(self, *, least: float = 0.001) -> Tensor:
        """Thresholds (K,) float32, at least `least`, which is also the value of a class that was never predicted."""
        histograms = self.histograms.double()
        bins, device = histograms.shape[1], histograms.device
        half_count = histograms.sum(dim=1) / 2
        if self.variant == "paper":
            count_below = histograms.cumsum(dim=1) - histograms
        else:
            indices = torch.arange(bins, device=device)
            count_below = indices.cumsum(0) - indices  # the sum of the earlier bins' indices
            count_below = count_below.double().expand_as(histograms)
        # the bin that contains the median, and how far into it the median lies
        contains_median = (count_below <= half_count[:, None]) & (half_count[:, None] <= count_below + histograms)
        median_bin = torch.where(contains_median.any(dim=1), contains_median.int().argmax(dim=1), bins - 1)
        rows = torch.arange(len(histograms), device=device)
        count_below = count_below[rows, median_bin]
        # `released` only: without such a bin, the sum includes the last bin
        count_below = torch.where(contains_median.any(dim=1), count_below, count_below + median_bin)
        medians = (median_bin + (half_count - count_below) / histograms[rows, median_bin]) / bins
        medians = torch.where(half_count > 0, medians, 0).nan_to_num(nan=0.0)
        return medians.clamp(min=least).float()


@torch.no_grad()
def confident(
    teacher_logits: Tensor, thresholds: Tensor, *, variant: Variant = "paper", channels: int | None = None
) -> Tensor:
    """Where the teacher's uncertainty is below the threshold of its class. Shapes as `entropy_labels`; bool."""
    values = normalised_entropy(teacher_logits, variant=variant, channels=channels)
    return values < thresholds.to(values.device)[largest_channel(teacher_logits)[1]]


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
    """Background pixels take the teacher's class where it is certain; the others are ignored.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,H,W), thresholds (K,) -> (B,H,W). Source: PLOP eq. 8 and 9.
    """
    values = normalised_entropy(teacher_logits, variant=variant, channels=channels)
    classes = largest_channel(teacher_logits)[1]
    certain = values < thresholds.to(values.device)[classes]
    return torch.where(labels == 0, classes.masked_fill(~certain, ignore_index), labels)


@torch.no_grad()
def adaptive_factor(given: Tensor, labels: Tensor, *, variant: Variant = "paper", ignore_index: int = IGNORE) -> Tensor:
    """Share of each image's background pixels that are not ignored (PLOP eq. 10).

    Shapes: given and labels (B,H,W) int64, before and after pseudo-labelling -> (B,1,1). Without background it is 1
    (`paper`) or 0 (`released`).
    """
    background = given == 0
    kept = (background & (labels != ignore_index)).sum(dim=(1, 2)).float()
    total = background.sum(dim=(1, 2)).float()
    if variant == "released":
        return (kept / (total + 1e-6))[:, None, None]
    return torch.where(total > 0, kept / total.clamp(min=1), 1.0)[:, None, None]
