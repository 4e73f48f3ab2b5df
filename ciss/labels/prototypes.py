"""Class prototypes: the mean feature of each class, and how near a pixel is to them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import distributed

Unseen = Literal["exclude", "uniform", "zero"]
Scaling = Literal["none", "unit", "width"]


class ClassPrototypes:
    """Mean of all features of each class, whatever the batches they came in (SDR, Michieli & Zanuttigh 2021).

    Sums in float64 and counts in int64, so that batches, parts and processes add up to the same means. Args: classes:
    K, the background first; width: D.
    """

    def __init__(self, classes: int, width: int, device: torch.device | str | None = None):
        self.sums = torch.zeros(classes, width, dtype=torch.float64, device=device)
        self.counts = torch.zeros(classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Adds features (B,D,h,w) by their labels (B,h,w) int64; labels outside 0..K-1 are skipped."""
        if features.shape[:1] + features.shape[2:] != labels.shape or features.shape[1] != self.sums.shape[1]:
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit each other or the width "
                f"{self.sums.shape[1]} of the prototypes."
            )
        classes = torch.arange(len(self.counts), device=labels.device)
        member = classes[:, None] == labels.flatten()  # (K,N)
        # n_c <- n_c + n_b;   S_c <- S_c + sum_{i in b, q_i = c} f_i
        self.counts += member.sum(dim=1)
        points = features.permute(0, 2, 3, 1).flatten(0, 2).to(torch.float64)
        points = points.masked_fill(~member.any(dim=0)[:, None], 0)  # 0 times an infinite feature is no 0
        self.sums += member.to(torch.float64) @ points

    @property
    def means(self) -> Tensor:
        """(K,D) float64; zeros for a class that was never seen: ask `counts` before believing a row."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    def merge(self, other: "ClassPrototypes") -> "ClassPrototypes":
        """Adds another part's features to these; returns self."""
        if self.sums.shape != other.sums.shape:
            raise ValueError(
                f"prototypes of shape {tuple(other.sums.shape)} do not merge into {tuple(self.sums.shape)}."
            )
        self.sums += other.sums.to(self.sums.device)
        self.counts += other.counts.to(self.counts.device)
        return self

    def all_reduce(self) -> "ClassPrototypes":
        """Merges the parts of all processes into every one; returns self."""
        distributed.all_sum(self.sums)
        distributed.all_sum(self.counts)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError for prototypes of another shape."""
        if state["sums"].shape != self.sums.shape:
            raise ValueError(
                f"the stored prototypes are of shape {tuple(state['sums'].shape)}, not {tuple(self.sums.shape)}."
            )
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
    """How much each pixel belongs to each class by its feature's distance to the prototypes: (B,K,h,w), sums to 1.

    Shapes: features (B,D,h,w), prototypes (K,D), counts (K,). A class without a feature (count 0) gets no weight
    (`exclude`), 1/K at pixels whose other weights shrink for it (`uniform`), or stands at the origin (`zero`, as in
    RDP's code, where it attracts). `scaling` of features and prototypes: none, to `unit` length, or by 1/sqrt of the
    `width` D. Without `background` its prototype is left out, and its weight is 0. Source: ProDA (Zhang et al. 2021)
    eq. 5; RDP's code.
    """
    batch, width, height, columns = features.shape
    points = features.permute(0, 2, 3, 1).reshape(1, -1, width).float()
    centres = prototypes.to(points.dtype)
    if scaling == "unit":
        points, centres = F.normalize(points, dim=-1), F.normalize(centres, dim=-1)
    elif scaling == "width":
        points, centres = points / width**0.5, centres / width**0.5
    elif scaling != "none":
        raise ValueError(f"scaling is {scaling!r}. Use 'none', 'unit' or 'width'.")
    # d_{i,c} = || f_i - eta_c ||;   om_{i,c} = exp(-tau d_{i,c}) / sum_c' exp(-tau d_{i,c'})
    distances = torch.cdist(points, centres[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    scores = -distance_scale * distances
    asked = torch.ones_like(counts, dtype=torch.bool)
    if not background:
        asked = torch.arange(len(counts), device=counts.device) > 0
    seen = asked & ((counts > 0) | (unseen == "zero"))
    # with no prototype at all, distance says nothing: equal weights
    scores = torch.where(seen, scores, -torch.inf)
    scores = torch.where(seen.any(), scores, torch.where(asked, 0.0, -torch.inf))
    weights = scores.softmax(dim=-1)
    if unseen == "uniform":
        share = 1 / asked.sum()
        missing = (asked & ~seen).sum() * share
        spread = torch.where(seen, weights * (1 - missing), share * asked)
        weights = torch.where(seen.any(), spread, weights)
    elif unseen not in ("exclude", "zero"):
        raise ValueError(f"unseen is {unseen!r}. Use 'exclude', 'uniform' or 'zero'.")
    return weights.reshape(batch, height, columns, -1).permute(0, 3, 1, 2)
