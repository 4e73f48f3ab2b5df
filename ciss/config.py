"""`params.yaml`: the only place for numbers, read as YAML 1.2. Every key is checked before anything runs.

Every section is a frozen dataclass that refuses unknown keys, so that a typo is an error and no silent default.
`ciss.runs.check` checks what needs more than the file: class groups, methods, networks, weight files.
"""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ciss import paths, updates
from ciss.documents import ConfigError, choose, line_of, plain, read_yaml, short

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
section = dataclass(frozen=True, kw_only=True, config=STRICT)


def rising(values: tuple) -> tuple:
    """A validator: bounds from small to large."""
    if list(values) != sorted(values):
        raise ValueError("should go from small to large")
    return values


# Names become folders, and DVC reads a dot as the end of a key.
DEVICE = re.compile("con|prn|aux|nul|com[0-9]|lpt[0-9]", re.IGNORECASE)
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=200)]
Word = Annotated[str, StringConstraints(max_length=200)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4000, pattern=r"^[^\x00-\x1f\x7f]*$")]
# Upper bounds refuse slips of the finger that would fill the memory or start a million processes.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Natural = Annotated[int, Field(ge=0, le=1_000_000_000)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Few = Annotated[int, Field(ge=1, le=1_024)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(gt=0, le=64)]

NOTEBOOK = re.compile(r"\d_.*")  # the name of a notebook of the pipeline, which lies beside those of the runs
RESERVED = {"benchmarks", "checked", "compare", "notebooks"}  # folders beside those of the benchmarks
DEEPEST = 50  # sections within sections
JSON_WORDS = {  # pydantic's words -> YAML's
    "an object": "a section",
    "a valid array": "a list",
    "a valid string": "text",
    "a valid boolean": "true or false",
}


@section
class Model:
    encoder: Text = "ciss_tiny"  # a timm name
    pretrained: bool = False  # fetch timm's own weights (needs a network once)
    weights: Text | None = None  # or a file, relative to the data root or the project; or package:NAME
    # mean and deviation of the images: those of the encoder's weights (ImageNet's where there are none), or ImageNet's
    input_statistics: Literal["encoder", "imagenet"] = "encoder"
    image_size: Pixels | None = None  # pixels a transformer's positions are made for; null: timm's. Others are resized
    output_stride: Literal[4, 8, 14, 16, 32] = 4  # a transformer's patch
    decoder: Literal["deeplabv3", "mask_transformer"] = "deeplabv3"  # what makes logits from the encoder's features
    width: Width = 64  # channels of the dense features before the classifier
    # deeplabv3: dilation of each parallel convolution, in cells of the feature map
    atrous_rates: Annotated[tuple[Few, ...], Field(max_length=64)] = (2, 4, 6)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # deeplabv3: share of the dense features that are set to 0
    layers: Few = 2  # mask_transformer: number of transformer blocks
    heads: Width | None = None  # mask_transformer: number of attention heads; null: one for 64 channels
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1  # mask_transformer: share of skipped paths in the last layer


@section
class Phase:
    epochs: Count  # passes over the images of the step
    lr: Positive  # learning rate at the first update
    # batch normalisation: statistics of the batch, of all processes together; or the running ones, which stay
    norm: Literal["batch", "sync", "frozen"] = "batch"


