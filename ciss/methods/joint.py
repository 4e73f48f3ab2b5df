"""Joint training: all classes with all labels in one step, the upper bound of the field."""

from typing import ClassVar

from ciss.methods.base import coefficients
from ciss.methods.finetune import Finetune


@coefficients
class Joint(Finetune):
    sees_all: ClassVar[bool] = True
