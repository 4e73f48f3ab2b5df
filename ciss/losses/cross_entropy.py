"""Cross-entropy over labelled pixels, plain and unbiased."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def _mean_over_valid(values: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean of a map over the pixels that are not ignored; 0, with a gradient of 0, where every pixel is."""
    valid = labels != ignore_index
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = IGNORE) -> Tensor:
    """Softmax cross-entropy, mean over valid pixels; 0 when there are none.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64 -> scalar.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return losses / (labels != ignore_index).sum().clamp(min=1)


def unbiased_cross_entropy(logits: Tensor, labels: Tensor, old_channels: int, *, ignore_index: int = IGNORE) -> Tensor:
    """Cross-entropy in which background means "background or any old class" (MiB, Cermelli et al. 2020, eq. 5 and 6).

    Shapes: logits (B,C,H,W), labels (B,H,W) int64 (a label below `old_channels` counts as background) -> scalar, mean
    over valid pixels. Equals the plain cross-entropy for old_channels = 1. Source of the folding: the paper's code.
    """
    if not 1 <= old_channels <= logits.shape[1]:
        raise ValueError(f"old_channels is {old_channels}; the logits have {logits.shape[1]} channels.")
    everything = logits.logsumexp(dim=1)
    old = logits[:, :old_channels].logsumexp(dim=1)
    labelled = logits.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    # log q_y = log sum_{c < K} e^{z_c} - log sum_c e^{z_c}  for y < K,   z_y - log sum_c e^{z_c}  for new y
    log_q = torch.where(labels < old_channels, old, labelled) - everything
    return _mean_over_valid(-log_q, labels, ignore_index)
