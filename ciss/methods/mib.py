"""MiB: modelling the background (Cermelli, Mancini, Rota Bulo, Ricci, Caputo; CVPR 2020, arXiv 2002.00718)."""

from pydantic import NonNegativeFloat
from torch import Tensor

from ciss.losses import cross_entropy, unbiased_cross_entropy, unbiased_distillation
from ciss.methods.base import Balanced, Batch, coefficients
from ciss.models import Output


@coefficients
class MiB(Balanced):
    """Cross-entropy and distillation that let the background stand for old and new classes, and a balanced start.

    Defaults are those of the published code for Pascal VOC.
    """

    distillation: NonNegativeFloat = 10.0
    alpha: NonNegativeFloat = 1.0  # multiplies the teacher's logits

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        logits = student.upsample(batch.size)
        if teacher is None:
            return {"cross_entropy": cross_entropy(logits, batch.labels)}
        # L = L_UNCE + lambda L_UNKD
        return {
            "cross_entropy": unbiased_cross_entropy(logits, batch.labels, batch.folded),
            "distillation": self.distillation
            * unbiased_distillation(logits, teacher.upsample(batch.size), alpha=self.alpha),
        }
