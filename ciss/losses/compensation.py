"""Step-aware gradient compensation: weights for pixels of old classes by their gradients (GSC, Cong et al. 2024)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE

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
    probabilities: bool = False,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Absolute derivative of the cross-entropy by the logit of the labelled class; 0 on ignored pixels. Detached.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64 -> (B,H,W) in [0, 1]. `probabilities`: `logits` are log-probabilities
    already. Source: G = p - 1 in GLFC (Dong et al. 2022) and KBK; `sigmoid`, the power and the logarithm: code of FISS,
    LGA and HFC.
    """
    logits = at_least_float32(logits)
    if probability == "softmax":
        # G_i = 1 - p_{i,y} = 1 - e^{-CE_i};   the cross-entropy of an ignored pixel is 0
        log_p = logits if probabilities else logits.log_softmax(dim=1)
        magnitudes = -torch.expm1(-F.nll_loss(log_p, labels, ignore_index=ignore_index, reduction="none"))
    elif probability == "sigmoid":
        # G_i = 1 - sigma(z_{i,y}) = sigma(-z_{i,y})
        ignored = labels == ignore_index
        label_logits = logits.gather(1, labels.masked_fill(ignored, 0)[:, None])[:, 0]
        magnitudes = (-label_logits).sigmoid().masked_fill(ignored, 0)
    else:
        raise ValueError(f"probability is {probability!r}. Use 'softmax' or 'sigmoid'.")
    magnitudes = magnitudes.clamp(0, 1) ** exponent if exponent != 1 else magnitudes.clamp(0, 1)
    magnitudes = magnitudes.log1p() if logarithm else magnitudes
    return magnitudes.masked_fill(labels == ignore_index, 0)


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
    """Weight of each pixel's cross-entropy; 0 on ignored pixels. Detached.

    Training calls `gradient_magnitude`, strip by strip, and `weigh_by_step`.

    Shapes: logits (B,C,H,W), labels (B,H,W) int64, class_steps (C,) int64, the step that introduced each channel, 0 for
    the background -> (B,H,W). The largest step is the current one. Source: GSC's abstract; each option as named.

    Args:
        grouping: the pixels whose mean gradient divides that of an old pixel, see `weigh_by_step`.
        probability, exponent, logarithm: see `gradient_magnitude`.
        new, clamp, background, reduce: see `weigh_by_step`.
    """
    magnitudes = gradient_magnitude(
        logits, labels, probability=probability, exponent=exponent, logarithm=logarithm, ignore_index=ignore_index
    )
    return weigh_by_step(
        magnitudes,
        labels,
        class_steps,
        grouping=grouping,
        new=new,
        clamp=clamp,
        background=background,
        reduce=reduce,
        ignore_index=ignore_index,
    )


@torch.no_grad()
def weigh_by_step(
    magnitudes: Tensor,
    labels: Tensor,
    class_steps: Tensor,
    *,
    grouping: Grouping = "per_step",
    new: Literal["one", "mean"] = "one",
    clamp: tuple[float, float] | None = None,
    background: bool = True,
    reduce: Callable[[Tensor], Tensor] | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Weight w_i of each pixel's cross-entropy from its gradient magnitude G_i; 0 on ignored pixels. Detached.

    Shapes: magnitudes (B,H,W), labels (B,H,W) int64, class_steps (C,) int64, the step that introduced each channel, 0
    for the background -> (B,H,W). The current step t is the largest. Raises ValueError for an unknown `grouping` or
    `new`. Source: GSC's abstract; each option as named.

    Args:
        grouping: mean gradients that divide G_i of a pixel of an old step s. `per_step`: that of s (KBK, HFC).
            `together`: that of all old steps (GLFC). `cumulative`, for s >= 1: those of steps 1 to j, for j = s..t-1;
            the quotients are added (code of FISS, LGA).
        new: weight of pixels of step t: 1, or G_i over their mean.
        clamp: smallest and largest weight; not of new pixels that weigh 1.
        background: False: background pixels weigh 1 and count in no group.
        reduce: adds sums and counts over processes; None: means of this batch.
    """
    excluded = torch.zeros_like(labels, dtype=torch.bool) if background else labels == 0
    labels = labels.masked_fill(excluded, ignore_index)
    sums, counts = sum_by_step(magnitudes, labels, class_steps, ignore_index=ignore_index)
    if reduce is not None:
        sums, counts = reduce(torch.stack([sums, counts]))
    if new not in ("one", "mean"):
        raise ValueError(f"new is {new!r}. Use 'one' or 'mean'.")
    current = class_steps.max()
    # Tables by step have C entries. The number of steps, at most C, is known on the device only.
    step_numbers = torch.arange(len(class_steps), device=labels.device)
    old = step_numbers < current
    if grouping == "per_step":
        # w_i = G_i / Gbar_s,   Gbar_s: mean of G_i over the pixels whose label is of step s
        factor_of_step = _inverse_mean(sums, counts)
    elif grouping == "cumulative":
        # w_i = G_i sum_{j = s..t-1} 1 / Gbar_{1..j},   Gbar_{1..j}: mean over steps 1 to j;   s = 0: as `per_step`
        later = old & (step_numbers >= 1)
        inverse_union_means = _inverse_mean((sums * later).cumsum(0), (counts * later).cumsum(0)) * later
        factor_of_step = torch.where(later, inverse_union_means.flip(0).cumsum(0).flip(0), _inverse_mean(sums, counts))
    elif grouping == "together":
        factor_of_step = _inverse_mean((sums * old).sum(), (counts * old).sum()).expand_as(sums)
    else:
        raise ValueError(f"grouping is {grouping!r}. Use 'per_step', 'cumulative' or 'together'.")
    ignored = labels == ignore_index
    pixel_steps = class_steps[labels.masked_fill(ignored, 0)]
    weights = magnitudes * factor_of_step[pixel_steps]
    if new == "mean":
        weights = torch.where(pixel_steps == current, magnitudes * _inverse_mean(sums, counts)[pixel_steps], weights)
    if clamp is not None:
        weights = weights.clamp(*clamp)
    if new == "one":
        weights = torch.where(pixel_steps == current, 1.0, weights)
    return weights.masked_fill(ignored, 0).masked_fill(excluded, 1)


@torch.no_grad()
def sum_by_step(
    values: Tensor, labels: Tensor, class_steps: Tensor, *, ignore_index: int = IGNORE
) -> tuple[Tensor, Tensor]:
    """Sums of values and numbers of pixels by the step of their label, without ignored pixels.

    Shapes: values (B,H,W), labels (B,H,W) int64, class_steps (C,) int64 -> (C,), (C,). Entry s belongs to step s.
    Entries after the last step are 0: there are C, because the number of steps is known on the device only. Rows are
    summed first: each sum has few terms, exact enough in float32, and on a GPU rows are independent.
    """
    values = at_least_float32(values)
    ignored = labels == ignore_index
    pixel_steps = class_steps[labels.masked_fill(ignored, 0)].flatten(0, 1)
    kept = (~ignored).flatten(0, 1).to(values.dtype)
    rows = values.new_zeros(len(pixel_steps), len(class_steps))
    sums = rows.scatter_add(1, pixel_steps, values.flatten(0, 1) * kept).sum(0)
    return sums, rows.scatter_add(1, pixel_steps, kept).sum(0)


def _inverse_mean(sums: Tensor, counts: Tensor) -> Tensor:
    """1 / mean, with 1e-8 added to the mean; 0 for an empty group."""
    return torch.where(counts > 0, counts / (sums + 1e-8 * counts), 0)
