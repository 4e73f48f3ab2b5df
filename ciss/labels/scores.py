"""Pseudo-labels from scores that are no probabilities."""

import torch
from torch import Tensor


@torch.no_grad()
def labels_above(labels: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Background pixels take the class with the largest score, if it is not the background and reaches the threshold.

    Shapes: labels (B,H,W) int64, scores (B,K,H,W) with the background first -> (B,H,W).
    """
    largest, winners = scores.max(dim=1)
    confident = (labels == 0) & (winners > 0) & (largest >= threshold)
    return torch.where(confident, winners, labels)
