"""Imports torchvision and timm without torch's compiler, whose import takes as long as that of torch.

Both packages import it for a decorator that keeps a function out of compiled graphs, torchvision also for a question
that only `roi_align` asks. A finder in `sys.meta_path` gives them the decorator and the question without the compiler.
Any other use imports the compiler as usual.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

AFFECTS_RESULTS = False  # changes here do not outdate results, see store/code
COMPILER = "torch._dynamo"
PACKAGES = ("torchvision", "timm")


class StandIn(ModuleType):
    """A module of torch's compiler that is imported at the first use of a name that it does not define."""

    def __getattr__(self, name: str) -> Any:
        # `import torch._dynamo.x` asks the package for __path__. Python asks every module for other special names.
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):
            raise AttributeError(name)
        remove()
        return getattr(resolve_name(self.__name__), name)


def disable(function: Callable | None = None, recursive: bool = True, **_: Any) -> Callable:
    """torch._dynamo.disable, as a decorator: returns the function unchanged."""
    return disable if function is None else function


def is_compile_supported(device: Any) -> bool:
    """torch._dynamo.utils.is_compile_supported, which imports the compiler when it is called."""
    remove()
    return resolve_name(f"{COMPILER}.utils").is_compile_supported(device)


def remove() -> None:
    for name in [name for name, module in sys.modules.items() if isinstance(module, StandIn)]:
        del sys.modules[name]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Puts stand-ins in place of torch's compiler, unless it is imported already or this is inside another block."""
    if COMPILER in sys.modules:
        yield
        return
    for function, name in ((disable, COMPILER), (is_compile_supported, f"{COMPILER}.utils")):
        sys.modules[name] = StandIn(name)
        setattr(sys.modules[name], function.__name__, function)
    try:
        yield
    finally:
        remove()


class LeanLoader(SourceFileLoader):
    """Runs a module inside `without_compiler`."""

    def exec_module(self, module: ModuleType) -> None:
        with without_compiler():
            super().exec_module(module)


class LeanFinder:
    """Finds the modules of `PACKAGES` as usual, for `LeanLoader`."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and type(spec.loader) is SourceFileLoader:  # not a compiled extension
            spec.loader = LeanLoader(name, spec.origin)
        return spec


def install() -> None:
    """Adds the finder, once. Modules that are already imported stay as they are."""
    if LeanFinder not in sys.meta_path:
        sys.meta_path.insert(0, LeanFinder)
