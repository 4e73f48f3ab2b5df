"""Who pulls how hard, and against whom: gradients by class, by step, and by layer."""

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
    """One row for each class: how hard its pixels pull, and what they weigh.

    `magnitudes`, `weights`: arrays (H,W) of each image, the gradient's size in [0, 1] and the weight of each pixel's
    loss; `labels` (H,W): positions, 255 ignored; `introduced` (C,): the step that brought each channel. Columns: class,
    introduced, pixels, gradient (mean over the class's pixels), share (of the sum of all gradients), weight (mean),
    weighted share (of the sum of weight times gradient). A class without pixels has NaN means and a share of 0; where
    no pixel has a gradient, shares are NaN.
    """
    size, weight, label = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (magnitudes, weights, labels))
    size, weight = size.astype(float), weight.astype(float)
    kept = label < len(introduced)  # 255 is none of them
    size, weight, label = size[kept], weight[kept], label[kept]

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(label, weights=values, minlength=len(introduced))

    pixels, gradients, weights_, both = (sums(v) for v in (np.ones(len(label)), size, weight, size * weight))
    rows = pd.DataFrame(
        {
            "class": list(names)[: len(introduced)],
            "introduced": np.asarray(introduced),
            "pixels": pixels.astype(int),
            "gradient": _ratio(gradients, pixels),
            "share": _ratio(gradients, gradients.sum()),
            "weight": _ratio(weights_, pixels),
            "weighted share": _ratio(both, both.sum()),
        }
    )
    return with_classes(rows, names)


def gradients_by_step(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `gradients_by_class` put together by the step that brought their class: means over pixels, sums of
    pixels and shares. The background belongs to step 0."""
    rows = []
    for step, mine in table.groupby("introduced"):
        pixels = mine["pixels"].sum()
        means = {name: float(_ratio((mine[name] * mine["pixels"]).sum(), pixels)) for name in ("gradient", "weight")}
        shares = {name: mine[name].sum(min_count=1) for name in ("share", "weighted share")}
        rows.append({"introduced": step, "pixels": pixels, **means, **shares})
    columns = ["introduced", *table.columns[2:]]
    return pd.DataFrame(rows, columns=columns)


def gradient_conflict(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> pd.DataFrame:
    """Cosine between two losses' gradients in every layer: below 0, what helps one harms the other.

    `one`, `other`: layer -> gradient of its parameters, of any shape, the same layers. Columns: layer, cosine, in
    [-1, 1], norm, other norm. The last row, `all layers`, is of all parameters together. NaN where a gradient is 0.
    """
    if list(one) != list(other):
        raise ValueError(f"the layers differ: {list(one)} and {list(other)}. Give gradients of the same network.")
    rows, sums = [], np.zeros(3)
    for layer in one:
        a, b = (np.ravel(gradients[layer]).astype(float) for gradients in (one, other))
        products = np.array([a @ b, a @ a, b @ b])
        sums += products
        rows.append(_cosine_row(layer, products))
    rows.append(_cosine_row("all layers", sums))
    return pd.DataFrame(rows)


def term_cosines(gradients: dict[str, dict[str, np.ndarray]], layer: str = "all layers") -> pd.DataFrame:
    """Cosines between the gradients of all losses in one layer, or in `all layers`: a square table by their names.

    `gradients`: loss -> layer -> gradient. The diagonal is 1, NaN for a loss without a gradient there.
    """
    layers = list(next(iter(gradients.values())))
    if layer not in (*layers, "all layers"):
        raise ValueError(f"there is no layer {layer!r}. There are {', '.join(layers)}.")
    chosen = layers if layer == "all layers" else [layer]
    gram = sum(np.array([[float(np.vdot(a[k], b[k])) for b in gradients.values()] for a in gradients.values()])
               for k in chosen)  # fmt: skip
    size = np.sqrt(np.diag(gram))
    cosines = _ratio(gram, np.outer(size, size)).clip(-1, 1)
    return pd.DataFrame(cosines, index=list(gradients), columns=list(gradients))


def _cosine_row(layer: str, products: np.ndarray) -> dict:
    both, one, other = products
    cosine = float(np.clip(_ratio(both, np.sqrt(one) * np.sqrt(other)), -1, 1))
    return {"layer": layer, "cosine": cosine, "norm": float(np.sqrt(one)), "other norm": float(np.sqrt(other))}


def _ratio(above, below) -> np.ndarray:
    """NaN instead of a division by 0."""
    below = np.asarray(below, float)
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)
