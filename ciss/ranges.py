"""Values that `ciss tune` tries for a coefficient, declared beside it in the method's class:

    distillation: Annotated[NonNegativeFloat, Range(1, 100, log=True)] = 10.0
    initialisation: Annotated[Literal["balanced", "default"], Choices()] = "balanced"

A coefficient without a declaration is not tuned. A change of a declaration trains nothing again, see store/code.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

AFFECTS_RESULTS = False


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`. `log`: drawn by their logarithm."""

    low: float
    high: float
    log: bool = False

    def __contains__(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True, init=False)
class Choices:
    """Single values. Without arguments: all values of the type, which is then `bool` or a `Literal`."""

    values: tuple

    def __init__(self, *values: Any):
        object.__setattr__(self, "values", values)

    def __contains__(self, value: Any) -> bool:
        return plain(value) in map(plain, self.values)

    def __str__(self) -> str:
        return ", ".join(str(plain(value)) for value in self.values)


def plain(value: Any) -> Any:
    """A value as a parameter file has it: lists instead of tuples."""
    return [plain(part) for part in value] if isinstance(value, tuple | list) else value


def declared(method: type) -> dict[str, Range | Choices]:
    """The declarations of a method's class by coefficient, in the order of its fields.

    Raises TypeError for `Choices()` of a type that does not list its values.
    """
    hints = get_type_hints(method, include_extras=True)
    declarations = {}
    for coefficient in fields(method):
        for entry in getattr(hints[coefficient.name], "__metadata__", ()):
            if isinstance(entry, Choices) and not entry.values:
                entry = _all_values(hints[coefficient.name], coefficient.name)
            if isinstance(entry, Range | Choices):
                declarations[coefficient.name] = entry
    return declarations


def _all_values(hint: Any, name: str) -> Choices:
    kind = get_args(hint)[0]
    if kind is bool:
        return Choices(True, False)
    if get_origin(kind) is Literal:
        return Choices(*get_args(kind))
    raise TypeError(f"{name}: Choices() needs the type bool or Literal. Name the values: Choices(1, 2, 4).")
