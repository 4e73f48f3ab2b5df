"""Losses of full-resolution maps in strips, so that no whole map is ever in memory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sum_of_strips(
    losses: Callable[[Tensor, Any], dict[str, Tensor]], strips: Sequence[Any], logits: Tensor
) -> dict[str, Tensor]:
    """Sums over strips of `losses(logits, strip)`, by name. Gradients are by the logits (any shape).

    The gradient of the sum of all losses is computed in the forward pass: for each strip directly after its losses,
    while its maps are in the processor's cache. If the upstream gradient is the same for all losses, backward
    multiplies by it. If not, because the losses have different factors, backward computes all strips again. CPU only,
    because it compares upstream gradients.
    """

    def evaluate(factors: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], Tensor]:
        leaf = logits.detach().requires_grad_()
        sums: dict[str, Tensor] = {}
        gradient = torch.zeros_like(leaf)
        for strip in strips:
            with torch.enable_grad():
                values = losses(leaf, strip)
                total = sum(value if factors is None else factors[name] * value for name, value in values.items())
            gradient += torch.autograd.grad(total, leaf)[0]
            sums = {name: sums.get(name, 0) + value.detach() for name, value in values.items()}
        return sums, gradient

    if not (torch.is_grad_enabled() and logits.requires_grad):
        values_of_strips = [losses(logits, strip) for strip in strips]
        return {name: sum(values[name] for values in values_of_strips) for name in values_of_strips[0]}
    sums, gradient = evaluate()

    def way_back(factors: Tensor) -> Tensor:
        if (factors == factors[0]).all():
            return factors[0] * gradient
        return evaluate(dict(zip(sums, factors, strict=True)))[1]

    values = _KnownGradient.apply(logits, torch.stack(list(sums.values())), way_back)
    return dict(zip(sums, values.unbind(), strict=True))


class _KnownGradient(torch.autograd.Function):
    """Values with a backward function of their own, `way_back`: upstream gradients -> gradient of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, way_back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.way_back = way_back
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor, None, None]:
        return ctx.way_back(factors), None, None
