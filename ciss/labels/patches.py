"""MBS: labels and weights of patches."""

from typing import Literal

import torch
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
    """One label for each patch of a grid: that of its first pixel (published code), or of most of its pixels.

    Shapes: labels (B,H,W) int64, size (h,w) -> (B,h,w).

    Args:
        covered: pixels (H,W) that the grid stands for, where its last patches reach beyond the image.
        rule: `top_left`, nearest-neighbour interpolation: patch j has the label of pixel floor(j H / h). Where h does
            not divide H, this can be the pixel before the first one of the patch. `majority` counts ignored pixels
            as a class, and of equal counts takes the smaller label.
    """
    height, width = covered or labels.shape[-2:]
    if rule == "top_left":
        rows = torch.arange(size[0], device=labels.device) * height // size[0]
        columns = torch.arange(size[1], device=labels.device) * width // size[1]
        return labels[:, rows[:, None], columns]
    if rule != "majority":
        raise ValueError(f"rule is {rule!r}. Use 'top_left' or 'majority'.")
    ignored = 256
    numbers = torch.where(labels == ignore_index, ignored, labels.long())
    winners = _pixels_by_label(numbers, size, (height, width), ignored + 1).argmax(dim=-1)
    return torch.where(winners == ignored, ignore_index, winners).to(labels.dtype)


@torch.no_grad()
def label_shares(
    labels: Tensor, size: tuple[int, int], classes: int, *, covered: tuple[int, int] | None = None
) -> Tensor:
    """Share of each class in the pixels of each patch of a grid.

    Pixels with labels outside 0..classes-1 count as pixels of the patch, so that its shares may sum to less than 1.

    Shapes: labels (B,H,W) int64, size (h,w) -> (B,h,w,classes) float32. `covered`: see `patch_labels`.
    """
    known = torch.where((labels >= 0) & (labels < classes), labels, classes)
    pixels = _pixels_by_label(known, size, covered or tuple(labels.shape[-2:]), classes + 1).float()
    return pixels[..., :classes] / pixels.sum(dim=-1, keepdim=True).clamp(min=1)


def _pixels_by_label(labels: Tensor, size: tuple[int, int], covered: tuple[int, int], bins: int) -> Tensor:
    """Number of pixels of each label 0..bins-1 in each patch, (B,h,w,bins) int32. Row r is of patch floor(r h / H)."""
    rows = torch.arange(labels.shape[-2], device=labels.device) * size[0] // covered[0]
    columns = torch.arange(labels.shape[-1], device=labels.device) * size[1] // covered[1]
    patches = (rows[:, None] * size[1] + columns).flatten()
    counts = torch.zeros(len(labels), size[0] * size[1] * bins, dtype=torch.int32, device=labels.device)
    bin_of_pixel = patches * bins + labels.flatten(1)
    counts.scatter_add_(1, bin_of_pixel, torch.ones_like(counts[:, :1]).expand_as(bin_of_pixel))
    return counts.view(len(labels), *size, bins)


@torch.no_grad()
def patch_weights(
    labels: Tensor, teacher_grid_logits: Tensor, new_classes: Tensor, *, ignore_index: int = IGNORE
) -> Tensor:
    """Weight of each patch in the feature distillation.

    Shapes: labels (B,h,w) int64, teacher_grid_logits (B,K,h,w), new_classes (n,) positions -> (B,h,w). Source: MBS,
    section 3.4; the probabilities are those of the native grid, as in the published code.
    """
    background = at_least_float32(teacher_grid_logits).softmax(dim=1)[:, 0]
    not_old = (labels[..., None] == new_classes).any(dim=-1) | (labels == ignore_index)
    # w_j = 1 (old),   softmax(m'_j)_0 (background),   0 (new, ignored)
    return torch.where(labels == 0, background, 1.0).masked_fill(not_old, 0)
