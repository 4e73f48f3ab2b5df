"""Published results (`reports/published.yaml`), their arithmetic, and a table that compares them with this study.

A published mIoU is comparable only under its convention and at its resolution (`ciss.metrics`). Papers seldom state
either. The printed numbers reveal the convention: only one weighted mean of `old` and `new` equals `all`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
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
from ciss.documents import ConfigError, counted, read_yaml

SCORES = ("old", "new", "all")
COLUMNS = (
    *("method", "backbone", "convention", "resolution"),
    *(f"published_{name}" for name in SCORES),
    *(f"ours_{name}" for name in SCORES),
    *("spread", "differs", "source"),
)
# timm's name of an encoder, without the image and window sizes
BACKBONES = {
    "ResNet-101": "resnet101",
    "ViT-B/16": "vit_base_patch16",
    "Swin-B": "swin_base_patch4",
    "SegFormer-B2": "mit_b2",
}
# Names of methods in papers -> in this project. EWF's paper does not name the host of its table; its scripts use MiB.
OURS = {"cfsseg": "ridge", "dft": "fixbc", "ewf": "mib-ewf", "lwf-mc": "lwf_mc"}
WITHOUT_GROUPS = ("joint", "custom", "unknown")  # protocols without a known number of base classes


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
class ComparedBenchmark:
    """What decides which published results a benchmark of this project is compared with."""

    dataset: str
    protocol: str
    setting: str
    encoder: str  # timm's name
    decoder: str
    resolution: str  # `metrics.resolution`
    images: int | None = None  # training images, if the benchmark does not use all
    notes: tuple[str, ...] = ()  # other differences to the papers
    comparable: bool = True  # False for groups of classes that no paper uses, and for a part of the images


class _Constructor(SafeConstructor):
    """Keeps the text of numbers, because 69.0 has one digit more than 69."""


for _kind in ("int", "float"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda _, node: node.value)


def load(path: Path | None = None) -> list[Result]:
    """All results of `reports/published.yaml`, or of another file in the same format, in the order of the file.

    Raises ConfigError naming file and entry for what is missing, unknown or of the wrong type.
    """
    if path is None:
        files = [root / "reports" / "published.yaml" for root in (paths.project(), Path(__file__).parents[3])]
        path = next((file for file in files if file.is_file()), files[0])
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file. Get it back with: git checkout -- reports/published.yaml")
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    document = read_yaml(path, yaml)
    if not isinstance(document, dict):
        raise ConfigError(f"{path.name}: the file should have a list of `tables`. Write one, or name another file.")
    results = []
    for number, table in enumerate(validate(_Document, document, path.name, "").tables):
        key = f"tables.{number}"
        rows = {name: table.pop(name) for name in ("results",) if name in table}
        for n, row in enumerate(validate(_Rows, rows, path.name, key).results):
            results.append(_result({**table, **row}, path.name, f"{key}.results.{n}"))
    return results


def _result(values: dict[str, Any], file: str, key: str) -> Result:
    result = validate(Result, values, file, key)
    if result.setting is None and result.protocol not in WITHOUT_GROUPS:
        raise ConfigError(f"{file}: {key}.setting: {result.protocol} belongs to a setting. Add it.")
    if result.setting == "domain":
        if not re.fullmatch("[1-9][0-9]*-[1-9][0-9]*", result.protocol):
            raise ConfigError(f"{file}: {key}.protocol: found {result.protocol!r}. Use two numbers of cities: 11-5.")
    elif result.protocol not in WITHOUT_GROUPS:
        try:
            protocol.class_groups(result.dataset, result.protocol)
        except ValueError as error:
            raise ConfigError(f"{file}: {key}.protocol: {error}") from None
    if result.upto is not None and (result.all is None or result.upto <= result.all):
        raise ConfigError(f"{file}: {key}.upto: {result.upto} is not above `all`. Put the smaller number into `all`.")
    return result


def recompute(result: Result) -> float | None:
    """`all` from `old` and `new`, in percent: the mean over classes under the result's convention.

    With the background in `old` and `all` (PLOP, SSUL) ((b+1) old + (N-b) new) / (N+1), without (MiB, MBS)
    (b old + (N-b) new) / N, for b base classes of N. MBS drops classes with an IoU of 0; this assumes that there are
    none. None where a number is missing, or where convention or protocol do not define the weights.
    """
    weights = _weights(result)
    return float(_mean(weights, Fraction(result.old), Fraction(result.new))) if weights else None


def problem(result: Result) -> str | None:
    """A message if `all` is not the weighted mean of `old` and `new`, within rounding; None if it is, or if that
    cannot be computed. Each number may be off by half a unit of its last digit."""
    weights = _weights(result)
    if weights is None:
        return None
    mean = _mean(weights, Fraction(result.old), Fraction(result.new))
    tolerance = _half_unit(result.all) + _mean(weights, _half_unit(result.old), _half_unit(result.new))
    if abs(Fraction(result.all) - mean) <= tolerance:
        return None
    return (
        f"{result.dataset} {result.protocol} {result.setting}, {result.method} ({result.source}): all is {result.all}, "
        f"but old {result.old} and new {result.new} make {float(mean):.3f} in the convention {result.convention}, and "
        f"rounding explains only {float(tolerance):.3f}. Correct number or convention, or give the reason in `flag`."
    )


def _weights(result: Result) -> tuple[int, int] | None:
    """Numbers of classes that count in `old` and in `new`; None where a score is missing or they are not known."""
    convention = metrics.CONVENTIONS.get(result.convention)
    if convention is None or convention.background != convention.in_old:  # `all` has a class that is in neither
        return None
    if None in (result.old, result.new, result.all) or result.setting == "domain" or result.protocol in WITHOUT_GROUPS:
        return None
    base, *later = (len(group) for group in protocol.class_groups(result.dataset, result.protocol))
    return base + convention.in_old, sum(later)


def _mean(weights: tuple[int, int], old: Fraction, new: Fraction) -> Fraction:
    return (weights[0] * old + weights[1] * new) / sum(weights)


def _half_unit(value: Decimal) -> Fraction:
    """Half a unit of the last printed digit."""
    return Fraction(10) ** value.as_tuple().exponent / 2


def find(results: Iterable[Result], dataset: str, protocol_name: str, setting: str) -> list[Result]:
    """The results of a benchmark, in order. Joint training has no steps: it belongs to every benchmark of its data
    set, except in the domain setting."""
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


def published_table(
    results: Iterable[Result],
    benchmark: ComparedBenchmark,
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> pd.DataFrame:
    """Published results of a benchmark and the scores of this study in the same row, all in percent.

    Args:
        results: see `load`.
        benchmark: of this study.
        scores: {all, old, new} in 0..1 by method and convention. Methods have the names of the tables: "mbs (adapted)"
            is compared with mbs, ridge with cfsseg (`OURS`).

    Returns: one row for each published result; none without one, or if the benchmark is not comparable. Scores of this
    study (`ours_`) are NaN unless it ran the method, it has the published convention, and both were scored on centre
    crops or both at full resolution. `differs`: all other differences, and what is not known.
    """
    # the exact one wins; published methods with stored images end in -m
    titles = {title.partition(" (")[0].lower(): title for title in sorted(scores, reverse=True)}
    rows = []
    for result in find(results, benchmark.dataset, benchmark.protocol, benchmark.setting):
        title = titles.get(OURS.get(result.method, result.method))
        scored = scores[title].get(result.convention) if title else None
        size = _resolution_kind(result.resolution)
        ours = (scored or {}) if size and size == _resolution_kind(benchmark.resolution) else {}
        percents = 100 * np.array([ours.get(name) for name in SCORES], float)  # NaN for None
        values = asdict(result)
        rows.append(
            {
                **values,
                **{f"published_{name}": values[name] for name in SCORES},
                **{f"ours_{name}": percent for name, percent in zip(SCORES, percents, strict=True)},
                "differs": "; ".join(_differences(result, benchmark, title, scored is not None)),
                "source": f"{result.source}, reported by {result.reported_by}" if result.reported_by else result.source,
            }
        )
    table = pd.DataFrame(rows if benchmark.comparable else [], columns=list(COLUMNS))
    return table.astype({name: float for name in COLUMNS if name.startswith(("published", "ours", "spread"))})


def _differences(result: Result, benchmark: ComparedBenchmark, title: str | None, scored: bool) -> list[str]:
    """Differences between a published result and this study's, apart from the scores."""
    known = result.convention != "unknown"
    same_network = result.backbone and _same_network(result.backbone, benchmark.encoder)
    candidates = [
        (title is None, "not run here"),
        (title is not None and "adapted" in title, f"ours is adapted to {benchmark.decoder}"),
        (title is not None and "stored" in title, f"ours: {(title or '').partition('(')[2].rstrip(')')}"),
        (not known, "convention unknown"),
        (known and title and not scored, f"ours was not scored in the convention {result.convention}"),
        (result.resolution is None, "resolution unknown"),
        (result.resolution not in (None, benchmark.resolution), f"{result.resolution}, ours {benchmark.resolution}"),
        (result.backbone is None, "backbone unknown"),
        (result.backbone and not same_network, f"{result.backbone}, ours {benchmark.encoder}"),
        (result.decoder not in (None, benchmark.decoder), f"{result.decoder}, ours {benchmark.decoder}"),
        (benchmark.images is not None, f"ours was trained on {counted(benchmark.images, 'image')} only"),
        *((True, note) for note in benchmark.notes),
        (result.upto is not None, f"sources print up to {result.upto}"),
        (result.flag is not None, f"does not add up: {result.flag}"),
        (result.note, result.note),
    ]
    return [text for applies, text in candidates if applies]


def _same_network(backbone: str, encoder: str) -> bool:
    stem = BACKBONES.get(backbone)
    name = encoder.partition(".")[0]  # timm's name of the architecture; the pretraining follows the dot
    return stem is not None and re.fullmatch(f"{stem}(_(window)?[0-9]+)*", name) is not None


def _resolution_kind(resolution: str | None) -> str | None:
    """Whether whole images (`full`) or crops of them (`crop`) were scored; None if it is not known."""
    return next((kind for kind in ("full", "crop") if kind in (resolution or "")), None)
