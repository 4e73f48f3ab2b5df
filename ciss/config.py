"""`params.yaml`: the only place for numbers, read as YAML 1.2 and checked key by key before anything runs.

Every section is a frozen dataclass that refuses unknown keys, so that a typo is an error and not a silent default.
What needs more than this file to be judged (class groups, methods, weight files) is checked in `ciss.runs`.
"""

import difflib
import re
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from ciss import paths

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
section = dataclass(frozen=True, kw_only=True, config=STRICT)

Name = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class ConfigError(Exception):
    """What is wrong in `params.yaml`: file, key, and what to do about it."""


@section
class Model:
    encoder: str = "ciss_tiny"  # a timm name
    pretrained: bool = False  # fetch timm's own weights (needs a network once)
    weights: str | None = None  # or a local weight file; relative to the data root or the project
    output_stride: Literal[4, 8, 16, 32] = 4
    decoder: Literal["deeplabv3"] = "deeplabv3"
    width: Count = 64  # channels of the dense features before the classifier
    atrous_rates: tuple[Count, ...] = (2, 4, 6)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


@section
class Phase:
    epochs: Count
    lr: Positive
    norm: Literal["batch", "sync", "frozen"] = "batch"


@section
class Train:
    base: Phase
    increment: Phase
    crop: Count  # pixels
    batch: Count  # images per process and forward pass
    accumulate: Count = 1  # forward passes per update
    augmentation: Literal["none", "resized_crop", "scaled_crop"] = "none"
    scale: tuple[Positive, Positive] = (0.5, 2.0)
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
    threads: Count = 2  # CPU threads; another number gives other last digits
    workers: Natural = 0  # loader processes; does not change the result
    cache: bool = False  # keep decoded images in memory
    curve: tuple[float, ...] = (1.0,)  # when the hold-out is scored: epochs into the step, then every full epoch


@section
class Evaluation:
    size: Literal["full", "crop"] = "full"  # full resolution, or shorter side to `train.crop` and centre crop
    batch: Count = 16
    samples: Natural = 4  # validation images whose predictions are kept for the figures


@section
class Benchmark:
    dataset: str
    protocol: str
    setting: Literal["overlapped", "disjoint", "sequential", "partitioned"] = "overlapped"
    order: tuple[Count, ...] | None = None  # raw class ids in order of arrival
    holdout: Natural = 0  # training images left out of every step, scored with full labels
    limit: Natural = 0  # only the first images of each list, for quick runs; 0: all
    model: Model = Field(default_factory=Model)
    train: Train
    evaluation: Evaluation = Field(default_factory=Evaluation)


@section
class Start:
    """A run that continues nothing: the base step, or joint training on all labels."""

    benchmark: Name
    method: Name
    seed: Natural


@section
class Increment(Start):
    after: Name
    step: Count


@section
class End:
    run: Name
    benchmark: Name


@section
class Config:
    benchmarks: Annotated[dict[Name, Benchmark], Field(min_length=1)]
    methods: dict[Name, dict[str, Any]]
    bases: dict[Name, Start]
    joints: dict[Name, Start] = Field(default_factory=dict)
    chain: dict[Name, Increment] = Field(default_factory=dict)
    ends: dict[Name, End] = Field(default_factory=dict)
    output: str = "."  # where data, runs, results and reports go, relative to the project
    complete: bool = False  # notebooks train the runs they miss: for files of a few seconds
    file: str = "params.yaml"

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


def read_yaml(path: Path, **options) -> Any:
    """A YAML 1.2 document. Raises ConfigError that names the file and, for a syntax error, the line."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file. Write one with: python -m ciss.plan shapes 4-2")
    try:
        return YAML(**(options or {"typ": "safe", "pure": True})).load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown line"
        raise ConfigError(f"{path}: {where}: not valid YAML: {error.problem or error.context}.") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}.") from None


def parse(document: Any, file: str = "params.yaml") -> Config:
    """Checks a document's keys, types and chain. Raises ConfigError with one line for each mistake."""
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: expected sections such as benchmarks, methods and chain, found {document!r}.")
    config = validate(Config, {**document, "file": file}, file, "")
    for problem in _chain_problems(config):
        raise ConfigError(f"{file}: {problem}")
    return config


def validate(kind: type, values: Any, file: str, key: str) -> Any:
    """`values` as a `kind`. Raises ConfigError naming file, key and the nearest known key."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [_explain(kind, found, file, key) for found in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def digestible(value: Any) -> Any:
    """A section as plain dictionaries and lists, for hashes and metadata."""
    return asdict(value) if is_dataclass(value) else value


def _explain(kind: type, found: dict, file: str, key: str) -> str:
    location = [str(part) for part in found["loc"]]
    place = ".".join(filter(None, [key, *location]))
    if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(location[-1], _known_keys(kind), n=1)
        hint = f"Did you mean {near[0]}?" if near else "Remove it."
        return f"{file}: {place}: unknown key. {hint}"
    if found["type"] in ("missing", "missing_argument"):
        return f"{file}: {place}: this key is missing. Add it."
    message = re.sub(r"^(Input|String|Value) ", "", found["msg"])
    return f"{file}: {place}: found {found['input']!r}, but it {message[0].lower()}{message[1:]}."


def _known_keys(kind: type) -> list[str]:
    """Keys of a section and of the sections inside it, for the hint of a typo."""
    sections = (kind, Config, Benchmark, Train, Phase, Model, Evaluation, Increment, End)
    return [field.name for section in sections if is_dataclass(section) for field in fields(section)]


def _chain_problems(config: Config):
    runs = config.runs()
    if len(runs) < len(config.bases) + len(config.joints) + len(config.chain):
        twice = (set(config.bases) & set(config.joints)) | (set(config.chain) & {*config.bases, *config.joints})
        yield f"{sorted(twice)[0]} names two runs. Rename one of them."
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
            yield f"{place}.after: there is no base step or increment {run.after!r}. {choose(run.after, runs)}"
            return
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


def choose(word: str, known) -> str:
    """The nearest known word, or all of them: the end of an error message."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sorted(known)) or 'none'}."
