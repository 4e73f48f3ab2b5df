"""FixBC: a frozen base model and pre-allocated rows (Zhang et al., arXiv 2508.04267).

A control: how much of forgetting is the classifier's?
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import Tensor, nn

from ciss.config import Benchmark
from ciss.losses import cross_entropy
from ciss.methods.base import Batch, Method, coefficients
from ciss.methods.hosts import copy_to_new_rows, rows_problem
from ciss.models import Extra, Network, Output
from ciss.protocol import VOID as IGNORE


@coefficients
class FixBC(Method):
    """Plain cross-entropy over the rows of all classes that will ever come; only rows of new and future classes learn.

        L = -log( e^{z_y} / (sum_{c < C} e^{z_c} + sum_{future} e^{z_c}) )

    It knows from the base step on how many classes will come. Their rows are pushed down by every softmax; at a step,
    the first of them become the rows of its classes. Encoder, decoder, and the rows of the background and of old
    classes are frozen in increments, and so are normalisation and dropout, whatever `train.increment.norm` says.
    Predictions are among the classes seen so far. The published code takes the largest of all rows, future ones too.
    """

    usual: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    decoder: ClassVar = "deeplabv3"
    presets: ClassVar = {"released": {"divisor": "all"}, "no-allocation": {"allocation": "none"}}

    allocation: Literal["future", "none"] = "future"  # FixBC-P; none: FixBC, new rows start at random
    divisor: Literal["valid", "all"] = "valid"  # of the cross-entropy; all pixels, ignored ones too: published code

    @property
    def own_base(self) -> str | None:
        return "fixbc" if self.allocation == "future" else None

    @property
    def softmax(self) -> bool:
        return self.allocation == "none"  # otherwise the softmax is over rows that `Output.logits` has not

    @property
    def remarks(self) -> list[str]:
        return ["number of classes known"] if self.allocation == "future" else []

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        return {"future": Extra(rows=sum(sizes[step + 1 :]))} if self.allocation == "future" else {}

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        return rows_problem(benchmark)

    def initialise(self, network: Network, classes: int) -> None:
        allocated = network.decoder.take_rows("future", classes) if self.allocation == "future" else None
        network.grow(classes)
        if allocated is not None:
            copy_to_new_rows(network, *allocated)

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        return [*network.decoder.rows(new=True), *network.decoder.extra_rows("future")]

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self.over_strips(self.pixel_losses, student, teacher, batch)

    def pixel_losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        rows = student.raw(batch.size)  # those of future classes first
        future = rows.shape[1] - batch.channels
        targets = (batch.labels + future).masked_fill(batch.labels == IGNORE, -1)
        return {"cross_entropy": cross_entropy(rows, targets, divisor=self.divisor, ignore_index=-1)}

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return {} if self.divisor == "all" else super().pixel_counts(teacher, batch)
