"""A simple reference: labels by the nearest mean feature. Nothing is trained after the base step."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from ciss.config import Benchmark, Phase
from ciss.labels.patches import PatchRule, patch_labels
from ciss.labels.prototypes import ClassPrototypes
from ciss.methods.base import Batch, Statistics, coefficients
from ciss.methods.finetune import Finetune
from ciss.models import Extra, Network
from ciss.models.closed_form import Metric, nearest_mean_rows
from ciss.protocol import VOID as IGNORE
from ciss.ranges import Choices

UNSEEN = -1e4  # bias of a class without a feature: it is never predicted


@coefficients
class NCM(Finetune):
    """Nearest class mean on frozen features, this project's own.

    The row of class c is 2 mu_c and its bias -|mu_c|^2, so that the largest logit is that of the nearest mean. Step 1
    replaces the trained rows of the base step by the means of its data; later steps add the rows of their classes.
    """

    usual: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = True
    presets: ClassVar = {
        "cosine": {"metric": "cosine"},
        "majority": {"cell_label": "majority"},
        "running": {"background": "running"},
    }

    metric: Annotated[Metric, Choices()] = "euclidean"  # by which means are near
    # multiplies rows and biases: probabilities change, labels do not; width: 1 / D
    temperature: PositiveFloat | Literal["width"] = "width"
    background: Literal["base", "running"] = "base"  # its mean: of step 0, or also of what the means call background
    # the label of a feature: of its first pixel (`patch_labels`), or of most of its pixels
    cell_label: Annotated[PatchRule, Choices()] = "top_left"
    statistics_from: Statistics = "images"  # every image of the step once, or a training epoch

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        return closed_form_problem(benchmark)

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        if self.background == "base":
            return {}
        return {"background": Extra(buffers=lambda widths: {"sums": (widths[0],), "count": ()})}

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        return []

    def epochs(self, phase: Phase) -> int:
        return 0

    def start(self, student: Network, teacher: nn.Module, batches: Iterable[Batch], previous: Iterable[Batch]) -> None:
        groups = student.decoder.classifier.groups
        channels = student.channels
        old = channels - groups[-1].out_channels
        first = len(groups) == 2
        if first:
            base = self._prototypes(previous, teacher, old)
            self._write(groups[0], base.means, base.counts)
        present = student.decoder.classifier if self.background == "running" else None
        own = self._prototypes(batches, teacher, channels, present, old)
        self._write(groups[-1], own.means[old:], own.counts[old:])
        if self.background == "running":
            running = student.decoder.extras["background"]
            if first:
                running.sums += base.sums[0]
                running.count += base.counts[0]
            running.sums += own.sums[0]
            running.count += own.counts[0]
            self._write(groups[0], (running.sums / running.count.clamp(min=1))[None], running.count[None])

    def _prototypes(
        self, batches: Iterable[Batch], teacher: nn.Module, classes: int, present: nn.Module | None = None, old: int = 0
    ) -> ClassPrototypes:
        """Means of the teacher's features by label. `present`: the classifier that decides which background is kept."""
        prototypes = None
        for batch in batches:
            output = teacher(batch.images)
            features, grid = output.features, output.features.shape[-2:]
            covered = output.covered_by(batch.size)
            labels = patch_labels(batch.given, grid, covered=covered, rule=self.cell_label)
            if present is not None:
                called = present(features.float())[:, :old].argmax(dim=1)
                labels = labels.masked_fill((labels == 0) & (called != 0), IGNORE)
            prototypes = prototypes or ClassPrototypes(classes, features.shape[1], features.device)
            prototypes.update(features, labels)
        return prototypes.all_reduce()

    def _write(self, group: nn.Conv2d, means: Tensor, counts: Tensor) -> None:
        """Writes the first rows of a group. Rows of classes without a feature stay, with a bias of `UNSEEN`."""
        weight, bias = nearest_mean_rows(means, metric=self.metric)
        factor = 1 / means.shape[1] if self.temperature == "width" else self.temperature
        count, seen = len(means), counts > 0
        kept = group.weight[:count, :, 0, 0].double()
        group.weight[:count, :, 0, 0] = torch.where(seen[:, None], factor * weight, kept).to(group.weight.dtype)
        group.bias[:count] = torch.where(seen, factor * bias, UNSEEN).to(group.bias.dtype)


def closed_form_problem(benchmark: Benchmark) -> tuple[str, str] | None:
    """`Method.unsuited` of methods that write the rows of a linear classifier for new classes."""
    if benchmark.model.decoder != "deeplabv3":
        return "model.decoder", "logits of a mask transformer are no linear function of its features. Use deeplabv3"
    if benchmark.setting == "domain":
        return "setting", "no class is new in the domain setting, so no row would be written after step 1"
    return None
