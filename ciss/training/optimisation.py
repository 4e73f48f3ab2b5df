"""What learns, and how: parameters, optimiser and schedule of a run."""

import torch
from torch import Tensor, nn

from ciss.config import Phase, Train
from ciss.methods import Method
from ciss.models import Network
from ciss.runs.run import Run


def choose_trainable(method: Method, student: Network, run: Run) -> list[nn.Parameter]:
    """Everything at the base step; in an increment what the method says. Modules that do not learn evaluate."""
    parameters = list(method.trainable(student) if run.after else student.parameters())
    chosen = {id(p) for p in parameters}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    # Dropout and drop path of what does not learn would still change its features.
    student.freeze(module for module in list(student.modules()) if _learns_nothing(module))
    return parameters


def _learns_nothing(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def make_optimiser(parameters: list[nn.Parameter], student: Network, phase: Phase, options: Train) -> torch.optim.SGD:
    """The encoder may learn at a pace of its own."""
    inside = {id(p) for p in student.encoder.parameters()}
    encoder, rest = ([p for p in parameters if (id(p) in inside) == own] for own in (True, False))
    return torch.optim.SGD(
        [{"params": encoder, "lr": phase.lr * options.encoder_lr}, {"params": rest}],
        lr=phase.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
        weight_decay=options.weight_decay,
    )


def make_schedule(optimiser: torch.optim.Optimizer, total: int, options: Train) -> torch.optim.lr_scheduler.LambdaLR:
    """By update k of `total`: constant, or poly: lr_k = lr (1 - k / total)^power."""
    poly = options.schedule == "poly"
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: (1 - k / total) ** options.power if poly else 1.0)


@torch.no_grad()
def guarded_step(optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, finite: Tensor) -> None:
    """A step of the optimiser that leaves weights and momentum as they were unless `finite`, a boolean on the device.

    The step is taken and, where a loss was not finite, taken back on the device, so that the host does not wait.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    before = dict(zip(parameters, torch._foreach_mul(parameters, 1.0), strict=True))  # copies, in few kernels
    momentum = {p: optimiser.state[p]["momentum_buffer"].clone() for p in parameters if _has_momentum(optimiser, p)}
    scaler.step(optimiser)
    for parameter in parameters:
        torch.where(finite, parameter, before[parameter], out=parameter)
        if _has_momentum(optimiser, parameter):
            buffer = optimiser.state[parameter]["momentum_buffer"]
            # The first step makes the buffer: taken back, it is 0.
            torch.where(finite, buffer, momentum.get(parameter, buffer.new_zeros(())), out=buffer)


def _has_momentum(optimiser: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    return optimiser.state.get(parameter, {}).get("momentum_buffer") is not None
