"""GSC and MBS in one method, this project's own.

Its options were chosen on the hold-out set of `shapes`. reports/study (terms.csv) has their effect on photographs.
"""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from ciss.config import Benchmark, rising
from ciss.labels.prototypes import Scaling, distance_weights
from ciss.labels.relabelling import labels_of_products
from ciss.losses import gradient_magnitude, weigh_by_step
from ciss.losses.cross_entropy import mean_cross_entropy
from ciss.losses.pixel_terms import pixel_terms
from ciss.losses.relations import mean_entropy, mean_soft_relation, soft_relations
from ciss.methods.base import Batch, Statistics, add_to_prototypes, coefficients, compensation_problem
from ciss.methods.hosts import EWF
from ciss.methods.mbs import MBS
from ciss.models import Output
from ciss.protocol import VOID as IGNORE
from ciss.ranges import Choices, Range

RELATIONS = {"soft": 0.3, "sharp": 0.1}  # GSC's coefficients


@coefficients
class GSCMBS(MBS):
    """MBS with GSC's prototypes for the pixels that MBS ignores, and with GSC's weights for the pixels of objects.

    Optionally GSC's soft-sharp relations are added to the label-guided distillation.

        L = L_GC + L_patch + L_cls + distillation L_LGKD + soft L_soft + sharp L_sharp + (n / C) L_ortho

    With compensation: false, doubtful: ignored, soft: 0 and sharp: 0 it is MBS, with the same bytes.
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
        **EWF,
    }

    # --- GSC's step-aware gradient compensation, of the cross-entropy of the labels made here
    compensation: bool = True  # whether pixels are weighted by their gradients
    # least and largest weight; null: no bounds
    clamp: Annotated[
        Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(rising)] | None,
        Choices(None, (0.5, 5.0)),
    ] = (0.5, 5.0)
    exponent: Annotated[PositiveFloat, Range(0.25, 2)] = (
        1.0  # of the gradients: below 1 the weights lie closer together
    )
    # of new pixels: 1, or by their gradients too, over their mean
    new_weight: Annotated[Literal["one", "mean"], Choices()] = "mean"
    # of background pixels; mean: one group with step 0, as in GSC
    background_weight: Annotated[Literal["one", "mean"], Choices()] = "one"

    # --- GSC's prototypes decide what is neither given, nor confident, nor background to the teacher
    doubtful: Literal["prototypes", "ignored"] = "prototypes"  # what decides such pixels
    # least normalised product of probability and nearness
    agreement: Annotated[float, Field(ge=0, lt=1), Range(0, 0.9)] = 0.5
    scaling: Annotated[Scaling, Choices()] = "none"  # of features and prototypes
    distance_scale: Annotated[PositiveFloat, Range(0.1, 10, log=True)] = 1.0  # nearness is exp(-scale x distance)
    statistics_from: Statistics = "images"  # of the prototypes: every image of the step once, or a training epoch

    # --- GSC's soft-sharp relations
    soft: Annotated[NonNegativeFloat, Range(0, 3)] = 0.0  # GSC: 0.3
    sharp: Annotated[NonNegativeFloat, Range(0, 1)] = 0.0  # GSC: 0.1
    guided: Annotated[bool, Choices()] = True  # where the label is new, the teacher's background is no relation

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        problem = compensation_problem(benchmark, self.compensation, self.new_weight)
        return problem or super().unsuited(benchmark)

    def before_step(self, batches: Iterable[Batch], teacher: nn.Module, previous: Iterable[Batch]) -> None:
        """Prototypes of the old classes: means of the decoder's features at pixels that MBS labels."""
        if self.doubtful == "ignored":
            return
        prototypes = None
        for batch in batches:
            output = teacher(batch.images)
            prototypes = add_to_prototypes(prototypes, output.features, super().labels(batch, output), batch, output)
        if prototypes is not None:
            prototypes.all_reduce()
            self.means, self.counts = prototypes.means.float(), prototypes.counts

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        if self.doubtful == "ignored":
            return super().labels(batch, teacher)
        weights = distance_weights(
            teacher.features, self.means, self.counts, distance_scale=self.distance_scale, scaling=self.scaling
        ).contiguous()

        def both(batch: Batch, teacher: Output) -> Tensor:
            """Labels of MBS, and those that prototypes decide, (B,H,W,2)."""
            p, nearness = teacher.probabilities(batch.size), teacher.enlarge(weights, batch.size)
            decided = labels_of_products(batch.given, p, nearness, threshold=self.agreement)
            return torch.stack([self.strip_labels(batch, teacher), decided], dim=-1)

        labels, decided = batch.by_strips(both, teacher).unbind(dim=-1)
        doubtful = (labels == IGNORE) & (batch.given == 0)
        batch.logs["doubtful/decided"] = (doubtful & (decided != IGNORE)).sum() / doubtful.sum()
        return torch.where(doubtful, decided, labels)

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is not None and self.compensation:
            weights = self.pixel_weights(None, batch, batch.by_strips(self._magnitudes, student))
            batch.log_weights(weights, background=self.background_weight == "mean")
        return super().losses(student, teacher, batch)

    def _magnitudes(self, batch: Batch, student: Output) -> Tensor:
        """Gradient magnitudes of a strip."""
        log_p = student.log_probabilities(batch.size)
        return gradient_magnitude(log_p, batch.labels, exponent=self.exponent, probabilities=True)

    def pixel_losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        losses = super().pixel_losses(student, teacher, batch)
        if not (self.soft or self.sharp):
            return losses
        old_logits = teacher.upsample(batch.size)
        terms = pixel_terms(
            student.upsample(batch.size),
            target=soft_relations(old_logits, batch.given, batch.channels, guided=self.guided) if self.soft else None,
            entropy=bool(self.sharp),
            log_p=student.log_probabilities(batch.size),
        )
        if self.soft:
            losses["soft"] = self.soft * mean_soft_relation(terms, batch.channels)
        if self.sharp:
            losses["sharp"] = self.sharp * mean_entropy(terms, batch.channels)
        return losses

    def classification(self, cross_entropies: Tensor, batch: Batch) -> dict[str, Tensor]:
        if not self.compensation:
            return super().classification(cross_entropies, batch)
        return {"compensated": mean_cross_entropy(cross_entropies, batch.labels, weights=batch.weights)}

    def pixel_weights(self, logits: Tensor | None, batch: Batch, magnitudes: Tensor | None = None) -> Tensor | None:
        """`magnitudes`: (B,H,W), of the gradients, if known; then `logits` are not read."""
        if not self.compensation:
            return None
        if magnitudes is None:
            magnitudes = gradient_magnitude(logits, batch.labels, exponent=self.exponent)
        return weigh_by_step(
            magnitudes,
            batch.labels,
            batch.class_steps,
            new=self.new_weight,
            clamp=self.clamp,
            background=self.background_weight == "mean",
        )

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        counts = super().pixel_counts(teacher, batch)
        return {**counts, "compensated": counts["cross_entropy"]}

    def maps(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        maps = super().maps(student, teacher, batch)
        if self.compensation:
            maps["weight"] = self.pixel_weights(student.upsample(batch.size), batch)
        return maps
