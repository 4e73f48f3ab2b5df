"""Where classes lie among the features: projections, drift from step to step, what is nearest, what was re-labelled."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ciss.analysis.rows import with_classes

VOID = 255
# what became of a pixel, see `relabelled`
FATES = ("given", "background, rightly", "old class, found", "old class, missed", "wrong class", "ignored")


def principal_components(points: np.ndarray, components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Points (N,D) along their directions of largest variance: coordinates (N,components), centred, and the share of
    the variance that each direction has; 0 where there are fewer directions, or none has any.

    The sign is such that the largest entry of a direction is positive, so that the same points give the same picture.
    """
    points = np.asarray(points, float)
    centred = points - points.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.where(directions[np.arange(len(directions)), largest] < 0, -1, 1)[:, None]
    found = min(components, len(directions))
    coordinates, shares = np.zeros((len(points), components)), np.zeros(components)
    coordinates[:, :found] = centred @ directions[:found].T
    if total := (values**2).sum():
        shares[:found] = values[:found] ** 2 / total
    return coordinates, shares


def neighbour_chances(points: np.ndarray, perplexity: float) -> np.ndarray:
    """t-SNE's joint probabilities (N,N) of points (N,D): symmetric, diagonal 0, sum 1.

    Every point's normal distribution is as wide as gives it `perplexity` neighbours (2 to its entropy in bits).
    """
    points = np.asarray(points, float)
    squared = (points**2).sum(axis=1)
    distances = np.maximum(squared[:, None] + squared - 2 * points @ points.T, 0)
    np.fill_diagonal(distances, np.inf)
    distances -= distances.min(axis=1, keepdims=True)
    low, high = np.full(len(points), -np.inf), np.full(len(points), np.inf)
    mean = np.where(np.isfinite(distances), distances, 0).mean()
    scale = np.full(len(points), 1 / mean if mean > 0 else 1.0)
    for _ in range(50):
        # p_{j|i} = exp(-beta_i d_ij) / sum_k exp(-beta_i d_ik);   H_i = log sum_k exp(.) + beta_i E[d_ij]
        chances = np.exp(-distances * scale[:, None])
        total = chances.sum(axis=1)
        means = (np.where(np.isfinite(distances), distances, 0) * chances).sum(axis=1) / total
        wide = np.log(total) + scale * means > np.log(perplexity)
        low, high = np.where(wide, scale, low), np.where(wide, high, scale)
        middle = np.where(np.isinf(low), high / 2, (low + high) / 2)
        scale = np.where(np.isinf(high), low * 2, middle)
        scale = np.clip(scale, 1e-12, 1e12)
    chances /= chances.sum(axis=1, keepdims=True)
    return (chances + chances.T) / (2 * len(points))


def tsne(points: np.ndarray, *, perplexity: float = 20.0, iterations: int = 300) -> np.ndarray:
    """t-SNE (van der Maaten & Hinton 2008), exact, for a few hundred points (N,D): coordinates (N,2).

    Starts from the principal components, so that the same points give the same picture. Near points stay near; sizes
    of clusters and distances between them say nothing. `perplexity` is at most a third of the points. Fewer than four
    points are left to the principal components.
    """
    start, _ = principal_components(points)
    spread = start[:, 0].std()
    if len(start) < 4 or not spread > 0:
        return start
    wanted = neighbour_chances(points, min(perplexity, (len(start) - 1) / 3)).astype(np.float32)
    placed = (1e-2 * start / spread).astype(np.float32)
    moved, gains = np.zeros_like(placed), np.ones_like(placed)
    rate = max(len(placed) / 12 / 4, 10.0)  # as scikit-learn sets it
    for k in range(iterations):
        pull = 12 if k < 80 else 1  # clusters find each other first
        # q_ij ~ 1 / (1 + |y_i - y_j|^2);   dC/dy_i = 4 sum_j (p_ij - q_ij)(y_i - y_j) / (1 + |y_i - y_j|^2)
        squared = (placed**2).sum(axis=1)
        kernel = 1 / (1 + np.maximum(squared[:, None] + squared - 2 * placed @ placed.T, 0))
        np.fill_diagonal(kernel, 0)
        force = (pull * wanted - kernel / kernel.sum()) * kernel
        gradient = 4 * (force.sum(axis=1)[:, None] * placed - force @ placed)
        gains = np.maximum(np.where(gradient * moved < 0, gains + 0.2, gains * 0.8), 0.01)
        moved = (0.5 if k < 80 else 0.8) * moved - rate * gains * gradient
        placed = placed + moved
    return (placed - placed.mean(axis=0)).astype(float)


def projection_table(
    points: np.ndarray, labels: np.ndarray, means: np.ndarray, counts: np.ndarray, how: str = "pca"
) -> tuple[pd.DataFrame, np.ndarray]:
    """Pixels and prototypes in one plane, and the shares of the variance of its axes (0, 0 for t-SNE).

    `points` (N,D) with `labels` (N,): positions; `means` (S,T,D): prototypes after every step, `counts` (S,T): of how
    many features each is the mean; those of none are left out. Columns: x, y, position, step (-1 for a pixel).
    """
    steps, positions = np.nonzero(counts)
    every = np.concatenate([points, means[steps, positions]])
    if how not in ("pca", "tsne"):
        raise ValueError(f"how is {how!r}. Use 'pca' or 'tsne'.")
    coordinates, shares = principal_components(every) if how == "pca" else (tsne(every), np.zeros(2))
    return pd.DataFrame(
        {
            "x": coordinates[:, 0],
            "y": coordinates[:, 1],
            "position": np.concatenate([labels, positions]).astype(int),
            "step": np.concatenate([np.full(len(points), -1), steps]).astype(int),
        }
    ), shares


