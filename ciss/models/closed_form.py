"""Rows of a classifier that follow from features and labels without gradients."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Metric = Literal["euclidean", "cosine"]


def nearest_mean_rows(means: Tensor, *, metric: Metric = "euclidean") -> tuple[Tensor, Tensor]:
    """The classifier whose largest logit is that of the nearest mean, or of the largest cosine to a mean.

    Shapes: means (K,D) -> weights (K,D), biases (K,).
    """
    if metric == "cosine":
        return F.normalize(means, dim=1), torch.zeros_like(means[:, 0])
    if metric != "euclidean":
        raise ValueError(f"metric is {metric!r}. Use 'euclidean' or 'cosine'.")
    # |f - mu|^2 = |f|^2 - (2 <mu, f> - |mu|^2)
    return 2 * means, -means.square().sum(dim=1)


def second_moments(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums of products of features with each other and with one-hot labels, in float64.

    Shapes: features (N,M), labels (N,) int64 -> gram (M,M), moment (M,classes). Labels outside 0..classes-1 are left
    out.
    """
    labelled = (labels >= 0) & (labels < classes)
    x = features.double().masked_fill(~labelled[:, None], 0)
    y = (labels[:, None] == torch.arange(classes, device=labels.device)).double()
    return x.T @ x, x.T @ y


def ridge_solution(gram: Tensor, moment: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Ridge regression of one-hot labels on features, W = (G + gamma I)^-1 Q, in float64.

    Shapes: gram (M,M), moment (M,C) -> (M,C). Source: SegACIL (Li et al. 2025), whose recursion has the same result.
    """
    gram = gram.double()
    identity = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor = torch.linalg.cholesky((gram + gram.T) / 2 + gamma * identity)
    return torch.cholesky_solve(moment.double(), factor)


def expand(features: Tensor, expansion: Tensor) -> Tensor:
    """Random features x = relu(f E). Shapes: features (N,D), expansion (D,M) -> (N,M)."""
    return (features @ expansion).relu()
