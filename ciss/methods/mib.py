"""MiB: modelling the background (Cermelli, Mancini, Rota Bulo, Ricci, Caputo; CVPR 2020, arXiv 2002.00718)."""

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from ciss.losses import cross_entropy, unbiased_cross_entropy, unbiased_distillation
from ciss.methods.base import Balanced, Batch, coefficients
from ciss.models import Output


@coefficients
class MiB(Balanced):
    """Cross-entropy and distillation in which the background stands for old or new classes, and a balanced start.

    Defaults are those of the published code for Pascal VOC, except `divisor`: there the mean of an increment's
    cross-entropy is over all pixels, ignored ones too (preset `released`).

    Known differences from the published code, in every variant:

    * There the mean is over all pixels in the base step, too. Here all methods share one base step.
    * There the encoder has in-place batch normalisation with leaky ReLU (slope 0.01), and the DeepLabV3 decoder adds
      the pooled branch instead of concatenating it. Here both are those of timm and torchvision.
    * In the domain setting no class is new: the background stands for itself alone (`Batch.background_channels`).
    """

    presets: ClassVar = {"released": {"divisor": "all"}}

    distillation: NonNegativeFloat = 10.0
    alpha: NonNegativeFloat = 1.0  # multiplies the teacher's logits
    divisor: Literal["valid", "all"] = "valid"  # of the cross-entropy; all pixels: published code

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        logits = student.upsample(batch.size)
        if teacher is None:
            return {"cross_entropy": cross_entropy(logits, batch.labels)}
        # L = L_UNCE + lambda L_UNKD
        distillation = unbiased_distillation(logits, teacher.upsample(batch.size), alpha=self.alpha)
        background = batch.background_channels
        return {
            "cross_entropy": unbiased_cross_entropy(logits, batch.labels, background, divisor=self.divisor),
            "distillation": self.distillation * distillation,
        }

    def normalisers(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        all_pixels = teacher is not None and self.divisor == "all"
        return {} if all_pixels else super().normalisers(teacher, batch)
