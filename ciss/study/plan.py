"""Writes `params.yaml` for a benchmark: data, network, schedule, methods, and the chain of runs."""

import copy
import io
import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from ciss import config, documents, paths, protocol, updates
from ciss.config import ConfigError
from ciss.data import DATASETS, data_set
from ciss.methods import BROKEN, METHODS, code_of
from ciss.runs import run as runs_run
from ciss.study import places, plan_check
from ciss.study.plan_runs import add_runs, flow, own_base
from ciss.study.presets import load, present_names, presets

ORDERS_TRIED = 1_000  # shuffles
SHOWN = 5  # values in one message
HEADER = (
    "The only place for numbers. Written by `ciss plan`, made to be edited: comments survive the next plan.\n"
    "Every key is checked before anything runs: ciss plan --check"
)
INCREMENTAL = [name for name in METHODS if not METHODS[name].sees_all]
USUAL = [name for name in INCREMENTAL if METHODS[name].usual]
ABOUT = {
    "benchmarks": "what the runs share: data, protocol, network, schedule",
    "methods": "coefficients of each method",
    "bases": "step 0, shared by the methods that continue it",
    "joints": "all classes at once, usually the upper bound",
    "chain": "every later step, naming the run it continues",
    "ends": "what the analyses compare",
}
OWN = "benchmarks on data of your own: `dvc repro` compares their images with those that it used before"


@dataclass
class Request:
    """The arguments of `ciss plan`; None stands for the preset's."""

    dataset: str
    protocol: str | None = None
    setting: str | None = None
    methods: list[str] | None = None
    seeds: list[int] | None = None
    orders: int | None = None  # number of class orders: the data set's own or `order`, and shuffled ones
    order: list[int] | None = None  # raw class ids
    joint: bool | None = None
    preset: str | None = None
    name: str | None = None  # of the benchmark
    settings: list[str] | None = None  # KEY=VALUE: dotted keys of the benchmark
    add: bool = False  # keep the benchmarks that the file has
    fresh: bool = False  # take the preset's numbers, not the file's
    output: str = "params.yaml"


def plan(document: CommentedMap, request: Request) -> CommentedMap:
    """The document with the requested benchmark and its runs in place of the others, or beside them with `--add`.

    Entries of the document that have the same name stay, with their comments. Raises ConfigError.
    """
    document = copy.deepcopy(document)
    for section, about in ABOUT.items():
        if section not in document:
            document[section] = CommentedMap()
            document.yaml_set_comment_before_after_key(section, before=f"\n{about}")
    for mapping in (document, document["benchmarks"]):
        _move_comments(mapping)
    old = copy.deepcopy(document)
    first = request.name or _name(request)
    config.validate(dict[config.Name, None], {first: None}, "plan", "--name")
    changes = [parse_setting(text) for text in request.settings or []]
    if not request.add:
        for section in set(ABOUT) - {"methods"}:
            for name in list(document[section]):
                del document[section][name]
    _add_coefficients(document["methods"], request, [*request.methods, "finetune", *["joint"] * bool(request.joint)])
    own_bases = {own_base(document["methods"], method) for method in request.methods} - {None, *request.methods}
    _add_coefficients(document["methods"], request, sorted(own_bases))
    for number, order in enumerate(_orders(request)):
        name = first if number == 0 else f"{first}-order{number}"
        if name in old["benchmarks"] and not request.fresh:
            settings = old["benchmarks"][name]
            if number == 0:
                _name_kept(settings, name, request, changes)
        elif number and first in old["benchmarks"] and not request.fresh:  # all orders have the same schedule
            settings = copy.deepcopy(document["benchmarks"][first])
        else:
            settings = _preset_settings(request)
            document["benchmarks"].ca.items.pop(name, None)
        settings.update({key: getattr(request, key) for key in ("dataset", "protocol", "setting")})
        if order:
            settings["order"] = flow(order)
        for key, value in changes:
            _assign(settings, key, copy.deepcopy(value))
        document["benchmarks"][name] = settings
        steps = _steps(settings, name, request)
        for seed in request.seeds:
            add_runs(document, name, seed, steps, request.methods, joint=request.joint)
    _list_own_data(document)
    updates.mark(document)
    if not request.add:
        _remove_unused_variants(document, request.fresh)
    _restore_comments(document, old)
    return document


