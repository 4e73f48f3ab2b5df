"""GSC: labels of the background from the teacher, weighted by class prototypes."""

from typing import Literal

import torch
from torch import Tensor

from ciss.labels.patches import _resize
from ciss.labels.prototypes import Scaling, Unseen, distance_weights
from ciss.protocol import VOID as IGNORE

Resolution = Literal["full", "quarter", "grid"]


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
