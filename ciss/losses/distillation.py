"""Distillation of the outputs: the student keeps the teacher's probabilities of the old classes."""

import torch
from torch import Tensor

from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE


def _old_channels(logits: Tensor, teacher_logits: Tensor) -> int:
    if teacher_logits.shape[1] > logits.shape[1]:
        raise ValueError(f"the teacher has {teacher_logits.shape[1]} channels, the student only {logits.shape[1]}.")
    return teacher_logits.shape[1]


def output_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Knowledge distillation on the old channels (LwF, Li & Hoiem 2016): softmax over the old slice only.

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), K <= C -> scalar, mean over pixels and the K channels.
    """
    old = _old_channels(logits, teacher_logits)
    target = at_least_float32(teacher_logits.detach()).softmax(dim=1)
    # L = -1/(N K) sum_i sum_{c < K} p'_c log softmax(z_{0..K-1})_c
    return -(target * at_least_float32(logits[:, :old]).log_softmax(dim=1)).mean()


def unbiased_distillation(logits: Tensor, teacher_logits: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Distillation in which the teacher's background may be the student's background or a new class (MiB, eq. 7 and 8).

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), K <= C -> scalar, mean over pixels and the K channels (the 1/K
    is in the published code; the paper writes a sum). `alpha` multiplies the teacher's logits.
    """
    old = _old_channels(logits, teacher_logits)
    logits = at_least_float32(logits)
    # r_0 = log( e^{z_0} + sum_{c >= K} e^{z_c} ) - log sum_c e^{z_c};   r_c = z_c - log sum_c e^{z_c}  for 1 <= c < K:
    # a log-softmax in which one channel stands for the background and every new class
    background = torch.cat([logits[:, :1], logits[:, old:]], dim=1).logsumexp(dim=1, keepdim=True)
    folded = torch.cat([background, logits[:, 1:old]], dim=1)
    return output_distillation(folded, alpha * at_least_float32(teacher_logits))


def label_guided_distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    where: Tensor | None = None,
    probabilities: bool = False,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Distillation that gives the teacher's background to the new class where the label says so (MBS, eq. 7).

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), K <= C, labels (B,H,W) int64 -> scalar. `labels` are those the
    data gives, before any pseudo label: from K on they are new. Mean over all pixels, ignored ones too, or over those
    of `where` (B,H,W), and over the C channels, as in the published code. Its closed form needs one gather and no loop
    over labels. `probabilities`: in the place of the logits stand the log-softmax of the student's and the softmax of
    the teacher's.
    """
    old = _old_channels(logits, teacher_logits)
    log_p = at_least_float32(logits)
    target = at_least_float32(teacher_logits.detach())
    if not probabilities:
        log_p = log_p.log_softmax(dim=1)
        target = target.softmax(dim=1)
    new = (labels >= old) & (labels != ignore_index)
    # L = -1/(N C) sum_i [ sum_{1 <= c < K} p'_c log s_c + p'_0 log s_{y or 0} ],   y or 0: the label where it is new
    own = log_p.gather(1, torch.where(new, labels, 0)[:, None])
    if where is None:
        kept = (target[:, 1:] * log_p[:, 1:old]).sum() + (target[:, :1] * own).sum()
        return -kept / log_p.numel()
    kept = (target[:, 1:] * log_p[:, 1:old]).sum(dim=1) + (target[:, :1] * own)[:, 0]
    return -(kept * where).sum() / (where.sum() * log_p.shape[1]).clamp(min=1)
