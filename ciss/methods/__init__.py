"""The methods. A new method is a file in this folder with one class; nothing else changes."""

import importlib
import traceback
from pathlib import Path

from ciss.documents import ConfigError, choose
from ciss.methods.base import Batch, Method

AFFECTS_RESULTS = False  # changes here do not outdate results, see store/code

FIRST = ("finetune", "joint", "frozen", "mib", "plop", "gsc", "mbs", "gsc_mbs")  # order in tables; others by name

NO_METHODS = ("__init__", "base", "hosts")  # files that several methods share

METHODS: dict[str, type[Method]] = {}  # by the name of the file
BROKEN: dict[str, str] = {}  # message for each file that defines no method; the other methods stay usable

__all__ = ["BROKEN", "METHODS", "Batch", "Method", "code_of", "method_class"]


def code_of(name: str) -> str:
    """The method of a section under `methods`: its name before the first dash (`gsc-clamped`: gsc)."""
    return name.partition("-")[0]


def method_class(name: str) -> type[Method]:
    """The class of a method or variant. Raises ConfigError for an unknown name and for a broken file."""
    code = code_of(name)
    if code in METHODS:
        return METHODS[code]
    raise ConfigError(BROKEN.get(code) or f"there is no method {code!r}. {choose(code, METHODS)}")


def _load(file: Path) -> type[Method]:
    """The method that a file defines. Raises ConfigError with file, line and problem."""
    place = f"ciss/methods/{file.name}"
    try:
        module = importlib.import_module(f"{__name__}.{file.stem}")
    except Exception as error:  # any error of the file's code
        raise ConfigError(f"{place}{_line(error, file)}: {type(error).__name__}: {error}. Correct the file.") from None
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Method)]
    classes = [kind for kind in classes if kind.__module__ == module.__name__]
    if len(classes) > 1:  # helpers and the method, which has the name of the file
        classes = [kind for kind in classes if kind.__name__.lower() == file.stem.replace("_", "").lower()] or classes
    if len(classes) != 1:
        names = ", ".join(kind.__name__ for kind in classes) or "none"
        raise ConfigError(f"{place}: needs one class derived from Method, or one named after the file; it has {names}.")
    if "__dataclass_fields__" not in vars(classes[0]):
        raise ConfigError(f"{place}: {classes[0].__name__} needs the decorator @coefficients above its class line.")
    return classes[0]


def _line(error: Exception, file: Path) -> str:
    """ ", line N" of the file where its import failed."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""


def _discover() -> None:
    files = [file for file in Path(__file__).parent.glob("*.py") if file.stem.isidentifier()]
    names = {file.stem: file for file in sorted(files) if file.stem not in NO_METHODS}
    for name in dict.fromkeys([*(name for name in FIRST if name in names), *names]):
        try:
            METHODS[name] = _load(names[name])
            globals()[METHODS[name].__name__] = METHODS[name]  # from ciss.methods import MiB
        except ConfigError as error:
            BROKEN[name] = str(error)


_discover()
