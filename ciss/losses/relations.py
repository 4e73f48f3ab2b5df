"""Soft-sharp semantic relation distillation (GSC): the teacher's relations between classes, and low entropy."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    probabilities: bool = False,
) -> Tensor:
    """Cross-entropy with a soft target: the teacher's relations on old channels, the one-hot label on new ones.

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), labels (B,H,W) int64 -> scalar, mean over the C channels and all
    pixels; ignored ones have no one-hot label. The target has no gradient.

    Args:
        target: `sigmoid_softmax`: softmax of sigmoids (code of RDP and FISS). `softmax`: the teacher's probabilities
            and the one-hot label, divided by their sum. `binary`: cross-entropy of sigmoids by channel (GLFC).
        guided: the teacher's background is 0 in the target where the label is new, as labels guide MBS's distillation.
        probabilities: `logits` are log-probabilities already; not for `binary`.
    """
    old, channels = count_old_channels(logits, teacher_logits), logits.shape[1]
    logits, teacher = at_least_float32(logits), at_least_float32(teacher_logits.detach())
    if target not in ("sigmoid_softmax", "softmax", "binary"):
        raise ValueError(f"target is {target!r}. Use 'sigmoid_softmax', 'softmax' or 'binary'.")
    new = torch.arange(old, channels, device=labels.device)
    onehot = labels[:, None] == new[:, None, None]
    # [ sigma(z'_{0..K-1}) ; onehot(y)_{K..C-1} ], or [ P' ; onehot(y) ], written into one map
    soft = torch.empty_like(logits, memory_format=torch.contiguous_format)
    soft[:, :old] = teacher.softmax(dim=1) if target == "softmax" else teacher.sigmoid()
    soft[:, old:] = onehot
    if guided:
        soft[:, 0].masked_fill_(onehot.any(dim=1), 0)
    if target == "binary":
        return F.binary_cross_entropy_with_logits(logits, soft)
    # Ytil: the softmax of sigmoids, which are at most 1, so that it needs no maximum; or probabilities over their sum
    soft = soft.exp_() if target == "sigmoid_softmax" else soft
    log_p = logits if probabilities else logits.log_softmax(dim=1)
    # L = -1/(N C) sum_i sum_c Ytil_{i,c} log P_{i,c}
    return -((soft * log_p).sum(dim=1) / soft.sum(dim=1)).sum() / log_p.numel()


def sharp_loss(logits: Tensor, *, where: Tensor | None = None, probabilities: bool = False) -> Tensor:
    """Entropy of the student's output, which soft targets would raise.

    Shapes: logits (B,C,H,W), where (B,H,W) bool -> scalar in [0, log(C)/C], mean over the C channels and the pixels (of
    `where`, if given). `probabilities`: `logits` are log-probabilities already. Source: code of RDP and FISS.
    """
    logits = at_least_float32(logits)
    log_p = logits if probabilities else logits.log_softmax(dim=1)
    # L = -1/(N C) sum_i sum_c P_{i,c} log P_{i,c}
    entropies = _Entropy.apply(log_p)
    if where is None:
        return entropies.sum() / log_p.numel()
    return (entropies * where).sum() / where.sum().clamp(min=1) / log_p.shape[1]


class _Entropy(torch.autograd.Function):
    """Entropy (B,H,W) of log-probabilities (B,C,H,W); keeps only these for the way back, not the probabilities."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor) -> Tensor:
        ctx.save_for_backward(log_p)
        return -log_p.exp().mul_(log_p).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (log_p,) = ctx.saved_tensors
        # the derivative of -sum_c P_c log P_c by log P_c is -(P_c + P_c log P_c)
        p = log_p.exp()
        return p.addcmul_(p, log_p).mul_(-gradient[:, None])
