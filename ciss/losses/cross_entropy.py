"""Cross-entropy over labelled pixels."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE

Divisor = Literal["valid", "all"]  # of a mean: labelled pixels, or all


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    divisor: Divisor = "valid",
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
    divisor: Divisor = "valid",
    ignore_index: int = IGNORE,
) -> Tensor:
    """`cross_entropy` from log-probabilities (B,C,H,W) instead of logits. Other arguments are the same."""
    log_p = at_least_float32(log_probabilities)
    values = F.nll_loss(log_p, labels, ignore_index=ignore_index, reduction="sum" if weights is None else "none")
    return mean_cross_entropy(values, labels, weights=weights, divisor=divisor, ignore_index=ignore_index)


def mean_cross_entropy(
    values: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    divisor: Divisor = "valid",
    ignore_index: int = IGNORE,
) -> Tensor:
    """`cross_entropy` from the cross-entropies of the pixels.

    Args:
        values: (B,H,W), 0 on ignored pixels; without weights also their sum, a scalar.
        labels: (B,H,W) int64, for the number of pixels.
        weights: (B,H,W) or broadcast to it; None: all are 1.
        divisor: valid: the mean is over valid pixels; all: over all pixels, ignored ones too.

    Returns:
        scalar; 0, with a gradient of 0, without valid pixels.

    Raises:
        ValueError: an unknown divisor.
    """
    if divisor not in ("valid", "all"):
        raise ValueError(f"divisor is {divisor!r}. Use 'valid' or 'all'.")
    count = (labels != ignore_index).sum().clamp(min=1) if divisor == "valid" else labels.numel()
    # L = 1/N sum_i w_i CE(p_i, y_i);   `all`: 1/M
    return (values if weights is None else weights * values).sum() / count
