"""Distillation of outputs: the student keeps the teacher's probabilities of the old classes."""

import torch
from torch import Tensor

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
    # L = -1/(N K) sum_i sum_{c < K} p'_c log softmax(z_{0..K-1})_c
    return -(target * at_least_float32(logits[:, :old_channels]).log_softmax(dim=1)).sum() / target.numel()


def label_guided_distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    probabilities: bool = False,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Distillation in which the teacher's background probability goes to the labelled class where that is new.

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), K <= C, labels (B,H,W) int64 -> scalar, mean over the C channels
    and all pixels, ignored ones too, as in the published code. Source: MBS, eq. 7.

    Args:
        labels: as the data give them, without pseudo-labels; new from K on.
        where: (B,H,W) bool: the mean is over these pixels only.
        probabilities: `logits` are log-probabilities already, and `teacher_logits` probabilities.
    """
    old_channels = count_old_channels(logits, teacher_logits)
    log_p = at_least_float32(logits)
    target = at_least_float32(teacher_logits.detach())
    if not probabilities:
        log_p = log_p.log_softmax(dim=1)
        target = target.softmax(dim=1)
    new = (labels >= old_channels) & (labels != ignore_index)
    # L = -1/(N C) sum_i [ sum_{1 <= c < K} p'_c log s_c + p'_0 log s_{y or 0} ],   y or 0: the label where it is new
    own = log_p.gather(1, torch.where(new, labels, 0)[:, None])
    background, objects = target.split([1, old_channels - 1], dim=1)
    log_objects = log_p.split([1, old_channels - 1, log_p.shape[1] - old_channels], dim=1)[1]
    if where is None:
        return -((objects * log_objects).sum() + (background * own).sum()) / log_p.numel()
    kept = (objects * log_objects).sum(dim=1) + (background * own)[:, 0]
    return -(kept * where).sum() / (where.sum() * log_p.shape[1]).clamp(min=1)
