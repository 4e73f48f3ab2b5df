"""MiB: modelling the background (Cermelli, Mancini, Rota Bulo, Ricci, Caputo; CVPR 2020, arXiv 2002.00718)."""

from typing import Annotated, ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from ciss.losses.unbiased import log_sums, unbiased_cross_entropy, unbiased_distillation
from ciss.methods.base import Batch, coefficients, plain_cross_entropy
from ciss.methods.hosts import EWF, WeightFusion
from ciss.models import Output
from ciss.ranges import Range


@coefficients
class MiB(WeightFusion):
    """Cross-entropy and distillation in which the background stands for old or new classes, and a balanced start.

    Defaults are those of the published code for Pascal VOC, except `divisor`: there the mean of an increment's
    cross-entropy is over all pixels, ignored ones too (preset `released`).

    Known differences from the published code, in every variant:

    * There the mean is over all pixels in the base step, too. Here all methods share one base step.
    * There the encoder has in-place batch normalisation with leaky ReLU (slope 0.01), and the DeepLabV3 decoder adds
      the pooled branch instead of concatenating it. Here both are those of timm and torchvision.
    * In the domain setting no class is new: the background stands for itself alone (`Batch.background_channels`).
    """

    presets: ClassVar = {"released": {"divisor": "all"}, **EWF}

    distillation: Annotated[NonNegativeFloat, Range(1, 100, log=True)] = 10.0  # weight of L_UNKD
    alpha: Annotated[NonNegativeFloat, Range(0.25, 4, log=True)] = 1.0  # multiplies the teacher's logits
    divisor: Literal["valid", "all"] = "valid"  # of the cross-entropy; all pixels: published code

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self.over_strips(plain_cross_entropy if teacher is None else self.pixel_losses, student, teacher, batch)

    def pixel_losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        # L = L_UNCE + lambda L_UNKD
        logits = student.upsample(batch.size)
        background = batch.background_channels
        sums = log_sums(logits, batch.old_channels)
        own = sums if background == batch.old_channels else None
        cross_entropy = unbiased_cross_entropy(logits, batch.labels, background, divisor=self.divisor, sums=own)
        distillation = unbiased_distillation(logits, teacher.upsample(batch.size), alpha=self.alpha, sums=sums)
        return {"cross_entropy": cross_entropy, "distillation": self.distillation * distillation}

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        all_pixels = teacher is not None and self.divisor == "all"
        return {} if all_pixels else super().pixel_counts(teacher, batch)
