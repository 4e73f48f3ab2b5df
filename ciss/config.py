"""`params.yaml`: the only place for numbers, read as YAML 1.2 and checked key by key before anything runs.

Every section is a frozen dataclass that refuses unknown keys, so that a typo is an error and not a silent default.
What needs more than this file to be judged (class groups, methods, weight files) is checked in `ciss.runs.run`.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ciss import paths
from ciss.documents import ConfigError, choose, plain, read_yaml, short

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
section = dataclass(frozen=True, kw_only=True, config=STRICT)


def rising(values: tuple) -> tuple:
    """Bounds from small to large, checked."""
    if list(values) != sorted(values):
        raise ValueError("should go from small to large")
    return values


# Names become folders, and DVC reads a dot as the end of a key.
DEVICE = re.compile("con|prn|aux|nul|com[0-9]|lpt[0-9]", re.IGNORECASE)
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=200)]
Word = Annotated[str, StringConstraints(max_length=200)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4000, pattern=r"^[^\x00-\x1f\x7f]*$")]
# Upper bounds are where a slip of the finger would fill the memory or start a million processes, not where use ends.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Natural = Annotated[int, Field(ge=0, le=1_000_000_000)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Few = Annotated[int, Field(ge=1, le=1_024)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(gt=0, le=64)]

NOTEBOOKS = {"1_data", "4_forgetting", "5_background"}  # of a benchmark, beside those of its runs
RESERVED = {
    "benchmarks": {"benchmarks", "checked", "compare"},
    "bases": NOTEBOOKS,
    "joints": NOTEBOOKS,
    "chain": NOTEBOOKS,
}

JSON_WORDS = {  # pydantic speaks of JSON, the file is YAML
    "an object": "a section",
    "a valid array": "a list",
    "a valid string": "text",
    "a valid boolean": "true or false",
}


@section
class Model:
    encoder: Text = "ciss_tiny"  # a timm name
    pretrained: bool = False  # fetch timm's own weights (needs a network once)
    weights: Text | None = None  # or a local weight file; relative to the data root or the project
    # mean and deviation of the images: those of the encoder's weights (ImageNet's where there are none), or ImageNet's
    input_statistics: Literal["encoder", "imagenet"] = "encoder"
    image_size: Pixels | None = None  # pixels a transformer's positions are made for; null: timm's. Others are resized
    output_stride: Literal[4, 8, 14, 16, 32] = 4  # a transformer's patch
    decoder: Literal["deeplabv3", "mask_transformer"] = "deeplabv3"
    width: Width = 64  # channels of the dense features before the classifier
    # deeplabv3
    atrous_rates: Annotated[tuple[Few, ...], Field(max_length=64)] = (2, 4, 6)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # mask_transformer
    layers: Few = 2
    heads: Width | None = None  # null: one for 64 channels
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of the last layer


@section
class Phase:
    epochs: Count
    lr: Positive
    norm: Literal["batch", "sync", "frozen"] = "batch"


@section
class Train:
    base: Phase
    increment: Phase
    crop: Pixels
    batch: Count  # images per process and forward pass
    accumulate: Count = 1  # forward passes per update
    resize: Pixels | None = None  # of the shorter side, before anything else; null: as it is
    augmentation: Literal["none", "resized_crop", "scaled_crop"] = "none"
    scale: Annotated[tuple[Scale, Scale], AfterValidator(rising)] = (0.5, 2.0)
    flip: bool = True
    transpose: bool = False
    schedule: Literal["poly", "constant"] = "poly"
    power: NotNegative = 0.9
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 1e-4
    encoder_lr: NotNegative = 1.0  # the encoder's learning rate, as a multiple of the phase's
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    threads: Few = 2  # CPU threads; another number gives other last digits
    processes: Few = 1  # of this machine, a batch and a GPU each, as many more images an update
    workers: Annotated[int, Field(ge=0, le=1_024)] = 0  # loader processes; does not change the result
    cache: bool = (
        False  # keep decoded images in memory, a copy in each loader process; not where half of it is too little
    )
    curve: tuple[Positive, ...] = (1.0,)  # when the hold-out is scored: epochs into the step ...
    curve_every: Count = 1  # ... then after every so many full epochs, and after the last


@section
class Evaluation:
    # full resolution; full resolution in windows of `train.crop`; or shorter side to `train.crop` and centre crop
    size: Literal["full", "window", "crop"] = "full"
    stride: Annotated[float, Field(gt=0, le=1)] = 0.67  # from window to window, as a share of its side
    scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=16)] = (1.0,)  # averaged
    flip: bool = False  # averaged with what is said of the mirrored image
    batch: Count = 16
    samples: Natural = 4  # validation images whose predictions are kept for the figures


@section
class Expected:
    """The data that the published results of a preset are for."""

    train: Count  # images
    val: Count  # images
    classes: Count  # without the background


@section
class Benchmark:
    dataset: Word
    protocol: Word
    setting: Literal["overlapped", "disjoint", "sequential", "partitioned", "domain"] = "overlapped"
    order: tuple[Count, ...] | None = None  # raw class ids in order of arrival
    groups: tuple[tuple[Count, ...], ...] | None = None  # raw class ids of every step, for a protocol of one's own
    legacy_split: bool = False  # domain: test images drawn anew after every step, as published; some were trained on
    holdout: Natural = 0  # training images left out of every step, scored with full labels
    limit: Natural = 0  # only the first images of each list, for quick runs; 0: all
    expects: Expected | None = None  # for notes on other data; changes no result
    model: Model = Field(default_factory=Model)
    train: Train
    evaluation: Evaluation = Field(default_factory=Evaluation)


@section
class Start:
    """A run that continues nothing: the base step, or joint training on all labels."""

    benchmark: Word
    method: Word  # a section under methods: a method, or a variant of it: `gsc-clamped`
    seed: Natural
    code: Word | None = None  # the method without its variant: the pipeline's file in ciss/methods


@section
class Increment(Start):
    after: Word
    step: Count


@section
class End:
    run: Word
    benchmark: Word


@section
class Config:
    benchmarks: Annotated[dict[Name, Benchmark], Field(min_length=1)]
    methods: dict[Name, dict[str, Any]]
    bases: dict[Name, Start]
    joints: dict[Name, Start] = Field(default_factory=dict)
    chain: dict[Name, Increment] = Field(default_factory=dict)
    ends: dict[Name, End] = Field(default_factory=dict)
    own: list[Name] = Field(default_factory=list)  # benchmarks on data of one's own, whose images may change
    output: Text = "."  # where data, runs, results and reports go, relative to the project
    complete: bool = False  # notebooks train the runs they miss: for files of a few seconds
    file: str = Field(default="params.yaml", init=False)  # what errors name

    def runs(self) -> dict[str, Start]:
        """Every run by its name."""
        return {**self.bases, **self.joints, **self.chain}

    def path(self, end: str) -> list[str]:
        """Names of the runs that lead to an end, from the base step to the last."""
        names = [self.ends[end].run]
        while names[0] in self.chain:
            names.insert(0, self.chain[names[0]].after)
        return names


def load(file: str | Path = "params.yaml") -> Config:
    """Reads and checks a parameter file (relative ones from the project's folder). Raises ConfigError."""
    path = Path(file) if Path(file).is_absolute() else paths.project() / file
    return parse(read_yaml(path), str(file))


def parse(document: Any, file: str = "params.yaml") -> Config:
    """Checks a document's keys, types and chain. Raises ConfigError with one line for each mistake."""
    if document is None:
        raise ConfigError(f"{file}: the file is empty. Write one with: ciss plan shapes 4-2")
    if not isinstance(document, dict):
        sections = "sections such as benchmarks, methods and chain"
        raise ConfigError(f"{file}: found {short(document)}, but it should have {sections}.")
    config = validate(Config, document, file, "")
    object.__setattr__(config, "file", file)  # frozen for everybody else
    problems = [f"{file}: {problem}" for problem in _chain_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def validate(kind: type, values: Any, file: str, key: str) -> Any:
    """`values` as a `kind`. Raises ConfigError naming file, key and the nearest known key, a line for each mistake."""
    try:
        document = _adapter(dict[str, JsonValue]).validate_python(values)
    except ValidationError as error:  # its locations alternate between keys and the kind of value there
        raise ConfigError(
            "\n".join(_explain(e, e["loc"][::2], kind, file, key, values) for e in error.errors())
        ) from None
    if strange := list(_unwritable(document, [key] if key else [])):
        lines = [f"{'.'.join(map(plain, place))}: found {short(value)}. Change it." for place, value in strange]
        raise ConfigError("\n".join(f"{file}: {line}" for line in lines))
    try:
        # As strict JSON: a list may be a tuple, a mapping a section; but "1" and true are no numbers, 1 is no text.
        return _adapter(kind).validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, e["loc"], kind, file, key) for e in _merged(error.errors()))) from None


