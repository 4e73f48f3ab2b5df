"""Joint training: all classes at once with all their labels. The upper bound."""

from typing import ClassVar

from ciss.methods.base import coefficients
from ciss.methods.finetune import Finetune


@coefficients
class Joint(Finetune):
    sees_all: ClassVar[bool] = True
