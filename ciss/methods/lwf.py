"""LwF: learning without forgetting (Li, Hoiem; ECCV 2016, arXiv 1606.09282), as MiB's published code has it."""

from typing import Annotated, ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from ciss.losses import cross_entropy, output_distillation
from ciss.methods.base import Batch, Method, coefficients, plain_cross_entropy
from ciss.models import Output
from ciss.ranges import Range


@coefficients
class LwF(Method):
    """Cross-entropy, and distillation of the teacher's softmax over the old channels.

        L = L_CE + distillation L_KD

    New rows start at random and are free in old pixels: the softmax of L_KD is over the old channels alone. Ignored
    pixels are distilled. Defaults are those of MiB's published code, except `divisor`: there the mean of an
    increment's cross-entropy is over all pixels, ignored ones too (preset `released`). Encoder and decoder differ, see
    `ciss.methods.mib`.
    """

    usual: ClassVar[bool] = False
    presets: ClassVar = {"released": {"divisor": "all"}}

    distillation: Annotated[NonNegativeFloat, Range(1, 1000, log=True)] = 100.0  # weight of L_KD
    divisor: Literal["valid", "all"] = "valid"  # of the cross-entropy; all pixels: published code

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self.over_strips(plain_cross_entropy if teacher is None else self.pixel_losses, student, teacher, batch)

    def pixel_losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        logits = student.upsample(batch.size)
        distillation = output_distillation(logits, teacher.upsample(batch.size))
        return {
            "cross_entropy": cross_entropy(logits, batch.labels, divisor=self.divisor),
            "distillation": self.distillation * distillation,
        }

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        all_pixels = teacher is not None and self.divisor == "all"
        return {} if all_pixels else super().pixel_counts(teacher, batch)