_adapter = functools.cache(TypeAdapter)  # making one takes longer than using it


def _unwritable(node: Any, place: list[str]) -> Iterator[tuple[list[str], Any]]:
    """What a YAML file can hold and JSON cannot: halves of characters, numbers of thousands of digits."""
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(name, str) and not _encodable(name):
                yield [*place, name], name
            yield from _unwritable(child, [*place, str(name)])
    elif (isinstance(node, int) and abs(node) >= 10**60) or (isinstance(node, str) and not _encodable(node)):
        yield place, node


def _encodable(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _merged(errors: list[dict]) -> list[dict]:
    """A value that may be of several kinds has an error for each, with the kind as its last place: one of them all."""
    found: dict[tuple, dict] = {}
    for error in errors:
        place = error["loc"]
        if place and re.fullmatch(r"constrained-\w+|literal\[.*\]", str(place[-1])):
            place = place[:-1]
            if place in found:
                _, _, needs = error["msg"].partition("should ")
                error = {**found[place], "msg": f"{found[place]['msg']}, or {needs}"}
        found[place] = {**error, "loc": place}
    return list(found.values())


def _explain(error: dict, location: tuple, kind: type, file: str, key: str, values: Any = None) -> str:
    parts = [str(part) for part in location if part != "[key]"]
    if error["loc"][-1] == "[key]":
        parts[-1] = str(error["input"])  # pydantic's place says 1 of a key `true`
    shown = [plain(part) or "''" for part in parts]
    place = f"{file}: {'.'.join(filter(None, [key, *shown]))}"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{place}: unknown key. {choose(parts[-1], _keys(kind, parts[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{place}: this key is missing. Add it."
    is_key = error["loc"][-1] == "[key]"
    if is_key and (comma := _decimal_comma(error["input"], location[:-1], values)):
        return f"{file}: {'.'.join(filter(None, [key, *shown[:-1], comma]))}"
    needs = re.search("should .*", error["msg"])  # the other messages are about values that JSON does not know
    needs = needs[0] if needs else "should be text, a number, true, false, null, a list or a section"
    for word, ours in JSON_WORDS.items():
        needs = needs.replace(word, ours)
    what = "the name " if is_key else ""
    found, advice = short(error["input"]), ""
    if isinstance(error["input"], datetime.date) and not is_key:
        found, advice = f"the date {error['input']}", f" Write '{error['input']}' in quotes for the text."
    elif isinstance(error["input"], str) and re.fullmatch(r"[-+]?\d*,\d+", error["input"]):
        if "integer" in needs:
            advice = f" Write the digits alone: {error['input'].replace(',', '')}."
        else:
            advice = f" Write a decimal point: {error['input'].replace(',', '.')}."
    return f"{place}: found {what}{found}, but it {needs}.{advice}"


def _decimal_comma(value: Any, location: tuple, values: Any) -> str | None:
    """What to say of a decimal comma: `{lr: 0,1, norm: batch}` reads as the keys lr, 1 and norm."""
    section = values
    for part in location:
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict) or section.get(value, "") is not None or isinstance(value, bool):
        return None
    keys = list(section)
    before = keys[keys.index(value) - 1]
    number = section[before]
    if isinstance(value, int) and isinstance(number, int) and not isinstance(number, bool):
        return f"{before}: {number},{value} has a decimal comma. Write {number}.{value}."
    return None


def _keys(kind: type, location: list[str]) -> list[str]:
    """Keys of the section at a location."""
    for part in location:
        kind = get_type_hints(kind)[part] if is_dataclass(kind) else get_args(kind)[-1]
        if isinstance(kind, UnionType):  # a section or null
            kind = get_args(kind)[0]
    return [field.name for field in fields(kind) if field.init]


def _chain_problems(config: Config) -> Iterator[str]:
    runs = config.runs()
    for part, taken in RESERVED.items():
        for name in taken & set(getattr(config, part)):
            yield f"{part}.{name}: the reports have a file or folder of this name. Rename it."
    for part, names in (("benchmarks", config.benchmarks), ("runs", runs)):
        lower_case: dict[str, str] = {}
        for name in names:
            other = lower_case.setdefault(name.lower(), name)
            if other != name:
                yield f"{part}: {other} and {name} are one folder on macOS and Windows, but for capitals. Rename one."
            if DEVICE.fullmatch(name):
                yield f"{part}: {name} is the name of a device on Windows. Rename it."
    for part, others in (("joints", config.bases), ("chain", {**config.bases, **config.joints})):
        for name in getattr(config, part):
            if name in others:
                yield f"{part}.{name}: another run has this name. Rename one of them."
    for part, group in (("bases", config.bases), ("joints", config.joints), ("chain", config.chain)):
        for name, run in group.items():
            if run.benchmark not in config.benchmarks:
                hint = choose(run.benchmark, config.benchmarks)
                yield f"{part}.{name}.benchmark: no benchmark {run.benchmark!r}. {hint}"
            if run.method not in config.methods:
                yield f"{part}.{name}.method: no method {run.method!r} in methods. {choose(run.method, config.methods)}"
    for name, run in config.chain.items():
        place, before = f"chain.{name}", runs.get(run.after)
        if before is None or run.after in config.joints:
            known = {**config.bases, **config.chain}
            yield f"{place}.after: there is no base step or increment {run.after!r}. {choose(run.after, known)}"
            continue
        if _leads_back(config.chain, name):
            yield f"{place}.after: {run.after!r} continues this run in turn. Name a base step or an earlier increment."
            continue
        step = before.step if isinstance(before, Increment) else 0
        if run.step != step + 1:
            yield f"{place}.step: {run.step} cannot follow step {step} of {run.after!r}. Make it {step + 1}."
        for key in ("benchmark", "seed"):
            if getattr(run, key) != getattr(before, key):
                mine, other = getattr(run, key), getattr(before, key)
                yield f"{place}.{key}: {mine!r} differs from {other!r} of {run.after!r}. Use the same."
        if step and run.method != before.method:
            yield f"{place}.method: {run.method!r} continues {before.method!r} of {run.after!r}. Use one method."
    for name, end in config.ends.items():
        if end.run not in runs:
            yield f"ends.{name}.run: there is no run {end.run!r}. {choose(end.run, runs)}"
        elif runs[end.run].benchmark != end.benchmark:
            right = runs[end.run].benchmark
            yield f"ends.{name}.benchmark: {end.benchmark!r} is not the benchmark of {end.run!r}. Use {right!r}."


def _leads_back(chain: dict[str, Increment], name: str) -> bool:
    after, seen = chain[name].after, set()
    while after in chain and after not in seen:
        seen.add(after)
        after = chain[after].after
    return name in seen
