"""Step-aware gradient compensation: pixels of old classes weigh as their gradient asks (GSC, Cong et al. 2024)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.losses.cross_entropy import IGNORE
from ciss.precision import at_least_float32

Probability = Literal["softmax", "sigmoid"]
Grouping = Literal["per_step", "cumulative", "together"]


@torch.no_grad()
def gradient_magnitude(
    logits: Tensor,
    labels: Tensor,
    *,
    probability: Probability = "softmax",
    exponent: float = 1.0,
    logarithm: bool = False,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Size of the cross-entropy's derivative by the labelled class's logit, (B,H,W) in [0, 1]; 0 on ignored pixels.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64. Detached. Source: G = P - 1 in GLFC (Dong et al. 2022) and KBK;
    `sigmoid`, the power and the logarithm are of the code of FISS, LGA and HFC.
    """
    logits = at_least_float32(logits)
    if probability == "softmax":
        # |G_i| = 1 - P_{i,y} = 1 - e^{-CE_i}; the cross-entropy of an ignored pixel is 0
        size = -torch.expm1(-F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none"))
    elif probability == "sigmoid":
        # |G_i| = 1 - sigma(z_{i,y}) = sigma(-z_{i,y})
        ignored = labels == ignore_index
        own = logits.gather(1, labels.masked_fill(ignored, 0)[:, None])[:, 0]
        size = (-own).sigmoid().masked_fill(ignored, 0)
    else:
        raise ValueError(f"probability is {probability!r}. Use 'softmax' or 'sigmoid'.")
    size = size.clamp(0, 1) ** exponent if exponent != 1 else size.clamp(0, 1)
    size = size.log1p() if logarithm else size
    return size.masked_fill(labels == ignore_index, 0)


@torch.no_grad()
def compensation_weights(
    logits: Tensor,
    labels: Tensor,
    class_steps: Tensor,
    *,
    grouping: Grouping = "per_step",
    probability: Probability = "softmax",
    exponent: float = 1.0,
    logarithm: bool = False,
    new: Literal["one", "mean"] = "one",
    clamp: tuple[float, float] | None = None,
    background: bool = True,
    reduce: Callable[[Tensor], Tensor] | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Weight of each pixel's cross-entropy, (B,H,W); 0 on ignored pixels. Detached.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64, class_steps (C,) int64: the step that introduced each channel (the
    background's is 0), its maximum is the current step. Old pixels: own gradient over the mean gradient of the old
    pixels of their step (`per_step`), or summed over the unions of the steps up to s = 1, 2, ... that hold them
    (`cumulative`), or over all old pixels (`together`). New pixels: 1, or own over mean gradient of the new ones.
    Without `background` its pixels weigh 1 and count in no group. `reduce` adds sums and counts over processes; without
    it the means are this batch's.

    Sources: GSC's abstract; per step as KBK and HFC, cumulative as the code of FISS and LGA, together as GLFC.
    """
    apart = torch.zeros_like(labels, dtype=torch.bool) if background else labels == 0
    labels = labels.masked_fill(apart, ignore_index)
    size = gradient_magnitude(
        logits, labels, probability=probability, exponent=exponent, logarithm=logarithm, ignore_index=ignore_index
    )
    weights = weigh_by_step(
        size, labels, class_steps, grouping=grouping, new=new, clamp=clamp, reduce=reduce, ignore_index=ignore_index
    )
    return weights.masked_fill(apart, 1)


@torch.no_grad()
def weigh_by_step(
    size: Tensor,
    labels: Tensor,
    class_steps: Tensor,
    *,
    grouping: Grouping = "per_step",
    new: Literal["one", "mean"] = "one",
    clamp: tuple[float, float] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """`compensation_weights` of gradient magnitudes (B,H,W) that are known already."""
    sums, counts = sum_by_step(size, labels, class_steps, ignore_index=ignore_index)
    if reduce is not None:
        sums, counts = reduce(torch.stack([sums, counts]))
    if new not in ("one", "mean"):
        raise ValueError(f"new is {new!r}. Use 'one' or 'mean'.")
    current = class_steps.max()
    steps = torch.arange(len(class_steps), device=labels.device)
    old = steps < current
    if grouping == "per_step":
        # w_i = |G_i| / Gbar_s,   Gbar_s = sum_{y_i in Y_s} |G_i| / #{y_i in Y_s}
        scale = _inverse(sums, counts)
    elif grouping == "cumulative":
        # w_i = |G_i| sum_{j = s..t-1} 1 / Gbar_{1..j} for s >= 1; the base step has its own mean
        later = old & (steps >= 1)
        union = _inverse((sums * later).cumsum(0), (counts * later).cumsum(0)) * later
        scale = torch.where(later, union.flip(0).cumsum(0).flip(0), _inverse(sums, counts))
    elif grouping == "together":
        scale = _inverse((sums * old).sum(), (counts * old).sum()).expand_as(sums)
    else:
        raise ValueError(f"grouping is {grouping!r}. Use 'per_step', 'cumulative' or 'together'.")
    ignored = labels == ignore_index
    step = class_steps[labels.masked_fill(ignored, 0)]
    own = _inverse(sums, counts) if new == "mean" else None
    weights = size * scale[step]
    weights = torch.where(step == current, size * own[step] if own is not None else torch.ones_like(size), weights)
    if clamp is not None:
        # the bounds are for old pixels, and for new ones where these are weighed too
        bounded = weights.clamp(*clamp)
        weights = bounded if own is not None else torch.where(step == current, weights, bounded)
    return weights.masked_fill(ignored, 0)


@torch.no_grad()
def sum_by_step(
    values: Tensor, labels: Tensor, class_steps: Tensor, *, ignore_index: int = IGNORE
) -> tuple[Tensor, Tensor]:
    """Sums of values and counts of pixels (C,) by the step of their label. Row by row first: each bin then adds few
    numbers, in float32 exact enough, and on a GPU rows do not wait for each other."""
    values = at_least_float32(values)
    ignored = labels == ignore_index
    step = class_steps[labels.masked_fill(ignored, 0)].flatten(0, 1)
    kept = (~ignored).flatten(0, 1).to(values.dtype)
    rows = values.new_zeros(len(step), len(class_steps))
    sums = rows.scatter_add(1, step, values.flatten(0, 1) * kept).sum(0)
    return sums, rows.scatter_add(1, step, kept).sum(0)


def _inverse(sums: Tensor, counts: Tensor) -> Tensor:
    """1 / mean; 0 for an empty group. A group without any gradient has finite weights too."""
    return torch.where(counts > 0, counts / (sums + 1e-8 * counts), 0)
