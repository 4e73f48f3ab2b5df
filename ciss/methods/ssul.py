"""SSUL: segmentation with an unknown label for exemplar-based learning (Cha, Kim, Yoo, Moon; NeurIPS 2021, arXiv
2106.11562)."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ciss.config import Benchmark
from ciss.labels.unknown import rows_of_labels, sigmoid_labels
from ciss.losses import sigmoid_cross_entropy
from ciss.methods.base import Batch, Method, coefficients
from ciss.methods.hosts import copy_to_new_rows, rows_problem
from ciss.models import Extra, Network, Output
from ciss.ranges import Range


@coefficients
class SSUL(Method):
    """One sigmoid per class, an unknown class beside the background, and everything old frozen.

        L = sum over all rows of BCE, mean over valid pixels

    By default this is the published form for ADE20K, without saliency maps: every background pixel is labelled unknown,
    and the background's row is a negative everywhere. With `saliency: maps`, the published form for Pascal VOC, only
    salient ones are; the maps lie in a folder `saliency` beside that of the images (`ciss.data.saliency`).

    Background pixels take the teacher's old class where its sigmoid is the largest and at least `threshold`. In
    increments the rows of new classes, which start as copies of the unknown class's, and that row learn, and nothing
    else; normalisation and dropout are frozen, whatever `train.increment.norm` says. The score of the background is
    sigma(z_unknown) + sigma(z_0).

    Known differences from the published code: there a class is a small network of a 3x3 convolution, normalisation and
    a row; here it is a row. There the background's row learns, too, with 1e-4 of the learning rate, and the pyramid's
    dropout stays on. Without valid pixels the published loss is NaN; here it is 0.
    """

    usual: ClassVar[bool] = False
    sigmoids: ClassVar[bool] = True
    decoder: ClassVar = "deeplabv3"
    prediction = "folded"
    presets: ClassVar = {"saliency": {"saliency": "maps"}, "shared-base": {"base": "shared"}}

    saliency: Literal["off", "maps"] = "off"  # which background is unknown: all, or the salient one
    threshold: Annotated[float, Field(ge=0, le=1), Range(0.5, 0.95)] = 0.7  # of the teacher's sigmoids
    base: Literal["own", "shared"] = "own"  # shared: that of fine-tuning; the unknown row starts as the background's

    @property
    def own_base(self) -> str | None:
        own = "ssul" if self.saliency == "off" else "ssul-saliency"
        return own if self.base == "own" else None

    @property
    def reads_saliency(self) -> bool:
        return self.saliency == "maps"

    @property
    def remarks(self) -> list[str]:
        return ["no saliency maps"] if self.saliency == "off" else []

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        return {"unknown": Extra(rows=1)}

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        return rows_problem(benchmark)

    def initialise(self, network: Network, classes: int) -> None:
        network.grow(classes)
        copy_to_new_rows(network, *network.decoder.extra_rows("unknown"))

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        return [*network.decoder.rows(new=True), *network.decoder.extra_rows("unknown")]

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        return batch.by_strips(partial(unknown_labels, self.threshold), teacher)

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is not None:
            batch.log_labels()
        return self.over_strips(self.pixel_losses, student, teacher, batch)

    def pixel_losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        rows = student.raw(batch.size)
        return {"cross_entropy": sigmoid_cross_entropy(rows, rows_of_labels(batch.labels, batch.salient))}


def unknown_labels(threshold: float, batch: Batch, teacher: Output) -> Tensor:
    """SSUL's pseudo-labels, for `Batch.by_strips`. The network of a shared base step has no unknown class."""
    rows = teacher.raw(batch.size)
    extra = rows.shape[1] - batch.old_channels
    return sigmoid_labels(batch.given, rows, extra=extra, threshold=threshold)
