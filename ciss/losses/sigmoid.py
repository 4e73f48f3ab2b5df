"""Losses of one sigmoid per class: each class against all others (LwF-MC, DKD, SSUL)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.losses.distillation import count_old_channels
from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE


def sigmoid_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    first: int = 0,
    positive: float = 1.0,
    divisor: Literal["valid", "all"] = "valid",
    ignored: Literal["left_out", "negative"] = "left_out",
    ignore_index: int = IGNORE,
) -> Tensor:
    """Sum over channels of binary cross-entropies, mean over valid pixels; 0, with a gradient of 0, without valid ones.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64 -> scalar. Source: SSUL, DKD eq. 3, LwF-MC in MiB's code.

    Args:
        first: label of the first channel. A pixel with a label of no channel is a negative of all.
        positive: weight of positives.
        divisor: all: the mean is over all pixels, ignored ones too.
        ignored: negative: ignored pixels are valid, and negatives of every channel (DKD's code).
    """
    z = at_least_float32(logits)
    own_channel = labels - first
    known = (own_channel >= 0) & (own_channel < z.shape[1]) & (labels != ignore_index)
    own = z.gather(1, torch.where(known, own_channel, 0)[:, None])[:, 0]
    # a: `positive`.   -sum_c ( a [y = c] log sigma(z_c) + [y != c] log(1 - sigma(z_c)) )
    #   = sum_c softplus(z_c) + (a - 1) softplus(z_y) - a z_y,   because -log sigma(z) = softplus(-z) = softplus(z) - z
    own_terms = -positive * own
    if positive != 1:
        own_terms = own_terms + (positive - 1) * F.softplus(own)
    losses = F.softplus(z).sum(dim=1) + torch.where(known, own_terms, 0)
    if ignored == "negative":
        return losses.sum() / labels.numel()
    valid = labels != ignore_index
    counted = valid.sum().clamp(min=1) if divisor == "valid" else labels.numel()
    return torch.where(valid, losses, 0).sum() / counted


def sigmoid_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Sum over the teacher's channels of binary cross-entropies with its sigmoids, mean over pixels.

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), K <= C -> scalar. Equal logits give the entropy, not 0.
    Source: LwF-MC (Rebuffi et al., CVPR 2017), DKD.
    """
    old_channels = count_old_channels(logits, teacher_logits)
    z = at_least_float32(logits[:, :old_channels])
    target = at_least_float32(teacher_logits.detach()).sigmoid()
    # L = 1/M sum_i sum_{c < K} BCE(sigma(z_{i,c}), sigma(z'_{i,c})),   BCE = softplus(z) - sigma(z') z
    return (F.softplus(z) - target * z).sum() / (z.numel() / old_channels)


def decomposed_distillation(
    features: Tensor, rows: Tensor, teacher_features: Tensor, teacher_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """`sigmoid_distillation` of the positive and of the negative part of the logits, without bias.

    Shapes: features (B,D,h,w), rows (K,D) of the classifier, the same of the teacher -> two scalars, on the grid.
    Features should not be negative. Source: DKD (Baek et al., NeurIPS 2022), eq. 5 to 8.
    """
    f, old_f = at_least_float32(features), at_least_float32(teacher_features.detach())
    w, old_w = at_least_float32(rows), at_least_float32(teacher_rows.detach())
    with torch.autocast(f.device.type, enabled=False):  # it would multiply in half precision
        # z+ = <max(w, 0), f>,   z- = <min(w, 0), f>
        logit_pairs = [
            (F.conv2d(f, part(w)[..., None, None]), F.conv2d(old_f, part(old_w)[..., None, None]))
            for part in (lambda values: values.clamp(min=0), lambda values: values.clamp(max=0))
        ]
    positive, negative = (sigmoid_distillation(*pair) for pair in logit_pairs)
    return positive, negative


def absence_loss(logits: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B,.,H,W) without positives, mean over pixels and channels. Source: DKD."""
    return F.softplus(at_least_float32(logits)).mean()
