"""GSC: pseudo-labels for the background from the teacher, weighted by distances to class prototypes."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.labels.channels import largest_channel
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
    """Prototypical pseudo re-labelling: background pixels take the class with the largest product of the teacher's
    probability and the distance weight. All other labels stay.

    Training calls `distance_weights` for whole images and `reweighted_labels` strip by strip.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,H,W), teacher_features (B,D,h,w), prototypes (K,D), counts (K,) ->
    (B,H,W). With `return_weights` also the distance weights (B,K,h,w). Options: see `distance_weights` and
    `reweighted_labels`. Source: GSC's abstract; code of RDP; ProDA (Zhang et al. 2021) eq. 4 and 5.
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
    enlarge: Callable[[Tensor, tuple[int, int]], Tensor] | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Background pixels take the argmax of the teacher's probabilities times the distance weights.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,.,.), weights (B,K,h,w) -> (B,H,W).

    Args:
        background_prototype: False: the teacher alone decides whether a pixel is background.
        threshold: pixels whose largest normalised product is below it are ignored.
        resolution: where the two are multiplied: at the logits' size, at a quarter of the labels' size, or on the
            weights' grid. The product is then upsampled.
        covered: pixels (H,W) that the grid of weights stands for, where its last patches reach beyond the image.
        enlarge: makes a new tensor of the weights at a size; default: bilinear interpolation.
    """
    enlarge = enlarge or _resized_copy
    size = tuple(labels.shape[-2:])
    grid = weights.shape[-2:]
    if covered is not None and covered != size:
        weights = _resize(weights, covered)[..., : size[0], : size[1]]
    if resolution not in ("full", "quarter", "grid"):
        raise ValueError(f"resolution is {resolution!r}. Use 'full', 'quarter' or 'grid'.")
    if resolution != "full":
        teacher_logits = _resize(teacher_logits, grid if resolution == "grid" else tuple(-(-n // 4) for n in size))
    # log r_{i,c} = log om_{i,c} + log p'_{i,c} + constant = log om_{i,c} + z'_{i,c} + constant: in logarithms, so that
    # no small p' vanishes. The constants, one for each pixel, change neither the largest product nor its softmax.
    logits = teacher_logits.float()
    never = torch.where(weights.amax(dim=(2, 3), keepdim=True) > 0, 0.0, -torch.inf)  # classes of weight 0
    weights = enlarge(weights, logits.shape[-2:])
    # the logarithm of 0 takes a CPU twenty times as long as others
    scores = weights.clamp_(min=torch.finfo(weights.dtype).tiny).log_().add_(logits).add_(never)
    if not background_prototype:
        is_background = (largest_channel(logits)[1] == 0)[:, None]
        background_channel = (torch.arange(logits.shape[1], device=scores.device) == 0)[:, None, None]
        scores = torch.where(background_channel, logits, scores).where(background_channel == is_background, -torch.inf)
    if scores.shape[-2:] != size:
        scores = _resize(scores.softmax(dim=1), size).log()
    elif threshold > 0:
        scores = scores.log_softmax(dim=1)
    largest, classes = largest_channel(scores, overwrite=True)
    if threshold > 0:
        classes = classes.masked_fill(largest.exp() < threshold, ignore_index)
    return torch.where(labels == 0, classes, labels)


@torch.no_grad()
def labels_of_products(
    labels: Tensor, probabilities: Tensor, weights: Tensor, *, threshold: float = 0.0, ignore_index: int = IGNORE
) -> Tensor:
    """`reweighted_labels` of probabilities and weights of the labels' size. Products below 1e-38 are 0.

    Shapes: labels (B,H,W) int64, probabilities and weights (B,K,H,W) -> (B,H,W).
    """
    products = probabilities * weights
    least = threshold * products.sum(dim=1)
    largest, classes = largest_channel(products, overwrite=True)
    return torch.where(labels == 0, classes.masked_fill(~(largest >= least), ignore_index), labels)


@torch.no_grad()
def argmax_labels(labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """Background pixels take the teacher's class. Shapes: labels (B,H,W), teacher_logits (B,K,H,W) -> (B,H,W)."""
    return torch.where(labels == 0, largest_channel(teacher_logits)[1], labels)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps.float(), tuple(size), mode="bilinear", align_corners=False)


def _resized_copy(maps: Tensor, size: tuple[int, int]) -> Tensor:
    resized = _resize(maps, size)
    return resized.clone() if resized is maps else resized
