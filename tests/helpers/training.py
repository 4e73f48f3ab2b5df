"""What a training leaves, and trainings that are stopped."""

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from ciss.methods import Finetune
from ciss.runs import results as runs_results
from ciss.store.weights import _open


class Stop(Exception):
    """A training that ends in the middle."""


def raising(*_, **__):
    raise Stop


def interrupted(*_, **__):
    raise KeyboardInterrupt


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "weights.safetensors")


def left_by(run) -> dict:
    """All that must be equal after equal trainings."""
    result = runs_results.read(run)
    return {
        "weights": (run.folder / "weights.safetensors").read_bytes(),
        "log": (run.folder / "log.json").read_text(),
        **{name: result[name].tolist() for name in ("confusion", "curve_epochs", "curve_confusions")},
        "samples": {name: array.tolist() for name, array in result["samples"].items()},
    }


def kept_epoch(run) -> int:
    """The epoch after which a stopped training goes on."""
    _, stored = _open((run.resume / "state.safetensors").read_bytes())
    return dict(stored["values"]["pairs"])["epoch"]


def distance(one: dict, other: dict) -> float:
    assert set(one) == set(other)
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def spy(monkeypatch, method=Finetune):
    """Every batch with its outputs, as the method's losses see them."""
    seen, original = [], method.losses

    def losses(self, student, teacher, batch):
        found = original(self, student, teacher, batch)
        seen.append((student, teacher, batch, found))
        return found

    monkeypatch.setattr(method, "losses", losses)
    return seen


@contextmanager
def stopped(method, call: int, error=Stop):
    """The losses raise at a call, counted from 1."""
    calls, original = [], method.losses

    def losses(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "losses", losses)
        with pytest.raises(error if isinstance(error, type) else type(error)):
            yield
