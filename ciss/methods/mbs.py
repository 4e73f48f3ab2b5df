"""MBS: mitigating background shift (Park, Moon, Lee, Kim, Heo; ECCV 2024, arXiv 2407.11859).

The defaults are those of the published code. Known differences, all of which are errors there:

* Labels, tokens and weights go by channel position, so that every class order works. The published losses get raw ids.
* A mean over nothing is 0. It is NaN there.
* Where patches do not divide the image, a patch takes the label of its own first pixel (`patch_labels`). There the
  labels are stretched over the padded grid, so that patches get labels of pixels above and left of them.
* Padding is ignored in the cross-entropy and by patches. In the distillation of outputs, `ignored` decides. There
  padding is background.
* The last epoch is the result. There an epoch is selected on test images.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from ciss.config import Benchmark
from ciss.labels.patches import PatchRule, patch_labels, patch_weights
from ciss.labels.selective import selective_pseudo_labels
from ciss.losses import adaptive_feature_distillation, orthogonality, output_distillation
from ciss.losses.cross_entropy import mean_cross_entropy
from ciss.losses.distillation import guiding_labels, mean_guided
from ciss.losses.pixel_terms import pixel_terms
from ciss.methods.base import TRUE_BACKGROUND, Batch, coefficients, plain_cross_entropy
from ciss.methods.hosts import EWF, WeightFusion
from ciss.models import Network, Output
from ciss.protocol import VOID as IGNORE
from ciss.ranges import Choices, Range


@coefficients
class MBS(WeightFusion):
    """Selective pseudo-labels, adaptive feature distillation, label-guided output distillation, orthogonal new tokens,
    and background weight transfer.

        L = L_CE + L_patch + L_cls + distillation L_LGKD + (n / C) L_ortho

    Defaults are those for Pascal VOC (ADE20K: distillation 50); schedules are in ciss/study/presets/*-mbs.yaml. On a
    decoder without class tokens, the classifier's rows are used as tokens: "mbs (adapted)" in tables.
    """

    decoder: ClassVar = "mask_transformer"
    presets: ClassVar = {
        "no-selection": {"selective": False},  # doubtful pixels stay background
        "no-labels": {"labelling": "none"},
        "no-adaptive": {"features": "plain"},  # every patch alike
        "no-features": {"features": "none", "class_features": 0.0},
        "no-guidance": {"outputs": "plain"},
        "no-outputs": {"outputs": "none"},
        "no-orthogonality": {"orthogonality": 0.0},
        "no-transfer": {"initialisation": "default"},
        # the published baseline, `MBS: False`: confident labels, plain distillation of features and outputs
        "off": {"selective": False, "features": "plain", "outputs": "plain", "orthogonality": 0.0},
        **EWF,
    }

    # --- selective pseudo labels
    labelling: Literal["confident", "none"] = "confident"  # none: the background stays as given
    threshold: Annotated[float, Field(ge=0, le=1), Range(0.4, 0.95)] = 0.7  # least probability of a pseudo-label
    selective: bool = True  # ignore what may be an object and was not labelled

    # --- adaptive feature distillation
    features: Literal["adaptive", "plain", "none"] = "adaptive"  # plain: every patch has weight 1
    patches: Annotated[NonNegativeFloat, Range(0.1, 10, log=True)] = 1.0  # weight of L_patch
    class_features: Annotated[NonNegativeFloat, Range(0.1, 10, log=True)] = 1.0  # weight of L_cls
    patch_label: Annotated[PatchRule, Choices()] = (
        "top_left"  # for adaptive: a patch has the label of its first pixel; majority: of most of its pixels
    )

    # --- label-guided output distillation
    outputs: Literal["label_guided", "plain", "none"] = "label_guided"  # plain: over the old channels alone
    distillation: Annotated[NonNegativeFloat, Range(2.5, 250, log=True)] = 25.0  # weight of L_LGKD
    ignored: Literal["distilled", "left_out"] = "distilled"  # by label_guided: pixels given as 255, padding too

    # --- new class tokens
    orthogonality: Annotated[NonNegativeFloat, Range(0.1, 10, log=True)] = 1.0  # times n / C
    # background weight transfer; MiB's
    initialisation: Annotated[Literal["background", "balanced", "default"], Choices()] = "background"

    def notice(self, benchmark: Benchmark) -> str | None:
        if self.labelling != "none" and benchmark.setting == "domain":
            return f"{TRUE_BACKGROUND}. Set labelling to none"
        return None

    def initialise(self, network: Network, classes: int) -> None:
        super().initialise(network, classes)
        if self.initialisation == "background":
            network.decoder.transfer()

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        if self.labelling == "none":
            return batch.given
        return batch.by_strips(self.strip_labels, teacher)

    def strip_labels(self, batch: Batch, teacher: Output) -> Tensor:
        """Labels of a strip."""
        return selective_pseudo_labels(
            batch.given,
            teacher.probabilities(batch.size),
            threshold=self.threshold,
            selective=self.selective,
            probabilities=True,
        )

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            return self.over_strips(plain_cross_entropy, student, teacher, batch)
        batch.log_labels()
        pixels = self.over_strips(self.pixel_losses, student, teacher, batch)
        classification = {name: pixels.pop(name) for name in list(pixels)[:1]}
        features = self.feature_losses(student, teacher, batch)
        return classification | features | pixels | self.token_losses(student, batch)  # in the order of the formula

    def pixel_losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The loss of the labels, then those of the teacher's outputs, of a strip."""
        logits, log_p = student.upsample(batch.size), student.log_probabilities(batch.size)
        if self.outputs != "label_guided" or not self.distillation:
            losses = self.classification(pixel_terms(logits, batch.labels, log_p=log_p).by_label[0], batch)
            if self.outputs == "plain" and self.distillation:
                losses["distillation"] = self.distillation * output_distillation(logits, teacher.upsample(batch.size))
            return losses
        guides = guiding_labels(batch.given, batch.old_channels)
        target = teacher.probabilities(batch.size)
        terms = pixel_terms(logits, batch.labels, guides, target=target[:, 1:], first=1, log_p=log_p)
        where = batch.given != IGNORE if self.ignored == "left_out" else None
        losses = self.classification(terms.by_label[0], batch)
        losses["distillation"] = self.distillation * mean_guided(terms, target[:, 0], batch.channels, where=where)
        return losses

    def classification(self, cross_entropies: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss of the labels, by the cross-entropies (B,H,W) of the pixels."""
        return {"cross_entropy": mean_cross_entropy(cross_entropies, batch.labels)}

    def feature_losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """Losses that keep the teacher's features."""
        losses = {}
        if self.features != "none" and self.patches:
            new, old = (output.features.flatten(2).transpose(1, 2) for output in (student, teacher))
            weights = self.patch_weights(teacher, batch).flatten(1)
            batch.logs["patch/weight"] = weights.mean()
            losses["patches"] = self.patches * adaptive_feature_distillation(new, old, weights)
        if self.class_features:
            new, old = student.class_features[:, : batch.old_channels], teacher.class_features
            equal = torch.ones_like(old[..., 0])
            losses["class_features"] = self.class_features * adaptive_feature_distillation(new, old, equal)
        return losses

    def token_losses(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        """The loss that keeps tokens apart."""
        losses = {}
        if self.orthogonality:
            weight = self.orthogonality * len(batch.new_classes) / batch.channels  # n / C
            losses["orthogonality"] = weight * orthogonality(student.class_tokens, batch.new_classes)
        self._log_cosines(student.class_tokens, batch)
        return losses

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        counts = super().pixel_counts(teacher, batch)
        if teacher is not None and self.outputs == "label_guided" and self.ignored == "left_out":
            counts["distillation"] = (batch.given != IGNORE).sum()
        return counts

    def normalisers(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        counts = super().normalisers(teacher, batch)
        if teacher is not None and self.features != "none" and self.patches:
            counts["patches"] = (self.patch_weights(teacher, batch) > 0).sum()
        return counts

    def patch_weights(self, teacher: Output, batch: Batch) -> Tensor:
        """Weight (B,h,w) of each patch's features."""
        grid = teacher.logits.shape[-2:]
        if self.features != "adaptive":
            return teacher.logits.new_ones(len(teacher.logits), *grid)
        covered = teacher.covered_by(batch.size)
        labels = patch_labels(batch.labels, grid, covered=covered, rule=self.patch_label)
        return patch_weights(labels, teacher.logits, batch.new_classes)

    def maps(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {
            "an old class, by teacher": 1 - teacher.probabilities(batch.size)[:, 0],
            "patch weight": self.patch_weights(teacher, batch),
        }

    @torch.no_grad()
    def _log_cosines(self, tokens: Tensor, batch: Batch) -> None:
        """Means over the new tokens: cosine to the background's token, and the largest to that of an old class."""
        unit = F.normalize(tokens.detach().float(), dim=1)
        cosines = unit[batch.new_classes] @ unit.T
        batch.logs["cosine/background"] = cosines[:, 0].mean()
        if batch.old_channels > 1:
            batch.logs["cosine/nearest old"] = cosines[:, 1 : batch.old_channels].amax(dim=1).mean()
