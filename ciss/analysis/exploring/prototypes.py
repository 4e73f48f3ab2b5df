"""Where classes lie among the features: projections, drift from step to step, what is nearest, what was re-labelled."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ciss.analysis.rows import with_classes
from ciss.protocol import Classes

VOID = 255
# what became of a pixel, see `relabelled`
FATES = ("given", "background, rightly", "old class, found", "old class, missed", "wrong class", "ignored")


def principal_components(points: np.ndarray, components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of points.

    The largest entry of each direction is positive, so that the same points give the same figure.

    Args:
        points: (N,D).
        components: number of directions.

    Returns: centred coordinates (N,components), and the share of the variance that each direction has. Both are 0 for
    directions that do not exist and for points that are all equal.
    """
    from sklearn.decomposition import PCA

    points = np.asarray(points, float)
    coordinates = np.zeros((len(points), components))
    shares = np.zeros(components)
    directions = min(components, *points.shape)
    if (points != points[0]).any():
        pca = PCA(directions, svd_solver="full")
        coordinates[:, :directions] = pca.fit_transform(points)
        shares[:directions] = pca.explained_variance_ratio_
    return coordinates, shares


def tsne(points: np.ndarray, *, perplexity: float = 20.0) -> np.ndarray:
    """t-SNE (van der Maaten & Hinton 2008) of a few hundred points (N,D): coordinates (N,2).

    It starts from the principal components, so that the same points give the same figure. Near points stay near. Sizes
    of clusters and distances between them mean nothing. `perplexity` is at most a third of the number of points. Of
    fewer than four points, and of points that are all equal, the principal components are returned.
    """
    from sklearn.manifold import TSNE

    start, _ = principal_components(points)
    spread = start[:, 0].std()
    if len(start) < 4 or not spread > 0:
        return start
    perplexity = min(perplexity, (len(start) - 1) / 3)
    model = TSNE(perplexity=perplexity, init=1e-4 * start / spread, method="exact", max_iter=400)
    return model.fit_transform(np.asarray(points, float)).astype(float)


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


def drift_table(means: np.ndarray, counts: np.ndarray, spreads: np.ndarray, classes: Classes) -> pd.DataFrame:
    """How far each class's prototype moved in every step, one row for each class and step.

    `means` (S,T,D): after steps 0..S-1, of the same pixels; `counts` (S,T); `spreads` (S,T): how far a class's pixels
    lie from their prototype. Columns: class, introduced, step, drift (distance from the prototype
    after the step before; NaN at step 0), relative (over the spread then), cosine (of the two prototypes). NaN for a
    class without pixels.
    """
    rows = []
    for step in range(len(means)):
        for position, name in enumerate(classes.names):
            drift = relative = cosine = np.nan
            if step and counts[step, position] and counts[step - 1, position]:
                before, after = (np.asarray(means[s, position], float) for s in (step - 1, step))
                drift = float(np.linalg.norm(after - before))
                spread, sizes = spreads[step - 1, position], np.linalg.norm(before) * np.linalg.norm(after)
                relative = drift / spread if spread > 0 else np.nan
                cosine = float(np.clip(before @ after / sizes, -1, 1)) if sizes > 0 else np.nan
            row = {"class": name, "introduced": int(classes.steps[position]), "step": step}
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
