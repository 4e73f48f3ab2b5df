"""ILT: incremental learning techniques (Michieli, Zanuttigh; ICCV workshops 2019, arXiv 1907.13372).

As MiB's published code has it, which is the form that other papers compare with. The authors' own code masks the
distillation and chooses its weights differently.
"""

from typing import Annotated

from pydantic import NonNegativeFloat
from torch import Tensor

from ciss.methods.base import Batch, coefficients
from ciss.methods.lwf import LwF
from ciss.models import Output
from ciss.precision import at_least_float32
from ciss.ranges import Range


@coefficients
class ILT(LwF):
    """LwF, and the mean squared distance to the teacher's last encoder stage.

        L = L_CE + distillation L_KD + features L_MSE

    At 100 the distance is the largest term by far. It depends on the scale of the encoder's features, so that losses of
    two encoders cannot be compared.
    """

    features: Annotated[NonNegativeFloat, Range(0.1, 1000, log=True)] = 100.0  # weight of L_MSE

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        losses = super().losses(student, teacher, batch)
        if teacher is None or not self.features:
            return losses
        difference = at_least_float32(student.stages[-1]) - at_least_float32(teacher.stages[-1].detach())
        return losses | {"features": self.features * difference.square().mean()}
