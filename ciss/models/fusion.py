"""Endpoints weight fusion: the average of the weights before and after a step (EWF, Xiao et al., CVPR 2023)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def endpoint_weight(old_channels: int, new_classes: int) -> float:
    """a = sqrt(n / (K + n)), the share of the new weights: the more classes are new, the larger. 0 without new ones."""
    return math.sqrt(new_classes / (old_channels + new_classes))


def fuse_weights(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    weight: float,
    *,
    fused_share: float | None = None,
) -> dict[str, Tensor]:
    """The weights after a step, averaged with those before it. Equal values stay equal to the last bit.

    Integers (counters), and entries that are not in `before` (rows of new classes), stay those after the step. Half
    precision is averaged in float32. Source: EWF, and its published code.

    Args:
        before: the state of the network before the step, by name.
        after: the state of the network after it, on any device.
        weight: a, the share of `after`: 0 gives `before`, 1 gives `after`.
        fused_share: only this share of the values of `before`, those that changed most, is averaged; the others stay
            those after the step. None: all are averaged.
    """
    pairs = {
        name: (value.detach().to(after[name].device).float(), after[name].detach().float())
        for name, value in before.items()
        if value.is_floating_point()
    }
    fused = {name: value.detach().clone() for name, value in after.items()}
    least = None if fused_share is None else _least_change(pairs, fused_share)
    for name, (old, new) in pairs.items():
        # theta <- (1 - a) theta_before + a theta_after
        average = torch.lerp(old, new, weight)
        if least is not None:
            average = torch.where((new - old).abs() >= least, average, new)
        fused[name].copy_(average)
    return fused


def _least_change(pairs: Mapping[str, tuple[Tensor, Tensor]], share: float) -> Tensor | float:
    """The floor(share N)-th largest of all N differences; infinity where that is the 0th."""
    changes = torch.cat([(new - old).abs().flatten() for old, new in pairs.values()])
    rank = int(share * len(changes))
    return changes.kthvalue(len(changes) - rank + 1).values if rank else math.inf
