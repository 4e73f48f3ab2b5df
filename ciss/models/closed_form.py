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


def second_moments(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of products of features with each other and with their targets, in float64.

    G = sum_i x_i x_i^T sum_c y_ic,   Q = sum_i x_i y_i^T.   A feature whose target is 0 is left out.

    Shapes: features x (N,M), targets y (N,C) -> G (M,M), Q (M,C).
    """
    x, y = features.double(), targets.double()
    return x.T @ (x * y.sum(dim=1, keepdim=True)), x.T @ y


def ridge_solution(gram: Tensor, moment: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Ridge regression of one-hot labels on features, W = (G + gamma I)^-1 Q, in float64.

    Shapes: gram (M,M), moment (M,C) -> (M,C). Source: SegACIL (Li et al. 2025), whose recursion has the same result.
    """
    gram = gram.double()
    identity = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor = torch.linalg.cholesky((gram + gram.T) / 2 + gamma * identity)
    return torch.cholesky_solve(moment.double(), factor)


def balanced_ridge_solution(gram: Tensor, moment: Tensor, *, balance: float, gamma: float = 1.0) -> Tensor:
    """Ridge regression with the weight n_c^-balance for each feature of class c, from the sums of `ridge_solution`.

    The weighted sums would need a matrix for each class. Instead, all classes share their covariance within a class, as
    in linear discriminant analysis:

        m_c = Q_c / n_c,   S = (G - sum_c n_c m_c m_c^T) / N,   v_c = n_c^(1 - balance), scaled to the sum N
        W = (sum_c v_c m_c m_c^T + N S + gamma I)^-1 V,   V_c = v_c m_c

    Shapes: G (M,M), Q (M,C), of features whose last value is 1 -> W (M,C). n_c is the last row of Q. `balance` 0: the
    solution without weights; 1: every class has the same weight. Columns of classes without a feature are 0.
    """
    gram, moment = gram.double(), moment.double()
    counts = moment[-1]
    means = moment / counts.clamp(min=1)
    within = gram - (means * counts) @ means.T  # N S
    shares = torch.where(counts > 0, counts.clamp(min=1) ** (1 - balance), 0)
    weights = shares * (counts.sum() / shares.sum().clamp(min=1))
    return ridge_solution((means * weights) @ means.T + within, means * weights, gamma=gamma)


def expand(features: Tensor, expansion: Tensor) -> Tensor:
    """Random features x = relu(f E). Shapes: features (N,D), expansion (D,M) -> (N,M)."""
    return (features @ expansion).relu()
