"""Local pooled outputs distillation (PLOP, Douillard, Chen, Dapogny, Cord; CVPR 2021, arXiv 2011.11390)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.losses.distillation import count_old_channels
from ciss.precision import at_least_float32


def local_pod(features: Tensor, teacher_features: Tensor, *, scales: tuple[int, ...] = (1, 2, 4)) -> Tensor:
    """Distance of the means over width and over height of squared maps, in s x s cells for each scale s.

    Shapes: features and teacher_features (B,D,h,w) -> scalar, mean over images of the L2 norm; 0, with a gradient of 0,
    for equal maps. Where s does not divide a side, cells overlap by a row or column. Source: PLOP eq. 5 and 6; the
    square is in the published code.
    """
    features, teacher_features = at_least_float32(features), at_least_float32(teacher_features.detach())
    # Pooling is linear: pool(f^2) - pool(f'^2) = pool(f^2 - f'^2)
    difference = features.square() - teacher_features.square()
    height, width = difference.shape[-2:]
    parts = []
    for scale in scales:
        # every row's mean over the width of each cell, every column's over the height
        parts.append(F.adaptive_avg_pool2d(difference, (height, min(scale, width))).flatten(1))
        parts.append(F.adaptive_avg_pool2d(difference, (min(scale, height), width)).flatten(1))
    return torch.linalg.vector_norm(torch.cat(parts, dim=1), dim=1).mean()


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
