"""Cross-entropy over labelled pixels."""

from typing import Literal

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
    log_p = at_least_float32(logits).log_softmax(dim=1)
    return negative_log_likelihood(log_p, labels, weights=weights, divisor=divisor, ignore_index=ignore_index)


def negative_log_likelihood(
    log_probabilities: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    divisor: Literal["valid", "all"] = "valid",
    ignore_index: int = IGNORE,
) -> Tensor:
    """`cross_entropy` of log-probabilities (B,C,H,W)."""
    if divisor not in ("valid", "all"):
        raise ValueError(f"divisor is {divisor!r}. Use 'valid' or 'all'.")
    log_p = at_least_float32(log_probabilities)
    valid = (labels != ignore_index).sum().clamp(min=1) if divisor == "valid" else labels.numel()
    if weights is None:
        return F.nll_loss(log_p, labels, ignore_index=ignore_index, reduction="sum") / valid
    # L = 1/N sum_i w_i CE_i
    return (weights * F.nll_loss(log_p, labels, ignore_index=ignore_index, reduction="none")).sum() / valid
