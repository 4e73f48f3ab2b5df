"""Losses in which the background stands for old or new classes (MiB, Cermelli et al.; CVPR 2020, arXiv 2002.00718)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ciss.losses.cross_entropy import negative_log_likelihood
from ciss.losses.distillation import count_old_channels
from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE


class LogSums(NamedTuple):
    """log sum_c e^{z_c} over groups of channels, (B,1,H,W) each."""

    background_and_old: Tensor  # c < K
    background_and_new: Tensor  # c = 0 and c >= K
    all: Tensor


def log_sums(logits: Tensor, old_channels: int) -> LogSums:
    """What both losses need of logits (B,C,H,W): with it, the exponentials of a map are computed once and not twice."""
    background, old, new = split_channels(at_least_float32(logits), old_channels)
    old, new = (channels.logsumexp(dim=1, keepdim=True) for channels in (old, new))
    background_and_old = torch.logaddexp(background, old)
    return LogSums(background_and_old, torch.logaddexp(background, new), torch.logaddexp(background_and_old, new))


def split_channels(maps: Tensor, old_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """The background's channel, those of old classes, and those of new classes."""
    return maps.split([1, old_channels - 1, maps.shape[1] - old_channels], dim=1)


def unbiased_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    old_channels: int,
    *,
    divisor: Literal["valid", "all"] = "valid",
    sums: LogSums | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Cross-entropy in which background means "background or any old class".

    Shapes: logits (B,C,H,W), labels (B,H,W) int64, where labels below `old_channels` count as background -> scalar,
    mean as in `cross_entropy`. `sums`: `log_sums(logits, old_channels)`, if known. Raises ValueError for `old_channels`
    outside 1..C. Source: MiB eq. 5 and 6; the published code, which has `divisor="all"`.
    """
    if not 1 <= old_channels <= logits.shape[1]:
        raise ValueError(f"old_channels is {old_channels}; the logits have {logits.shape[1]} channels.")
    sums = sums or log_sums(logits, old_channels)
    new = split_channels(at_least_float32(logits), old_channels)[2]
    # L = -1/N sum_i log q_{i,y_i};   `all`: 1/M.   q_{i,0} = sum_{c < K} p_{i,c},   q_{i,c} = p_{i,c} for c >= K
    log_q = torch.cat([sums.background_and_old, new], dim=1) - sums.all
    targets = (labels - (old_channels - 1)).clamp(min=0).masked_fill(labels == ignore_index, -1)
    return negative_log_likelihood(log_q, targets, divisor=divisor, ignore_index=-1)


def unbiased_distillation(
    logits: Tensor, teacher_logits: Tensor, *, alpha: float = 1.0, sums: LogSums | None = None
) -> Tensor:
    """Distillation in which the teacher's background stands for the student's background and all new classes.

    Shapes: logits (B,C,H,W), teacher_logits (B,K,H,W), K <= C -> scalar, mean over pixels and the K channels (the paper
    writes a sum, the published code has 1/K). `alpha` multiplies the teacher's logits. `sums`: `log_sums(logits, K)`,
    if known. Source: MiB, eq. 7 and 8.
    """
    old_channels = count_old_channels(logits, teacher_logits)
    sums = sums or log_sums(logits, old_channels)
    old = split_channels(at_least_float32(logits), old_channels)[1]
    target = (alpha * at_least_float32(teacher_logits.detach())).softmax(dim=1)
    # r_{i,0} = p_{i,0} + sum_{c >= K} p_{i,c},   r_{i,c} = p_{i,c} for 1 <= c < K
    log_r = torch.cat([sums.background_and_new, old], dim=1) - sums.all
    # L = -1/(M K) sum_i sum_{c < K} p'_{i,c} log r_{i,c}
    return -(target * log_r).sum() / target.numel()
