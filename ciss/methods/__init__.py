"""The methods. A new one is a file with one class, and one line here."""

from ciss.methods.base import Batch, Method
from ciss.methods.finetune import Finetune
from ciss.methods.joint import Joint
from ciss.methods.mib import MiB

METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "joint": Joint,
    "mib": MiB,
}

__all__ = ["METHODS", "Batch", "Method"]