@section
class Train:
    base: Phase  # schedule of the base step, and of joint training
    increment: Phase  # schedule of each later step
    crop: Pixels  # side of the square training images, in pixels
    batch: Count  # images of a forward pass, those of all processes together
    accumulate: Count = 1  # forward passes per update
    resize: Pixels | None = None  # of the shorter side, before anything else; null: as it is
    # of random crops: at the image's size; of a random area and shape, resized; or of the image resized at random
    augmentation: Literal["none", "resized_crop", "scaled_crop"] = "none"
    # least and largest: share of the area (resized_crop), or factor of the sides (scaled_crop)
    scale: Annotated[tuple[Scale, Scale], AfterValidator(rising)] = (0.5, 2.0)
    flip: bool = True  # mirror half of the images, left to right
    transpose: bool = False  # also turn half of them upside down, and swap height and width of half
    schedule: Literal["poly", "constant"] = "poly"  # poly: lr (1 - update / updates) ^ power
    power: NotNegative = 0.9  # of the schedule poly
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of stochastic gradient descent
    weight_decay: NotNegative = 1e-4  # L2 penalty of the optimiser
    encoder_lr: NotNegative = 1.0  # the encoder's learning rate, as a multiple of the phase's
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of forward passes; auto: by the device
    channels_last: bool = True  # memory format of images and convolutions
    compile: bool = False  # whether torch.compile compiles the network
    threads: Few = 2  # CPU threads; another number changes the last digits of results
    portable: bool = False  # CPU: the same bits on every x86-64 processor with AVX2, slower on those with AVX-512
    processes: Few = 1  # of this machine, each with its own GPU and an equal share of the batch
    # loader processes, which do not change the result; auto: as many as training leaves cores for
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1_024)] = "auto"
    # where images are resized, cropped and flipped: in loader processes, or on the training's device, for a GPU that
    # waits for its images; colours differ by at most 1 of 255
    augment_on: Literal["cpu", "device"] = "cpu"
    cache: bool = False  # keep decoded images in memory, a copy in each loader process, if they fill at most half of it
    curve: tuple[Positive, ...] = (1.0,)  # epochs after which the hold-out set is scored ...
    curve_every: Count = 1  # ... then after every this many epochs, and after the last


@section
class Evaluation:
    # full resolution; full resolution in windows of `train.crop`; or shorter side to `train.crop` and centre crop
    size: Literal["full", "window", "crop"] = "full"
    stride: Annotated[float, Field(gt=0, le=1)] = 0.67  # from window to window, as a share of its side
    scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=16)] = (1.0,)  # averaged
    flip: bool = False  # averaged with the prediction for the mirrored image
    batch: Count = 16  # images of a forward pass
    samples: Natural = 4  # validation images whose predictions are kept for the figures


@section
class Expected:
    """The data that the published results of a preset are for."""

    train: Count  # images
    val: Count  # images
    classes: Count  # without the background


@section
class Benchmark:
    dataset: Word  # voc, ade20k, ..., or the name of a folder in data/
    protocol: Word  # number of base classes, then of classes per step: 15-1; or offline
    # which images a step has, and which labels: docs/concepts/settings.md
    setting: Literal["overlapped", "disjoint", "sequential", "partitioned", "domain"] = "overlapped"
    order: tuple[Count, ...] | None = None  # raw class ids in order of arrival
    groups: tuple[tuple[Count, ...], ...] | None = None  # raw class ids of every step, for a protocol of your own
    legacy_split: bool = False  # domain: test images drawn anew after every step, as published; some were trained on
    holdout: Natural = 0  # training images left out of every step, scored with full labels
    limit: Natural = 0  # only the first images of each list, for quick runs; 0: all
    expects: Expected | None = None  # for notes on other data; changes no result
    model: Model = Field(default_factory=Model)  # the network
    train: Train  # the training
    evaluation: Evaluation = Field(default_factory=Evaluation)  # how images are predicted for the scores


@section
class Start:
    """A run that continues nothing: the base step, or joint training on all labels."""

    benchmark: Word  # a section under benchmarks
    method: Word  # a section under methods: a method, or a variant of it: `gsc-clamped`
    seed: Natural  # of weights, shuffling and augmentation
    code: Word | None = None  # the method without its variant: the pipeline's file in ciss/methods


@section
class Increment(Start):
    after: Word  # the run that it continues
    step: Count  # from 1


@section
class End:
    run: Word  # the last run of a chain
    benchmark: Word  # its benchmark


@section
class Config:
    benchmarks: Annotated[dict[Name, Benchmark], Field(min_length=1)]  # what runs of a benchmark share
    methods: dict[Name, dict[str, Any]]  # coefficients of each method and variant; the rest has its default
    bases: dict[Name, Start]  # base steps
    joints: dict[Name, Start] = Field(default_factory=dict)  # joint trainings
    chain: dict[Name, Increment] = Field(default_factory=dict)  # incremental steps
    ends: dict[Name, End] = Field(default_factory=dict)  # the runs that the analyses compare
    own: list[Name] = Field(default_factory=list)  # benchmarks on data of your own, whose images may change
    output: Text = "."  # where data, runs, results and reports go, relative to the project
    complete: bool = False  # notebooks train the runs they miss: for files of a few seconds
    version: Literal[2] | None = None  # null: `train.batch` may count the images of one process, see `ciss.updates`
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
    """Reads and checks a parameter file (a relative path starts at the project's folder). Raises ConfigError.

    Each line of the message has file, line, key, the value found, and what to do.
    """
    path = Path(file) if Path(file).is_absolute() else paths.project() / file
    document = read_yaml(path)
    try:
        return parse(document, str(file))
    except ConfigError as error:
        lines = []
        for mistake in str(error).splitlines():
            mistake = mistake.removeprefix(f"{file}: ")
            number = line_of(path, mistake.partition(": ")[0])
            lines.append(f"{file}: line {number}: {mistake}" if number else f"{file}: {mistake}")
        raise ConfigError("\n".join(lines)) from None


