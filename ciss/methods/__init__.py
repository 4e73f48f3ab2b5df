"""The methods. A new one is a file with one class, and one line here."""

from ciss.methods.base import Batch, Method
from ciss.methods.finetune import Finetune
from ciss.methods.frozen import Frozen
from ciss.methods.gsc import GSC
from ciss.methods.gsc_mbs import GSCMBS
from ciss.methods.joint import Joint
from ciss.methods.mbs import MBS
from ciss.methods.mib import MiB
from ciss.methods.plop import PLOP

METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "joint": Joint,
    "frozen": Frozen,
    "mib": MiB,
    "plop": PLOP,
    "gsc": GSC,
    "mbs": MBS,
    "gsc_mbs": GSCMBS,
}

__all__ = ["METHODS", "Batch", "Method", "code_of"]


def code_of(name: str) -> str:
    """The code a section under `methods` is for: what stands before the first dash (`gsc-clamped`: gsc)."""
    return name.partition("-")[0]
