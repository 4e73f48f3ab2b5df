"""Class prototypes: the mean feature of each class, and weights by the distance to them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import distributed

Unseen = Literal["exclude", "uniform", "zero"]
Scaling = Literal["none", "unit", "width"]


class ClassPrototypes:
    """Mean of all features of each class (SDR, Michieli & Zanuttigh 2021).

    Sums are float64 and counts int64, so that the means do not depend on how images are split into batches.

    Args:
        classes: K, the background first.
        width: D.
    """

    def __init__(self, classes: int, width: int, device: torch.device | str | None = None):
        self.sums = torch.zeros(classes, width, dtype=torch.float64, device=device)
        self.counts = torch.zeros(classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Adds features (B,D,h,w) by their labels (B,h,w) int64. Labels outside 0..K-1 are skipped.

        Raises ValueError for shapes that do not fit.
        """
        if features.shape[:1] + features.shape[2:] != labels.shape or features.shape[1] != self.sums.shape[1]:
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit each other or the width "
                f"{self.sums.shape[1]} of the prototypes."
            )
        classes = torch.arange(len(self.counts), device=labels.device)
        is_class = classes[:, None] == labels.flatten()  # (K,N)
        # n_c <- n_c + n_b;   S_c <- S_c + sum_{i in b, q_i = c} f_i
        self.counts += is_class.sum(dim=1)
        points = features.permute(0, 2, 3, 1).flatten(0, 2).to(torch.float64)
        points = points.masked_fill(~is_class.any(dim=0)[:, None], 0)  # 0 times infinity would be NaN
        self.sums += is_class.to(torch.float64) @ points

    @property
    def means(self) -> Tensor:
        """(K,D) float64; zeros for a class whose count is 0."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    def merge(self, other: "ClassPrototypes") -> "ClassPrototypes":
        """Adds the features of other prototypes; returns self. Raises ValueError for another shape."""
        if self.sums.shape != other.sums.shape:
            raise ValueError(f"prototypes {tuple(other.sums.shape)} do not merge into {tuple(self.sums.shape)}.")
        self.sums += other.sums.to(self.sums.device)
        self.counts += other.counts.to(self.counts.device)
        return self

    def all_reduce(self) -> "ClassPrototypes":
        """Adds up the sums and counts of all processes; returns self."""
        distributed.all_sum(self.sums)
        distributed.all_sum(self.counts)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError for prototypes of another shape."""
        if state["sums"].shape != self.sums.shape:
            raise ValueError(f"stored prototypes {tuple(state['sums'].shape)} do not fit {tuple(self.sums.shape)}.")
        self.sums.copy_(state["sums"])
        self.counts.copy_(state["counts"])


@torch.no_grad()
def distance_weights(
    features: Tensor,
    prototypes: Tensor,
    counts: Tensor,
    *,
    distance_scale: float = 1.0,
    unseen: Unseen = "exclude",
    scaling: Scaling = "none",
    background: bool = True,
) -> Tensor:
    """Weights of the classes at each pixel by the distance of its feature to the prototypes; they sum to 1.

    Shapes: features (B,D,h,w), prototypes (K,D), counts (K,) -> (B,K,h,w). Source: ProDA (Zhang et al. 2021) eq. 5;
    RDP's code.

    Args:
        distance_scale: tau.
        unseen: a class with count 0 has weight 0 (`exclude`), weight 1/K (`uniform`), or its prototype is the origin
            (`zero`, as in RDP's code).
        scaling: of features and prototypes: none, to `unit` length, or by 1/sqrt(D) (`width`).
        background: False: the background has weight 0.
    """
    batch, channels, height, columns = features.shape
    # float64, in which distances from a product of matrices are as exact as those from differences, and much faster
    points = features.permute(0, 2, 3, 1).reshape(-1, channels).double()
    centres = prototypes.to(points.dtype)
    if scaling == "unit":
        points, centres = F.normalize(points, dim=-1), F.normalize(centres, dim=-1)
    elif scaling == "width":
        points, centres = points / channels**0.5, centres / channels**0.5
    elif scaling != "none":
        raise ValueError(f"scaling is {scaling!r}. Use 'none', 'unit' or 'width'.")
    # d_{i,c} = || f_i - eta_c ||;   om_{i,c} = exp(-tau d_{i,c}) / sum_c' exp(-tau d_{i,c'})
    with torch.autocast(points.device.type, enabled=False):
        distances = torch.cdist(points, centres, compute_mode="use_mm_for_euclid_dist").float()
    scores = -distance_scale * distances
    candidates = torch.arange(len(counts), device=counts.device) >= (0 if background else 1)
    has_prototype = candidates & ((counts > 0) | (unseen == "zero"))
    scores = torch.where(has_prototype, scores, -torch.inf)
    # Without any prototype all weights are equal.
    scores = torch.where(has_prototype.any(), scores, torch.where(candidates, 0.0, -torch.inf))
    weights = scores.softmax(dim=-1)
    if unseen == "uniform":
        share = 1 / candidates.sum()
        unseen_share = (candidates & ~has_prototype).sum() * share
        spread = torch.where(has_prototype, weights * (1 - unseen_share), share * candidates)
        weights = torch.where(has_prototype.any(), spread, weights)
    elif unseen not in ("exclude", "zero"):
        raise ValueError(f"unseen is {unseen!r}. Use 'exclude', 'uniform' or 'zero'.")
    return weights.reshape(batch, height, columns, -1).permute(0, 3, 1, 2)
