"""LwF-MC: multi-class learning without forgetting (Rebuffi, Kolesnikov, Sperl, Lampert; CVPR 2017, arXiv 1611.07725).

As MiB's published code has it.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from ciss.losses import sigmoid_cross_entropy, sigmoid_distillation
from ciss.methods.base import Batch, Method, coefficients
from ciss.models import Output
from ciss.ranges import Range


@coefficients
class LwFMC(Method):
    """One sigmoid per class, for the labels and for the teacher's outputs. The prediction is the largest logit.

        L = L_BCE + distillation L_BCE',   both sums over channels, means over pixels

    The published code writes the second term as 10 K times the mean over pixels and channels, which is the same. There
    the mean of the first term is over all pixels, ignored ones too (preset `released`).
    """

    usual: ClassVar[bool] = False
    sigmoids: ClassVar[bool] = True
    presets: ClassVar = {"released": {"divisor": "all"}, "shared-base": {"base": "shared"}}

    distillation: Annotated[NonNegativeFloat, Range(0.1, 100, log=True)] = 10.0  # weight of L_BCE'
    divisor: Literal["valid", "all"] = "valid"  # of L_BCE; all pixels: published code
    base: Literal["own", "shared"] = "own"  # base step: trained with L_BCE, or that of the other methods

    @property
    def own_base(self) -> str | None:
        return "lwf_mc" if self.base == "own" else None

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self.over_strips(self.pixel_losses, student, teacher, batch)

    def pixel_losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        logits = student.upsample(batch.size)
        losses = {"cross_entropy": sigmoid_cross_entropy(logits, batch.labels, divisor=self.divisor)}
        if teacher is not None:
            distillation = sigmoid_distillation(logits, teacher.upsample(batch.size))
            losses["distillation"] = self.distillation * distillation
        return losses

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return {} if self.divisor == "all" else super().pixel_counts(teacher, batch)
