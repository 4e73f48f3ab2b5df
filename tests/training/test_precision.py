"""Which precision `auto` is, by the device."""

from types import SimpleNamespace

import pytest
import torch

from ciss import distributed
from ciss.training.evaluation import automatic_precision, precision_of

CUDA = torch.device("cuda")
AUTO = SimpleNamespace(precision="auto")


@pytest.fixture
def gpu(monkeypatch):
    """gpu(major, minor): a GPU of this compute capability; like every NVIDIA GPU it emulates bfloat16 at least."""

    def fake(major: int, minor: int = 0) -> None:
        for name, value in {
            "is_available": True,
            "current_device": 0,
            "get_device_capability": (major, minor),
            "get_device_properties": SimpleNamespace(major=major, minor=minor, name="fake"),
            "is_bf16_supported": True,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)

    return fake


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 0), torch.float32),
        ((7, 0), torch.float32),
        ((7, 5), torch.float32),
        ((8, 0), torch.bfloat16),
        ((8, 6), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_bfloat16_where_the_gpu_computes_in_it(gpu, capability, expected):
    gpu(*capability)
    assert automatic_precision(CUDA) is expected
    assert precision_of(AUTO, CUDA) is expected
    assert precision_of(AUTO, torch.device("cpu")) is torch.float32
    assert precision_of(SimpleNamespace(precision="float16"), CUDA) is torch.float16


def test_amd_gpus_are_asked_themselves(gpu, monkeypatch):
    """Their capability counts other things: gfx906 is (9, 0) and has no bfloat16."""
    gpu(9, 0)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert automatic_precision(CUDA) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert automatic_precision(CUDA) is torch.float32


def test_apple_gpus_are_not_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert distributed.device() == torch.device("cpu")
    assert precision_of(AUTO, distributed.device()) is torch.float32
