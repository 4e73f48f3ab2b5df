"""GSC: gradient-semantic compensation (Cong, Cong, Dong, Sun, Ding; IEEE TMM 2024, arXiv 2307.10822). A reconstruction.

The authors released no code, and of the paper only the abstract was at hand. Each choice below names
its source: code and papers of the same group (RDP, FISS, GLFC, LGA, HFC, KBK, Cs2K) and what these build on (PLOP,
ProDA, SDR).

Known differences from the released code of PLOP and FISS:

* Their POD compares the encoder's stages before their last activation: `pod_stages: before_activation`.
* FISS divides the weighted cross-entropy by all pixels, ignored ones too: `divisor: all`, in the preset `code`.
* Their encoder and decoder differ, see `ciss.methods.mib`.

In the domain setting no class is new: all pixels are of the current step. With `new_weight: one` they weigh 1, and such
a parameter file is refused. With `new_weight: mean` each weighs its gradient over the mean of all.
"""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from ciss import distributed
from ciss.config import Benchmark, rising
from ciss.labels.entropy import EntropyMedians, adaptive_factor, confident
from ciss.labels.prototypes import ClassPrototypes, Scaling, Unseen, distance_weights
from ciss.labels.relabelling import Resolution, argmax_labels, reweighted_labels
from ciss.losses import gradient_magnitude, soft_relation_loss, weigh_by_step
from ciss.losses.compensation import Grouping, Probability
from ciss.losses.cross_entropy import mean_cross_entropy
from ciss.losses.pixel_terms import pixel_terms
from ciss.losses.relations import Target, mean_entropy, mean_soft_relation, soft_relations
from ciss.methods.base import (
    TRUE_BACKGROUND,
    Batch,
    Statistics,
    add_to_prototypes,
    certain_labels,
    coefficients,
    compensation_problem,
    plain_cross_entropy,
    teachers_labels,
)
from ciss.methods.hosts import EWF, PLOPHost
from ciss.models import Output
from ciss.protocol import VOID as IGNORE
from ciss.ranges import Choices, Range

# Chosen on the hold-out of `shapes` (reports/gsc): prototypes of the decoder's features, bounded weights, more of the
# soft-sharp distillation.
TUNED = {"features": "decoder", "clamp": [0.5, 5.0], "soft": 3.0, "sharp": 1.0}
LEFT_OUT = {
    "no-compensation": {"compensation": False},
    "no-relations": {"soft": 0.0, "sharp": 0.0},
    "no-prototypes": {"relabelling": "argmax"},  # the teacher's own labels
    "no-labels": {"relabelling": "none"},
    "no-host": {"pod": 0.0, "pod_outputs": 0.0, "initialisation": "default"},
}


