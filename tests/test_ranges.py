"""Ranges beside coefficients: what `ciss tune` tries is allowed, and holds the published value."""

import math
from typing import Annotated, Literal

import pytest

from ciss.methods import METHODS
from ciss.methods.base import Method, coefficients
from ciss.ranges import Choices, Range, declared, plain

DECLARED = [(name, key, entry) for name, kind in METHODS.items() for key, entry in declared(kind).items()]


@pytest.mark.parametrize(("method", "name", "entry"), DECLARED, ids=[f"{m}-{n}" for m, n, _ in DECLARED])
def test_the_default_and_all_that_is_tried_are_allowed(method, name, entry):
    kind = METHODS[method]
    assert getattr(kind(), name) in entry
    tried = entry.values if isinstance(entry, Choices) else (entry.low, entry.high)
    for value in tried:
        assert getattr(kind(**{name: value}), name) == value
    assert len({str(plain(value)) for value in tried}) == len(tried) > 1


def test_every_method_with_coefficients_can_be_tuned():
    assert [name for name, kind in METHODS.items() if not declared(kind)] == ["finetune", "joint", "fixbc"]
    assert set(declared(METHODS["mib"])) == {"initialisation", "distillation", "alpha"}
    assert declared(METHODS["mib"])["distillation"] == Range(1, 100, log=True)
    assert declared(METHODS["mbs"])["initialisation"] == Choices("background", "balanced", "default")
    assert declared(METHODS["gsc"])["clamp"] == Choices(None, (0.5, 5.0))
    assert declared(METHODS["gsc_mbs"])["guided"] == Choices(True, False), "all values of a bool"
    assert declared(METHODS["gsc_mbs"])["distillation"] == Range(2.5, 250, log=True), "and those of its base class"


def test_what_is_in_a_range():
    assert 1 in Range(1, 100) and 100 in Range(1, 100) and 0.99 not in Range(1, 100)
    assert "old_share" not in Range(0, 1) and True not in Range(0, 1) and math.nan not in Range(0, 1)
    assert [0.5, 5.0] in Choices(None, (0.5, 5.0)) and None in Choices(None, 1) and "a" not in Choices("b")


def test_choices_without_values_need_a_type_that_lists_them():
    @coefficients
    class Distil(Method):
        kind: Annotated[Literal["a", "b"], Choices()] = "a"
        weight: Annotated[float, Choices()] = 1.0

    with pytest.raises(TypeError, match=r"weight: Choices\(\) needs the type bool or Literal. Name the values"):
        declared(Distil)
