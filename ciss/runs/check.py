"""Checks of a parameter file that need more than the file: class groups, networks, weights and methods."""

import functools
from collections.abc import Iterator
from contextlib import suppress

from ciss import config as configuration
from ciss import documents, paths
from ciss.config import Benchmark, Config, ConfigError, Increment, Model
from ciss.data import DataError, Index
from ciss.data.stored import BREAKS_PROTOCOL
from ciss.documents import counted
from ciss.methods import BROKEN, METHODS, Method, code_of
from ciss.models import WeightsError, hub, needs_two_images
from ciss.models.encoders import check_weights, create_encoder, has_pretrained_weights, is_encoder
from ciss.models.network import create_decoder
from ciss.models.without_values import without_values
from ciss.runs.run import index_folder, lone_image, name_in_tables, steps, weight_file


def check(config: Config) -> None:
    """Checks everything that can be known before anything runs. Raises ConfigError with one line for each mistake."""
    problems = list(dict.fromkeys(_problems(config)))  # several runs may have the same problem
    if problems:
        raise ConfigError("\n".join(problems))


def benchmark_name(settings: Config, name: str = "") -> str:
    """The name, or that of the file's first benchmark if empty. Raises ConfigError for an unknown name."""
    if name and name not in settings.benchmarks:
        raise ConfigError(
            f"{settings.file}: there is no benchmark {name!r}. {documents.choose(name, settings.benchmarks)}"
        )
    return name or next(iter(settings.benchmarks))


def sees_all(method: str) -> bool:
    return code_of(method) in METHODS and METHODS[code_of(method)].sees_all


def notices(config: Config) -> list[str]:
    """`Method.notice` and the stored images for every pair of benchmark and method of the file."""
    lines = []
    for method, name in dict.fromkeys((run.method, run.benchmark) for run in config.chain.values()):
        built = _build(config, method)
        if built and (notice := built.notice(config.benchmarks[name])):
            lines.append(f"{name}, {method}: {notice}.")
        if built and built.memory:
            lines.append(f"{name}, {name_in_tables(method, built.memory)}: {BREAKS_PROTOCOL}: {built.memory.words()}.")
    return lines


def _build(config: Config, name: str) -> Method | None:
    """The method of a section under `methods`; None for mistakes, which `_method_problems` reports."""
    try:
        return METHODS[code_of(name)](**config.methods[name])
    except (KeyError, TypeError, ValueError):
        return None


def _problems(config: Config) -> Iterator[str]:
    for name, values in config.methods.items():
        yield from _method_problems(config, name, values)
    yield from _name_problems(config)
    counts = {}  # benchmark -> number of steps
    for name, benchmark in config.benchmarks.items():
        place = f"{config.file}: benchmarks.{name}"
        starts = any(run.benchmark == name for run in (*config.bases.values(), *config.joints.values()))
        continues = any(run.benchmark == name for run in config.chain.values())
        phases = [phase for phase, trained in (("base", starts), ("increment", continues)) if trained]
        try:
            counts[name] = steps(benchmark, place)
        except ConfigError as error:
            yield str(error)
        yield from (f"{place}.{problem}" for problem in _benchmark_problems(benchmark, phases))
    yield from _run_problems(config, counts)


def _method_problems(config: Config, name: str, values: dict) -> Iterator[str]:
    place = f"methods.{name}"
    code = code_of(name)
    if code not in METHODS:
        problem = BROKEN.get(code) or f"no such method. {configuration.choose(code, METHODS)}"
        yield f"{config.file}: {place}: {problem} Or remove the section."
        return
    try:
        configuration.validate(METHODS[code], values, config.file, place)
    except ConfigError as error:
        yield str(error)


def _name_problems(config: Config) -> Iterator[str]:
    """Sections whose rows in tables could not be told apart: `-M` marks those with memory."""
    titles: dict[str, str] = {}
    for name in config.methods:
        if (method := _build(config, name)) is None:
            continue
        place = f"{config.file}: methods.{name}"
        title = name_in_tables(name, method.memory)
        if name.endswith("-M") and not method.memory:
            yield f"{place}: in tables, -M marks methods with memory, and this one has none. Rename the section."
        elif titles.setdefault(title, name) != name:
            yield f"{place}: its name in tables is {title}, as that of {titles[title]}. Rename one of the sections."


def _memory_problem(config: Config, run: Increment, method: Method) -> tuple[str, str] | None:
    """Why stored images cannot be used on a benchmark, as `Method.unsuited`."""
    benchmark, memory = config.benchmarks[run.benchmark], method.memory
    if memory is None:
        return None
    if benchmark.setting == "domain":
        return "methods.memory", "images are stored by their classes, and a domain brings none. Remove the key"
    if not method.epochs(benchmark.train.increment):
        return "methods.memory", "nothing is trained after the base step, so no image would be drawn. Remove the key"
    if memory.mix == "half" and benchmark.train.batch < 2:
        return "methods.memory.mix", "a batch of one image has no half. Use `append`"
    with suppress(DataError):  # the data are not prepared yet
        index = Index.load(index_folder((paths.project() / config.output).resolve(), run.benchmark), benchmark)
        if memory.images > (most := len(index.steps[0])):
            problem = f"found {memory.images}, but step 0 has {counted(most, 'training image')}. Use at most {most}"
            return "methods.memory.images", problem
    return None