@coefficients
class GSC(PLOPHost):
    """Step-aware gradient compensation, soft-sharp relation distillation, prototypical re-labelling; PLOP as host.

        L = L_GC + soft L_soft + sharp L_sharp + L_pod      (L_pod and the start: the host's, as in FISS's preset)

    Parts are switched off by compensation: false, soft: 0, sharp: 0, relabelling: none, pod and pod_outputs: 0.
    """

    decoder: ClassVar = "deeplabv3"
    presets: ClassVar = {
        # as the group's code does it rather than its formulas: gradient weights (FISS), images of prototypes (RDP)
        "code": {
            "probability": "sigmoid",
            "exponent": "old_share",
            "grouping": "cumulative",
            "divisor": "all",
            "statistics_from": "epoch",
        },
        "clamped": {"clamp": [0.5, 5.0]},
        "tuned": TUNED,
        **EWF,
        **LEFT_OUT,
        **{f"tuned-{name}": {**TUNED, **values} for name, values in LEFT_OUT.items()},
    }

    # --- step-aware gradient compensation
    compensation: bool = True  # whether pixels are weighted by their gradients
    probability: Probability = "softmax"  # GLFC, KBK; sigmoid: FISS's code
    exponent: Annotated[PositiveFloat | Literal["old_share"], Range(0.25, 2)] = (
        1.0  # GLFC, KBK; old_share, K / C: FISS, HFC
    )
    logarithm: bool = False  # log(|G| + 1): HFC
    grouping: Annotated[Grouping, Choices()] = "per_step"  # KBK, HFC; cumulative: FISS, LGA; together: GLFC
    # FISS, KBK; mean (over their mean gradient): GLFC, LGA, HFC
    new_weight: Annotated[Literal["one", "mean"], Choices()] = "one"
    clamp: Annotated[
        Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(rising)] | None,
        Choices(None, (0.5, 5.0)),
    ] = None  # [0.5, 5]: LGA
    divisor: Literal["valid", "all"] = "valid"  # of L_GC; all pixels, ignored ones too: FISS
    statistics: Literal["process", "global"] = "process"  # whose pixels the mean gradients are of; FISS

    # --- soft-sharp semantic relation distillation
    soft: Annotated[NonNegativeFloat, Range(0.03, 10, log=True)] = 0.3  # FISS, RDP
    sharp: Annotated[NonNegativeFloat, Range(0.01, 3, log=True)] = 0.1  # FISS, RDP
    soft_target: Target = "sigmoid_softmax"  # FISS, RDP; binary: GLFC
    sharp_where: Literal["all", "background", "certain"] = "all"  # FISS, RDP; certain: by PLOP's entropy rule

    # --- prototypical pseudo re-labelling
    relabelling: Literal["prototypes", "argmax", "entropy", "none"] = "prototypes"  # RDP; entropy: PLOP
    prototypes: Literal["start", "previous"] = "start"  # of this step's images (RDP), or of the step before (Cs2K)
    # the encoder's last stage (FISS's options), or pre-classifier
    features: Annotated[Literal["stage", "decoder"], Choices()] = "stage"
    scaling: Annotated[Scaling, Choices()] = "none"  # of features and prototypes; unit length: SDR; width: over sqrt(D)
    distance_scale: Annotated[PositiveFloat, Range(0.1, 10, log=True)] = 1.0  # tau; RDP, ProDA
    unseen: Unseen = "exclude"  # classes without a prototype; zero: RDP
    background_prototype: bool = True  # RDP; off: SDR
    resolution: Resolution = "full"  # where weights meet probabilities; quarter: ProDA
    gate: Literal["none", "two_stage", "entropy"] = "none"  # RDP; two_stage: uncertain pixels only; entropy: the others
    threshold: Annotated[float, Field(ge=0, lt=1), Range(0, 0.9)] = 0.0  # of the normalised product; ProDA
    bins: Annotated[int, Field(ge=1, le=10_000)] = 100  # of PLOP's medians, for what needs them
    least: NonNegativeFloat = 0.001  # floor of PLOP's thresholds
    statistics_from: Statistics = "images"  # of prototypes and medians: every image once; epoch: RDP's and PLOP's code

    def notice(self, benchmark: Benchmark) -> str | None:
        if benchmark.setting == "domain" and self.relabelling != "none":
            return f"{TRUE_BACKGROUND}. Set relabelling to none"
        return None

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        problem = compensation_problem(benchmark, self.compensation, self.new_weight)
        return problem or super().unsuited(benchmark)

    def before_step(self, batches: Iterable[Batch], teacher: nn.Module, previous: Iterable[Batch]) -> None:
        """Prototypes of the old classes, and medians of the teacher's uncertainty if an option needs them."""
        needs_medians = self.gate != "none" or self.relabelling == "entropy" or self.sharp_where == "certain"
        prototype_source = self.prototypes if self.relabelling == "prototypes" else "none"
        prototypes = medians = None
        for batch in previous if prototype_source == "previous" else ():
            prototypes = self._add_to_prototypes(prototypes, batch, teacher(batch.images))
        for batch in batches if prototype_source == "start" or needs_medians else ():
            output = teacher(batch.images)
            if prototype_source == "start":
                prototypes = self._add_to_prototypes(prototypes, batch, output)
            if needs_medians:
                medians = medians or EntropyMedians(
                    batch.old_channels, batch.channels, bins=self.bins, device=batch.given.device
                )
                for strip, part in batch.strips_of(output):
                    medians.update(strip.given, part.upsample(strip.size))
        if prototypes is not None:
            prototypes.all_reduce()
            self.means, self.counts = prototypes.means.float(), prototypes.counts
        if medians is not None:
            self.thresholds = medians.all_reduce().thresholds(least=self.least)

    def _add_to_prototypes(self, prototypes: ClassPrototypes | None, batch: Batch, output: Output) -> ClassPrototypes:
        # q_i = y_i where it is not background, else argmax_c p'_{i,c}
        labels = batch.by_strips(teachers_labels, output)
        return add_to_prototypes(prototypes, self._features(output), labels, batch, output)

    def _features(self, output: Output) -> Tensor:
        return output.stages[-1] if self.features == "stage" else output.features

    def distances(self, teacher: Output) -> Tensor:
        """Weights (B,K,h,w) by the distance to the step's prototypes."""
        return distance_weights(
            self._features(teacher),
            self.means,
            self.counts,
            distance_scale=self.distance_scale,
            unseen=self.unseen,
            scaling=self.scaling,
            background=self.background_prototype,
        )

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        if self.relabelling == "none":
            return batch.given
        if self.relabelling == "argmax":
            return batch.by_strips(teachers_labels, teacher)
        if self.relabelling == "entropy":
            return batch.by_strips(partial(certain_labels, self.thresholds), teacher)
        weights = self.distances(teacher).contiguous()
        batch.logs["distance/largest"] = weights.amax(dim=1).mean()
        batch.logs["unseen_classes"] = (self.counts == 0).sum()
        if self.resolution != "full":  # the product is upsampled, so that strips would need rows of their neighbours
            return self._relabel(weights, batch, teacher)
        return batch.by_strips(partial(self._relabel, weights), teacher)

    def _relabel(self, weights: Tensor, batch: Batch, teacher: Output) -> Tensor:
        """Labels of a strip, or of whole images, by distance weights (B,K,h,w)."""
        logits = teacher.upsample(batch.size)
        full = self.resolution == "full"
        labels = reweighted_labels(
            batch.given,
            logits,
            weights,
            background_prototype=self.background_prototype,
            threshold=self.threshold,
            resolution=self.resolution,
            covered=None if full else teacher.covered_by(batch.size),
            enlarge=teacher.enlarge if full else None,
        )
        if self.gate == "none":
            return labels
        certain = confident(logits, self.thresholds)
        if self.gate == "two_stage":
            return torch.where(certain, argmax_labels(batch.given, logits), labels)
        return labels.masked_fill((batch.given == 0) & ~certain, IGNORE)

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            return self.over_strips(plain_cross_entropy, student, teacher, batch)
        batch.log_labels()
        if self.compensation:
            batch.log_weights(self.pixel_weights(None, batch, batch.by_strips(self._magnitudes, student)))
        # of whole images, not of a strip; 1 where no pixel of the background is ignored
        kept_background_share = adaptive_factor(batch.given, batch.labels)
        losses = self.over_strips(partial(self.pixel_losses, kept_background_share), student, teacher, batch)
        return losses | self.host_losses(student, teacher)

    def pixel_losses(self, share: Tensor, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """Losses of the pixels of a strip, or of whole images. `share`: nu (B,1,1), factors of the images."""
        logits, relations = student.upsample(batch.size), None
        if self.soft and self.soft_target != "binary":
            old_logits = teacher.upsample(batch.size)
            relations = soft_relations(old_logits, batch.labels, batch.channels, target=self.soft_target)
        terms = pixel_terms(
            logits,
            batch.labels,
            target=relations,
            entropy=bool(self.sharp),
            log_p=student.log_probabilities(batch.size),
        )
        # L_GC = 1/N sum_i nu_b w_i CE_i
        weights = share if batch.weights is None else share * batch.weights
        cross_entropy = mean_cross_entropy(terms.by_label[0], batch.labels, weights=weights, divisor=self.divisor)
        losses = {"compensated": cross_entropy}
        if relations is not None:
            losses["soft"] = self.soft * mean_soft_relation(terms, batch.channels)
        elif self.soft:
            soft = soft_relation_loss(logits, teacher.upsample(batch.size), batch.labels, target=self.soft_target)
            losses["soft"] = self.soft * soft
        if self.sharp:
            where = self._sharp_pixels(batch, teacher)
            losses["sharp"] = self.sharp * mean_entropy(terms, batch.channels, where=where)
        return losses

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """Of the losses alone. The mean gradients of the compensation are those of a batch, see `statistics`."""
        if teacher is None:
            return super().pixel_counts(teacher, batch)
        counts = {}
        if self.divisor == "valid":
            counts["compensated"] = (batch.labels != IGNORE).sum()
        pixels = self._sharp_pixels(batch, teacher)
        if pixels is not None:
            counts["sharp"] = pixels.sum()
        return counts

    def maps(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        logits = student.upsample(batch.size)
        maps = {"gradient": gradient_magnitude(logits, batch.labels)}
        if self.compensation:
            maps["weight"] = self.pixel_weights(logits, batch)
        if self.relabelling == "prototypes":
            maps["old, by distance"] = 1 - self.distances(teacher)[:, 0]
            maps["old, by teacher"] = 1 - teacher.upsample(batch.size).softmax(dim=1)[:, 0]
        return maps

    def pixel_weights(self, logits: Tensor | None, batch: Batch, magnitudes: Tensor | None = None) -> Tensor | None:
        """`magnitudes`: (B,H,W), of the gradients, if known; then `logits` are not read."""
        if not self.compensation:
            return None
        if magnitudes is None:
            magnitudes = gradient_magnitude(logits, batch.labels, **self._gradient_options(batch))
        return weigh_by_step(
            magnitudes,
            batch.labels,
            batch.class_steps,
            grouping=self.grouping,
            new=self.new_weight,
            clamp=self.clamp,
            reduce=distributed.all_sum if self.statistics == "global" else None,
        )

    def _magnitudes(self, batch: Batch, student: Output) -> Tensor:
        """Gradient magnitudes of a strip."""
        softmax = self.probability == "softmax"
        values = student.log_probabilities(batch.size) if softmax else student.upsample(batch.size)
        return gradient_magnitude(values, batch.labels, probabilities=softmax, **self._gradient_options(batch))

    def _gradient_options(self, batch: Batch) -> dict[str, Any]:
        old_share = batch.old_channels / batch.channels
        exponent = old_share if self.exponent == "old_share" else self.exponent
        return {"probability": self.probability, "exponent": exponent, "logarithm": self.logarithm}

    def _sharp_pixels(self, batch: Batch, teacher: Output) -> Tensor | None:
        if self.sharp_where == "all":
            return None
        if self.sharp_where == "background":
            return batch.given == 0
        return (batch.given != 0) | confident(teacher.upsample(batch.size), self.thresholds)
