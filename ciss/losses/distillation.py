"""Distillation of outputs: the student keeps the teacher's probabilities of the old classes."""

import torch
from torch import Tensor

from ciss.losses.pixel_terms import PixelTerms, pixel_terms
from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE


def count_old_channels(logits: Tensor, teacher_logits: Tensor) -> int:
    """K, the teacher's channels. Raises ValueError if the student has fewer."""
    if teacher_logits.shape[1] > logits.shape[1]:
        raise ValueError(f"the teacher has {teacher_logits.shape[1]} channels, the student only {logits.shape[1]}.")
    return teacher_logits.shape[1]


def output_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Knowledge distillation on the old channels (LwF, Li & Hoiem 2016): softmax over the old slice only.

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), K <= C -> scalar, mean over pixels and the K channels.
    """
    old_channels = count_old_channels(logits, teacher_logits)
    target = at_least_float32(teacher_logits.detach()).softmax(dim=1)
    # L = -1/(M K) sum_i sum_{c < K} p'_{i,c} log softmax(z_{i,0..K-1})_c
    return -(target * at_least_float32(logits[:, :old_channels]).log_softmax(dim=1)).sum() / target.numel()


def label_guided_distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Distillation in which the teacher's background probability goes to the labelled class where that is new.

    Training calls `guiding_labels` and `mean_guided`, which share one pass over the logits with other losses.

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), K <= C, labels (B,H,W) int64 -> scalar, mean over the C channels
    and all pixels, ignored ones too, as in the published code. Source: MBS, eq. 7.

    Args:
        labels: as the data give them, without pseudo-labels; new from K on.
        where: (B,H,W) bool: the mean is over these pixels only.
    """
    guides = guiding_labels(labels, count_old_channels(logits, teacher_logits), ignore_index=ignore_index)
    target = at_least_float32(teacher_logits.detach()).softmax(dim=1)
    terms = pixel_terms(logits, guides, target=target[:, 1:], first=1)
    return mean_guided(terms, target[:, 0], logits.shape[1], where=where)


def guiding_labels(labels: Tensor, old_channels: int, *, ignore_index: int = IGNORE) -> Tensor:
    """The class (B,H,W) that gets the teacher's background probability: the label where it is new, else background."""
    return torch.where((labels >= old_channels) & (labels != ignore_index), labels, 0)


def mean_guided(terms: PixelTerms, background: Tensor, channels: int, *, where: Tensor | None = None) -> Tensor:
    """`label_guided_distillation` from cross-entropies of the pixels. Source: MBS, eq. 7.

    Args:
        terms: `pixel_terms` of the student's logits. `by_target`, (B,H,W): with the teacher's probabilities of the old
            classes 1..K-1 as target. The last of `by_label`, (B,H,W): with `guiding_labels` as labels.
        background: (B,H,W): the teacher's probability of the background.
        channels: C.
        where: (B,H,W) bool: the mean is over these pixels only; None: over all, ignored ones too.

    Returns:
        scalar, mean over the C channels and the pixels; 0 where `where` has no pixel.
    """
    # L = -1/(M C) sum_i [ sum_{1 <= c < K} p'_{i,c} log p_{i,c} + p'_{i,0} log p_{i,k} ],   k: the guiding label of i
    values = terms.by_target + background * terms.by_label[-1]
    if where is None:
        return values.sum() / (values.numel() * channels)
    return (values * where).sum() / (where.sum() * channels).clamp(min=1)
