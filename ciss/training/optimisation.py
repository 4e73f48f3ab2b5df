"""What learns, and how: parameters, optimiser and schedule of a run."""

import torch
from torch import nn

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
    for module in student.modules():  # dropout and drop path of what does not learn would still change its features
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
    return parameters


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