def drift_table(
    means: np.ndarray, counts: np.ndarray, spreads: np.ndarray, introduced: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """How far each class's prototype moved in every step, one row for each class and step.

    `means` (S,T,D): after steps 0..S-1, of the same pixels; `counts` (S,T); `spreads` (S,T): how far a class's pixels
    lie from their prototype; `introduced` (T,). Columns: class, introduced, step, drift (distance from the prototype
    after the step before; NaN at step 0), relative (over the spread then), cosine (of the two prototypes). NaN for a
    class without pixels.
    """
    rows = []
    for step in range(len(means)):
        for position, name in enumerate(names):
            drift = relative = cosine = np.nan
            if step and counts[step, position] and counts[step - 1, position]:
                before, after = (np.asarray(means[s, position], float) for s in (step - 1, step))
                drift = float(np.linalg.norm(after - before))
                spread, sizes = spreads[step - 1, position], np.linalg.norm(before) * np.linalg.norm(after)
                relative = drift / spread if spread > 0 else np.nan
                cosine = float(np.clip(before @ after / sizes, -1, 1)) if sizes > 0 else np.nan
            row = {"class": name, "introduced": int(introduced[position]), "step": step}
            rows.append({**row, "drift": drift, "relative": relative, "cosine": cosine})
    return pd.DataFrame(rows)


def distances(points: np.ndarray, means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Euclidean distance (N,T) of points (N,D) to prototypes (T,D); infinite to those of no feature."""
    points, means = np.asarray(points, float), np.asarray(means, float)
    # not by |a|^2 + |b|^2 - 2ab, which loses what is near
    found = np.stack([np.linalg.norm(points - mean, axis=1) for mean in means], axis=1)
    return np.where(np.asarray(counts) > 0, found, np.inf)


def distance_maps(features: np.ndarray, means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`distances` (T,h,w) of an image's features (D,h,w) to prototypes (T,D)."""
    width, *grid = features.shape
    return distances(features.reshape(width, -1).T, means, counts).T.reshape(-1, *grid)


def nearest_confusions(
    points: np.ndarray, labels: np.ndarray, means: np.ndarray, counts: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """Whose prototype each class's pixels are nearest to, one row a class.

    `points` (N,D), `labels` (N,): positions; `means` (T,D), `counts` (T,). Columns: class, pixels, own (share of its
    pixels that are nearest to its own prototype), confused with (the other class most of the rest are nearest to; ""
    where there is no rest), confused (share), neighbour (the class of the nearest other prototype), distance (to it).
    """
    far = distances(means, means, counts)
    np.fill_diagonal(far, np.inf)
    nearest = distances(points, means, counts).argmin(axis=1) if len(points) else np.zeros(0, int)
    rows = []
    for position, name in enumerate(names):
        found = np.bincount(nearest[labels == position], minlength=len(names))
        pixels, own = int(found.sum()), found[position]
        found[position] = 0
        other, near = int(found.argmax()), int(far[position].argmin())
        reached = counts[position] > 0 and np.isfinite(far[position, near])
        rows.append(
            {
                "class": name,
                "pixels": pixels,
                "own": own / pixels if pixels else np.nan,
                "confused with": names[other] if found[other] else "",
                "confused": found[other] / pixels if pixels else np.nan,
                "neighbour": names[near] if reached else "",
                "distance": far[position, near] if reached else np.nan,
            }
        )
    return with_classes(pd.DataFrame(rows), names)


def relabelled(given: np.ndarray, labels: np.ndarray, truth: np.ndarray, old: int) -> np.ndarray:
    """What became of every pixel (.,.) uint8, a number of `FATES`.

    `given`: as the step is told; `labels`: as they are learnt; `truth`; all positions, 255 void. `old`: channels of the
    teacher. A pixel that is told stays `given`. Of the others: background, rightly (the truth is no old class); old
    class, found (the right one) or missed (taught as background); wrong class; ignored.
    """
    background, known = labels == 0, (truth > 0) & (truth < old)
    fate = np.full(np.shape(given), 4, np.uint8)
    fate[labels == truth] = 2
    fate[background & known] = 3
    fate[background & ~known] = 1
    fate[labels == VOID] = 5
    fate[given != 0] = 0
    return fate


def relabel_table(
    given: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    old: int,
    names: Sequence[str],
) -> pd.DataFrame:
    """What the pixels that the step is told are background became, one row for each true class that has any.

    Arrays (H,W) of each image, see `relabelled`. Columns: class, pixels, and shares of them: one of `FATES` but the
    first each.
    """
    parts = [(relabelled(g, l, t, old).ravel(), np.ravel(t)) for g, l, t in zip(given, labels, truth, strict=True)]
    fates, true = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    rows = []
    for position, name in enumerate(names):
        counts = np.bincount(fates[true == position], minlength=len(FATES))[1:]  # what is told counts nowhere
        if pixels := counts.sum():
            rows.append({"class": name, "pixels": int(pixels), **dict(zip(FATES[1:], counts / pixels, strict=True))})
    return with_classes(pd.DataFrame(rows, columns=["class", "pixels", *FATES[1:]]), names)
