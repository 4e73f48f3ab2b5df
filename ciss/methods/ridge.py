"""Closed form: ridge regression on frozen features (SegACIL; Li et al., ACM MM 2025, arXiv 2412.10834)."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from ciss import distributed
from ciss.config import Benchmark, Phase
from ciss.labels.patches import PatchRule, label_shares, patch_labels
from ciss.labels.scores import labels_above
from ciss.methods.base import Batch, Statistics, coefficients
from ciss.methods.finetune import Finetune
from ciss.methods.ncm import UNSEEN, closed_form_problem
from ciss.models import Extra, Network, Output
from ciss.models.closed_form import ridge_solution, second_moments
from ciss.ranges import Range


@coefficients
class Ridge(Finetune):
    """The classifier is the ridge solution over all features seen, kept exactly by second moments instead of images.

        G = sum x x^T sum_c y_c,  Q = sum x y^T,  W = (G + gamma I)^-1 Q
        x: a feature and a 1 for the bias;  y: its label, one-hot or as shares of classes
        sum_c y_c is less than 1 where pixels are ignored.

    Step 1 first fits the base classes again, from the data of step 0; later steps read G and Q from the checkpoint.

    Known differences from the published code: it expands features by a random layer (here x is the feature itself),
    solves by a recursion with the same result, and compares pseudo-labels' scores after a sigmoid (0.7: a score of
    0.847298).
    """

    usual: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = True
    presets: ClassVar = {"given": {"pseudo_labels": False}, "majority": {"cell_label": "majority"}}

    gamma: Annotated[PositiveFloat, Range(0.01, 100, log=True)] = 1.0  # of the penalty
    pseudo_labels: bool = True  # for background pixels with a high score of an old class
    threshold: Annotated[PositiveFloat, Range(0.4, 1.0)] = 0.847298  # least score of a pseudo-label
    # y of a feature. top_left: one-hot, the label of the first pixel of its cell (`patch_labels`); majority: one-hot,
    # the label of most pixels; shares: the share of each class
    cell_label: PatchRule | Literal["shares"] = "top_left"
    statistics_from: Statistics = "images"  # every image of the step once, or a training epoch

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        return closed_form_problem(benchmark)

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        channels = 1 + sum(sizes[: step + 1])

        def shapes(widths: list[int]) -> dict[str, tuple[int, ...]]:
            size = self.input_width(widths) + 1
            return {"gram": (size, size), "moment": (size, channels)}

        return {"moments": Extra(buffers=shapes)}

    def input_width(self, widths: list[int]) -> int:
        """Channels of `inputs`. `widths`: those of the decoder's features and of the encoder's stages, see `Extra`."""
        return widths[0]

    def initialise(self, network: Network, classes: int) -> None:
        network.grow(classes)
        moments = network.decoder.extras["moments"]
        moments.moment = F.pad(moments.moment, (0, classes))

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        return []

    def epochs(self, phase: Phase) -> int:
        return 0

    def start(self, student: Network, teacher: nn.Module, batches: Iterable[Batch], previous: Iterable[Batch]) -> None:
        moments, groups = student.decoder.extras["moments"], student.decoder.classifier.groups
        self.base = None  # (M,K) the solution for the classes of step 0, in step 1
        if len(groups) == 2:
            old = groups[0].out_channels
            self._add(moments, previous, teacher, old, pseudo_labels=False)
            self.base = self.solve(moments.gram, moments.moment[:, :old])
        self._add(moments, batches, teacher, student.channels, pseudo_labels=self.pseudo_labels)
        solution = self.solve(moments.gram, moments.moment)
        seen = moments.moment[-1] > 0  # the sums of the ones: numbers of features
        self.write(student, solution[:-1].T, torch.where(seen, solution[-1], UNSEEN))

    def solve(self, gram: Tensor, moment: Tensor) -> Tensor:
        """Shapes: G (M,M), Q (M,C) -> W (M,C)."""
        return ridge_solution(gram, moment, gamma=self.gamma)

    def write(self, network: Network, weights: Tensor, biases: Tensor) -> None:
        """Writes the rows of all classes. Shapes: weights (C,M) without the bias, biases (C,)."""
        groups = network.decoder.classifier.groups
        sizes = [group.out_channels for group in groups]
        for group, weight, bias in zip(groups, weights.split(sizes), biases.split(sizes), strict=True):
            group.weight.copy_(weight[:, :, None, None])
            group.bias.copy_(bias)

    def inputs(self, output: Output) -> Tensor:
        """The maps (B,M-1,h,w) of which x is made."""
        return output.features

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        """The teacher's class where its score is high enough. In step 1 the scores are those of the new base rows."""
        if not self.pseudo_labels:
            return batch.given
        if getattr(self, "base", None) is not None:
            scores = torch.einsum("bdhw,dk->bkhw", self.inputs(teacher).double(), self.base[:-1])
            teacher = replace(teacher, logits=(scores + self.base[-1][:, None, None]).float()).without_cache()
        return batch.by_strips(self.strip_labels, teacher)

    def strip_labels(self, batch: Batch, teacher: Output) -> Tensor:
        return labels_above(batch.given, teacher.upsample(batch.size), self.threshold)

    def targets(self, labels: Tensor, grid: tuple[int, int], classes: int, covered: tuple[int, int]) -> Tensor:
        """y (N,classes) of the cells of a grid. Labels outside of the classes have no part in it.

        Shapes: labels (B,H,W). `covered`: see `patch_labels`.
        """
        if self.cell_label == "shares":
            return label_shares(labels, grid, classes, covered=covered).flatten(0, 2)
        cells = patch_labels(labels, grid, covered=covered, rule=self.cell_label).flatten()
        return (cells[:, None] == torch.arange(classes, device=cells.device)).float()

    def _add(
        self, moments: nn.Module, batches: Iterable[Batch], teacher: nn.Module, classes: int, *, pseudo_labels: bool
    ) -> None:
        """Adds the features of batches to the sums of the first `classes` channels."""
        gram, moment = torch.zeros_like(moments.gram), torch.zeros_like(moments.moment[:, :classes])
        for batch in batches:
            output = teacher(batch.images)
            labels = self.labels(batch, output) if pseudo_labels else batch.given
            maps = self.inputs(output)
            y = self.targets(labels, maps.shape[-2:], classes, output.covered_by(batch.size))
            x = F.pad(maps.permute(0, 2, 3, 1).flatten(0, 2).double(), (0, 1), value=1.0)
            sums = second_moments(x, y)
            gram += sums[0]
            moment += sums[1]
        moments.gram += distributed.all_sum(gram)
        moments.moment[:, :classes] += distributed.all_sum(moment)