def _add_coefficients(sections: CommentedMap, request: Request, methods: list[str]) -> None:
    """Adds the coefficients of methods. Edited ones stay, and a line names where the preset differs."""
    preset = _preset(request)
    for method in methods:
        own = sections.get(method)
        if own is not None and not _knows(preset, method):
            continue
        presets = _coefficients(method, preset)
        if own == presets:
            continue
        if own is None or (not request.add and _unedited(method, own)):
            sections[method] = flow(presets)
            continue
        different = [key for key in own if own[key] != presets.get(key)]
        if kept := ", ".join(f"{key} {own[key]} (preset: {presets[key]})" for key in different):
            print(f"methods.{method} stays as the file has it: {kept}. Remove the section to take the preset's.")


def _name_kept(settings: CommentedMap, name: str, request: Request, changes: list[tuple]) -> None:
    """Prints the values of a benchmark that stay as the file has them, and differ from the preset's."""
    own, presets = (json.loads(json.dumps(values)) for values in (settings, _preset_settings(request)))
    asked = ["dataset", "protocol", "setting", *["order"] * bool(request.order), *dict(changes)]
    starts = tuple(f"{key}{end}" for key in asked for end in " .")
    differences = [line for line in documents.differences(own, presets, word="preset") if not line.startswith(starts)]
    if differences:
        more = [f"and {len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
        kept = "; ".join([*differences[:SHOWN], *more]).replace("preset None", "not in the preset")
        print(f"benchmarks.{name} stays as the file has it: {kept}. Take the preset's with --fresh.")


def _preset_settings(request: Request) -> CommentedMap:
    """The benchmark of the preset, without what belongs to another protocol or data set."""
    settings = _preset(request)
    other_data = settings["dataset"] != request.dataset
    other_protocol = other_data or settings["protocol"] != request.protocol
    for key in ("methods", "runs", *["expects"] * other_data, *["groups"] * other_protocol):
        settings.pop(key, None)
    return settings


def _steps(settings: CommentedMap, name: str, request: Request) -> int:
    """Number of steps of a benchmark. Raises ConfigError, which names the setting of a preset with this protocol."""
    place = f"benchmarks.{name}"
    benchmark = config.validate(config.Benchmark, settings, "plan", place)
    try:
        return runs_run.steps(benchmark, f"plan: {place}")
    except ConfigError as error:
        same = {"dataset": request.dataset, "protocol": request.protocol}
        settings = [preset["setting"] for preset in map(_plain, presets()) if same.items() <= preset.items()]
        if settings and request.setting not in settings:
            raise ConfigError(f"{error} Or add --setting {settings[0]}.") from None
        raise


def _list_own_data(document: CommentedMap) -> None:
    """Lists the benchmarks on data of one's own, so that the pipeline compares their images."""
    own = [name for name, values in document["benchmarks"].items() if data_set(values["dataset"]).description]
    if "own" not in document:
        document.yaml_set_comment_before_after_key("own", before=f"\n{OWN}")
    if document.get("own") != own:
        document["own"] = flow(own)


def _restore_comments(document: CommentedMap, old: CommentedMap) -> None:
    """Gives unchanged entries their comments back, and removes comments of entries that are gone."""
    for section in ABOUT:
        if old[section] and next(iter(old[section])) not in document[section]:  # a comment above it is the section's
            document[section].ca.comment = None
            if above := document.ca.items.get(section):
                above[3] = None
        for name in old[section]:
            if name not in document[section]:
                document[section].ca.items.pop(name, None)
            elif document[section][name] == old[section][name]:
                document[section][name] = old[section][name]  # with its comment


def _remove_unused_variants(document: CommentedMap, fresh: bool) -> None:
    """Removes unused variants of benchmarks' presets, such as trials, and with `fresh` also those of methods' presets.
    Variants with numbers of the user stay."""
    used = {run["method"] for section in ("bases", "joints", "chain") for run in document[section].values()}
    for name in set(document["methods"]) - used:
        code, _, variant = name.partition("-")
        removable = variant and code in METHODS and (fresh or variant not in METHODS[code].variants())
        if removable and _unedited(name, document["methods"][name]):
            del document["methods"][name]


def _knows(preset: dict, method: str) -> bool:
    """Whether a method or variant has coefficients in the method's file or in the preset."""
    code, _, variant = method.partition("-")
    return not variant or variant in METHODS[code].variants() or method in preset.get("methods", {})


def _unedited(method: str, coefficients: dict) -> bool:
    """Whether coefficients are those of some preset."""
    known = (preset for preset in map(_plain, presets()) if _knows(preset, method))
    return any(coefficients == _coefficients(method, preset) for preset in known)


@cache
def _plain(name: str) -> dict:
    """A preset without its comments."""
    return json.loads(json.dumps(load(name)))


def _coefficients(name: str, preset: dict) -> dict:
    """A method's defaults, changed by the benchmark's preset, and for a variant by the method's own preset. A variant
    in the benchmark's preset changes the defaults alone."""
    code, _, variant = name.partition("-")
    method = METHODS[code]
    changes = preset.get("methods", {})
    if not _knows(preset, name):
        hint = f"{config.choose(variant, method.presets)} Or first write methods.{name} into the file."
        raise ConfigError(f"--methods: {code} has no preset {variant!r}. {hint}")
    variants = method.variants(preset.get("runs", {}).get("memory", 100))
    values = changes[name] if name in changes else {**changes.get(code, {}), **variants.get(variant, {})}
    defaults = json.loads(json.dumps(asdict(method())))
    listed = defaults.keys() - {"memory", *method.unlisted}
    own_first = [key for kind in method.__mro__ for key in vars(kind).get("__annotations__", {}) if key in listed]
    return {**{key: defaults[key] for key in own_first}, **values}


def _complete(request: Request) -> str:
    """Takes what the command does not name from the preset. Returns the command after the plan. Raises ConfigError."""
    request.protocol = request.protocol or _preset(request)["protocol"]
    request.setting = request.setting or _preset(request)["setting"]  # the protocol may select another preset
    runs = _preset(request).get("runs", {})
    request.seeds = list(runs.get("seeds", [0])) if request.seeds is None else request.seeds
    if request.orders is None:
        request.orders = 1 if request.order else runs.get("orders", 1)
    request.joint = runs.get("joint", True) if request.joint is None else request.joint
    request.methods = present_names(_usual(request) if request.methods is None else request.methods)
    for method in request.methods:
        if code_of(method) not in INCREMENTAL:
            wrong = f"no incremental method {method!r}. {config.choose(method, INCREMENTAL)}"
            raise ConfigError(f"--methods: {BROKEN.get(code_of(method), wrong)}")
    return runs.get("next", "dvc repro")


def _usual(request: Request) -> list[str]:
    """The methods of a plan that names none. In the domain setting none that compensates gradients."""
    preset = _preset(request)
    methods = preset.get("runs", {}).get("methods", USUAL)
    domain = request.setting == "domain"
    return [method for method in methods if not (domain and _coefficients(method, preset).get("compensation"))]


def _name(request: Request) -> str:
    """The name of the preset. Another protocol or setting is appended."""
    name = _preset_name(request)
    preset = _preset(request)
    if (preset["dataset"], preset["protocol"]) != (request.dataset, request.protocol):
        name = f"{name if name.startswith(f'{request.dataset}-') else request.dataset}-{request.protocol}"
    return name if request.setting == preset["setting"] else f"{name}-{request.setting}"


def _preset_name(request: Request) -> str:
    """The preset of the data set, or of its protocol or setting (voc8-4-2). `--preset mbs` means the data set's preset
    of that name (voc-mbs), or the preset mbs."""
    preset = request.preset or (request.dataset if request.dataset in DATASETS else "own")
    choices = () if request.preset else (request.protocol, request.setting)
    start = f"{request.dataset}-"
    for name in (*(f"{start}{part}" for part in (*choices, preset)), preset):
        if name in presets():
            return name
    names = {name.removeprefix(start) for name in presets() if name.startswith(start) or "-" not in name}
    raise ConfigError(f"--preset: no preset {preset!r} for {request.dataset}. {config.choose(preset, names)}")


def _preset(request: Request) -> CommentedMap:
    """The preset, its head comment (source, expected result, wall time) indented as in the file."""
    settings = load(_preset_name(request))
    for line in settings.ca.comment[1]:
        line.start_mark.column = 4
    return settings


def _orders(request: Request) -> list[list[int] | None]:
    """The requested class order, or None for the benchmark's own, then shuffled ones, which are always the same.

    In any two of them, the classes of some step differ. Raises ConfigError if there are too few, or domains.
    """
    order_count = request.orders or 1
    if request.setting == "domain" and (order_count > 1 or request.order):
        option = "--order" if request.order else "--orders"
        raise ConfigError(f"{option}: in the domain setting no step has new classes. Leave it out.")
    orders = [request.order]
    if order_count == 1:
        return orders
    classes = list(protocol.DATASETS.get(request.dataset) or data_set(request.dataset).order())

    def classes_of_steps(order: list[int]) -> list[set[int]]:
        groups = protocol.class_groups(request.dataset, request.protocol, order=order, classes=order)
        return [set(group) for group in groups]

    known = [classes_of_steps(classes)]
    for seed in range(1, ORDERS_TRIED):
        order = np.random.RandomState(seed).permutation(classes).tolist()
        if (steps := classes_of_steps(order)) not in known:
            orders.append(order)
            known.append(steps)
        if len(orders) == order_count:
            return orders
    problem = f"{request.dataset} {request.protocol} has only {len(orders)} orders whose steps differ"
    raise ConfigError(f"--orders: {order_count}, but {problem}. Ask for at most {len(orders)}.")


def _assign(settings: CommentedMap, key: str, value) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, CommentedMap())
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {key}: {parent} is no section. Leave out what follows it.")
    settings[last] = value


