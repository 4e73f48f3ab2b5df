"""Fine-tuning: plain cross-entropy. The lower bound of an increment, and the loss of every base step."""

from typing import ClassVar

from torch import Tensor

from ciss.losses import cross_entropy
from ciss.methods.base import Batch, Method, coefficients
from ciss.models import Output


@coefficients
class Finetune(Method):
    uses_teacher: ClassVar[bool] = False

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(student.upsample(batch.size), batch.labels)}
