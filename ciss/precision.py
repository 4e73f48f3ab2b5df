"""The least precision in which losses, labels and full-resolution logits are computed."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32: a sum over pixels leaves the range of float16 and the digits of bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
