"""Closed form over stages of the encoder and their neighbourhoods, with balanced classes. This project's own."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ciss.labels.patches import PatchRule
from ciss.labels.scores import labels_above
from ciss.methods.base import Batch, coefficients
from ciss.methods.ridge import Ridge
from ciss.models import Extra, Network, Output
from ciss.models.closed_form import balanced_ridge_solution
from ciss.models.extras import on_finest_grid, stage_maps
from ciss.ranges import Choices, Range


@coefficients
class StageRidge(Ridge):
    """The ridge solution of `ridge` with five changes; after the base step nothing is trained.

    1. x has the maps of the encoder's last stages beside the decoder's features, on the finest grid of all. The base
       step fits the decoder to the base classes; the encoder, pretrained and trained slowly, still tells new classes
       apart.
    2. x has the means of each stage over a neighbourhood. A linear classifier of single cells sees no context.
    3. y has the share of each class in the pixels of a cell, not the label of one pixel.
    4. The mean of each class counts as if its features had the weight n_c^-balance. Most pixels are background: without
       weights, rare classes are hardly ever predicted.
    5. The background of a step stays as it is labelled. Labels from the network before (`labelled`: of its largest
       score, without a threshold) did not help in what was tried, on drawings and on photographs.
    """

    presets: ClassVar = {
        "decoder": {"stages": 0},  # without the first change and, as it has no stages, the second
        "coarse": {"stages": 2},  # two stages, in most encoders on the grid of the decoder
        "local": {"context": 1},  # without the second
        "pixel": {"cell_label": "top_left"},  # without the third
        "unbalanced": {"balance": 0.0},  # without the fourth
        "labelled": {"pseudo_labels": True},  # without the fifth
        # as in the tables of reports/methods
        "first": {"stages": 2, "context": 1, "cell_label": "top_left", "pseudo_labels": True},
    }

    pseudo_labels: bool = False
    threshold: PositiveFloat = 0.847298  # of `ridge`; here pseudo-labels have no threshold
    cell_label: PatchRule | Literal["shares"] = "shares"
    stages: Annotated[int, Field(ge=0, le=4), Choices(1, 2, 3)] = 3  # of the encoder, the deepest first
    context: Annotated[Literal[1, 3, 5, 7, 9, 11], Choices()] = 5  # side of the neighbourhood in cells of the stage
    balance: Annotated[float, Field(ge=0, le=1), Range(0.0, 1.0)] = 0.5

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        rows = Extra(rows=1 + sum(sizes[: step + 1]), stages=self.stages, context=self.context)
        return super().extras(sizes, step) | ({"stages": rows} if self.stages else {})

    def input_width(self, widths: list[int]) -> int:
        maps = 1 + (self.context > 1)  # of each stage: itself and its means
        return widths[0] + maps * sum(widths[1 : 1 + self.stages])

    def initialise(self, network: Network, classes: int) -> None:
        super().initialise(network, classes)
        if self.stages:
            network.decoder.extras["stages"].grow(classes)

    def inputs(self, output: Output) -> Tensor:
        stages = [stage.float() for stage in output.stages]
        maps = [output.features.float(), *stage_maps(stages, self.stages, self.context)]
        return torch.cat(on_finest_grid(maps), dim=1)

    def solve(self, gram: Tensor, moment: Tensor) -> Tensor:
        return balanced_ridge_solution(gram, moment, balance=self.balance, gamma=self.gamma)

    def write(self, network: Network, weights: Tensor, biases: Tensor) -> None:
        width = network.decoder.widths[0]
        super().write(network, weights[:, :width], biases)
        if self.stages:
            rows = network.decoder.extras["stages"].weights
            for row, weight in zip(rows, weights[:, width:].split([len(row[0]) for row in rows], dim=1), strict=True):
                row.copy_(weight)

    def strip_labels(self, batch: Batch, teacher: Output) -> Tensor:
        return labels_above(batch.given, teacher.upsample(batch.size), -torch.inf)
