"""Numbers of released code: `tests/golden/README.md` says whose."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@cache
def further() -> dict[str, np.ndarray]:
    arrays = {}
    for name in ("further.npz", "start.npz"):
        with np.load(Path(__file__).parents[1] / "golden" / name) as file:
            arrays |= file
    return arrays


def case(name: str) -> dict[str, Tensor]:
    """Arrays of a case as tensors, integers as int64."""
    arrays = {key.removeprefix(f"{name}."): value for key, value in further().items() if key.startswith(f"{name}.")}
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    return {key: value.long() if value.dtype == torch.uint8 else value for key, value in tensors.items()}


def close(found: Tensor, expected: Tensor | float, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), rtol=rtol, atol=atol)
