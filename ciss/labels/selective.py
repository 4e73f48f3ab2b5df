"""MBS: labels of the background from the teacher, of old and of background pixels apart."""

import torch
from torch import Tensor

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
    """Background pixels take the teacher's class where it is confident; other pixels of objects are ignored.

    Shapes: labels (B,H,W) int64, teacher_logits (B,K,H,W) -> (B,H,W). Any label but 0 stays. `selective` off: nothing
    is ignored. `probabilities`: in the place of the logits stands their softmax. Source: MBS (Park et al., ECCV 2024)
    eq. 1 to 3.
    """
    p = teacher_logits if probabilities else at_least_float32(teacher_logits).softmax(dim=1)
    best, found = p.max(dim=1)
    background = labels == 0
    # eq. 1: the teacher's old class k where k > 0 and p'_k >= threshold
    taken = background & (found > 0) & (best >= threshold)
    chosen = torch.where(taken, found, labels)
    if not selective:
        return chosen
    # eq. 2 and 3: ignored where no class was taken and p'_0 < sum_{c >= 1} p'_c, that is p'_0 < 1/2
    objects = p[:, 0] < 0.5
    return chosen.masked_fill(background & ~taken & objects, ignore_index)
