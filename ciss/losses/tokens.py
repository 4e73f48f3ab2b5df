"""Losses on patch features and class tokens (MBS, Park et al., ECCV 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.precision import at_least_float32


def adaptive_feature_distillation(features: Tensor, teacher_features: Tensor, weights: Tensor) -> Tensor:
    """Squared distance to the teacher's features, weighted by patch.

    Shapes: features and teacher_features (B,N,D), weights (B,N) -> scalar, mean over the width and the patches with a
    weight above 0 (their number, not the sum of weights: published code); 0, with a gradient of 0, without any.
    Source: MBS, eq. 5.
    """
    weights = at_least_float32(weights.detach())
    difference = at_least_float32(features) - at_least_float32(teacher_features.detach())
    # L = sum_{b,j,d} w_bj (P - P')^2 / (D #{w_bj > 0})
    counted = (weights > 0).sum().clamp(min=1) * features.shape[-1]
    return (weights[..., None] * difference.square()).sum() / counted


def orthogonality(class_tokens: Tensor, new_classes: Tensor) -> Tensor:
    """|cosine| of each new token to every other token, other new ones too. Only new tokens get a gradient.

    Shapes: class_tokens (C,D), new_classes (n,) positions -> scalar, mean over the pairs whose cosine is not exactly 0
    (published code); 0 without such pairs. The method multiplies by n / C. Source: MBS, section 3.5.
    """
    unit = F.normalize(at_least_float32(class_tokens), dim=1)
    # |u_i . sg(u_j)|,   i new, j != i
    with torch.autocast(unit.device.type, enabled=False):  # it would multiply matrices in half precision
        cosines = (unit[new_classes] @ unit.detach().T).abs()
    others = new_classes[:, None] != torch.arange(len(class_tokens), device=class_tokens.device)
    cosines = torch.where(others, cosines, 0)
    return cosines.sum() / (cosines != 0).sum().clamp(min=1)


def context_hinge(token: Tensor, sources: Tensor, *, margin: float = 1.0) -> Tensor:
    """How far a new token is inside the margin around the tokens that it started from.

    Shapes: token (D,), sources (s,D) -> scalar, mean over the sources; 0 without any. At distance 0 the gradient is 0.
    Source: SELECT (Gupta et al., BMVC 2026), L_ct.
    """
    squares = (at_least_float32(token) - at_least_float32(sources)).square().sum(dim=1)
    apart = squares > 0
    distances = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
    # L = 1/s sum_c max(0, M - ||e_k - e_c||)
    return (margin - distances).clamp(min=0).sum() / max(1, len(sources))
