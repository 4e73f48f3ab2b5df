"""PLOP: learning without forgetting by pooled outputs (Douillard, Chen, Dapogny, Cord; CVPR 2021, arXiv 2011.11390)."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from ciss.config import Benchmark
from ciss.labels.entropy import EntropyMedians, Variant, adaptive_factor, normalised_entropy
from ciss.losses import cross_entropy
from ciss.methods.base import (
    TRUE_BACKGROUND,
    Batch,
    Statistics,
    certain_labels,
    coefficients,
    plain_cross_entropy,
)
from ciss.methods.hosts import EWF, PLOPHost
from ciss.models import Output
from ciss.ranges import Range


@coefficients
class PLOP(PLOPHost):
    """Entropy pseudo-labels for the background, and local POD on encoder stages, dense features and logits.

    Defaults are those of the published code for Pascal VOC (ADE20K: pod 0.001, pod_outputs 0.00001). `variant`:

    * `paper`: normalised entropy, compared with the median of each class.
    * `released`: as in the published code. The entropy is scaled down twice, so that it fills one to three of 100 bins.
      The walk through the histogram adds bin indices instead of counts, so that thresholds are no medians. An image
      without background has weight 0.

    The preset `released` has this variant, and POD of the encoder's stages before their last activation (`pod_stages`).

    Known differences from the published code, in every variant:

    * There POD is for square maps only, and omits the last rows and columns where a scale does not divide the side.
      Here cells overlap.
    * Encoder and decoder differ, see `ciss.methods.mib`.
    * In the domain setting no class is new, so the factor sqrt(C / C_new) of POD is 1.
    """

    presets: ClassVar = {
        "released": {"variant": "released", "statistics_from": "epoch", "pod_stages": "before_activation"},
        **EWF,
    }

    pseudo_labels: bool = True  # off: the background stays as given
    variant: Variant = "paper"  # of the entropy, see above
    bins: Annotated[int, Field(ge=1, le=10_000)] = 100  # of the histograms that give the medians
    least: Annotated[NonNegativeFloat, Range(1e-4, 0.1, log=True)] = 0.001  # floor of the thresholds
    statistics_from: Statistics = "images"  # the medians' data: every image of the step; or an epoch, as released

    def notice(self, benchmark: Benchmark) -> str | None:
        if self.pseudo_labels and benchmark.setting == "domain":
            return f"{TRUE_BACKGROUND}. Set pseudo_labels to false, as the published scripts do"
        return None

    def before_step(self, batches: Iterable[Batch], teacher: nn.Module, previous: Iterable[Batch]) -> None:
        """The median uncertainty of each old class in this step's background."""
        if not self.pseudo_labels:
            return
        medians = None
        for batch in batches:
            medians = medians or EntropyMedians(
                batch.old_channels, batch.channels, variant=self.variant, bins=self.bins, device=batch.given.device
            )
            for strip, output in batch.strips_of(teacher(batch.images)):
                medians.update(strip.given, output.upsample(strip.size))
        self.thresholds = medians.all_reduce().thresholds(least=self.least)

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        if not self.pseudo_labels:
            return batch.given
        return batch.by_strips(partial(certain_labels, self.thresholds, variant=self.variant), teacher)

    def maps(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        uncertainty = normalised_entropy(teacher.upsample(batch.size), variant=self.variant, channels=batch.channels)
        return {"uncertainty": uncertainty}

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            return self.over_strips(plain_cross_entropy, student, teacher, batch)
        batch.log_labels()
        # L = 1/(B H W) sum_i nu_b CE_i + L_pod,   nu_b: share of the image's background that is not ignored
        factor = adaptive_factor(batch.given, batch.labels, variant=self.variant) if self.pseudo_labels else 1.0

        def segmentation(student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
            logits = student.upsample(batch.size)
            return {"cross_entropy": cross_entropy(logits, batch.labels, weights=factor, divisor="all")}

        losses = self.over_strips(segmentation, student, teacher, batch)
        return losses | self.host_losses(student, teacher)

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return super().pixel_counts(teacher, batch) if teacher is None else {}  # over all pixels
