"""Local pooled outputs distillation (PLOP, Douillard, Chen, Dapogny, Cord; CVPR 2021, arXiv 2011.11390)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ciss.losses.distillation import count_old_channels
from ciss.precision import at_least_float32


def local_pod(features: Tensor, teacher_features: Tensor, *, scales: tuple[int, ...] = (1, 2, 4)) -> Tensor:
    """Distance of the means over width and over height of squared maps, in s x s cells for each scale s.

    Shapes: features and teacher_features (B,D,h,w) -> scalar, mean over images of the L2 norm; 0, with a gradient of 0,
    for equal maps. Where s does not divide a side, cells overlap by a row or column. Source: PLOP eq. 5 and 6; the
    square is in the published code.
    """
    features, teacher_features = at_least_float32(features), at_least_float32(teacher_features.detach())
    height, width = features.shape[-2:]
    finest = max(scales)
    if any(finest % scale for scale in scales) or height % finest or width % finest:
        difference = features.square() - teacher_features.square()
        sizes = [size for s in scales for size in ((height, min(s, width)), (min(s, height), width))]
        means = [F.adaptive_avg_pool2d(difference, size) for size in sizes]
    else:  # cells of coarser scales are whole cells of the finest one: maps are read once and not once for each scale
        rows, columns = _CellMeans.apply(features, teacher_features, finest)
        means = [F.avg_pool2d(rows, (1, finest // scale)) for scale in scales]
        means += [F.avg_pool2d(columns, (finest // scale, 1)) for scale in scales]
    # the L2 norm of all means together is the norm of their norms
    norms = [torch.linalg.vector_norm(values, dim=(1, 2, 3)) for values in means]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0).mean()


class _CellMeans(torch.autograd.Function):
    """Means of f^2 - f'^2 over s cells of the width, (B,D,h,s), and of the height, (B,D,s,w).

    As autograd would compute them, in half the passes over the maps.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, teacher_features: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features)
        # pooling is linear: pool(f^2) - pool(f'^2) = pool(f^2 - f'^2)
        difference = features.square().sub_(teacher_features.square())
        height, width = features.shape[2:]
        # pooled, because a mean over a dimension does not keep channels_last and then takes ten times as long
        return F.avg_pool2d(difference, (1, width // cells)), F.avg_pool2d(difference, (height // cells, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_rows: Tensor, by_columns: Tensor) -> tuple[Tensor, None, None]:
        (features,) = ctx.saved_tensors
        height, cells = by_rows.shape[2:]
        width = by_columns.shape[3]
        # dL/df = 2 f (dL/drow / (w/s) + dL/dcolumn / (h/s)),   each the same for all pixels of its cell
        channels_last = features.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        by_rows = (by_rows * (2 * cells / width)).contiguous(memory_format=layout)
        by_columns = (by_columns * (2 * cells / height)).contiguous(memory_format=layout)
        by_rows = by_rows.unflatten(2, (cells, -1))[..., None]
        by_columns = by_columns.unflatten(3, (cells, -1))[:, :, :, None]
        gradient = torch.empty_like(features)
        torch.add(by_rows, by_columns, out=gradient.unflatten(3, (cells, -1)).unflatten(2, (cells, -1)))
        return gradient.mul_(features), None, None


def pod_distillation(
    maps: list[Tensor],
    teacher_maps: list[Tensor],
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    features: float = 0.01,
    outputs: float = 0.0005,
    scales: tuple[int, ...] = (1, 2, 4),
) -> Tensor:
    """PLOP's distillation: mean of the local POD of every map, weight `features`, and of the logits, weight `outputs`.

    Shapes: maps and teacher_maps: lists of (B,D_l,h_l,w_l); logits (B,C,h,w), teacher_logits (B,K,h,w) -> scalar.
    Source: PLOP eq. 7; sqrt(C / C_new) and the sum of new channels and background are in the published code.
    """
    old, channels = count_old_channels(logits, teacher_logits), logits.shape[1]
    logits = at_least_float32(logits)  # a sum of channels leaves the range of float16
    # z_0 <- z_0 + sum_{c >= K} z_c;   z_c as it is for 1 <= c < K
    folded = torch.cat([logits[:, :1] + logits[:, old:].sum(dim=1, keepdim=True), logits[:, 1:old]], dim=1)
    terms = [features * local_pod(a, b, scales=scales) for a, b in zip(maps, teacher_maps, strict=True)]
    terms.append(outputs * local_pod(folded, teacher_logits, scales=scales))
    # L = sqrt(C / C_new) 1/L sum_l lambda_l POD_l;   without new classes (new domains) the root is 1
    return (channels / (channels - old or channels)) ** 0.5 * torch.stack(terms).mean()
