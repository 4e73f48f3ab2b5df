"""Modules of the package, found by their files."""

import importlib
import pkgutil
from types import ModuleType

from ciss import analysis


def analysis_modules() -> list[ModuleType]:
    """Every module of the analyses."""
    names = [module.name for module in pkgutil.walk_packages(analysis.__path__, f"{analysis.__name__}.")]
    return [importlib.import_module(name) for name in names]