def _move_comments(mapping: CommentedMap) -> None:
    """Hangs comments on the key they stand above; ruamel leaves them at the end of what stands before it."""
    for key, following in pairwise(mapping):
        node, last = mapping, key
        while isinstance(node[last], CommentedMap | CommentedSeq) and node[last] and not node[last].fa.flow_style():
            node = node[last]
            last = list(node)[-1] if isinstance(node, CommentedMap) else len(node) - 1
        token = node.ca.items.get(last, [None] * 3)[2 if isinstance(node, CommentedMap) else 0]
        own, _, above = token.value.partition("\n") if token else ("", "", "")
        if above:
            token.value = f"{own}\n"
            comment_lines = [line.strip().removeprefix("#").removeprefix(" ") for line in above.splitlines()]
            indent = len(above.splitlines()[-1]) - len(above.splitlines()[-1].lstrip())
            mapping.yaml_set_comment_before_after_key(following, before="\n".join(comment_lines), indent=indent)


def main(request: Request) -> None:
    """Writes the requested plan, and prints the next command. Exits with a message if it cannot."""
    try:
        data_set(request.dataset)  # raises ConfigError where there is none
        named = request.methods is not None
        next_command = _complete(request)
        text = _planned(request)
        settings = config.parse(YAML(typ="safe", pure=True).load(text), request.output)
        notes = plan_check.check_planned(settings)
        places.write_text(paths.project() / request.output, text)
    except (ConfigError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if not named:
        joint, option = (" and joint training", "--no-joint") if settings.joints else ("", "--joint")
        print(f"methods: {', '.join(request.methods) or 'none'}{joint}. Name others with --methods and {option}.")
    plan_check.print_notes(notes)
    if not plan_check.is_of_pipeline(request.output):
        command = "ciss train" if next_command == "dvc repro" else next_command
        next_command = f"{command} --config {request.output} (the pipeline reads params.yaml only)"
    if notes:
        next_command = f"read the notes above, then: {next_command}"
    runs = documents.counted(len(settings.runs()), "run")
    print(f"{request.output}: {', '.join(settings.benchmarks)}; {runs}. Next: {next_command}")


def _planned(request: Request) -> str:
    """The text of the file: its current content, if any, changed by the request."""
    file = paths.project() / request.output
    document = CommentedMap()
    document.yaml_set_start_comment(HEADER)
    if file.is_file() and config.read_yaml(file) is not None:
        config.load(request.output)
        document = config.read_yaml(file, documents.round_trip_yaml())  # with its comments
    buffer = io.StringIO()
    documents.round_trip_yaml().dump(plan(document, request), buffer)
    return buffer.getvalue()


def parse_setting(text: str) -> tuple[str, object]:
    """Key and value of a KEY=VALUE, the value read as YAML. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if equals and all(key.split(".")):
        with suppress(ConfigError):
            documents.parse_yaml(value, "--set", documents.safe_yaml())  # refuses numbers such as 4_2
            return key, documents.parse_yaml(value, "--set", documents.round_trip_yaml())
    raise ConfigError(f"--set: found {documents.short(text)}. Write KEY=VALUE, the value as in the file.")