def _benchmark_problems(benchmark: Benchmark, phases: list[str]) -> Iterator[str]:
    """Keys of a benchmark with what is wrong. `phases`: those that some run trains."""
    train = benchmark.train
    lone = [phase for phase in phases if lone_image(benchmark, getattr(train, phase), train.batch)]
    if lone:
        layer = needs_two_images(benchmark.model, train.crop)
        keys = " and ".join(f"train.{phase}.norm: frozen" for phase in lone)
        yield f"train.batch: 1 image has no batch statistics in {layer}. Use 2 or more, or {keys}."
    yield from (f"model.{problem}" for problem in _network_problems(benchmark.model))
    try:
        if (file := weight_file(benchmark)) and is_encoder(benchmark.model.encoder):
            check_weights(benchmark.model.encoder, file)
    except WeightsError as error:
        name = benchmark.model.weights or ""
        yield f"model.weights: {str(error).replace(name, documents.plain(name))}"
    except OSError as error:  # a name that no file can have
        yield f"model.weights: {error.strerror}. Change it."


@functools.cache
def _network_problems(model: Model) -> list[str]:
    """Keys of the section with what is wrong, by building the network without memory. Not of the weight file."""
    try:
        with without_values():
            encoder = create_encoder(model.encoder, model.output_stride, image_size=model.image_size)
    except ValueError as error:
        return [f"encoder: {error}"]
    problems = []
    try:
        with without_values():
            create_decoder(model, encoder.widths, [2])
    except ValueError as error:
        problems.append(f"width: {error}")
    if model.pretrained and model.weights:
        problems.append("pretrained: model.weights names a file. Set this to false, or weights to null.")
    elif model.pretrained and not has_pretrained_weights(model.encoder):
        problems.append(f"pretrained: there are no weights of {model.encoder} to fetch. Set this to false.")
    elif model.pretrained and (problem := hub.unavailable(model.encoder)):
        problems.append(f"pretrained: {problem}")
    return problems


def _run_problems(config: Config, counts: dict[str, int]) -> Iterator[str]:
    for part in ("bases", "joints", "chain"):
        for name, run in getattr(config, part).items():
            place = f"{config.file}: {part}.{name}"
            if run.code is not None and run.code != code_of(run.method):
                expected = f"the code of {run.method} is {code_of(run.method)}"
                yield f"{place}.code: {run.code!r}, but {expected}. Change it or remove it."
            if part == "chain" and sees_all(run.method):
                yield f"{place}.method: {run.method} sees all classes at once. Name it under joints."
            elif part != "chain" and code_of(run.method) in METHODS and sees_all(run.method) != (part == "joints"):
                section = "bases" if part == "joints" else "joints"
                yield f"{place}.method: {run.method} belongs under {section}. Move it."
            if part != "chain" and (method := _build(config, run.method)) and method.memory:
                yield f"{place}.method: {run.method} has memory, but no step is before this run. Name one without it."
    for name, run in config.chain.items():
        if run.step >= counts.get(run.benchmark, run.step + 1):
            last = counts[run.benchmark] - 1
            yield f"{config.file}: chain.{name}.step: {run.step}, but {run.benchmark} ends with step {last}. Remove it."
        method = _build(config, run.method)
        yield from _base_problems(config, name, method)
        if not method:
            continue
        unsuited = _memory_problem(config, run, method) or method.unsuited(config.benchmarks[run.benchmark])
        if not unsuited:
            continue
        key, reason = unsuited
        if key.startswith("methods."):  # a coefficient
            key = f"methods.{run.method}.{key.removeprefix('methods.')}"
            yield f"{config.file}: {key}: on {run.benchmark}, {reason}, under methods.{run.method}."
        else:
            yield f"{config.file}: benchmarks.{run.benchmark}.{key}: for {run.method}, {reason}. Change it."


def _base_problems(config: Config, name: str, method: Method | None) -> Iterator[str]:
    """Whether an increment continues a base step that its method can continue, see `Method.own_base`."""
    run = config.chain[name]
    base = config.bases.get(run.after)
    before = base and _build(config, base.method)
    if not (method and before):
        return
    required_base, exclusive_method = (kind.own_base and code_of(kind.own_base) for kind in (method, before))
    if required_base == (exclusive_method and code_of(base.method)):
        return
    place = f"{config.file}: chain.{name}.after"
    if required_base:
        advice = f"{run.method} continues a base step of {method.own_base}. Plan it again, or name such a base step"
    else:
        advice = f"only {exclusive_method} continues a base step of {base.method}. Name one that methods share"
    yield f"{place}: {run.after} is a base step of {base.method}, but {advice}."
