"""Tables of gradients by class, by step and by layer."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ciss.analysis.rows import with_classes


def gradients_by_class(
    magnitudes: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    introduced: np.ndarray,
    names: Sequence[str],
) -> pd.DataFrame:
    """Mean gradient magnitude and weight of the pixels of each class.

    Args:
        magnitudes: arrays (...) of each image or batch, gradient magnitudes in [0, 1].
        weights: the weight of each pixel's loss.
        labels: positions, 255 ignored.
        introduced: (C,) the step of each channel.
        names: class names by position.

    Returns: one row for each channel. Columns: class, introduced, pixels, gradient (mean), share (of the sum of all
    gradients), weight (mean), weighted share (of the sum of weight times gradient). NaN for means without pixels and
    for shares without any gradient.
    """
    size, weight, label = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (magnitudes, weights, labels))
    pixels = pd.DataFrame({"size": size, "weight": weight}, dtype=float).assign(label=label, pixels=1)
    pixels["both"] = pixels["size"] * pixels["weight"]
    sums = pixels.groupby("label").sum().reindex(range(len(introduced)), fill_value=0)
    rows = pd.DataFrame(
        {
            "class": list(names)[: len(introduced)],
            "introduced": np.asarray(introduced),
            "pixels": sums["pixels"].astype(int),
            "gradient": _ratio(sums["size"], sums["pixels"]),
            "share": _ratio(sums["size"], sums["size"].sum()),
            "weight": _ratio(sums["weight"], sums["pixels"]),
            "weighted share": _ratio(sums["both"], sums["both"].sum()),
        }
    )
    return with_classes(rows.reset_index(drop=True), names)


def gradients_by_step(table: pd.DataFrame) -> pd.DataFrame:
    """`gradients_by_class` by the step of the classes: means over pixels, sums of pixels and of shares.

    The background belongs to step 0.
    """
    rows = []
    for step, classes in table.groupby("introduced"):
        pixels = classes["pixels"]
        means = {name: float(_ratio((classes[name] * pixels).sum(), pixels.sum())) for name in ("gradient", "weight")}
        shares = {name: classes[name].sum(min_count=1) for name in ("share", "weighted share")}
        rows.append({"introduced": step, "pixels": pixels.sum(), **means, **shares})
    columns = ["introduced", *table.columns[2:]]
    return pd.DataFrame(rows, columns=columns)


def gradient_conflict(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> pd.DataFrame:
    """Cosine of the gradients of two losses in every layer. Below 0, a step against one loss raises the other.

    Args: for each loss, layer to the gradient of its parameters, of any shape. Raises ValueError for different layers.
    Returns: columns layer, cosine, norm, other norm. The last row, `all layers`, is of all parameters together. The
    cosine is NaN where a gradient is 0.
    """
    if list(first) != list(second):
        raise ValueError(f"the layers differ: {list(first)} and {list(second)}. Give gradients of the same network.")
    products = []
    for layer in first:
        a = np.ravel(first[layer]).astype(float)
        b = np.ravel(second[layer]).astype(float)
        products.append((a @ b, a @ a, b @ b))
    dot, square, other_square = np.array([*products, np.sum(products, axis=0)]).T
    norm, other_norm = np.sqrt(square), np.sqrt(other_square)
    cosine = _ratio(dot, norm * other_norm).clip(-1, 1)
    layers = [*first, "all layers"]
    return pd.DataFrame({"layer": layers, "cosine": cosine, "norm": norm, "other norm": other_norm})


def term_cosines(gradients: dict[str, dict[str, np.ndarray]], layer: str = "all layers") -> pd.DataFrame:
    """Cosines between the gradients of all losses in one layer, or in `all layers`: a square table by loss.

    `gradients`: loss to layer to gradient. NaN for losses without a gradient there. Raises ValueError for an unknown
    layer.
    """
    layers = list(next(iter(gradients.values())))
    if layer not in (*layers, "all layers"):
        raise ValueError(f"there is no layer {layer!r}. There are {', '.join(layers)}.")
    chosen = layers if layer == "all layers" else [layer]
    vectors = [np.concatenate([np.ravel(layers[k]) for k in chosen]) for layers in gradients.values()]
    gram = np.array([[float(a @ b) for b in vectors] for a in vectors])
    size = np.sqrt(np.diag(gram))
    cosines = _ratio(gram, np.outer(size, size)).clip(-1, 1)
    return pd.DataFrame(cosines, index=list(gradients), columns=list(gradients))


def _ratio(above, below) -> np.ndarray:
    """NaN instead of a division by 0."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)
