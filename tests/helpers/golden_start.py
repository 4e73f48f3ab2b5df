"""Numbers of classes that start from the data: `tests/golden/README.md` says whose."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "golden" / "start.npz") as file:
        return dict(file)


def case(name: str) -> dict[str, Tensor]:
    """Arrays of a case as tensors, by name."""
    chosen = {key.removeprefix(f"{name}."): value for key, value in arrays().items() if key.startswith(f"{name}.")}
    return {key: torch.from_numpy(value.copy()) for key, value in chosen.items()}
