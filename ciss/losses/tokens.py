"""Losses on what a decoder is made of: patch features and class tokens (MBS, Park et al., ECCV 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.precision import at_least_float32


def adaptive_feature_distillation(features: Tensor, teacher_features: Tensor, weights: Tensor) -> Tensor:
    """Squared distance of the teacher's features, each patch by its weight (MBS, eq. 5).

    Shapes: features and teacher_features (B,N,D), weights (B,N) -> scalar: over the width and the number of patches
    with a weight above 0, which is not the sum of weights (published code); 0, with a gradient of 0, without any.
    """
    weights = at_least_float32(weights.detach())
    difference = at_least_float32(features) - at_least_float32(teacher_features.detach())
    # L = sum_{b,j,d} w_bj (P - P')^2 / (D #{w_bj > 0})
    counted = (weights > 0).sum().clamp(min=1) * features.shape[-1]
    return (weights[..., None] * difference.square()).sum() / counted


def orthogonality(class_tokens: Tensor, new_classes: Tensor) -> Tensor:
    """|cosine| of each new token to every other one, other new ones too; only the new tokens move (MBS, section 3.5).

    Shapes: class_tokens (C,D), new_classes (n,) positions -> scalar, mean over the pairs whose cosine is not exactly 0
    (published code); 0 without such pairs. The method multiplies by n / C.
    """
    unit = F.normalize(at_least_float32(class_tokens), dim=1)
    # |u_i . sg(u_j)|,   i new, j != i
    with torch.autocast(unit.device.type, enabled=False):  # it would multiply matrices in half precision
        cosines = (unit[new_classes] @ unit.detach().T).abs()
    others = new_classes[:, None] != torch.arange(len(class_tokens), device=class_tokens.device)
    cosines = torch.where(others, cosines, 0)
    return cosines.sum() / (cosines != 0).sum().clamp(min=1)
