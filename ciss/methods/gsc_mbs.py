"""GSC and MBS in one method, this project's own. Its choices were made on the hold-out of `shapes`; what they are worth
on photographs is in reports/study (terms.csv)."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn, where

from ciss.config import Benchmark, rising
from ciss.labels.patches import patch_labels
from ciss.labels.prototypes import ClassPrototypes, Scaling
from ciss.labels.relabelling import relabel_background
from ciss.losses import compensation_weights, cross_entropy, sharp_loss, soft_relation_loss
from ciss.methods.base import NOTHING_TO_COMPENSATE, Batch, Statistics, coefficients
from ciss.methods.mbs import MBS
from ciss.models import Output
from ciss.protocol import VOID as IGNORE

RELATIONS = {"soft": 0.3, "sharp": 0.1}  # GSC's coefficients


@coefficients
class GSCMBS(MBS):
    """MBS, in which GSC's prototypes decide what MBS would ignore, and GSC's gradients weigh the cross-entropy of
    objects. If asked, GSC's soft-sharp relations, guided as well, stand beside the label-guided distillation.

        L = L_GC + L_patch + L_cls + distillation L_LGKD + soft L_soft + sharp L_sharp + (n / C) L_ortho

    With compensation: false, doubtful: ignored, soft: 0 and sharp: 0 it is MBS to the bit.
    """

    usual: ClassVar = False
    decoder: ClassVar = None
    presets: ClassVar = {
        "no-compensation": {"compensation": False},
        "no-prototypes": {"doubtful": "ignored"},
        "no-orthogonality": {"orthogonality": 0.0},
        "no-guidance": {"outputs": "plain"},
        "with-background": {"background_weight": "mean"},  # weighed as GSC does
        "new-one": {"new_weight": "one"},  # new pixels as GSC's default has them
        "relations": RELATIONS,
        "relations-unguided": {**RELATIONS, "guided": False},
    }

    # --- GSC's step-aware gradient compensation, of the cross-entropy of the labels made here
    compensation: bool = True
    clamp: Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(rising)] | None = (0.5, 5.0)
    exponent: PositiveFloat = 1.0  # of the gradients: below 1 the weights lie closer together
    new_weight: Literal["one", "mean"] = "mean"  # of new pixels: 1, or by their gradients too, over their mean
    background_weight: Literal["one", "mean"] = "one"  # of background pixels; mean: one group with step 0, as in GSC

    # --- GSC's prototypes decide what is neither given, nor confident, nor background to the teacher
    doubtful: Literal["prototypes", "ignored"] = "prototypes"
    agreement: Annotated[float, Field(ge=0, lt=1)] = 0.5  # least normalised product of probability and nearness
    scaling: Scaling = "none"
    distance_scale: PositiveFloat = 1.0
    statistics_from: Statistics = "images"  # of the prototypes: every image of the step once, or a training epoch

    # --- GSC's soft-sharp relations
    soft: NonNegativeFloat = 0.0  # GSC: 0.3
    sharp: NonNegativeFloat = 0.0  # GSC: 0.1
    guided: bool = True  # where the label is new, the teacher's background is no relation

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        if benchmark.setting == "domain" and self.compensation and self.new_weight == "one":
            return NOTHING_TO_COMPENSATE
        return super().unsuited(benchmark)

    def before_step(self, batches: Iterable[Batch], teacher: nn.Module, previous: Iterable[Batch]) -> None:
        """Prototypes of the old classes, of the decoder's features, where MBS is sure of them."""
        if self.doubtful == "ignored":
            return
        centres = None
        for batch in batches:
            output = teacher(batch.images)
            features, labels = output.features, super().labels(batch, output)
            centres = centres or ClassPrototypes(batch.old_channels, features.shape[1], features.device)
            covered = output.covered_by(batch.size)
            centres.update(features, patch_labels(labels, features.shape[-2:], covered=covered))
        if centres is not None:
            centres.all_reduce()
            self.means, self.counts = centres.means.float(), centres.counts

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        labels = super().labels(batch, teacher)
        if self.doubtful == "ignored":
            return labels
        decided = relabel_background(
            batch.given,
            teacher.upsample(batch.size),
            teacher.features,
            self.means,
            self.counts,
            distance_scale=self.distance_scale,
            scaling=self.scaling,
            threshold=self.agreement,
            covered=teacher.covered_by(batch.size),
        )
        doubtful = (labels == IGNORE) & (batch.given == 0)
        batch.logs["doubtful/decided"] = (doubtful & (decided != IGNORE)).sum() / doubtful.sum()
        return where(doubtful, decided, labels)

    def classification(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        if not self.compensation:
            return super().classification(student, teacher, batch)
        logits = student.upsample(batch.size)
        weights = self.pixel_weights(logits, batch)
        batch.log_weights(weights, background=self.background_weight == "mean")
        return {"compensated": cross_entropy(logits, batch.labels, weights=weights)}

    def pixel_weights(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """The compensation weights."""
        if not self.compensation:
            return None
        return compensation_weights(
            logits,
            batch.labels,
            batch.class_steps,
            exponent=self.exponent,
            new=self.new_weight,
            clamp=self.clamp,
            background=self.background_weight == "mean",
        )

    def normalisers(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        counts = super().normalisers(teacher, batch)
        return {**counts, "compensated": counts["cross_entropy"]}

    def preservation(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        losses, logits = super().preservation(student, teacher, batch), student.upsample(batch.size)
        if self.soft:
            soft = soft_relation_loss(logits, teacher.upsample(batch.size), batch.given, guided=self.guided)
            losses["soft"] = self.soft * soft
        if self.sharp:
            losses["sharp"] = self.sharp * sharp_loss(logits)
        return losses

    def maps(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        maps = super().maps(student, teacher, batch)
        weights = self.pixel_weights(student.upsample(batch.size), batch)
        return maps if weights is None else {**maps, "weight": weights}
