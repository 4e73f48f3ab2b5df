"""Cross-entropy over labelled pixels, plain and unbiased."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    divisor: Literal["valid", "all"] = "valid",
    ignore_index: int = IGNORE,
) -> Tensor:
    """Softmax cross-entropy, mean over valid pixels; 0, with a gradient of 0, when there are none.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64, weights (B,H,W) or anything that broadcasts to it -> scalar.
    `divisor` all: ignored pixels count in the mean, as where published code takes the mean of a map.
    """
    if divisor not in ("valid", "all"):
        raise ValueError(f"divisor is {divisor!r}. Use 'valid' or 'all'.")
    logits = at_least_float32(logits)
    valid = (labels != ignore_index).sum().clamp(min=1) if divisor == "valid" else labels.numel()
    if weights is None:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum") / valid
    # L = 1/N sum_i w_i CE_i
    return (weights * F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")).sum() / valid


def negative_log_likelihood(log_probabilities: Tensor, labels: Tensor, *, ignore_index: int = IGNORE) -> Tensor:
    """`cross_entropy`, plain, of log-probabilities (B,C,H,W) that are known already."""
    valid = (labels != ignore_index).sum().clamp(min=1)
    return F.nll_loss(at_least_float32(log_probabilities), labels, ignore_index=ignore_index, reduction="sum") / valid


def unbiased_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    old_channels: int,
    *,
    divisor: Literal["valid", "all"] = "valid",
    ignore_index: int = IGNORE,
) -> Tensor:
    """Cross-entropy in which background means "background or any old class" (MiB, Cermelli et al. 2020, eq. 5 and 6).

    Shapes: logits (B,C,H,W), labels (B,H,W) int64 (a label below `old_channels` counts as background) -> scalar, mean
    over valid pixels, or over all pixels, ignored ones too (`divisor` all, as the paper's code). Equals the plain
    cross-entropy for old_channels = 1. Source of the folding: the paper's code.
    """
    if not 1 <= old_channels <= logits.shape[1]:
        raise ValueError(f"old_channels is {old_channels}; the logits have {logits.shape[1]} channels.")
    logits = at_least_float32(logits)
    # q_0 = sum_{c < K} p_c,   q_c = p_c for new c: a softmax in which log sum_{c < K} e^{z_c} stands for the K channels
    background = logits[:, :old_channels].logsumexp(dim=1, keepdim=True)
    folded = torch.cat([background, logits[:, old_channels:]], dim=1)
    targets = (labels - (old_channels - 1)).clamp(min=0).masked_fill(labels == ignore_index, -1)
    return cross_entropy(folded, targets, divisor=divisor, ignore_index=-1)
