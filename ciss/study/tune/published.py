"""The published coefficients of a method, and which of them are tuned."""

from dataclasses import asdict
from typing import Any

from ciss import config
from ciss.config import Benchmark, ConfigError
from ciss.methods import code_of, method_class
from ciss.ranges import declared, plain
from ciss.study.presets import load, presets

OWN = ("shapes", "voc8", "camvid", "own")  # presets whose coefficients are this project's


def search_space(method: str, benchmark: Benchmark) -> dict[str, Any]:
    """The published values of the coefficients that are tuned: those with a range that holds the published value.

    What a variant switches off stays off, because 0 is in no logarithmic range. Raises ConfigError for an unknown
    variant, and for a method without such coefficients.
    """
    kind = method_class(method)
    variant = method.partition("-")[2]
    if variant and variant not in kind.variants():
        hint = config.choose(variant, kind.variants())
        raise ConfigError(f"{method}: {code_of(method)} has no preset {variant!r}. {hint}")
    values = coefficients(method, benchmark)
    published = {name: values[name] for name, entry in declared(kind).items() if values[name] in entry}
    if not published:
        raise ConfigError(f"{method}: no coefficient has a range, so there is nothing to tune. See docs/tuning.md.")
    return published


def coefficients(method: str, benchmark: Benchmark, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """All coefficients of a method as in a parameter file: the published ones, with some changes.

    Published are the defaults of the class, changed by the paper's preset of the data set and by that of a variant.
    """
    kind = method_class(method)
    values = {**asdict(kind()), **_of_preset(method, benchmark), **kind.variants().get(method.partition("-")[2], {})}
    if values["memory"] is None:
        del values["memory"]
    return {**{name: plain(value) for name, value in values.items()}, **(changes or {})}


def _of_preset(method: str, benchmark: Benchmark) -> dict[str, Any]:
    """What the paper's preset of the data set, or of its setting, changes."""
    names = (f"{benchmark.dataset}-{benchmark.setting}", benchmark.dataset)
    name = next((name for name in names if name in presets()), None)
    if name is None or benchmark.dataset in OWN:
        return {}
    return dict(load(name).get("methods", {}).get(code_of(method), {}))
