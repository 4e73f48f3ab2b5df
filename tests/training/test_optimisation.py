"""The optimiser and the schedule in float16: an update that overflows is skipped, and the learning rate waits for it.

Nothing of this asks the device for a value, so the host can go on.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ciss.config import Phase, Train
from ciss.training import loop
from ciss.training.optimisation import CountingSchedule, GuardedSGD, make_schedule

PHASE = Phase(epochs=1, lr=0.1)
OPTIONS = Train(base=PHASE, increment=PHASE, crop=8, batch=1)
UPDATES = 12
OVERFLOWS = (0, 3, 4)  # steps whose gradients are infinite
MADE = torch.ones((), dtype=torch.bool)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in ((3, 4), (5,))]


def groups(values: list[nn.Parameter]) -> list[dict]:
    return [{"params": [], "lr": 0.3}, {"params": values[:1], "lr": 0.03}, {"params": values[1:]}]


def set_gradients(values: list[nn.Parameter], step: int, scale) -> None:
    generator = torch.Generator().manual_seed(step)
    for value in values:
        value.grad = torch.randn(value.shape, generator=generator) * scale
        if step in OVERFLOWS:
            value.grad[0] = float("inf")


class Training:
    """Updates with given gradients, as in the training loop."""

    def __init__(self):
        self.values = parameters()
        self.optimiser = GuardedSGD(groups(self.values), lr=0.1, momentum=0.9, weight_decay=0.01)
        self.schedule = make_schedule(self.optimiser, UPDATES, OPTIONS, skips=True)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(self, number: int, finite: torch.Tensor = MADE) -> None:
        scale = self.scaler.scale(torch.ones(()))
        set_gradients(self.values, number, scale)
        self.scaler.unscale_(self.optimiser)
        self.scaler.step(self.optimiser, finite)
        self.scaler.update()
        self.schedule.step()

    @property
    def parts(self) -> tuple:
        return self.optimiser, self.schedule, self.scaler


def test_it_is_torchs_optimiser_over_the_updates_that_were_made():
    training, expected = Training(), parameters()
    optimiser = torch.optim.SGD(groups(expected), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: (1 - k / UPDATES) ** OPTIONS.power)
    for number in range(UPDATES):
        torch.testing.assert_close(torch.stack(training.schedule.get_last_lr()), torch.tensor(schedule.get_last_lr()))
        before = [value.detach().clone() for value in training.values]
        training.step(number)
        if number in OVERFLOWS:
            assert all(map(torch.equal, training.values, before)), "nothing moves"
        else:
            set_gradients(expected, number, 1.0)
            optimiser.step()
            schedule.step()
        torch.testing.assert_close(training.values, expected, rtol=1e-6, atol=1e-7)
    assert training.schedule.updates == UPDATES - len(OVERFLOWS)
    assert training.scaler.get_scale() == 8.0 * 0.5 ** len(OVERFLOWS)


def test_a_loss_that_is_not_finite_moves_nothing_either():
    training = Training()
    training.step(1)
    before = [value.detach().clone() for value in training.values]
    training.step(2, finite=~MADE)
    assert all(map(torch.equal, training.values, before)) and training.schedule.updates == 1


def test_a_resumed_training_has_the_same_bytes():
    through, stopped = Training(), Training()
    for number in range(UPDATES):
        through.step(number)
        if number < 6:
            stopped.step(number)
    resumed = Training()
    for value, saved in zip(resumed.values, stopped.values, strict=True):
        value.data.copy_(saved)
    for part, saved in zip(resumed.parts, stopped.parts, strict=True):
        part.load_state_dict(saved.state_dict())
    for number in range(6, UPDATES):
        resumed.step(number)
    assert all(map(torch.equal, through.values, resumed.values))


@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_both_schedules_count_alike(schedule):
    """The one on the device, where every update is made, and torch's."""
    options, rates = replace(OPTIONS, schedule=schedule), []
    for skips in (False, True):
        optimiser = GuardedSGD(groups(parameters()), lr=0.1, momentum=0.9, weight_decay=0.0)
        scheduled = make_schedule(optimiser, 5, options, skips=skips)
        assert isinstance(scheduled, CountingSchedule) == skips
        rates.append([])
        for _ in range(5):
            rates[-1].append([float(rate) for rate in scheduled.get_last_lr()])
            optimiser.step(MADE)
            scheduled.step()
    torch.testing.assert_close(torch.tensor(rates[0]), torch.tensor(rates[1]))
    assert (rates[0][-1] < rates[0][0]) == (schedule == "poly")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_no_update_asks_the_device(project, monkeypatch, precision):
    """On a GPU, `item` waits until all that was begun before is done."""
    project.set("train.precision", precision)
    project.set("train.base.epochs", 1)
    update, updates = loop.train_update, []

    def watched(*arguments) -> None:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy"):
                patch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
            update(*arguments)
        updates.append(1)

    monkeypatch.setattr(loop, "train_update", watched)
    loop.train(project.run())
    assert updates
