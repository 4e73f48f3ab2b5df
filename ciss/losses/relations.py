"""Soft-sharp semantic relation distillation (GSC): the teacher's relations between classes, and low entropy."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.losses.distillation import count_old_channels
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
    old, channels = count_old_channels(logits, teacher_logits), logits.shape[1]
    logits, teacher = at_least_float32(logits), at_least_float32(teacher_logits.detach())
    new = torch.arange(old, channels, device=labels.device)
    onehot = (labels[:, None] == new[:, None, None]).to(teacher.dtype)
    if target not in ("sigmoid_softmax", "softmax", "binary"):
        raise ValueError(f"target is {target!r}. Use 'sigmoid_softmax', 'softmax' or 'binary'.")
    relations = teacher.softmax(dim=1) if target == "softmax" else teacher.sigmoid()
    if guided:
        background = torch.arange(old, device=labels.device)[:, None, None] == 0
        relations = relations.masked_fill(background & onehot.any(dim=1, keepdim=True), 0)
    soft = torch.cat([relations, onehot], dim=1)
    if target == "binary":
        return F.binary_cross_entropy_with_logits(logits, soft)
    # Ytil = softmax([ sigma(z'_{0..K-1}) ; onehot(y)_{K..C-1} ]), or [ P' ; onehot(y) ] over its sum
    soft = soft.softmax(dim=1) if target == "sigmoid_softmax" else soft / soft.sum(dim=1, keepdim=True)
    # L = -1/(N C) sum_i sum_c Ytil_{i,c} log P_{i,c}
    return -(soft * logits.log_softmax(dim=1)).mean()


def sharp_loss(logits: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Entropy of the student's output, which soft targets would raise.

    Shapes: logits (B,C,H,W), where (B,H,W) bool -> scalar in [0, log(C)/C], mean over the C channels and the pixels (of
    `where`, if given). Source: code of RDP and FISS.
    """
    log_p = at_least_float32(logits).log_softmax(dim=1)
    # L = -1/(N C) sum_i sum_c P_{i,c} log P_{i,c}
    if where is None:
        return -(log_p.exp() * log_p).mean()
    return -((log_p.exp() * log_p).mean(dim=1) * where).sum() / where.sum().clamp(min=1)
