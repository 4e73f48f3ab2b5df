"""Cross-entropies and entropies of pixels, with one gradient by the logits for all of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE


class PixelTerms(NamedTuple):
    """Values of each pixel, (B,H,W) each, whose means are losses.

    In the formulas p is the softmax of the logits, and T the target distribution.
    """

    by_label: tuple[Tensor, ...]  # -log p_y for each map of labels y; 0 where it is ignored
    by_target: Tensor | None  # -sum_c T_c log p_c
    target_sums: Tensor | None  # sum_c T_c, without gradient
    entropy: Tensor | None  # -sum_c p_c log p_c


def pixel_terms(
    logits: Tensor,
    *labels: Tensor,
    target: Tensor | None = None,
    first: int = 0,
    entropy: bool = False,
    log_p: Tensor | None = None,
    ignore_index: int = IGNORE,
) -> PixelTerms:
    """Terms of losses of the same logits. Their gradients are written into one map, in few passes over it.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64 each, target T (B,K,H,W).

    Args:
        target: not negative, of the channels from `first` on. It has no gradient.
        entropy: whether it is computed.
        log_p: the log-softmax of the logits, if known.
    """
    logits = at_least_float32(logits)
    log_p = (logits.log_softmax(dim=1) if log_p is None else log_p).detach()
    target_sums = None if target is None else target.detach().sum(dim=1)
    masks = [values == ignore_index for values in labels]
    classes = [values.masked_fill(mask, 0) for values, mask in zip(labels, masks, strict=True)]
    target = None if target is None else target.detach()
    by_target, entropies, *by_label = _PixelTerms.apply(logits, log_p, target, target_sums, first, entropy, *classes)
    by_label = tuple(values.masked_fill(mask, 0) for values, mask in zip(by_label, masks, strict=True))
    return PixelTerms(by_label, by_target, target_sums, entropies)


class _PixelTerms(torch.autograd.Function):
    """Terms of logits z (B,C,H,W) by `target`, of the entropy, and by each map of `classes`."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_p: Tensor,
        target: Tensor | None,
        target_sums: Tensor | None,
        first: int,
        entropy: bool,
        *classes: Tensor,
    ) -> tuple[Tensor | None, ...]:
        by_target = entropies = None
        if target is not None:
            by_target = -(target * log_p.narrow(1, first, target.shape[1])).sum(dim=1)
        if entropy:
            entropies = -log_p.exp().mul_(log_p).sum(dim=1)
        ctx.first = first
        ctx.save_for_backward(log_p, target, target_sums, entropies, *classes)
        by_label = [-log_p.gather(1, values[:, None])[:, 0] for values in classes]
        return by_target, entropies, *by_label

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_target: Tensor, of_entropy: Tensor, *of_labels: Tensor) -> tuple[Tensor | None, ...]:
        log_p, target, target_sums, entropies, *classes = ctx.saved_tensors
        # With gradients g_y, g_T and g_H of the terms by label, by target and of the entropy H, and one-hot labels 1_y:
        # dL/dz = p (sum_y g_y + g_T sum_c T_c - g_H H - g_H log p) - g_T T - sum_y g_y 1_y
        factors = torch.zeros_like(log_p[:, 0])
        for weights in of_labels:
            factors += weights
        if target is not None:
            factors.addcmul_(of_target, target_sums)
        gradient = log_p.exp()
        if entropies is None:
            gradient.mul_(factors[:, None])
        else:
            factors.addcmul_(of_entropy, entropies, value=-1)
            gradient.mul_(torch.addcmul(factors[:, None], log_p, of_entropy[:, None], value=-1))
        if target is not None:
            gradient.narrow(1, ctx.first, target.shape[1]).addcmul_(target, of_target[:, None], value=-1)
        for values, weights in zip(classes, of_labels, strict=True):
            gradient.scatter_add_(1, values[:, None], -weights[:, None])
        return gradient, *[None] * (5 + len(classes))
