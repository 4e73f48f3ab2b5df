"""Networks without values: their names and shapes can be checked without memory, and in milliseconds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Methods that set values, and keep the shape.
INITIALISING = {getattr(Tensor, f"{name}_") for name in "normal uniform erfinv clamp add sub mul div fill zero".split()}


class SkipInitialisation(TorchFunctionMode):
    """Leaves out what on the meta device would import torch's compiler, and has no result there."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in INITIALISING or getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if function is torch.randn else function)(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Tensors that are made inside this context have a shape and no memory."""
    with torch.device("meta"), SkipInitialisation():
        yield
