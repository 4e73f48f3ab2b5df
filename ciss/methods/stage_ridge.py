"""Closed form over several stages of the encoder, with balanced classes. This project's own."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ciss.labels.scores import labels_above
from ciss.methods.base import Batch, coefficients
from ciss.methods.ridge import Ridge
from ciss.models import Extra, Network, Output
from ciss.models.closed_form import balanced_ridge_solution
from ciss.models.extras import on_grid
from ciss.ranges import Choices, Range


@coefficients
class StageRidge(Ridge):
    """The ridge solution of `ridge` with three changes; after the base step nothing is trained.

    1. x has the maps of the encoder's last stages beside the decoder's features. The base step fits the decoder to the
       base classes; the encoder, pretrained and trained slowly, still tells new classes apart.
    2. Each feature has the weight n_c^-balance of its class. Most pixels are background: without weights, rare classes
       are hardly ever predicted.
    3. The background of a step takes the class with the largest score of the network before, without a threshold.
    """

    presets: ClassVar = {
        "decoder": {"stages": 0},  # without the first change
        "unbalanced": {"balance": 0.0},  # without the second
        "given": {"pseudo_labels": False},
    }

    stages: Annotated[int, Field(ge=0, le=4), Choices(1, 2, 3)] = 2  # of the encoder, the deepest first
    balance: Annotated[float, Field(ge=0, le=1), Range(0.0, 1.0)] = 0.5

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        channels = 1 + sum(sizes[: step + 1])
        rows = {"stages": Extra(rows=channels, stages=self.stages)} if self.stages else {}
        return {**super().extras(sizes, step), **rows}

    def initialise(self, network: Network, classes: int) -> None:
        super().initialise(network, classes)
        if self.stages:
            network.decoder.extras["stages"].grow(classes)

    def inputs(self, output: Output) -> Tensor:
        grid = output.features.shape[-2:]
        stages = list(reversed(output.stages))[: self.stages]
        return torch.cat([output.features.float(), *(on_grid(stage.float(), grid) for stage in stages)], dim=1)

    def solve(self, gram: Tensor, moment: Tensor) -> Tensor:
        return balanced_ridge_solution(gram, moment, balance=self.balance, gamma=self.gamma)

    def write(self, network: Network, weights: Tensor, biases: Tensor) -> None:
        width = network.decoder.widths[0]
        super().write(network, weights[:, :width], biases)
        if self.stages:
            rows = network.decoder.extras["stages"].weights
            for stage, weight in zip(rows, weights[:, width:].split([len(row[0]) for row in rows], dim=1), strict=True):
                stage.copy_(weight)

    def strip_labels(self, batch: Batch, teacher: Output) -> Tensor:
        return labels_above(batch.given, teacher.upsample(batch.size), -torch.inf)
