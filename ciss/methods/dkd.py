"""DKD: decomposed knowledge distillation (Baek, Oh, Lee, Lee, Ham; NeurIPS 2022, arXiv 2210.05941)."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from ciss.config import Benchmark
from ciss.losses import absence_loss, decomposed_distillation, sigmoid_cross_entropy, sigmoid_distillation
from ciss.methods.base import Batch, Method, coefficients
from ciss.methods.hosts import copy_to_new_rows, rows_problem
from ciss.models import Extra, Network, Output
from ciss.ranges import Range


@coefficients
class DKD(Method):
    """One sigmoid per class without a row of the background, and distillation of the logits' two parts.

        L = L_BCE + distillation L_KD + positive_part L_+ + negative_part L_- + absence L_AC
        base step: L_BCE + absence L_AC

    Every term is a sum over channels of means over pixels. L_BCE is of the step's new classes, L_KD, L_+ and L_- are of
    the old ones. z+ = <max(w, 0), f> and z- = <min(w, 0), f> make the logit, z = z+ + z- + b. L_AC trains an auxiliary
    row without positives; new rows start as copies of it, and it sends no gradient to the features. A pixel is
    background where no sigmoid is above 1/2.

    Scale and shift of batch normalisation, its statistics and dropout are frozen in increments, whatever
    `train.increment.norm` says. Defaults are those of the published code for Pascal VOC (ADE20K: both weights of
    positives 35). Known differences: a convolution follows the pyramid there; weight decay there is of new rows only;
    there the learning rate of ADE20K warms up; ignored pixels are negatives there (preset `released`).
    """

    usual: ClassVar[bool] = False
    sigmoids: ClassVar[bool] = True
    decoder: ClassVar = "deeplabv3"
    prediction = "zero"
    presets: ClassVar = {"released": {"ignored": "negative"}, "shared-base": {"base": "shared"}}
    memory_recipe: ClassVar = {"mix": "append", "labels": "step", "threshold": 0.9}

    distillation: Annotated[NonNegativeFloat, Range(0.5, 50, log=True)] = 5.0  # weight of L_KD
    positive_part: Annotated[NonNegativeFloat, Range(0.5, 50, log=True)] = 5.0  # weight of L_+
    negative_part: Annotated[NonNegativeFloat, Range(0.5, 50, log=True)] = 5.0  # weight of L_-
    absence: NonNegativeFloat = 1.0  # weight of L_AC
    positive: PositiveFloat = 2.0  # weight of positives in L_BCE in the base step
    positive_later: Annotated[PositiveFloat, Range(1, 35, log=True)] = 1.0  # in increments
    ignored: Literal["left_out", "negative"] = "left_out"  # pixels given as 255 in L_BCE; negative: published code
    affine: Literal["frozen", "learn"] = "frozen"  # scale and shift of batch normalisation in increments
    initialisation: Literal["auxiliary", "default"] = "auxiliary"  # of new rows; default: at random
    base: Literal["own", "shared"] = "own"  # shared: that of fine-tuning; the auxiliary row starts as the background's

    @property
    def own_base(self) -> str | None:
        return "dkd" if self.base == "own" else None

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        return {"auxiliary": Extra(rows=1, detached=True)}

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        return rows_problem(benchmark)

    def initialise(self, network: Network, classes: int) -> None:
        network.grow(classes)
        network.freeze(module for module in network.modules() if isinstance(module, nn.Dropout))
        if self.initialisation == "auxiliary" and self.absence:  # without its loss, the auxiliary row is a random one
            copy_to_new_rows(network, *network.decoder.extra_rows("auxiliary"))

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        if self.affine == "learn":
            return network.parameters()
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        fixed = {id(parameter) for module in norms for parameter in module.parameters()}
        return [parameter for parameter in network.parameters() if id(parameter) not in fixed]

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        losses = self.over_strips(self.pixel_losses, student, teacher, batch)
        if teacher is None:
            return losses
        old = slice(1, batch.old_channels)
        positive, negative = decomposed_distillation(
            student.features, student.class_tokens[old], teacher.features, teacher.class_tokens[old]
        )
        losses["positive_part"] = self.positive_part * positive
        return losses | {"negative_part": self.negative_part * negative}

    def pixel_losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        rows = student.raw(batch.size)
        absent, classes = rows[:, :1], rows[:, 2:]  # between them the background's row, which has no say
        first, positive = (1, self.positive) if teacher is None else (batch.old_channels, self.positive_later)
        cross_entropy = sigmoid_cross_entropy(
            classes[:, first - 1 :], batch.labels, first=first, positive=positive, ignored=self.ignored
        )
        losses = {"cross_entropy": cross_entropy}
        if teacher is not None:
            old = teacher.upsample(batch.size)[:, 1:]
            losses["distillation"] = self.distillation * sigmoid_distillation(classes, old)
        return losses | {"absence": self.absence * absence_loss(absent)}

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return {} if self.ignored == "negative" else super().pixel_counts(teacher, batch)
