"""What the papers print, beside our own results: `reports/published.yaml`, checked by its own arithmetic.

A published mIoU is comparable only under its convention and at its resolution (`ciss.metrics`), and papers seldom say
either. The printed numbers tell the first: of `old` and `new` only one weighted mean is `all`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, JsonValue, StringConstraints
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor

from ciss import metrics, paths, protocol
from ciss.config import Text, section, validate
from ciss.documents import ConfigError, read_yaml

SCORES = ("old", "new", "all")
COLUMNS = (
    *("method", "backbone", "convention", "resolution"),
    *(f"published_{name}" for name in SCORES),
    *(f"ours_{name}" for name in SCORES),
    *("spread", "differs", "source"),
)
# timm's name of an encoder, up to the sizes it is made for
BACKBONES = {
    "ResNet-101": "resnet101",
    "ViT-B/16": "vit_base_patch16",
    "Swin-B": "swin_base_patch4",
    "SegFormer-B2": "mit_b2",
}
WITHOUT_GROUPS = ("joint", "custom", "unknown")  # protocols that do not say how many base classes there are


def _printed(value: Decimal) -> Decimal:
    if not -4 <= value.as_tuple().exponent <= 0:
        raise ValueError("should be written as printed, such as 69.0")
    return value


Percent = Annotated[Decimal, Field(ge=0, le=100), AfterValidator(_printed)]
Resolution = Annotated[str, StringConstraints(pattern=r"^full resolution$|^([0-9]+-pixel )?centre crops$")]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+-]*$", max_length=60)]


@section
class Result:
    """One printed result, mIoU in percent after the last step; `reports/published.yaml` explains the fields."""

    dataset: Literal["voc", "ade20k", "cityscapes"]
    protocol: Word
    setting: Literal[protocol.SETTINGS] | None = None
    method: Word
    old: Percent | None = None
    new: Percent | None = None
    all: Percent | None = None
    upto: Percent | None = None
    spread: Percent | None = None
    backbone: Text | None = None
    decoder: Literal["deeplabv3", "mask_transformer"] | None = None
    convention: Literal[(*metrics.CONVENTIONS, "unknown")]
    resolution: Resolution | None = None
    source: Text
    reported_by: Text | None = None
    note: Text | None = None
    flag: Text | None = None


@section
class _Document:
    tables: tuple[dict[str, JsonValue], ...]


@section
class _Rows:
    results: Annotated[tuple[dict[str, JsonValue], ...], Field(min_length=1)]


@dataclass(frozen=True)
class Ours:
    """A benchmark of this project, as far as it decides what its results may stand beside."""

    dataset: str
    protocol: str
    setting: str
    encoder: str  # timm's name
    decoder: str
    resolution: str  # `metrics.resolution`
    images: int | None = None  # training images, where they are not all
    notes: tuple[str, ...] = ()  # what else differs from the papers', in words
    comparable: bool = True  # not with groups of classes of its own, nor with a part of the images


class _Constructor(SafeConstructor):
    """Numbers as their text: 69.0 has one digit more than 69."""


for _kind in ("int", "float"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda _, node: node.value)


def load(path: Path | None = None) -> list[Result]:
    """Every result of `reports/published.yaml`, or of another file of its form, in the file's order.

    Raises ConfigError naming file and entry for what is missing, unknown or of the wrong type.
    """
    if path is None:
        places = [folder / "reports" / "published.yaml" for folder in (paths.project(), Path(__file__).parents[3])]
        path = next((place for place in places if place.is_file()), places[0])
    file = path.name
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file. Get it back with: git checkout -- reports/published.yaml")
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    document = read_yaml(path, yaml)
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: the file should have a list of `tables`. Write one, or name another file.")
    results = []
    for number, table in enumerate(validate(_Document, document, file, "").tables):
        place = f"tables.{number}"
        rows = validate(_Rows, {name: table[name] for name in ("results",) if name in table}, file, place).results
        common = {name: value for name, value in table.items() if name != "results"}
        results += [_result({**common, **row}, file, f"{place}.results.{n}") for n, row in enumerate(rows)]
    return results


def _result(values: dict[str, Any], file: str, place: str) -> Result:
    result = validate(Result, values, file, place)
    if result.setting is None and result.protocol not in WITHOUT_GROUPS:
        raise ConfigError(f"{file}: {place}.setting: {result.protocol} belongs to a setting. Add it.")
    if result.setting == "domain":
        known = re.fullmatch("[1-9][0-9]*-[1-9][0-9]*", result.protocol)
        if known is None:
            raise ConfigError(f"{file}: {place}.protocol: found {result.protocol!r}. Use two numbers of cities: 11-5.")
    elif result.protocol not in WITHOUT_GROUPS:
        try:
            protocol.class_groups(result.dataset, result.protocol)
        except ValueError as error:
            raise ConfigError(f"{file}: {place}.protocol: {error}") from None
    if result.upto is not None and (result.all is None or result.upto <= result.all):
        raise ConfigError(f"{file}: {place}.upto: {result.upto} is not above `all`. Put the smaller number into `all`.")
    return result


def recompute(result: Result) -> float | None:
    """`all` from `old` and `new`, in percent: the mean over classes under the result's convention.

    With the background in `old` and `all` (PLOP, SSUL) ((b+1) old + (N-b) new) / (N+1), without (MiB, MBS)
    (b old + (N-b) new) / N, for b base classes of N; MBS drops classes without a hit, of which this assumes none. None
    where a number is missing, and where convention or protocol do not say how to weigh.
    """
    weights = _weights(result)
    if weights is None:
        return None
    return float(_mean(weights, Fraction(result.old), Fraction(result.new)))


def problem(result: Result) -> str | None:
    """Says that `all` is not what `old` and `new` make, as far as their printed digits tell; None if it is, or nothing
    can be told. Each number may be off by half a unit of its last digit."""
    weights = _weights(result)
    if weights is None:
        return None
    made = _mean(weights, Fraction(result.old), Fraction(result.new))
    tolerance = _half(result.all) + _mean(weights, _half(result.old), _half(result.new))
    if abs(Fraction(result.all) - made) <= tolerance:
        return None
    return (
        f"{result.dataset} {result.protocol} {result.setting}, {result.method} ({result.source}): all is {result.all}, "
        f"but old {result.old} and new {result.new} make {float(made):.3f} in the convention {result.convention}, and "
        f"rounding explains only {float(tolerance):.3f}. Correct number or convention, or say why in `flag`."
    )


def _weights(result: Result) -> tuple[int, int] | None:
    """Classes that count in `old`, and in `new`; None where a number is missing or these are not known."""
    convention = metrics.CONVENTIONS.get(result.convention)
    if convention is None or convention.background != convention.in_old:  # then `all` has a class that neither has
        return None
    if None in (result.old, result.new, result.all) or result.setting == "domain" or result.protocol in WITHOUT_GROUPS:
        return None
    sizes = [len(group) for group in protocol.class_groups(result.dataset, result.protocol)]
    return sizes[0] + convention.in_old, sum(sizes[1:])


def _mean(weights: tuple[int, int], old: Fraction, new: Fraction) -> Fraction:
    return (weights[0] * old + weights[1] * new) / sum(weights)


def _half(value: Decimal) -> Fraction:
    """Half a unit of the last printed digit."""
    return Fraction(10) ** value.as_tuple().exponent / 2


def find(results: Iterable[Result], dataset: str, protocol_name: str, setting: str) -> list[Result]:
    """Those of a benchmark, in order; joint training, which has no steps, belongs to every benchmark of its data set
    but the domain ones."""
    name = protocol.ALIASES.get((dataset, protocol_name), protocol_name)
    return [
        result
        for result in results
        if result.dataset == dataset
        and (
            (result.protocol == name and result.setting == setting)
            or (result.protocol in protocol.ONE_GROUP and setting != "domain")
        )
    ]


def beside(
    results: Iterable[Result], ours: Ours, scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]
) -> pd.DataFrame:
    """Printed results of a benchmark with our own beside them, a row for each printed one, all in percent.

    `scores[method][convention]`: our {all, old, new}, in 0..1; methods as tables call them ("mbs (adapted)" stands for
    mbs). Ours are NaN unless the method was run, the printed convention is known and among ours, and both were scored
    on centre crops or both at full resolution. `differs` says in words what else is not the same, or not known.
    Without printed results, or for a benchmark that is not comparable, there are no rows.
    """
    titles = {title.removesuffix(" (adapted)"): title for title in sorted(scores, reverse=True)}  # the exact one wins
    rows = []
    for result in find(results, ours.dataset, ours.protocol, ours.setting) if ours.comparable else ():
        title = titles.get(result.method)
        own = scores[title].get(result.convention) if title else None
        if _size(result.resolution) is None or _size(result.resolution) != _size(ours.resolution):
            comparable: Mapping[str, float | None] = {}
        else:
            comparable = own or {}
        rows.append(
            {
                **{name: getattr(result, name) for name in ("method", "backbone", "convention", "resolution")},
                **{f"published_{name}": _number(getattr(result, name)) for name in SCORES},
                **{f"ours_{name}": 100 * _number(comparable.get(name)) for name in SCORES},
                "spread": _number(result.spread),
                "differs": "; ".join(_differences(result, ours, title, own is not None)),
                "source": f"{result.source}, reported by {result.reported_by}" if result.reported_by else result.source,
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({name: float for name in COLUMNS if name.startswith(("published", "ours", "spread"))})


def _differences(result: Result, ours: Ours, title: str | None, scored: bool) -> list[str]:
    found = []
    if title is None:
        found.append("not run here")
    elif title != result.method:
        found.append(f"ours is adapted to {ours.decoder}")
    if result.convention == "unknown":
        found.append("convention unknown")
    elif title and not scored:
        found.append(f"ours was not scored in the convention {result.convention}")
    if result.resolution is None:
        found.append("resolution unknown")
    elif result.resolution != ours.resolution:
        found.append(f"{result.resolution}, ours {ours.resolution}")
    if result.backbone is None:
        found.append("backbone unknown")
    elif not _same_network(result.backbone, ours.encoder):
        found.append(f"{result.backbone}, ours {ours.encoder}")
    if result.decoder not in (None, ours.decoder):
        found.append(f"{result.decoder}, ours {ours.decoder}")
    if ours.images is not None:
        found.append(f"ours was trained on {ours.images} images only")
    found += ours.notes
    if result.upto is not None:
        found.append(f"sources print up to {result.upto}")
    if result.flag is not None:
        found.append(f"does not add up: {result.flag}")
    return found + ([result.note] if result.note else [])


def _same_network(backbone: str, encoder: str) -> bool:
    stem = BACKBONES.get(backbone)
    name = encoder.partition(".")[0]  # what follows the dot says how it was trained
    return stem is not None and re.fullmatch(f"{stem}(_(window)?[0-9]+)*", name) is not None


def _size(resolution: str | None) -> str | None:
    """What a resolution's words say: whole images, or crops of them."""
    if resolution is None:
        return None
    return next((kind for kind in ("full", "crop") if kind in resolution), None)


def _number(value: Decimal | float | None) -> float:
    return np.nan if value is None else float(value)
