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
    """Softmax cross-entropy, mean over valid pixels; 0, with a gradient of 0, without valid pixels.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64, weights (B,H,W) or broadcast to it -> scalar. With `divisor="all"`
    the mean is over all pixels, ignored ones too, as in some published code.
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
    """Plain `cross_entropy` of log-probabilities (B,C,H,W)."""
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
    """Cross-entropy in which background means "background or any old class".

    Shapes: logits (B,C,H,W), labels (B,H,W) int64, where labels below `old_channels` count as background -> scalar,
    mean as in `cross_entropy`. Raises ValueError for `old_channels` outside 1..C. Source: MiB (Cermelli et al. 2020)
    eq. 5 and 6; the published code, which has `divisor="all"`.
    """
    if not 1 <= old_channels <= logits.shape[1]:
        raise ValueError(f"old_channels is {old_channels}; the logits have {logits.shape[1]} channels.")
    logits = at_least_float32(logits)
    # q_0 = sum_{c < K} p_c,   q_c = p_c for new c: a softmax in which log sum_{c < K} e^{z_c} stands for the K channels
    background = logits[:, :old_channels].logsumexp(dim=1, keepdim=True)
    folded = torch.cat([background, logits[:, old_channels:]], dim=1)
    targets = (labels - (old_channels - 1)).clamp(min=0).masked_fill(labels == ignore_index, -1)
    return cross_entropy(folded, targets, divisor=divisor, ignore_index=-1)
