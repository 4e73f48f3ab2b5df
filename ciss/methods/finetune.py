"""Fine-tuning: plain cross-entropy, the lower bound of the field and the loss of the base step that is shared."""

from typing import ClassVar

from torch import Tensor

from ciss.methods.base import Batch, Method, coefficients, plain_cross_entropy
from ciss.models import Output


@coefficients
class Finetune(Method):
    uses_teacher: ClassVar[bool] = False

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self.over_strips(plain_cross_entropy, student, teacher, batch)
