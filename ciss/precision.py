"""The lowest precision of losses, labels and full-resolution logits."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32. Sums over pixels exceed the range of float16 and the precision of bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
