"""Classes in feature space: projections, drift of prototypes, nearest prototypes, and outcomes of new labels."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from ciss.analysis.rows import with_classes
from ciss.protocol import Classes

VOID = 255
# see `label_outcomes`
OUTCOMES = ("given", "background, rightly", "old class, found", "old class, missed", "wrong class", "ignored")


def principal_components(points: np.ndarray, components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of points (N,D). The largest entry of each direction is positive, so that results repeat.

    Returns: centred coordinates (N,components), and the share of the variance of each direction. Both are 0 for
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
    """Coordinates (N,2) of points (N,D) by t-SNE (van der Maaten & Hinton 2008), for a few hundred points.

    It starts from the principal components, so that results repeat. Near points stay near; other distances and sizes
    have no meaning. `perplexity` is at most a third of the number of points. Fewer than four points, and points that
    are all equal, get their principal components.
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

    Args: features (N,D) of pixels and their positions (N,); prototypes (S,T,D) after every step and their numbers of
    features (S,T), of which 0 are left out; how: pca or tsne.

    Returns: a table with the columns x, y, position, step (-1 for a pixel), and the shares.
    """
    steps, positions = np.nonzero(counts)
    vectors = np.concatenate([points, means[steps, positions]])
    if how not in ("pca", "tsne"):
        raise ValueError(f"how is {how!r}. Use 'pca' or 'tsne'.")
    coordinates, shares = principal_components(vectors) if how == "pca" else (tsne(vectors), np.zeros(2))
    table = pd.DataFrame(coordinates, columns=["x", "y"])
    table["position"] = np.concatenate([labels, positions]).astype(int)
    table["step"] = np.concatenate([np.full(len(points), -1), steps]).astype(int)
    return table, shares


def drift_table(means: np.ndarray, counts: np.ndarray, spreads: np.ndarray, classes: Classes) -> pd.DataFrame:
    """Drift of each class's prototype in every step, one row for each step and class.

    Args: prototypes (S,T,D) after steps 0..S-1, of the same pixels; their numbers of features (S,T); root mean square
    distances (S,T) of the features from their prototype.

    Returns: columns class, introduced, step, drift (distance from the prototype after the step before), relative (drift
    over the spread after the step before), cosine (of the two prototypes). NaN at step 0 and without features.
    """
    means, shape = np.asarray(means, float), np.shape(counts)
    drift, relative, cosine = (np.full(shape, np.nan) for _ in range(3))
    both = (counts[1:] > 0) & (counts[:-1] > 0)
    distance = np.linalg.norm(means[1:] - means[:-1], axis=2)
    lengths = np.linalg.norm(means, axis=2)
    lengths = lengths[1:] * lengths[:-1]
    products = (means[1:] * means[:-1]).sum(axis=2)
    np.copyto(drift[1:], distance, where=both)
    np.divide(distance, spreads[:-1], out=relative[1:], where=both & (spreads[:-1] > 0))
    np.divide(products, lengths, out=cosine[1:], where=both & (lengths > 0))
    return pd.DataFrame(
        {
            "class": list(classes.names) * shape[0],
            "introduced": np.tile(classes.steps, shape[0]),
            "step": np.repeat(np.arange(shape[0]), shape[1]),
            "drift": drift.ravel(),
            "relative": relative.ravel(),
            "cosine": cosine.clip(-1, 1).ravel(),
        }
    )


def distances(points: np.ndarray, means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Euclidean distances (N,T) of points (N,D) to prototypes (T,D); infinite for prototypes without features."""
    return np.where(np.asarray(counts) > 0, cdist(points, means), np.inf)


def distance_maps(features: np.ndarray, means: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`distances` (T,h,w) of an image's features (D,h,w) to prototypes (T,D)."""
    width, *grid = features.shape
    return distances(features.reshape(width, -1).T, means, counts).T.reshape(-1, *grid)


def nearest_confusions(
    points: np.ndarray, labels: np.ndarray, means: np.ndarray, counts: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """The nearest prototypes of each class's pixels, one row for each class.

    Args: features (N,D) and their true positions (N,); prototypes (T,D) and their numbers of features (T,).

    Returns: columns class, pixels, own (share of its pixels nearest to its own prototype), confused with (the other
    class that most of the rest are nearest to, or ""), confused (its share), neighbour (the class of the nearest other
    prototype, or ""), distance (to it).
    """
    between = distances(means, means, counts)
    np.fill_diagonal(between, np.inf)
    nearest = distances(points, means, counts).argmin(axis=1) if len(points) else np.zeros(0, int)
    rows = []
    for position, name in enumerate(names):
        pixels = np.bincount(nearest[labels == position], minlength=len(names))
        shares = pixels / pixels.sum() if pixels.any() else np.full(len(names), np.nan)
        others = np.where(np.arange(len(names)) == position, 0, pixels)
        confused, neighbour = int(others.argmax()), int(between[position].argmin())
        known = counts[position] > 0 and np.isfinite(between[position, neighbour])
        rows.append(
            {
                "class": name,
                "pixels": int(pixels.sum()),
                "own": shares[position],
                "confused with": names[confused] if others.any() else "",
                "confused": others[confused] / pixels.sum() if pixels.any() else np.nan,
                "neighbour": names[neighbour] if known else "",
                "distance": between[position, neighbour] if known else np.nan,
            }
        )
    return with_classes(pd.DataFrame(rows), names)


def label_outcomes(given: np.ndarray, labels: np.ndarray, truth: np.ndarray, old: int) -> np.ndarray:
    """Compares the learnt labels with the ground truth: a number of OUTCOMES (.,.) uint8 for every pixel.

    Pixels with a given label other than background are `given`. Pixels without an old class in the ground truth that
    are learnt as background are `background, rightly`.

    Args: given labels, labels that the method learns, ground truth: positions, 255 void; old: channels of the teacher.
    """
    background = labels == 0
    is_old = (truth > 0) & (truth < old)
    conditions = {  # the first one that holds for a pixel is its outcome
        "given": given != 0,
        "ignored": labels == VOID,
        "background, rightly": background & ~is_old,
        "old class, missed": background,
        "old class, found": labels == truth,
    }
    numbers = [OUTCOMES.index(name) for name in conditions]
    return np.select(list(conditions.values()), numbers, OUTCOMES.index("wrong class")).astype(np.uint8)


def relabel_table(given: list, labels: list, truth: list, old: int, names: Sequence[str]) -> pd.DataFrame:
    """Outcomes of the pixels with the given label background, one row for each true class that has any.

    Lists have the arrays of `label_outcomes` for each image. Columns: class, pixels, and shares by OUTCOMES[1:].
    """
    arrays = zip(given, labels, truth, strict=True)
    outcomes = np.concatenate([label_outcomes(*image, old).ravel() for image in arrays])
    true = np.concatenate([np.ravel(array) for array in truth])
    rows = []
    for position, name in enumerate(names):
        counts = np.bincount(outcomes[true == position], minlength=len(OUTCOMES))[1:]
        if pixels := counts.sum():
            shares = dict(zip(OUTCOMES[1:], counts / pixels, strict=True))
            rows.append({"class": name, "pixels": int(pixels), **shares})
    return with_classes(pd.DataFrame(rows, columns=["class", "pixels", *OUTCOMES[1:]]), names)
