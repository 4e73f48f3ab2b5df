"""Soft-sharp semantic relation distillation (GSC): the teacher's relations between classes, and low entropy."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.losses.distillation import count_old_channels
from ciss.losses.pixel_terms import PixelTerms, pixel_terms
from ciss.precision import at_least_float32

Target = Literal["sigmoid_softmax", "softmax", "binary"]


def soft_relation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    target: Target = "sigmoid_softmax",
    guided: bool = False,
) -> Tensor:
    """Cross-entropy with a soft target: the teacher's relations on old channels, the one-hot label on new ones.

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), labels (B,H,W) int64 -> scalar, mean over the C channels and all
    pixels; ignored ones have no one-hot label. The target has no gradient.

    Args:
        target: `sigmoid_softmax`: softmax of sigmoids (code of RDP and FISS). `softmax`: the teacher's probabilities
            and the one-hot label, divided by their sum. `binary`: cross-entropy of sigmoids by channel (GLFC).
        guided: the teacher's background is 0 in the target where the label is new, as labels guide MBS's distillation.
    """
    count_old_channels(logits, teacher_logits)
    relations = soft_relations(teacher_logits, labels, logits.shape[1], target=target, guided=guided)
    if target == "binary":
        return F.binary_cross_entropy_with_logits(at_least_float32(logits), relations)
    return mean_soft_relation(pixel_terms(logits, target=relations), logits.shape[1])


@torch.no_grad()
def soft_relations(
    teacher_logits: Tensor, labels: Tensor, channels: int, *, target: Target = "sigmoid_softmax", guided: bool = False
) -> Tensor:
    """The target of `soft_relation_loss`, (B,C,H,W), before it is divided by its sum over channels.

    Shapes: teacher_logits (B,K,H,W), labels (B,H,W) int64. `channels`: C.
    """
    teacher, old = at_least_float32(teacher_logits), teacher_logits.shape[1]
    if target not in ("sigmoid_softmax", "softmax", "binary"):
        raise ValueError(f"target is {target!r}. Use 'sigmoid_softmax', 'softmax' or 'binary'.")
    new = torch.arange(old, channels, device=labels.device)
    onehot = labels[:, None] == new[:, None, None]
    # T = [ sigma(z'_{0..K-1}) ; onehot(y)_{K..C-1} ], or [ p' ; onehot(y) ], written into one map
    relations = teacher.new_empty(len(teacher), channels, *teacher.shape[2:])
    if target == "softmax":
        torch.softmax(teacher, dim=1, out=relations[:, :old])
    else:
        torch.sigmoid(teacher, out=relations[:, :old])
    relations[:, old:] = onehot
    if guided:
        relations[:, 0].masked_fill_(onehot.any(dim=1), 0)
    # Ytil: the softmax of sigmoids, which are at most 1, so that it needs no maximum; or probabilities over their sum
    return relations.exp_() if target == "sigmoid_softmax" else relations


def mean_soft_relation(terms: PixelTerms, channels: int) -> Tensor:
    """`soft_relation_loss` from cross-entropies of the pixels, for the targets `sigmoid_softmax` and `softmax`.

    Args:
        terms: `pixel_terms` of the student's logits with `soft_relations`, (B,C,H,W), as target: `by_target` and
            `target_sums`, (B,H,W) each.
        channels: C.

    Returns:
        scalar, mean over the C channels and all pixels.
    """
    # L = -1/(M C) sum_i sum_c Ytil_{i,c} log p_{i,c},   Ytil = T / sum_c T_c
    return (terms.by_target / terms.target_sums).sum() / (terms.by_target.numel() * channels)


def sharp_loss(logits: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Entropy of the student's output, which soft targets would raise. Training calls `mean_entropy`.

    Shapes: logits (B,C,H,W), where (B,H,W) bool -> scalar in [0, log(C)/C], mean over the C channels and the pixels (of
    `where`, if given). Source: code of RDP and FISS.
    """
    return mean_entropy(pixel_terms(logits, entropy=True), logits.shape[1], where=where)


def mean_entropy(terms: PixelTerms, channels: int, *, where: Tensor | None = None) -> Tensor:
    """`sharp_loss` from the entropies of the pixels.

    Args:
        terms: `pixel_terms` of the student's logits with `entropy=True`: `entropy`, (B,H,W).
        channels: C.
        where: (B,H,W) bool: the mean is over these pixels only; None: over all, ignored ones too.

    Returns:
        scalar in [0, log(C)/C], mean over the C channels and the pixels; 0 where `where` has no pixel.
    """
    # L = -1/(M C) sum_i sum_c p_{i,c} log p_{i,c}
    if where is None:
        return terms.entropy.sum() / (terms.entropy.numel() * channels)
    return (terms.entropy * where).sum() / where.sum().clamp(min=1) / channels
