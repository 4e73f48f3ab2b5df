"""Rows and buffers of a network that belong to no class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Extra:
    """What a method's networks have beside the rows of their classes, see `Method.extras`."""

    rows: int = 0  # of a 1x1 convolution over the features
    detached: bool = False  # the rows send no gradient to the features
    buffers: Callable[[int], dict[str, tuple[int, ...]]] | None = None  # width D -> shapes of float64 tensors by name


class Rows(nn.Conv2d):
    """A 1x1 convolution. `detached`: it sends no gradient to its input."""

    def __init__(self, width: int, rows: int, detached: bool):
        super().__init__(width, rows, 1)
        self.detached = detached

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.detach() if self.detached else features)


class Buffers(nn.Module):
    """Named float64 tensors, zeros at the start. They are part of every checkpoint."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__()
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))


def make_extras(extras: Mapping[str, Extra], width: int) -> nn.ModuleDict:
    """The modules of a decoder's extras by name, without those that have neither rows nor buffers."""
    modules = {
        name: Buffers(extra.buffers(width)) if extra.buffers else Rows(width, extra.rows, extra.detached)
        for name, extra in extras.items()
        if extra.rows or extra.buffers
    }
    return nn.ModuleDict(modules)
