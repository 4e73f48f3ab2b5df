"""The methods. A new one is a file of this folder with one class; nothing else has to be changed."""

import importlib
import traceback
from dataclasses import is_dataclass
from pathlib import Path

from ciss.documents import ConfigError, choose
from ciss.methods.base import Batch, Method

AFFECTS_RESULTS = False  # a change here trains nothing again, see store/code

FIRST = ("finetune", "joint", "frozen", "mib", "plop", "gsc", "mbs", "gsc_mbs")  # in tables; then the others by name

METHODS: dict[str, type[Method]] = {}  # by the name of the file
BROKEN: dict[str, str] = {}  # files that give no method, with what is wrong; the other methods stay usable

__all__ = ["BROKEN", "METHODS", "Batch", "Method", "code_of", "method_class"]


def code_of(name: str) -> str:
    """The code a section under `methods` is for: what stands before the first dash (`gsc-clamped`: gsc)."""
    return name.partition("-")[0]


def method_class(name: str) -> type[Method]:
    """The class of a method, or of a variant of one. Raises ConfigError for an unknown name and for a broken file."""
    code = code_of(name)
    if code in METHODS:
        return METHODS[code]
    raise ConfigError(BROKEN.get(code) or f"there is no method {code!r}. {choose(code, METHODS)}")


def _load(file: Path) -> type[Method]:
    """The method that a file defines. Raises ConfigError naming file, line and what is wrong."""
    place = f"ciss/methods/{file.name}"
    try:
        module = importlib.import_module(f"{__name__}.{file.stem}")
    except Exception as error:  # whatever somebody's code raises
        raise ConfigError(f"{place}{_line(error, file)}: {type(error).__name__}: {error}. Correct the file.") from None
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Method)]
    own = [kind for kind in own if kind.__module__ == module.__name__]
    if len(own) > 1:  # helpers beside the method, whose name is that of the file
        own = [kind for kind in own if kind.__name__.lower() == file.stem.replace("_", "").lower()] or own
    if len(own) != 1:
        names = ", ".join(kind.__name__ for kind in own) or "none"
        raise ConfigError(f"{place}: needs one class derived from Method, or one named after the file; it has {names}.")
    if not is_dataclass(own[0]):
        raise ConfigError(f"{place}: {own[0].__name__} needs the decorator @coefficients above its class line.")
    return own[0]


def _line(error: Exception, file: Path) -> str:
    """ ", line N" where an import failed inside of a file."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""


def _discover() -> None:
    files = [file for file in Path(__file__).parent.glob("*.py") if file.stem.isidentifier()]
    names = {file.stem: file for file in sorted(files) if file.stem not in ("__init__", "base")}
    for name in dict.fromkeys([*(name for name in FIRST if name in names), *names]):
        try:
            METHODS[name] = _load(names[name])
            globals()[METHODS[name].__name__] = METHODS[name]  # from ciss.methods import MiB
        except ConfigError as error:
            BROKEN[name] = str(error)


_discover()
