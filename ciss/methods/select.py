"""SELECT: selective context transfer (Gupta et al., BMVC 2026). No released code; from the formulas of the paper."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from ciss import distributed
from ciss.config import Benchmark
from ciss.data.loaders import stable_seed
from ciss.labels.patches import patch_labels
from ciss.losses import context_hinge
from ciss.methods.base import Batch, Statistics, coefficients
from ciss.methods.hosts import EWF
from ciss.methods.mbs import MBS
from ciss.models import Network, Output
from ciss.models.context import choose_sources, count_votes, row_distances, token_distances, write_context
from ciss.models.deeplabv3 import DeepLabV3
from ciss.ranges import Range

ON_MBS = {"selective": True, "features": "adaptive", "outputs": "label_guided", "orthogonality": 1.0}


@coefficients
class Select(MBS):
    """A new class's token starts as a mixture of the old tokens that its own pixels disturb least, and a hinge keeps
    it away from them.

        L = L_CE + L_patch + distillation L_KD + separation L_ct

    The other terms are MBS's with its parts off. On a decoder without class tokens, the classifier's rows are mixed,
    and the old classes nearest in direction to the mean feature of the new class are chosen: "select (adapted)".
    """

    presets: ClassVar = {
        "no-hinge": {"separation": 0.0},
        "no-noise": {"noise": 0.0},
        "best": {"sources": "best"},  # the most voted class alone
        "average": {"sources": "average"},
        "background-start": {"initialisation": "background"},
        "on-mbs": {**ON_MBS, "class_features": 1.0},  # with all parts of MBS
        **EWF,
    }
    usual: ClassVar[bool] = False

    # --- MBS's parts, off
    selective: bool = False  # ignore likely objects without a label
    features: Literal["adaptive", "plain", "none"] = "plain"  # adaptive: patches have weights
    class_features: NonNegativeFloat = 0.0  # weight of L_cls
    outputs: Literal["label_guided", "plain", "none"] = "plain"  # label_guided: MBS's L_LGKD
    orthogonality: NonNegativeFloat = 0.0  # times n / C

    # --- the start of new tokens
    # a mixture of old tokens; the background's token; MiB's; at random
    initialisation: Literal["context", "background", "balanced", "default"] = "context"
    sources: Literal["attended", "average", "best"] = "attended"  # how tokens are mixed; best: one class alone
    reference: Literal["token", "unmasked"] = "token"  # what class features of masked images are compared with
    background: Literal["excluded", "included"] = "excluded"  # whether the background can be a source
    epsilon: Annotated[float, Field(ge=0, lt=1)] = 0.15  # least share of the votes, exclusive
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9  # share of the mixture without noise
    noise: NonNegativeFloat = 0.05  # deviation; times 1 - alpha
    statistics_from: Statistics = "epoch"  # the images that vote: a training epoch, or every image once, whole

    # --- the hinge
    separation: Annotated[NonNegativeFloat, Range(0.08, 8, log=True)] = 0.8  # weight of L_ct
    margin: Annotated[NonNegativeFloat, Range(0.1, 10, log=True)] = 1.0  # M, a distance between tokens
    hinge_gradient: Literal["both", "new"] = "both"  # reaches new and old tokens, or new ones alone
    over_classes: Literal["mean", "sum"] = "mean"  # of several new classes

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        problem = super().unsuited(benchmark)
        if problem is None and benchmark.setting == "domain":
            return "setting", "no class is new in the domain setting, so no token starts"
        return problem

    def initialise(self, network: Network, classes: int) -> None:
        super().initialise(network, classes)
        if self.initialisation == "context":  # for a class without a pixel
            network.decoder.transfer()

    def start(self, student: Network, teacher: nn.Module, batches: Iterable[Batch], previous: Iterable[Batch]) -> None:
        if self.initialisation != "context" and not self.separation:
            return
        first, best = int(self.background == "excluded"), self.sources == "best"
        distances = partial(self._distances, teacher, isinstance(student.decoder, DeepLabV3))
        votes = distributed.all_sum(count_votes(batches, distances, first=first))
        self.chosen = [choose_sources(row, epsilon=self.epsilon, first=first, best=best) for row in votes]
        if self.initialisation == "context":
            mixture = "average" if self.sources == "average" else "attended"
            seeds = [stable_seed("context", position) for position in range(student.channels)[-len(votes) :]]
            # alpha theta + (1 - alpha) N(theta, sigma^2) = theta + (1 - alpha) sigma xi
            deviation = (1 - self.alpha) * self.noise
            write_context(student.decoder, self.chosen, mixture=mixture, deviation=deviation, seeds=seeds)

    def _distances(self, teacher: nn.Module, adapted: bool, images: Tensor, present: Tensor) -> Tensor:
        """(B,K) distances to the old classes of images in which only a new class is left, where it has a feature."""
        output = teacher(images * present[:, None])
        if not adapted:
            compared = output.class_tokens if self.reference == "token" else teacher(images).class_features
            return token_distances(output.class_features, compared)
        grid, covered = output.features.shape[-2:], output.covered_by(tuple(present.shape[-2:]))
        inside = patch_labels(present.long(), grid, covered=covered, rule=self.patch_label) == 1
        return row_distances(output.features, inside, output.class_tokens)[inside.flatten(1).any(dim=1)]

    def token_losses(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        losses = super().token_losses(student, batch)
        chosen = getattr(self, "chosen", [])
        if self.separation and any(chosen):
            tokens = student.class_tokens
            old = tokens.detach() if self.hinge_gradient == "new" else tokens
            hinges = [
                context_hinge(tokens[position], torch.stack([old[source] for source in sources]), margin=self.margin)
                for position, sources in enumerate(chosen, batch.old_channels)
                if sources
            ]
            losses["separation"] = self.separation * sum(hinges) / (len(chosen) if self.over_classes == "mean" else 1)
        return losses