def parse(document: Any, file: str = "params.yaml") -> Config:
    """Checks a document's keys, types and chain. Raises ConfigError with one line for each mistake."""
    if document is None:
        raise ConfigError(f"{file}: the file is empty. Write one with: ciss plan shapes 4-2")
    if not isinstance(document, dict):
        sections = "sections such as benchmarks, methods and chain"
        raise ConfigError(f"{file}: found {short(document)}, but it should have {sections}.")
    config = validate(Config, document, file, "")
    object.__setattr__(config, "file", file)  # frozen for all others
    if problems := [f"{file}: {problem}" for problem in _chain_problems(config)]:
        raise ConfigError("\n".join(problems))
    return config


def validate(kind: type, values: Any, file: str, key: str) -> Any:
    """`values` as a `kind`. Raises ConfigError with a line for each mistake: file, key, value and what is expected."""
    section = [key] if key else []
    mistakes = list(_not_json(values, section))
    if not mistakes:
        try:
            # Strict JSON: a list may be a tuple and a mapping a section, but "1" and true are no numbers.
            return _adapter(kind).validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            mistakes = _mistakes(error.errors(), kind, section)
    raise ConfigError("\n".join(f"{file}: {mistake}" for mistake in mistakes))


_adapter = functools.cache(TypeAdapter)  # making one takes longer than using it


def _not_json(node: Any, location: list) -> Iterator[str]:
    """Mistakes in what YAML can hold and JSON cannot: dates, keys that are no text, invalid characters."""
    if len(location) > DEEPEST:
        yield f"{_dotted(location[:5])}: sections are nested too deeply. Correct the brackets and dashes."
    elif isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(node, dict) and not (isinstance(name, str) and _is_json(name)):
                advice = "Write it in quotes. A decimal number needs a point, not a comma."
                yield f"{_dotted([*location, name])}: found the name {short(name)}, but it should be text. {advice}"
            yield from _not_json(child, [*location, name])
    elif not _is_json(node):
        kinds = "text, a number, true, false, null, a list or a section"
        yield f"{_dotted(location)}: found {short(node)}, but it should be {kinds}. Write text in quotes."


def _is_json(value: Any) -> bool:
    if isinstance(value, str):
        return not re.search("[\ud800-\udfff]", value)  # halves of characters
    return value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**60)


def _mistakes(errors: list[dict], kind: type, section: list[str]) -> list[str]:
    """Pydantic's errors, one line for each key: a value of several allowed types has an error for each type."""
    lines: dict[str, str] = {}
    for error in errors:
        keys = [str(part) for part in error["loc"] if not re.fullmatch(r"constrained-\w+|literal\[.*\]", str(part))]
        is_name = bool(keys) and keys[-1] == "[key]"
        key = _dotted([*section, *keys[: len(keys) - is_name]])
        if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines[key] = f"unknown key. {_known_keys(kind, keys)}"
        elif error["type"] in ("missing", "missing_argument"):
            lines[key] = "this key is missing. Add it."
        else:
            expected = error["msg"].partition("should ")[2] or "be a smaller number"  # int_parsing_size
            for word, yaml_word in JSON_WORDS.items():
                expected = expected.replace(word, yaml_word)
            name = "the name " if is_name else ""
            value = f"found {name}{short(error['input'])}, but it should"
            lines[key] = f"{lines[key][:-1]}, or {expected}." if key in lines else f"{value} {expected}."
    return [f"{key}: {line}" for key, line in lines.items()]


def _dotted(location: list) -> str:
    return ".".join(plain(part if isinstance(part, str) else short(part)) or "''" for part in location)


