"""Networks without values, to check their names and shapes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ciss.without_compiler import without_compiler


@contextmanager
def without_values() -> Iterator[None]:
    """Tensors that are made inside this context have a shape and no memory.

    torch initialises such tensors by functions that are kept out of compiled graphs, which would import its compiler.
    """
    with torch.device("meta"), without_compiler():
        yield
