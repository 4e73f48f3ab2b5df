"""Joint training: all classes with all labels in one step. The upper bound."""

from typing import ClassVar

from ciss.methods.base import coefficients
from ciss.methods.finetune import Finetune


@coefficients
class Joint(Finetune):
    sees_all: ClassVar[bool] = True
