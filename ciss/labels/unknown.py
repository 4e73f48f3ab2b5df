"""SSUL: an unknown class beside the background, and pseudo-labels from sigmoids (Cha et al., NeurIPS 2021)."""

import torch
from torch import Tensor

from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE


@torch.no_grad()
def sigmoid_labels(
    labels: Tensor, teacher_rows: Tensor, *, extra: int = 1, threshold: float = 0.7, ignore_index: int = IGNORE
) -> Tensor:
    """Background pixels take the teacher's old class where it has the largest sigmoid of all rows, and a large one.

    Shapes: labels (B,H,W) int64, teacher_rows (B,e+K,H,W): logits of the e `extra` rows (the unknown class), then of
    the K channels -> (B,H,W). All other labels stay. Source: SSUL, eq. 3, and its published code.
    """
    largest, row = at_least_float32(teacher_rows).max(dim=1)
    classes = row - extra
    confident = (labels == 0) & (labels != ignore_index) & (classes > 0) & (largest.sigmoid() >= threshold)
    return torch.where(confident, classes, labels)


@torch.no_grad()
def rows_of_labels(labels: Tensor, salient: Tensor | None = None, *, ignore_index: int = IGNORE) -> Tensor:
    """Labels by row, (B,H,W): 0 the unknown class, 1 the background, c + 1 class c; ignored ones stay.

    A background pixel is unknown where it is salient. Source: SSUL's published code, for Pascal VOC with maps, and for
    ADE20K without.

    Args:
        labels: (B,H,W) int64, channel positions.
        salient: (B,H,W) bool; None: everywhere, so that the background is never a label.
    """
    background = 0 if salient is None else torch.where(salient, 0, 1)
    rows = torch.where(labels == 0, background, labels + 1)
    return torch.where(labels == ignore_index, ignore_index, rows)
