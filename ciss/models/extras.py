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
    # The rows are those of the classes, over the last so many stages of the encoder. Their logits are added, on the
    # finest grid of the features and these stages.
    stages: int = 0
    context: int = 1  # side of a square in cells of a stage; there are also rows over the means of squares. 1: no means
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
    """Rows of all classes over stages of the encoder, zeros at the start. Widths of stages: the deepest first."""

    def __init__(self, widths: list[int], rows: int, *, context: int = 1):
        super().__init__()
        self.stages, self.context = len(widths), context
        maps = [width for width in widths for _ in range(1 + (context > 1))]
        self.weights = nn.ParameterList(torch.zeros(rows, width) for width in maps)

    def forward(self, stages: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Stages of the encoder, deepest last -> logits (B,C,h,w), to be added to those of the features on `grid`."""
        maps = stage_maps(stages, self.stages, self.context)
        logits = [F.conv2d(values, row[:, :, None, None]) for values, row in zip(maps, self.weights, strict=True)]
        return sum(on_finest_grid(logits, grid))

    def grow(self, classes: int) -> None:
        """Adds rows of zeros."""
        self.weights = nn.ParameterList(F.pad(weight.detach(), (0, 0, 0, classes)) for weight in self.weights)


def stage_maps(stages: list[Tensor], count: int, context: int = 1) -> list[Tensor]:
    """The last `count` stages, the deepest first. With `context` > 1, each is followed by its means over squares.

    Shapes: stages and results (B,D_l,h_l,w_l).

    Args:
        context: side of the squares in cells, odd. Near borders a mean is over the cells inside the map.
    """
    maps = []
    for stage in list(reversed(stages))[:count]:
        maps.append(stage)
        if context > 1:
            maps.append(F.avg_pool2d(stage, context, stride=1, padding=context // 2, count_include_pad=False))
    return maps


def on_finest_grid(maps: list[Tensor], grid: tuple[int, int] = (0, 0)) -> list[Tensor]:
    """Maps on the finest of their grids and `grid`, by bilinear interpolation. Shapes: (B,.,h_l,w_l) -> (B,.,h,w)."""
    grid = max(grid, *(tuple(values.shape[-2:]) for values in maps))
    return [on_grid(values, grid) for values in maps]


def on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (B,.,h_l,w_l) on another grid (h,w), by bilinear interpolation."""
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
            return StageRows(widths[1 : 1 + extra.stages], extra.rows, context=extra.context)
        return Rows(widths[0], extra.rows, extra.detached)

    return nn.ModuleDict({name: make(extra) for name, extra in extras.items() if extra.rows or extra.buffers})
