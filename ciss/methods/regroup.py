"""Closed form on the pretrained encoder; background of later classes moves to these classes. This project's own."""

import copy
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from ciss import distributed
from ciss.labels.patches import label_shares
from ciss.methods.base import Batch, coefficients
from ciss.methods.ncm import UNSEEN
from ciss.methods.stage_ridge import StageRidge
from ciss.models import Extra, Network, Output
from ciss.models.closed_form import evenly_spaced, k_means, nearest_centres, regrouped_solution
from ciss.models.extras import finest_grid, on_grid, stage_maps
from ciss.ranges import Choices

SAMPLES = 16  # cells of an image with nothing but background, from which k-means computes the centres of the groups


@coefficients
class Regroup(StageRidge):
    """The balanced ridge solution of `stage_ridge` with four changes; after the base step nothing is trained.

    1. The encoder has its pretrained weights. The base step fits the encoder to the base classes; its weights are not
       used. Without pretrained weights the encoder is that of the base step.
    2. x has the maps of the encoder's last stages and their means over a neighbourhood, on the grid of the finest of
       these stages. It has no features of the decoder, whose rows are zeros.
    3. y has the share of each class in the pixels of a cell, not the label of one pixel.
    4. The sums of the background of each step are kept in groups of similar features. A group moves to a later class
       if the solution has the largest score for this class at the group's mean: see `regrouped_solution`.
    """

    presets: ClassVar = {
        "trained": {"encoder": "trained"},  # without the first change
        "coarse": {"stages": 2},  # on the grid of the last two stages, usually that of the decoder
        "local": {"context": 1},
        "fixed": {"groups": 1},  # the background of a step is one group, which hardly ever moves
        "unbalanced": {"balance": 0.0},
    }

    encoder: Literal["pretrained", "trained"] = "pretrained"  # trained: by the base step
    stages: Annotated[int, Field(ge=1, le=4), Choices(2, 3, 4)] = 3  # of the encoder, the deepest first
    context: Annotated[Literal[1, 3, 5, 7, 9, 11], Choices()] = 5  # side of the neighbourhood in cells of the stage
    groups: Annotated[int, Field(ge=1, le=4096), Choices(1, 32, 128, 512)] = 128  # of the background of each step
    cell_label: Literal["shares"] = "shares"
    threshold: PositiveFloat = 0.847298  # of `ridge`; as in `stage_ridge`, pseudo-labels have no threshold

    @property
    def pretrained_encoder(self) -> bool:
        return self.encoder == "pretrained"

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        channels = 1 + sum(sizes[: step + 1])

        def shapes(widths: list[int]) -> dict[str, tuple[int, ...]]:
            size = sum(widths[1 : 1 + self.stages]) * (1 + (self.context > 1)) + 1
            return {"gram": (size, size), "moment": (size, channels), "groups": (size, self.groups * (step + 1))}

        rows = Extra(rows=channels, stages=self.stages, context=self.context, finest=True)
        return {"moments": Extra(buffers=shapes), "stages": rows}

    def initialise(self, network: Network, classes: int) -> None:
        super().initialise(network, classes)
        moments = network.decoder.extras["moments"]
        moments.groups = F.pad(moments.groups, (0, self.groups))

    def start(self, student: Network, teacher: nn.Module, batches: Iterable[Batch], previous: Iterable[Batch]) -> None:
        moments, groups = student.decoder.extras["moments"], student.decoder.classifier.groups
        step = len(groups) - 1
        if step == 1:  # the teacher is the network of the base step: it may have another encoder and has other rows
            teacher = self.network = copy.deepcopy(student).eval()
            self.add(moments, previous, teacher, 0, groups[0].out_channels)
            self.solve_rows(teacher, moments)
        self.add(moments, batches, teacher, step, student.channels)
        self.solve_rows(student, moments)

    def add(self, moments: nn.Module, batches: Iterable[Batch], network: nn.Module, step: int, channels: int) -> None:
        """Adds the features of a step's images to the sums, those of the background to the groups of the step.

        Args:
            network: that of the step before, whose encoder is read. It has no channels for the step's classes, except
                in step 1.
            channels: number of channels after the step, the background's included.
        """
        centres, deviations = self.find_groups(batches, network, step, channels)
        gram = torch.zeros_like(moments.gram)
        sums = gram.new_zeros(len(gram), channels + self.groups)
        for batch in batches:
            x, shares = self.cells(batch, network, step, channels)
            nearest = nearest_centres(x[:, :-1] / deviations, centres)
            background = F.one_hot(nearest, self.groups) * shares[:, :1]
            gram += x.T @ (x * shares.sum(dim=1, keepdim=True))
            sums += x.T @ torch.cat([torch.zeros_like(shares[:, :1]), shares[:, 1:], background], dim=1)
        moments.gram += distributed.all_sum(gram)
        distributed.all_sum(sums)
        moments.moment[:, :channels] += sums[:, :channels]
        moments.groups[:, step * self.groups :][:, : self.groups] += sums[:, channels:]

    def find_groups(
        self, batches: Iterable[Batch], network: nn.Module, step: int, channels: int
    ) -> tuple[Tensor, Tensor]:
        """Centres (K,M-1) of the background's groups, in units of the deviations (M-1,) of its features."""
        samples = {}
        for batch in batches:
            x, shares = self.cells(batch, network, step, channels)
            images = zip(batch.ids, x.chunk(len(batch.ids)), shares.chunk(len(batch.ids)), strict=True)
            for name, features, share in images:
                cells = (share[:, 0] == 1).nonzero()[:, 0]
                samples[name] = features[evenly_spaced(cells, SAMPLES), :-1].float().cpu()
        samples = distributed.gather_dict(samples)
        features = torch.cat([samples[name] for name in sorted(samples)])
        features = features.to(next(network.parameters()).device, torch.float64)  # a process may have had no image
        if not len(features):
            return features.new_zeros(1, features.shape[1]), features.new_ones(features.shape[1])
        deviations = features.std(dim=0, correction=0).clamp(min=1e-6)
        return k_means(features / deviations, self.groups), deviations

    def cells(self, batch: Batch, network: nn.Module, step: int, channels: int) -> tuple[Tensor, Tensor]:
        """x (N,M) of the cells of a batch, image by image, and the shares (N,C) of classes in them, in float64."""
        output = network(batch.images)
        labels = batch.given
        if step and self.pseudo_labels:
            labels = batch.by_strips(self.strip_labels, output)
        x = self.inputs(output)
        shares = label_shares(labels, x.shape[-2:], channels, covered=output.covered_by(batch.size))
        x = F.pad(x.permute(0, 2, 3, 1).flatten(0, 2).double(), (0, 1), value=1.0)
        return x, shares.flatten(0, 2).double()

    def solve_rows(self, network: Network, moments: nn.Module) -> None:
        """Writes the rows of all classes into a network. A class without a feature is never predicted."""
        known = torch.tensor([group.out_channels for group in network.decoder.classifier.groups]).cumsum(0)
        first_newer = known.repeat_interleave(self.groups).to(moments.moment.device)
        solution, owners = regrouped_solution(
            moments.moment, moments.groups, first_newer, lambda moment: self.solve(moments.gram, moment)
        )
        seen = moments.moment.index_add(1, owners, moments.groups)[-1] > 0
        self.write(network, solution[:-1].T, torch.where(seen, solution[-1], UNSEEN))

    def write(self, network: Network, weights: Tensor, biases: Tensor) -> None:
        rows = network.decoder.extras["stages"].weights
        for row, weight in zip(rows, weights.split([row.shape[1] for row in rows], dim=1), strict=True):
            row.copy_(weight)
        width = network.decoder.widths[0]
        super(StageRidge, self).write(network, weights.new_zeros(len(weights), width), biases)

    def inputs(self, output: Output) -> Tensor:
        maps = stage_maps([stage.float() for stage in output.stages], self.stages, self.context)
        grid = finest_grid(maps)
        return torch.cat([on_grid(values, grid) for values in maps], dim=1)

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        """Background pixels take the class with the largest score of the network before; in step 1 this network has the
        solution for the classes of step 0."""
        network = getattr(self, "network", None)
        return super().labels(batch, teacher if network is None else network(batch.images))

    def state_dict(self) -> dict[str, Any]:
        return {}  # a training without epochs is never continued
