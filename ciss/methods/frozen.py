"""A control: only the classifier learns after the base step."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from ciss.config import Benchmark
from ciss.losses import cross_entropy, unbiased_cross_entropy, unbiased_distillation
from ciss.methods.base import Batch, coefficients
from ciss.methods.hosts import BalancedInitialisation
from ciss.models import Network, Output
from ciss.ranges import Choices, Range


@coefficients
class Frozen(BalancedInitialisation):
    """Only the classifier's rows learn (class tokens with their scales and shifts). Features never change.

    `cross_entropy`: plain, as in fine-tuning, or MiB's. `rows`: all, or those of the new classes alone; a balanced
    start changes the background's bias once even then. On a mask transformer old logits may change all the same,
    because patches attend to the tokens.
    """

    usual: ClassVar = False
    presets: ClassVar = {
        "unbiased": {"cross_entropy": "unbiased"},
        "new-rows": {"rows": "new"},
        "random-start": {"initialisation": "default"},
    }

    cross_entropy: Annotated[Literal["plain", "unbiased"], Choices()] = "plain"  # unbiased: MiB's
    rows: Annotated[Literal["all", "new"], Choices()] = "all"  # which rows of the classifier learn
    distillation: Annotated[NonNegativeFloat, Range(0, 20)] = 0.0  # weight of MiB's

    @property
    def uses_teacher(self) -> bool:
        return self.distillation > 0

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        if benchmark.train.increment.norm != "frozen":
            return "train.increment.norm", "only `frozen` statistics leave the features unchanged"
        if self.rows == "new" and benchmark.setting == "domain":
            return "setting", "no class is new in a new domain, so `rows: new` has nothing to learn. Use `rows: all`"
        return None

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        return network.decoder.rows(new=self.rows == "new")

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self.over_strips(self.pixel_losses, student, teacher, batch)

    def pixel_losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        logits = student.upsample(batch.size)
        if batch.old_channels == 0 or self.cross_entropy == "plain":
            losses = {"cross_entropy": cross_entropy(logits, batch.labels)}
        else:
            losses = {"cross_entropy": unbiased_cross_entropy(logits, batch.labels, batch.background_channels)}
        if teacher is not None and self.distillation:
            old_logits = teacher.upsample(batch.size)
            losses["distillation"] = self.distillation * unbiased_distillation(logits, old_logits)
        return losses
