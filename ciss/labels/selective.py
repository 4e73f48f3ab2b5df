"""MBS: pseudo-labels for the background from confident predictions of the teacher."""

import torch
from torch import Tensor

from ciss.labels.channels import largest_channel
from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE


@torch.no_grad()
def selective_pseudo_labels(
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    threshold: float = 0.7,
    selective: bool = True,
    probabilities: bool = False,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Background pixels take the teacher's old class where it is confident. Other likely objects are ignored.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,H,W) -> (B,H,W). All other labels stay. Source: MBS (Park et al.,
    ECCV 2024) eq. 1 to 3.

    Args:
        selective: False: nothing is ignored.
        probabilities: `teacher_logits` are probabilities already.
    """
    p = teacher_logits if probabilities else at_least_float32(teacher_logits).softmax(dim=1)
    largest, classes = largest_channel(p)
    background = labels == 0
    # eq. 1: the class k where k > 0 and p'_k >= threshold
    confident = background & (classes > 0) & (largest >= threshold)
    relabelled = torch.where(confident, classes, labels)
    if not selective:
        return relabelled
    # eq. 2 and 3: ignored where the teacher is not confident and p'_0 < sum_{c >= 1} p'_c, which means p'_0 < 1/2
    return relabelled.masked_fill(background & ~confident & (p[:, 0] < 0.5), ignore_index)