def _known_keys(kind: type, path: list[str]) -> str:
    """A hint at the right key: the same name in a section below, the nearest name in this one, or all names."""
    *sections, wrong = path
    for part in sections:
        kind = get_type_hints(kind)[part] if is_dataclass(kind) else get_args(kind)[-1]
        if isinstance(kind, UnionType):  # a section or null
            kind = get_args(kind)[0]
    keys = list(_keys(kind))
    if below := [key for key in keys if key.endswith(f".{wrong}")]:
        return f"Did you mean {' or '.join(repr('.'.join([*sections[-1:], key])) for key in below)}?"
    return choose(wrong, [key for key in keys if "." not in key])


def _keys(kind: type) -> Iterator[str]:
    """Keys of a section, and dotted keys of the sections in it."""
    types = get_type_hints(kind)
    for key in (field.name for field in fields(kind) if field.init):
        yield key
        if is_dataclass(types[key]):
            yield from (f"{key}.{below}" for below in _keys(types[key]))


def _chain_problems(config: Config) -> Iterator[str]:
    """Mistakes in the names of benchmarks and runs, and in the chain."""
    yield from _name_problems(config)
    yield from updates.problems(config.benchmarks, config.version)
    runs = config.runs()
    known = {
        "benchmark": ("benchmark", config.benchmarks),
        "method": ("method", config.methods),
        "run": ("run", runs),
        "after": ("base step or increment", {**config.bases, **config.chain}),
    }
    for section in ("bases", "joints", "chain", "ends"):
        for name, entry in getattr(config, section).items():
            for key, (noun, names) in known.items():
                if (value := getattr(entry, key, None)) is not None and value not in names:
                    yield f"{section}.{name}.{key}: there is no {noun} {value!r}. {choose(value, names)}"
    for name, run in config.chain.items():
        if run.after in known["after"][1]:
            yield from _step_problems(config, name, run)
    for name, end in config.ends.items():
        if end.run in runs and runs[end.run].benchmark != end.benchmark:
            right = runs[end.run].benchmark
            yield f"ends.{name}.benchmark: {end.benchmark!r} is not the benchmark of {end.run!r}. Use {right!r}."


def _name_problems(config: Config) -> Iterator[str]:
    for section in ("benchmarks", "bases", "joints", "chain"):
        for name in getattr(config, section):
            if name in RESERVED if section == "benchmarks" else NOTEBOOK.fullmatch(name):
                yield f"{section}.{name}: the reports have a file or folder of this name. Rename it."
    for section, names in (("benchmarks", config.benchmarks), ("runs", config.runs())):
        by_folder: dict[str, str] = {}
        for name in names:
            first = by_folder.setdefault(name.lower(), name)
            if first != name:
                yield f"{section}: {first} and {name} are the same folder on macOS and Windows. Rename one."
            if DEVICE.fullmatch(name):
                yield f"{section}: {name} is the name of a device on Windows. Rename it."
    for section, others in (("joints", config.bases), ("chain", {**config.bases, **config.joints})):
        for name in getattr(config, section):
            if name in others:
                yield f"{section}.{name}: another run has this name. Rename one of them."


def _step_problems(config: Config, name: str, run: Increment) -> Iterator[str]:
    """Mistakes in an increment, compared with the run that it continues."""
    before = config.runs()[run.after]
    if _is_circular(config.chain, name):
        yield f"chain.{name}.after: {run.after!r} continues this run in turn. Name a base step or an earlier increment."
        return
    step = before.step if isinstance(before, Increment) else 0
    if run.step != step + 1:
        yield f"chain.{name}.step: {run.step} cannot follow step {step} of {run.after!r}. Make it {step + 1}."
    for key in ("benchmark", "seed"):
        if getattr(run, key) != getattr(before, key):
            values = f"{getattr(run, key)!r} differs from {getattr(before, key)!r}"
            yield f"chain.{name}.{key}: {values} of {run.after!r}. Use the same."
    if step and run.method != before.method:
        yield f"chain.{name}.method: {run.method!r} continues {before.method!r} of {run.after!r}. Use one method."


def _is_circular(chain: dict[str, Increment], name: str) -> bool:
    """Whether the runs before a run lead back to it."""
    after, seen = chain[name].after, set()
    while after in chain and after not in seen:
        seen.add(after)
        after = chain[after].after
    return name in seen
