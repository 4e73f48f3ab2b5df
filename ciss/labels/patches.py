"""MBS: labels and weights of patches."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE

PatchRule = Literal["top_left", "majority"]


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
