"""What learns, and how: parameters, optimiser and schedule of a run."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ciss.config import Phase, Train
from ciss.methods import Method
from ciss.models import Network
from ciss.runs.run import Run


def choose_trainable(method: Method, student: Network, run: Run) -> list[nn.Parameter]:
    """All parameters in the base step, those of `method.trainable` in an increment. The others need no gradient.

    Modules without a trainable parameter stay in evaluation mode: dropout and drop path would change their features.
    """
    parameters = list(method.trainable(student) if run.after else student.parameters())
    chosen = {id(parameter) for parameter in parameters}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    student.freeze(module for module in list(student.modules())[1:] if _is_fixed(module))  # without itself
    return parameters


def _is_fixed(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


class GuardedSGD(torch.optim.SGD):
    """torch's SGD with Nesterov momentum, whose update can be skipped on the device."""

    # GradScaler then sets `found_inf` during a step (above 0: gradients overflowed), and does not wait for the device.
    _step_supports_amp_scaling = True
    updated: Tensor  # boolean scalar: whether the last step was an update

    # torch decorates these methods so that their first call imports its compiler, which takes seconds.
    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)

    def __init__(self, groups: list[dict], lr: float, momentum: float, weight_decay: float):
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, finite: Tensor) -> None:
        """One update, with the same bytes as `torch.optim.SGD.step`; no update where `finite` is False.

        With GradScaler, no update where the gradients overflowed, either. They have to be unscaled before.
        Overwrites the gradients. The host does not wait for the device.

        Args: finite: boolean scalar on the device of the parameters.
        """
        if (overflow := getattr(self, "found_inf", None)) is not None:
            finite = finite & (overflow == 0)
        self.updated = finite
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            # d = g + weight_decay p;   skipped: d = 0, set and not multiplied, because 0 times NaN is NaN
            updates = [parameter.grad for parameter in parameters]
            if group["weight_decay"]:
                torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            for update in updates:
                update.masked_fill_(~finite, 0)
            if momentum := group["momentum"]:
                buffers = [self._momentum(parameter) for parameter in parameters]
                # v <- momentum v + d;   skipped: v <- 1 v + 0
                torch._foreach_mul_(buffers, torch.where(finite, momentum, 1.0))
                torch._foreach_add_(buffers, updates)
                # d <- d + momentum v;   skipped: 0
                torch._foreach_add_(updates, buffers, alpha=momentum)
                torch._foreach_mul_(updates, finite.float())
            # p <- p - lr d
            rate = group["lr"]
            if isinstance(rate, Tensor):  # on the device: see `CountingSchedule`
                torch._foreach_mul_(updates, rate)
                rate = 1.0
            torch._foreach_add_(parameters, updates, alpha=-rate)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.full_like(parameter, -0.0)  # -0 + d is d to the last bit, 0 + d is not
        return state["momentum_buffer"]


def make_optimiser(parameters: list[nn.Parameter], student: Network, phase: Phase, options: Train) -> GuardedSGD:
    """SGD in two groups: the encoder's parameters with learning rate `lr * encoder_lr`, the others with `lr`."""
    inside = {id(parameter) for parameter in student.encoder.parameters()}
    encoder = [parameter for parameter in parameters if id(parameter) in inside]
    others = [parameter for parameter in parameters if id(parameter) not in inside]
    return GuardedSGD(
        [{"params": encoder, "lr": phase.lr * options.encoder_lr}, {"params": others}],
        lr=phase.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )


class CountingSchedule:
    """Learning rates by the number of updates that `GuardedSGD` made, without those that it skipped.

    torch's schedules count on the host, which would have to ask the device after every step whether it was skipped.
    Here count and rates are on the device.

    Args: factor: of the learning rates, by the number of updates.
    """

    def __init__(self, optimiser: GuardedSGD, factor: Callable[[Tensor], Tensor | float]):
        self.optimiser, self.factor = optimiser, factor
        self.initial = [group["lr"] for group in optimiser.param_groups]
        devices = (parameter.device for group in optimiser.param_groups for parameter in group["params"])
        device = next(devices, torch.device("cpu"))  # without any parameter there is no update
        self.updates = torch.zeros((), dtype=torch.float64, device=device)
        self._set_rates()

    def step(self) -> None:
        """After a step of the optimiser."""
        self.updates = self.updates + self.optimiser.updated
        self._set_rates()

    def get_last_lr(self) -> list[Tensor]:
        """The rates of the next update, one for each group."""
        return [group["lr"] for group in self.optimiser.param_groups]

    def state_dict(self) -> dict:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self._set_rates()

    def _set_rates(self) -> None:
        factor = torch.ones_like(self.updates) * self.factor(self.updates)
        for group, initial in zip(self.optimiser.param_groups, self.initial, strict=True):
            group["lr"] = (initial * factor).float()


def make_schedule(
    optimiser: torch.optim.Optimizer, total: int, options: Train, *, skips: bool = False
) -> torch.optim.lr_scheduler.LambdaLR | CountingSchedule:
    """Learning rates by update k of `total`: constant, or poly.

    Args: skips: whether k counts only updates that were made; for float16, which skips those that overflow.
    """

    def factor(k):
        # poly: lr_k = lr (1 - k / total)^power
        return (1 - k / max(1, total)) ** options.power if options.schedule == "poly" else 1.0

    return CountingSchedule(optimiser, factor) if skips else torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
