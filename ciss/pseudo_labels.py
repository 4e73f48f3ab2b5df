"""Labels for the background of an incremental step, from what the teacher sees in it."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import distributed
from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE
from ciss.prototypes import Scaling, Unseen, distance_weights

Variant = Literal["paper", "released"]
Resolution = Literal["full", "quarter", "grid"]
PatchRule = Literal["top_left", "majority"]


# --- GSC: prototypes


@torch.no_grad()
def relabel_background(
    labels: Tensor,
    teacher_logits: Tensor,
    teacher_features: Tensor,
    prototypes: Tensor,
    counts: Tensor,
    *,
    distance_scale: float = 1.0,
    unseen: Unseen = "exclude",
    scaling: Scaling = "none",
    background_prototype: bool = True,
    threshold: float = 0.0,
    resolution: Resolution = "full",
    covered: tuple[int, int] | None = None,
    return_weights: bool = False,
    ignore_index: int = IGNORE,
) -> Tensor | tuple[Tensor, Tensor]:
    """Prototypical pseudo re-labelling: background pixels take the class that teacher and distance agree on.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,H,W), teacher_features (B,D,h,w), prototypes (K,D), counts (K,) ->
    (B,H,W). Pixels with any label but 0 keep it. See `distance_weights` and `reweighted_labels`. `return_weights`: the
    distance weights (B,K,h,w), too.

    Source: GSC's abstract; code of RDP; ProDA (Zhang et al. 2021) eq. 4 and 5.
    """
    weights = distance_weights(
        teacher_features,
        prototypes,
        counts,
        distance_scale=distance_scale,
        unseen=unseen,
        scaling=scaling,
        background=background_prototype,
    )
    relabelled = reweighted_labels(
        labels,
        teacher_logits,
        weights,
        background_prototype=background_prototype,
        threshold=threshold,
        resolution=resolution,
        covered=covered,
        ignore_index=ignore_index,
    )
    return (relabelled, weights) if return_weights else relabelled


@torch.no_grad()
def reweighted_labels(
    labels: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    *,
    background_prototype: bool = True,
    threshold: float = 0.0,
    resolution: Resolution = "full",
    covered: tuple[int, int] | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Background pixels take the argmax of the teacher's probabilities times the distance weights.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,.,.), weights (B,K,h,w) -> (B,H,W). Weights are brought to the
    logits' size and multiplied there (`full`), both at a quarter of the labels' size (`quarter`), or both on the
    weights' grid (`grid`); the product comes to full size in the end. `background_prototype` off: where the teacher
    says background it stays, elsewhere the weights decide among the old classes. `threshold`: a pixel whose largest
    normalised product is below it is ignored. `covered`: pixels that the grid stands for, where it reaches beyond the
    image.
    """
    size, grid, classes = labels.shape[-2:], weights.shape[-2:], teacher_logits.shape[1]
    if covered is not None and covered != tuple(size):
        weights = _resize(weights, covered)[..., : size[0], : size[1]]
    if resolution not in ("full", "quarter", "grid"):
        raise ValueError(f"resolution is {resolution!r}. Use 'full', 'quarter' or 'grid'.")
    if resolution != "full":
        small = grid if resolution == "grid" else tuple(-(-side // 4) for side in size)
        teacher_logits = _resize(teacher_logits, small)
    # log r_{i,c} = log om_{i,c} + log P'_{i,c} (+ constant): in logarithms, so that no small P' vanishes
    log_p = teacher_logits.float().log_softmax(dim=1)
    scores = _resize(weights, log_p.shape[-2:]).log() + log_p
    if not background_prototype:
        # the teacher alone decides whether a pixel is background, the product which old class it is otherwise
        background = (log_p.argmax(dim=1) == 0)[:, None]
        own = (torch.arange(classes, device=scores.device) == 0)[:, None, None]
        scores = torch.where(own, log_p, scores).where(own == background, -torch.inf)
    if scores.shape[-2:] != size:
        scores = _resize(scores.softmax(dim=1), size)
        best, found = scores.max(dim=1)
    elif threshold > 0:
        best, found = scores.softmax(dim=1).max(dim=1)
    else:
        best, found = None, scores.argmax(dim=1)
    if threshold > 0:
        found = found.masked_fill(best < threshold, ignore_index)
    return torch.where(labels == 0, found, labels)


@torch.no_grad()
def argmax_labels(labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """Background pixels take the teacher's class. Shapes: labels (B,H,W), teacher_logits (B,K,H,W) -> (B,H,W)."""
    return torch.where(labels == 0, teacher_logits.argmax(dim=1), labels)


# --- PLOP: entropy


@torch.no_grad()
def normalised_entropy(teacher_logits: Tensor, *, variant: Variant = "paper", channels: int | None = None) -> Tensor:
    """The teacher's uncertainty (B,H,W) of logits (B,K,H,W).

    `paper`: H(P') / log K, from 0 (certain) to 1 (uniform); PLOP eq. 9. `released`: the published code's, the *mean*
    over channels over log K, divided by log C once more; C = `channels`, the student's.
    """
    if variant not in ("paper", "released"):
        raise ValueError(f"variant is {variant!r}. Use 'paper' or 'released'.")
    if variant == "released" and channels is None:
        raise ValueError("the released variant divides by log C: pass channels=C, the student's.")
    p = teacher_logits.float().softmax(dim=1)
    old = teacher_logits.shape[1]
    if old == 1:
        return torch.zeros_like(p[:, 0])
    if variant == "paper":
        # u_i = -sum_c P'_c log P'_c / log K
        return torch.special.entr(p).sum(dim=1) / math.log(old)
    # e_i = -1/K sum_c P'_c log(P'_c + 1e-8) / log K / log C
    return -(p * (p + 1e-8).log()).mean(dim=1) / math.log(old) / math.log(channels)


class EntropyMedians:
    """Median uncertainty of the background pixels that the teacher calls c, for each old class c: PLOP's thresholds.

    From histograms over [0, 1], so that batches and processes add up. Args: classes: K; channels: C, the student's;
    bins: 100 as published. `released` walks the histogram as the published code does: it adds the bin's index, not its
    count, to the running sum, so that its thresholds are no medians.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        variant: Variant = "paper",
        bins: int = 100,
        device: torch.device | str | None = None,
    ):
        self.variant, self.channels = variant, channels
        self.histograms = torch.zeros(classes, bins, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, labels: Tensor, teacher_logits: Tensor) -> None:
        """Counts background pixels of labels (B,H,W) by the uncertainty of teacher_logits (B,K,H,W)."""
        classes, bins = self.histograms.shape
        values = normalised_entropy(teacher_logits, variant=self.variant, channels=self.channels)
        cell = teacher_logits.argmax(dim=1) * bins + (values * bins).long().clamp(0, bins - 1)
        cell = cell.masked_fill(labels != 0, classes * bins)  # one more cell for what does not count
        self.histograms += torch.bincount(cell.flatten(), minlength=classes * bins + 1)[:-1].view(classes, bins)

    def all_reduce(self) -> "EntropyMedians":
        distributed.all_sum(self.histograms)
        return self

    def thresholds(self, *, least: float = 0.001) -> Tensor:
        """(K,) float32, at least `least`; that, too, for a class that the teacher never called."""
        histograms = self.histograms.cpu().double()
        bins = histograms.shape[1]
        half = histograms.sum(dim=1) / 2
        if self.variant == "paper":
            before = histograms.cumsum(dim=1) - histograms
        else:
            before = torch.arange(bins).cumsum(0) - torch.arange(bins)  # the sum of the earlier bins' indices
            before = before.double().expand_as(histograms)
        # the bin that holds the half, and how far into it the half lies
        holds = (before <= half[:, None]) & (half[:, None] <= before + histograms)
        found = torch.where(holds.any(dim=1), holds.int().argmax(dim=1), bins - 1)
        rows = torch.arange(len(histograms))
        # a walk past the last bin (`released` only) has added that one, too
        before = torch.where(holds.any(dim=1), before[rows, found], before[rows, found] + found)
        medians = (found + (half - before) / histograms[rows, found]) / bins
        medians = torch.where(half > 0, medians, 0).nan_to_num(nan=0.0)
        return medians.clamp(min=least).float().to(self.histograms.device)


@torch.no_grad()
def confident(
    teacher_logits: Tensor, thresholds: Tensor, *, variant: Variant = "paper", channels: int | None = None
) -> Tensor:
    """Where the teacher is less uncertain than its class's threshold: (B,H,W) bool."""
    values = normalised_entropy(teacher_logits, variant=variant, channels=channels)
    return values < thresholds.to(values.device)[teacher_logits.argmax(dim=1)]


@torch.no_grad()
def entropy_labels(
    labels: Tensor,
    teacher_logits: Tensor,
    thresholds: Tensor,
    *,
    variant: Variant = "paper",
    channels: int | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """PLOP's pseudo labels: background pixels take the teacher's class where it is certain, else they are ignored.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,H,W), thresholds (K,) -> (B,H,W). Source: PLOP eq. 8 and 9.
    """
    certain = confident(teacher_logits, thresholds, variant=variant, channels=channels)
    found = teacher_logits.argmax(dim=1).masked_fill(~certain, ignore_index)
    return torch.where(labels == 0, found, labels)


@torch.no_grad()
def adaptive_factor(given: Tensor, labels: Tensor, *, variant: Variant = "paper", ignore_index: int = IGNORE) -> Tensor:
    """(B,1,1): the share of an image's background pixels that kept a label (PLOP eq. 10).

    Shapes: given and labels (B,H,W) int64, before and after pseudo-labelling. An image without background: 1 (`paper`),
    or 0, so that it teaches nothing (`released`).
    """
    background = given == 0
    kept = (background & (labels != ignore_index)).sum(dim=(1, 2)).float()
    total = background.sum(dim=(1, 2)).float()
    if variant == "released":
        factor = kept / (total + 1e-6)
    else:
        factor = torch.where(total > 0, kept / total.clamp(min=1), 1.0)
    return factor[:, None, None]


# --- MBS: confidence, and what may be an object


@torch.no_grad()
def selective_pseudo_labels(
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    threshold: float = 0.7,
    selective: bool = True,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Background pixels take the teacher's class where it is confident; other pixels of objects are ignored.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,H,W) -> (B,H,W). Any label but 0 stays. `selective` off: nothing
    is ignored. Source: MBS (Park et al., ECCV 2024) eq. 1 to 3.
    """
    probabilities = at_least_float32(teacher_logits).softmax(dim=1)
    return selective_labels(labels, probabilities, threshold=threshold, selective=selective, ignore_index=ignore_index)


@torch.no_grad()
def selective_labels(
    labels: Tensor,
    teacher_probabilities: Tensor,
    *,
    threshold: float = 0.7,
    selective: bool = True,
    ignore_index: int = IGNORE,
) -> Tensor:
    """`selective_pseudo_labels` of probabilities (B,K,H,W) that are known already."""
    best, found = teacher_probabilities.max(dim=1)
    background = labels == 0
    # eq. 1: the teacher's old class k where k > 0 and p'_k >= threshold
    taken = background & (found > 0) & (best >= threshold)
    chosen = torch.where(taken, found, labels)
    if not selective:
        return chosen
    # eq. 2 and 3: ignored where no class was taken and p'_0 < sum_{c >= 1} p'_c, that is p'_0 < 1/2
    objects = teacher_probabilities[:, 0] < 0.5
    return chosen.masked_fill(background & ~taken & objects, ignore_index)


@torch.no_grad()
def patch_labels(
    labels: Tensor,
    size: tuple[int, int],
    *,
    covered: tuple[int, int] | None = None,
    rule: PatchRule = "top_left",
    ignore_index: int = IGNORE,
) -> Tensor:
    """One label for each patch of a grid: of its first pixel (published code), or the most frequent of its pixels.

    Shapes: labels (B,H,W) int64, size (h,w) -> (B,h,w). `covered`: pixels that the grid stands for, where the last
    patches reach beyond the image; what lies there has no say. `majority`: ignored pixels count like a class, ties go
    to the smaller label.
    """
    covered = covered or tuple(labels.shape[-2:])
    if rule == "top_left":
        rows, columns = (
            torch.arange(cells, device=labels.device) * pixels // cells
            for cells, pixels in zip(size, covered, strict=True)
        )
        return labels[:, rows[:, None], columns]
    if rule != "majority":
        raise ValueError(f"rule is {rule!r}. Use 'top_left' or 'majority'.")
    rows, columns = (
        torch.arange(side, device=labels.device) * cells // pixels
        for side, cells, pixels in zip(labels.shape[-2:], size, covered, strict=True)
    )
    cell = (rows[:, None] * size[1] + columns).flatten().expand(len(labels), -1)
    ignored, bins = 256, 257
    votes = torch.zeros(len(labels), size[0] * size[1] * bins, dtype=torch.int32, device=labels.device)
    vote = cell * bins + torch.where(labels == ignore_index, ignored, labels.long()).flatten(1)
    votes.scatter_add_(1, vote, torch.ones_like(votes[:, :1]).expand_as(vote))
    found = votes.view(len(labels), *size, bins).argmax(dim=-1)
    return torch.where(found == ignored, ignore_index, found).to(labels.dtype)


@torch.no_grad()
def patch_weights(
    labels: Tensor, teacher_grid_logits: Tensor, new_classes: Tensor, *, ignore_index: int = IGNORE
) -> Tensor:
    """How much each patch shall keep its features: old classes 1, background as much as the teacher calls it that, new
    and ignored ones 0.

    Shapes: labels (B,h,w) int64, teacher_grid_logits (B,K,h,w), new_classes (n,) positions -> (B,h,w). Source: MBS,
    section 3.4; probabilities of the native grid, not of a reduced map, as in the published code.
    """
    background = at_least_float32(teacher_grid_logits).softmax(dim=1)[:, 0]
    fresh = (labels[..., None] == new_classes).any(dim=-1) | (labels == ignore_index)
    # w_j = 1 (old),   softmax(m'_j)_0 (background),   0 (new, ignored)
    return torch.where(labels == 0, background, 1.0).masked_fill(fresh, 0)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps.float(), tuple(size), mode="bilinear", align_corners=False)
