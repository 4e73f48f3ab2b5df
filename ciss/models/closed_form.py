"""Rows of a classifier that follow from features and labels without gradients."""

from collections.abc import Callable
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


def regrouped_solution(
    moment: Tensor, groups: Tensor, first_newer: Tensor, solve: Callable[[Tensor], Tensor], *, rounds: int = 3
) -> tuple[Tensor, Tensor]:
    """The solution of sums whose background is kept in groups, after groups have moved to newer classes.

    A step labels objects of later classes as background. Once the data of such a class are in Q, a group of the
    background moves to this class if its mean has the largest score for it:

        a(g) = 0 at first (the background),   Q'_c = Q_c + sum over groups g with a(g) = c of Q_g,   W = solve(Q')
        a(g) = argmax_c w_c^T m_g over the background and the classes with a feature that came after the step of g
        m_g = Q_g / n_g

    Args:
        moment: (M,C) sums Q of features by class. The last value of a feature is 1. The background's column leaves out
            the groups.
        groups: (M,K) the same sums of groups of the background.
        first_newer: (K,) the first class that came after the step of each group.
        solve: moment (M,C) -> W (M,C).
        rounds: number of assignments, each followed by a new solution.

    Returns: W (M,C), and the class (K,) to which each group was added in it.
    """
    classes = torch.arange(moment.shape[1], device=moment.device)
    possible = (classes == 0) | ((classes >= first_newer[:, None]) & (moment[-1] > 0))
    means = groups / groups[-1].clamp(min=1)
    owners = torch.zeros_like(first_newer)
    solution = solve(moment.index_add(1, owners, groups))
    for _ in range(rounds):
        owners = (means.T @ solution).masked_fill(~possible, -torch.inf).argmax(dim=1)
        solution = solve(moment.index_add(1, owners, groups))
    return solution, owners


def k_means(features: Tensor, groups: int, *, rounds: int = 5) -> Tensor:
    """Centres of groups of features by Lloyd's algorithm. It starts from features at equal distances in the list.

    Shapes: features (N,D) -> (min(groups, N),D). A centre without features keeps its place.
    """
    centres = evenly_spaced(features, groups)
    groups = len(centres)
    for _ in range(rounds if groups else 0):
        nearest = nearest_centres(features, centres)
        counts = torch.zeros(groups, dtype=features.dtype, device=features.device)
        counts.index_add_(0, nearest, torch.ones_like(features[:, 0]))
        sums = torch.zeros_like(centres).index_add_(0, nearest, features)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return centres


def evenly_spaced(values: Tensor, most: int) -> Tensor:
    """At most `most` values at equal distances in their order. Shapes: (N,...) -> (min(most, N),...)."""
    count = min(most, len(values))
    return values[torch.arange(count, device=values.device) * len(values) // max(count, 1)]


def nearest_centres(features: Tensor, centres: Tensor) -> Tensor:
    """The number of the nearest centre of each feature. Shapes: features (N,D), centres (K,D) -> (N,)."""
    rows, biases = nearest_mean_rows(centres)
    return (features @ rows.T + biases).argmax(dim=1)


def expand(features: Tensor, expansion: Tensor) -> Tensor:
    """Random features x = relu(f E). Shapes: features (N,D), expansion (D,M) -> (N,M)."""
    return (features @ expansion).relu()
