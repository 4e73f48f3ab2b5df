"""Confusion matrix, IoU under every published convention, and forgetting.

The published numbers of this field differ in five choices: whether the background is averaged, whether pixels without a
label count as background, what becomes of future classes' pixels, which absent or failed classes count, and at which
resolution images are scored. A `Convention` holds the first four. The confusion matrix decides the last.

IoU is in 0..1 and NaN where it is undefined. All functions take tensors or numpy arrays. The rows of a confusion matrix
are true classes, its columns predicted ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

FUTURE = ("ignore", "background")
OVER = {  # classes that count in a mean, in words
    "present": "present in truth or prediction",
    "truth": "present in truth",
    "nonzero": "with an IoU above 0",
    "all": "known, absent ones as 0",
}


@dataclass(frozen=True)
class Convention:
    """How mIoU is computed from a confusion matrix."""

    background: bool = True  # position 0 counts in `all`
    in_old: bool = False  # position 0 counts in `old`
    unlabelled: bool = True  # pixels whose true position is 0 count; if not, predictions there are no error
    future: str = "ignore"  # of `FUTURE`
    over: str = "present"  # of `OVER`
    parts: str = ""  # of `OVER`, for `old` and `new`, where it is not `over`

    def sentence(self, resolution: str = "", images: str = "the full validation set") -> str:
        """The whole convention in words, for a table. `resolution`: see `resolution`; `images`: see `scored_images`."""
        names = [name for name, counts in (("all", self.background), ("old", self.in_old)) if counts]
        background = f"in {' and '.join(f'`{name}`' for name in names)} alone" if names else "nowhere"
        pixels = "" if self.unlabelled else ", unlabelled pixels left out"
        future = "ignored" if self.future == "ignore" else "scored as background"
        absent = " A class that only the prediction has, of one pixel even, counts as 0." * (self.over == "present")
        parts = self.parts and f" (`old` and `new` over those {OVER[self.parts]})"
        return (
            f"mIoU in 0..1 from one confusion matrix over {images}{resolution and f' at {resolution}'}"
            f"{pixels}, future classes' pixels {future}, averaged over the classes {OVER[self.over]}{parts}."
            f"{absent} The background counts {background}. `old`: the base classes; `new`: all later ones so far."
        )


# The conventions of published tables, by the names of the first publications.
CONVENTIONS = {
    "ciss": Convention(),  # this project's
    "mib": Convention(background=False, over="truth"),  # MiB's author, issue 21 of its repository
    "plop": Convention(in_old=True, future="background", over="truth"),  # and DKD, RCIL, REMINDER, GSC, STAR
    "ssul": Convention(in_old=True),
    "mbs": Convention(background=False, over="nonzero", parts="all"),
}
UNLABELLED = ("ciss", "mib", "mbs")  # these leave unlabelled pixels out where no class is background


def conventions(background: bool = True) -> dict[str, Convention]:
    """`CONVENTIONS` for a data set whose position 0 is a class, or only unlabelled pixels (ADE20K, Cityscapes, CamVid).

    `UNLABELLED` leave such pixels out, and this project does not count them as a class. PLOP and SSUL do.
    """
    if background:
        return CONVENTIONS
    changed = {name: replace(CONVENTIONS[name], unlabelled=False) for name in UNLABELLED}
    return {**CONVENTIONS, **changed, "ciss": replace(changed["ciss"], background=False)}


def confusion_matrix(
    labels: Tensor | np.ndarray,
    predictions: Tensor | np.ndarray,
    classes: int,
    *,
    ignore_index: int = 255,
    future: str = "ignore",
) -> Tensor:
    """(C,C) int64 counts of pixels, rows = truth, on the device of the inputs.

    Args:
        labels, predictions: integers of one shape. Predictions must lie in 0..C-1 at every pixel that counts.
        classes: C, background included.
        ignore_index: label of pixels that do not count.
        future: labels >= C do not count with "ignore" (MiB, SSUL, MBS), and are 0 with "background" (PLOP, DKD).

    Raises: ValueError for an unknown `future`, shapes that differ, inputs that are no integers and impossible values.
    On CUDA impossible values fail as an asynchronous device assertion, so that the host never waits for the device.
    """
    _check(future, FUTURE, "future")
    labels, predictions = torch.as_tensor(labels), torch.as_tensor(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and predictions {tuple(predictions.shape)} differ in shape")
    if labels.is_floating_point() or predictions.is_floating_point():
        raise ValueError(f"labels ({labels.dtype}) and predictions ({predictions.dtype}) must be integers")
    # int64 before any arithmetic: truth * C + prediction overflows bytes
    truth, predicted = labels.flatten().long(), predictions.flatten().long()

    counted = truth != ignore_index
    if future == "ignore":
        counted = counted & (truth < classes)
    else:
        truth = torch.where(truth < classes, truth, 0)
    valid = ~counted | ((truth >= 0) & (predicted >= 0) & (predicted < classes))
    problem = f"labels must not be negative and predictions must lie in 0..{classes - 1}"
    if valid.device.type != "cpu":
        torch._assert_async(valid.all(), problem)
    elif not valid.all():
        raise ValueError(problem)

    # cell = truth * C + prediction; pixels that do not count share one more cell, as masking would make the host wait
    cell = torch.where(counted, truth * classes + predicted, classes * classes)
    # not bincount: on CUDA it reads the largest value back to size its result
    counts = torch.zeros(classes * classes + 1, dtype=torch.int64, device=cell.device)
    counts.scatter_add_(0, cell, torch.ones_like(cell[:1]).expand_as(cell))
    return counts[:-1].view(classes, classes)


def class_iou(confusion: Tensor | np.ndarray) -> Tensor:
    """(C,) float64 from (C,C) counts; NaN for a class with neither truth nor prediction."""
    matrix = _square(confusion).double()
    intersection = matrix.diagonal()
    # IoU_c = n_cc / (sum_j n_cj + sum_i n_ic - n_cc); 0 / 0 is the NaN of an absent class
    return intersection / (matrix.sum(dim=1) + matrix.sum(dim=0) - intersection)


def mean_iou(
    confusion: Tensor | np.ndarray,
    *,
    classes: Iterable[int] | None = None,
    background: bool = True,
    over: str = "present",
) -> float:
    """Mean IoU of (C,C) counts over a selection of positions; NaN if the selection is empty.

    Args: classes: positions to average (default: all); background: whether position 0 may count; over: which count:

    * present: those in truth or prediction (the nanmean of SSUL's family);
    * truth: those in truth (MiB, PLOP);
    * nonzero: those with IoU above 0 (MBS); a class that is forgotten entirely does not count, so the mean rises;
    * all: every one, absent classes as 0.

    Raises: ValueError for an unknown `over`, a position outside 0..C-1 and a matrix that is not square.
    """
    _check(over, OVER, "over")
    matrix = _square(confusion)
    iou = class_iou(matrix)
    positions = range(len(iou)) if classes is None else [int(position) for position in classes]
    if foreign := [position for position in positions if not 0 <= position < len(iou)]:
        raise ValueError(f"positions {foreign} are outside 0..{len(iou) - 1}")
    selected = torch.zeros_like(iou, dtype=torch.bool)
    selected[list(positions)] = True
    if not background:
        selected[0] = False
    if over != "all":
        selected &= {"present": ~iou.isnan(), "truth": matrix.sum(dim=1) > 0, "nonzero": iou > 0}[over]
    return iou.nan_to_num(0.0)[selected].mean().item()


def seen(confusion: Tensor | np.ndarray, classes: int, *, future: str = "ignore") -> Tensor:
    """(C,C): the matrix of the first C = `classes` channels, from one (T,T) over all classes of the benchmark.

    It equals `confusion_matrix(..., classes, future=future)` of the same pixels. So one matrix a step serves both kinds
    of `future`. Raises ValueError if a class without a channel (position >= C) was predicted.
    """
    _check(future, FUTURE, "future")
    matrix = _square(confusion)
    if not 1 <= classes <= len(matrix):
        raise ValueError(f"{classes} classes cannot be taken from a matrix of {len(matrix)}")
    if impossible := matrix[:, classes:].sum(dim=0).nonzero().flatten().tolist():
        raise ValueError(f"{classes} channels cannot predict positions {[classes + column for column in impossible]}")
    reduced = matrix[:classes, :classes].clone()
    if future == "background":
        reduced[0] += matrix[classes:, :classes].sum(dim=0)
    return reduced


def scores(
    confusion_full: Tensor | np.ndarray,
    groups_sizes: Sequence[int],
    step: int,
    convention: Convention = CONVENTIONS["ciss"],
) -> dict[str, float]:
    """The mIoU of all, old and new classes after `step`, and the harmonic mean of the last two.

    * all: every class so far;
    * old: the base classes, those of step 0;
    * new: all later classes so far, never the background; NaN while there are none;
    * harmonic: 2 old new / (old + new) (DKD, NeurIPS 2022), 0 if both are 0.

    Args: confusion_full: (T,T) over all classes of the benchmark; groups_sizes: `Classes.sizes`, so T = 1 + their sum;
    step: from 0; steps after the last group (domain setting) add no class.

    Raises: ValueError if sizes and matrix do not fit, for a negative step, and as `seen` does.
    """
    ends = [1 + total for total in accumulate(groups_sizes)]
    if not ends or ends[-1] != len(confusion_full):
        raise ValueError(f"a matrix of {len(confusion_full)} classes does not fit groups of {list(groups_sizes)}")
    if step < 0:
        raise ValueError(f"step {step} is negative")
    known = ends[min(step, len(ends) - 1)]
    matrix = seen(confusion_full, known, future=convention.future)
    if not convention.unlabelled:
        matrix[0] = 0
    parts = convention.parts or convention.over
    old = mean_iou(matrix, classes=range(0 if convention.in_old else 1, ends[0]), over=parts)
    new = mean_iou(matrix, classes=range(ends[0], known), over=parts)
    return {
        "all": mean_iou(matrix, background=convention.background, over=convention.over),
        "old": old,
        "new": new,
        "harmonic": 2 * old * new / (old + new) if old + new != 0 else 0.0,
    }


def resolution(evaluation: Mapping, crop: int) -> str:
    """At which size images are scored, in words. `evaluation`: that section, by key; `crop`: `train.crop`, pixels."""
    words = {
        "full": "full resolution",
        "window": f"full resolution in windows of {crop} pixels",
        "crop": f"{crop}-pixel centre crops",
    }[evaluation["size"]]
    if tuple(evaluation["scales"]) != (1.0,):
        words += f", scales {', '.join(f'{scale:g}' for scale in evaluation['scales'])} averaged"
    return f"{words}, mirrored too" if evaluation["flip"] else words


def scored_images(setting: str, legacy: bool) -> str:
    """Which images are scored, in words. `legacy`: see `protocol.split_domains`."""
    if setting != "domain":
        return "the full validation set"
    anew = ", drawn anew after every step, so that some were trained on" if legacy else ""
    return f"the test images of the domains so far{anew},"


def forgetting(ious: Tensor | np.ndarray, steps: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    """(T,) float64: the best IoU of each class after an earlier step, minus its IoU after the last step.

    Values from before a class was introduced do not count. Negative where a class improved. NaN for the classes of the
    last step, for later ones, and where an IoU is undefined. Source: Chaudhry et al., arXiv 1801.10112, for accuracy.

    Args: ious: (S,T) IoU of each class after each of S steps, NaN where undefined; steps: (T,) the step that introduced
    each class (`Classes.steps`). Raises: ValueError for shapes that do not fit.
    """
    values, steps = torch.as_tensor(ious).double(), torch.as_tensor(steps)
    if values.ndim != 2 or steps.shape != values.shape[1:] or len(values) == 0:
        raise ValueError(f"IoU of shape (S,T) and steps (T,) expected, got {tuple(values.shape)}, {tuple(steps.shape)}")
    earlier = values[:-1]
    learnt = torch.arange(len(earlier), device=values.device)[:, None] >= steps.to(values.device)
    nothing = torch.full_like(values[:1], -torch.inf)
    # f_c = max_{t_c <= t < S-1} IoU_c(t) - IoU_c(S-1)
    best = torch.cat([torch.where(learnt & ~earlier.isnan(), earlier, -torch.inf), nothing]).amax(dim=0)
    return torch.where(best.isinf(), torch.nan, best - values[-1])


def mean_forgetting(ious: Tensor | np.ndarray, steps: Tensor | np.ndarray | Sequence[int]) -> float:
    """Mean of `forgetting` over the old classes, background (position 0) left out; NaN if there is none."""
    return forgetting(ious, steps)[1:].nanmean().item()


def backward_transfer(ious: Tensor | np.ndarray, steps: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    """(T,) float64: the IoU of each class after the last step, minus its IoU after the step that introduced it.

    Arguments, NaN and errors as in `forgetting`. Source: Lopez-Paz and Ranzato, arXiv 1706.08840, for accuracy.
    """
    undefined = forgetting(ious, steps).isnan()
    values, steps = torch.as_tensor(ious).double(), torch.as_tensor(steps).to(undefined.device)
    # b_c = IoU_c(S-1) - IoU_c(t_c)
    learnt = values.gather(0, steps.clamp(max=len(values) - 1)[None].long())[0]
    return torch.where(undefined, torch.nan, values[-1] - learnt)


def mean_backward_transfer(ious: Tensor | np.ndarray, steps: Tensor | np.ndarray | Sequence[int]) -> float:
    """Mean of `backward_transfer` over the old classes, background (position 0) left out; NaN if there is none."""
    return backward_transfer(ious, steps)[1:].nanmean().item()


def label_scores(matrix: np.ndarray) -> dict[str, float]:
    """How right pseudo-labels are; NaN without pixels.

    * precision: of the pixels labelled as an old class, the share that is that class;
    * recall: of the pixels that are an old class, the share labelled so;
    * relabelled, ignored: shares of all pixels.

    Args: matrix: (T,K+1) counts of pixels: rows truth, columns labels, the last one ignored.
    """
    matrix = np.asarray(matrix, float)
    old, total = matrix.shape[1] - 1, matrix.sum()
    right = np.diag(matrix)[1:old].sum()
    labelled, true = matrix[:, 1:old].sum(), matrix[1:old].sum()
    return {
        "precision": right / labelled if labelled else np.nan,
        "recall": right / true if true else np.nan,
        "relabelled": labelled / total if total else np.nan,
        "ignored": matrix[:, old].sum() / total if total else np.nan,
    }


def _check(value: str, choices: Iterable[str], name: str) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; there are {', '.join(choices)}")


def _square(confusion: Tensor | np.ndarray) -> Tensor:
    matrix = torch.as_tensor(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a square confusion matrix is needed, got {tuple(matrix.shape)}")
    return matrix
