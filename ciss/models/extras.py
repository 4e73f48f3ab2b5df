"""Rows and buffers of a network that belong to no class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Extra:
    """What a method's networks have beside the rows of their classes, see `Method.extras`."""

    rows: int = 0  # of a 1x1 convolution over the features
    detached: bool = False  # the rows send no gradient to the features
    # The rows are those of the classes, over the last so many stages of the encoder. Their logits are added.
    stages: int = 0
    # widths of the features and of all stages, deepest first -> shapes of float64 tensors by name
    buffers: Callable[[list[int]], dict[str, tuple[int, ...]]] | None = None


class Rows(nn.Conv2d):
    """A 1x1 convolution. `detached`: it sends no gradient to its input."""

    def __init__(self, width: int, rows: int, detached: bool):
        super().__init__(width, rows, 1)
        self.detached = detached

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.detach() if self.detached else features)


class StageRows(nn.Module):
    """Rows of all classes over stages of the encoder, zeros at the start."""

    def __init__(self, widths: list[int], rows: int):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(rows, width) for width in widths)

    def forward(self, stages: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Stages of the encoder, deepest last -> logits (B,C,h,w) on the grid, to be added to those of the features."""
        pairs = zip(reversed(stages), self.weights, strict=False)
        return sum(on_grid(F.conv2d(stage, weight[:, :, None, None]), grid) for stage, weight in pairs)

    def grow(self, classes: int) -> None:
        """Adds rows of zeros."""
        self.weights = nn.ParameterList(F.pad(weight.detach(), (0, 0, 0, classes)) for weight in self.weights)


def on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (B,.,h_l,w_l) of a stage on the grid (h,w) of the features, by bilinear interpolation."""
    if maps.shape[-2:] == grid:
        return maps
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False)


class Buffers(nn.Module):
    """Named float64 tensors, zeros at the start. They are part of every checkpoint."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__()
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))


def make_extras(extras: Mapping[str, Extra], widths: list[int]) -> nn.ModuleDict:
    """The modules of a decoder's extras by name, without those that have neither rows nor buffers.

    Args:
        widths: of the dense features, then of the encoder's stages, the deepest first.
    """

    def make(extra: Extra) -> nn.Module:
        if extra.buffers:
            return Buffers(extra.buffers(widths))
        if extra.stages:
            return StageRows(widths[1 : 1 + extra.stages], extra.rows)
        return Rows(widths[0], extra.rows, extra.detached)

    return nn.ModuleDict({name: make(extra) for name, extra in extras.items() if extra.rows or extra.buffers})
