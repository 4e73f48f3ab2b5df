"""Checks of a parameter file that need more than the file: class groups, networks, weights and methods."""

import functools
from collections.abc import Iterator

import timm
import torch

from ciss import config as configuration
from ciss import documents
from ciss.config import Config, ConfigError, Increment, Model
from ciss.methods import BROKEN, METHODS, code_of
from ciss.models import WeightsError, hub, needs_two_images
from ciss.models.encoders import check_weights, create_encoder
from ciss.models.network import create_decoder
from ciss.runs import lone_image, steps, weight_file


def check(config: Config) -> None:
    """Everything that can be known before anything runs. Raises ConfigError with one line for each mistake."""
    problems = list(dict.fromkeys(_problems(config)))  # several runs may have the same
    if problems:
        raise ConfigError("\n".join(problems))


def benchmark_name(settings: Config, name: str = "") -> str:
    """The name of a benchmark of the file; the first one if empty. Raises ConfigError for an unknown name."""
    if name and name not in settings.benchmarks:
        raise ConfigError(
            f"{settings.file}: there is no benchmark {name!r}. {documents.choose(name, settings.benchmarks)}"
        )
    return name or next(iter(settings.benchmarks))


def sees_all(method: str) -> bool:
    return code_of(method) in METHODS and METHODS[code_of(method)].sees_all


@functools.cache
def _network_problems(model: Model) -> list[str]:
    """Keys of the section with what is wrong, found by building the network without memory; not the weight file's."""
    try:
        with torch.device("meta"):
            encoder = create_encoder(model.encoder, model.output_stride, image_size=model.image_size)
    except ValueError as error:
        return [f"encoder: {error}"]
    problems = []
    try:
        with torch.device("meta"):
            create_decoder(model, encoder.widths[-1], [2])
    except ValueError as error:
        problems.append(f"width: {error}")
    if model.pretrained and model.weights:
        problems.append("pretrained: model.weights names a file. Set this to false, or weights to null.")
    elif model.pretrained and not timm.is_model_pretrained(model.encoder):
        problems.append(f"pretrained: there are no weights of {model.encoder} to fetch. Set this to false.")
    elif model.pretrained and (problem := hub.unavailable(model.encoder)):
        problems.append(f"pretrained: {problem}")
    return problems


def _unsuited(config: Config, run: Increment) -> tuple[str, str] | None:
    """What a method has against its benchmark; its coefficients' mistakes are said elsewhere."""
    if code_of(run.method) not in METHODS:
        return None
    try:
        return METHODS[code_of(run.method)](**config.methods[run.method]).unsuited(config.benchmarks[run.benchmark])
    except (ValueError, TypeError):
        return None


def notices(config: Config) -> list[str]:
    """What methods do not do, or do otherwise, on the benchmarks of their runs: one line for each pair of both."""
    pairs = dict.fromkeys((run.method, run.benchmark) for run in config.chain.values())
    lines = []
    for method, benchmark in pairs:
        try:
            hooks = METHODS[code_of(method)](**config.methods[method])
        except (KeyError, TypeError, ValueError):  # `check` reports it
            continue
        if notice := hooks.notice(config.benchmarks[benchmark]):
            lines.append(f"{benchmark}, {method}: {notice}.")
    return lines


def _problems(config: Config) -> Iterator[str]:
    for name, values in config.methods.items():
        place = f"methods.{name}"
        if code_of(name) not in METHODS:
            wrong = BROKEN.get(code_of(name)) or f"no such method. {configuration.choose(code_of(name), METHODS)}"
            yield f"{config.file}: {place}: {wrong} Or remove the section."
            continue
        try:
            configuration.validate(METHODS[code_of(name)], values, config.file, place)
        except ConfigError as error:
            yield str(error)
    counts = {}
    for name, benchmark in config.benchmarks.items():
        place = f"{config.file}: benchmarks.{name}"
        starts = any(run.benchmark == name for run in (*config.bases.values(), *config.joints.values()))
        phases = {"base": starts, "increment": any(run.benchmark == name for run in config.chain.values())}
        phases = [phase for phase, trained in phases.items() if trained]
        lone = [
            phase for phase in phases if lone_image(benchmark, getattr(benchmark.train, phase), benchmark.train.batch)
        ]
        if lone:
            layer = needs_two_images(benchmark.model, benchmark.train.crop)
            keys = " and ".join(f"train.{phase}.norm: frozen" for phase in lone)
            yield f"{place}.train.batch: 1 image has no batch statistics in {layer}. Use 2 or more, or {keys}."
        try:
            counts[name] = steps(benchmark, place)
        except ConfigError as error:
            yield str(error)
        yield from (f"{place}.model.{problem}" for problem in _network_problems(benchmark.model))
        try:
            if (file := weight_file(benchmark)) and timm.is_model(benchmark.model.encoder):
                check_weights(benchmark.model.encoder, file)
        except WeightsError as error:
            named = benchmark.model.weights or ""
            yield f"{place}.model.weights: {str(error).replace(named, documents.plain(named))}"
        except OSError as error:  # a name that no file can have
            yield f"{place}.model.weights: {error.strerror}. Change it."
    for part in ("bases", "joints", "chain"):
        for name, run in getattr(config, part).items():
            if run.code is not None and run.code != code_of(run.method):
                right = f"the code of {run.method} is {code_of(run.method)}. Change it or remove it."
                yield f"{config.file}: {part}.{name}.code: {run.code!r}, but {right}"
    for name, run in config.chain.items():
        if run.step >= counts.get(run.benchmark, run.step + 1):
            last = counts[run.benchmark] - 1
            yield f"{config.file}: chain.{name}.step: {run.step}, but {run.benchmark} ends with step {last}. Remove it."
        if unsuited := _unsuited(config, run):
            place = f"{config.file}: benchmarks.{run.benchmark}.{unsuited[0]}"
            yield f"{place}: for {run.method}, {unsuited[1]}. Change it."
        if sees_all(run.method):
            yield f"{config.file}: chain.{name}.method: {run.method} sees all classes at once. Name it under joints."
    for part in ("bases", "joints"):
        for name, run in getattr(config, part).items():
            if code_of(run.method) in METHODS and sees_all(run.method) != (part == "joints"):
                right = "bases" if part == "joints" else "joints"
                yield f"{config.file}: {part}.{name}.method: {run.method} belongs under {right}. Move it."
