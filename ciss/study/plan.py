"""Writes `params.yaml` for a benchmark: data, network, schedule, methods, and the chain of runs."""

import copy
import io
import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from ciss import config, documents, paths, protocol
from ciss.config import ConfigError
from ciss.data import DATASETS, data_set
from ciss.methods import BROKEN, METHODS, code_of
from ciss.runs import run as runs_run
from ciss.store import files
from ciss.study import plan_check
from ciss.study.presets import load, present_names, presets

ORDERS_TRIED = 1_000  # shuffles
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
    "joints": "all classes at once: the upper bound",
    "chain": "every later step, naming the run it continues",
    "ends": "what the analyses compare",
}
OWN = "benchmarks on data of your own: `dvc repro` compares their images with those that it used before"


@dataclass
class Request:
    """What a plan is asked for; None stands for what the preset says."""

    dataset: str
    protocol: str | None = None
    setting: str | None = None
    methods: list[str] | None = None
    seeds: list[int] | None = None
    orders: int = 1  # class orders: the data set's own or `order`, and shuffled ones
    order: list[int] | None = None  # raw class ids
    joint: bool = True
    preset: str | None = None
    name: str | None = None  # of the benchmark
    settings: list[tuple[str, object]] = field(default_factory=list)  # dotted keys of the benchmark, with values
    add: bool = False  # keep the benchmarks that the file has
    fresh: bool = False  # the preset's numbers, not the file's
    output: str = "params.yaml"


def plan(document: CommentedMap, request: Request) -> CommentedMap:
    """The document with the asked benchmark and its runs in place of the others (or beside them, with `--add`).

    What the document has by the same name stays as it is, comments too. Raises ConfigError.
    """
    document = copy.deepcopy(document)
    for section, about in ABOUT.items():
        if section not in document:
            document[section] = CommentedMap()
            document.yaml_set_comment_before_after_key(section, before=f"\n{about}")
    for mapping in (document, document["benchmarks"]):
        _move_comments(mapping)
    old, first = copy.deepcopy(document), request.name or _name(request)
    config.validate(dict[config.Name, None], {first: None}, "plan", "--name")
    if not request.add:
        for section in ("benchmarks", "bases", "joints", "chain", "ends"):
            for name in list(document[section]):
                del document[section][name]
    for method in [*request.methods, "finetune", *(["joint"] if request.joint else [])]:
        mine, preset = document["methods"].get(method), _preset(request)
        if mine is None or (_knows(preset, method) and not request.add and _unedited(method, mine)):
            theirs = _coefficients(method, preset)
            if mine != theirs:
                document["methods"][method] = _flow(theirs)
        elif _knows(preset, method):
            _tell_differences(method, mine, preset)
    for number, order in enumerate(_orders(request)):
        name = first if number == 0 else f"{first}-order{number}"
        if name in old["benchmarks"] and not request.fresh:
            settings = old["benchmarks"][name]
        elif number and first in old["benchmarks"] and not request.fresh:  # the orders of one study share all else
            settings = copy.deepcopy(document["benchmarks"][first])
        else:
            settings = _preset(request)
            for key in ("methods", "runs"):
                settings.pop(key, None)
            document["benchmarks"].ca.items.pop(name, None)
            if (settings["dataset"], settings["protocol"]) != (request.dataset, request.protocol):
                settings.pop("groups", None)  # the preset's are of the other protocol; those of the file are somebody's
            if settings["dataset"] != request.dataset:
                settings.pop("expects", None)  # of the preset's data set
        for key in ("dataset", "protocol", "setting"):
            settings[key] = getattr(request, key)
        if order:
            settings["order"] = _flow(order)
        for key, value in request.settings:
            _assign(settings, key, copy.deepcopy(value))
        document["benchmarks"][name] = settings
        place = f"benchmarks.{name}"
        steps = runs_run.steps(config.validate(config.Benchmark, settings, "plan", place), f"plan: {place}")
        for seed in request.seeds:
            _add_runs(document, name, seed, steps, request)
    _list_own_data(document)
    if not request.add:
        _remove_unused_variants(document, request.fresh)
    _restore_comments(document, old)
    return document


def _list_own_data(document: CommentedMap) -> None:
    """Lists the benchmarks on data of one's own, so that the pipeline compares their images."""
    own = [name for name, values in document["benchmarks"].items() if data_set(values["dataset"]).description]
    if "own" not in document:
        document.yaml_set_comment_before_after_key("own", before=f"\n{OWN}")
    if document.get("own") != own:
        document["own"] = _flow(own)


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


def _add_runs(document: CommentedMap, benchmark: str, seed: int, steps: int, request: Request) -> None:
    base = f"{benchmark}-s{seed}"
    document["bases"][base] = _flow({"benchmark": benchmark, "method": "finetune", "code": "finetune", "seed": seed})
    for method in request.methods:
        after = base
        for step in range(1, steps):
            run = f"{base}-{method}-{step}"
            values = {"method": method, "code": code_of(method), "step": step, "benchmark": benchmark, "seed": seed}
            document["chain"][run] = _flow({"after": after, **values})
            after = run
        document["ends"][f"{base}-{method}"] = _flow({"run": after, "benchmark": benchmark})
    if request.joint:
        document["joints"][f"{base}-joint"] = _flow(
            {"benchmark": benchmark, "method": "joint", "code": "joint", "seed": seed}
        )
        document["ends"][f"{base}-joint"] = _flow({"run": f"{base}-joint", "benchmark": benchmark})
    elif not request.methods:  # the base step alone is a study, too
        document["ends"][base] = _flow({"run": base, "benchmark": benchmark})


def _remove_unused_variants(document: CommentedMap, fresh: bool) -> None:
    """Removes variants that a preset of a benchmark spells out, such as the trials of a tuning, and that no run uses;
    with `fresh` also those of the methods' own presets. Variants with other numbers stay: they are the user's."""
    used = {run["method"] for section in ("bases", "joints", "chain") for run in document[section].values()}
    for name in set(document["methods"]) - used:
        code, _, variant = name.partition("-")
        if not variant or code not in METHODS:
            continue
        if (fresh or variant not in METHODS[code].presets) and _unedited(name, document["methods"][name]):
            del document["methods"][name]


def _knows(preset: dict, method: str) -> bool:
    """Whether the name has numbers without the file: a method's, a variant's of its own or of the preset's."""
    code, _, variant = method.partition("-")
    return not variant or variant in METHODS[code].presets or method in preset.get("methods", {})


def _unedited(method: str, mine: dict) -> bool:
    """Whether coefficients are as some preset has them: nobody's own."""
    known = (preset for preset in map(_plain, presets()) if _knows(preset, method))
    return any(mine == _coefficients(method, preset) for preset in known)


@cache
def _plain(name: str) -> dict:
    return json.loads(json.dumps(load(name)))


def _tell_differences(method: str, mine: dict, preset: dict) -> None:
    """Coefficients stay as the file has them; another benchmark's may be among them, so that is said."""
    theirs = _coefficients(method, preset)
    kept = ", ".join(f"{key} {mine[key]} (preset: {theirs[key]})" for key in mine if mine[key] != theirs.get(key))
    if kept:
        print(f"methods.{method} stays as the file has it: {kept}. Remove the section to take the preset's.")


def _coefficients(name: str, preset: dict) -> dict:
    """A method's defaults, changed by the benchmark's preset, and for a variant by the method's own preset.

    A variant that the benchmark's preset spells out is the defaults changed by that alone.
    """
    code, _, variant = name.partition("-")
    method, theirs = METHODS[code], preset.get("methods", {})
    spelt = name in theirs
    if not _knows(preset, name):
        raise ConfigError(
            f"--methods: {code} has no preset {variant!r}. {config.choose(variant, method.presets)} "
            f"Or write methods.{name} into the file first, with the numbers you want."
        )
    values = theirs[name] if spelt else {**theirs.get(code, {}), **method.presets.get(variant, {})}
    defaults = json.loads(json.dumps(asdict(method())))
    own_first = [key for kind in method.__mro__ for key in vars(kind).get("__annotations__", {}) if key in defaults]
    return {**{key: defaults[key] for key in own_first}, **values}


def _unnamed(request: Request) -> str:
    """Takes methods and seeds that the command does not name from the preset's `runs`. Returns the command after the
    plan."""
    theirs = _preset(request).get("runs", {})
    request.methods = list(theirs.get("methods", USUAL)) if request.methods is None else request.methods
    request.seeds = list(theirs.get("seeds", [0])) if request.seeds is None else request.seeds
    request.joint = request.joint and theirs.get("joint", True)
    return theirs.get("next", "dvc repro")


def _name(request: Request) -> str:
    """The preset's own data set and protocol go by its name; others carry what differs."""
    stem, preset = _preset_name(request), _preset(request)
    own = (preset["dataset"], preset["protocol"]) == (request.dataset, request.protocol)
    kind = stem if stem.startswith(f"{request.dataset}-") else request.dataset
    name = stem if own else f"{kind}-{request.protocol}"
    return name if request.setting == preset["setting"] else f"{name}-{request.setting}"


def _preset_name(request: Request) -> str:
    """The data set's own, or that of the asked protocol or setting if it has one (voc8-4-2); of `--preset mbs` what the
    data set has by that name (voc-mbs), or the preset itself."""
    wanted = request.preset or (request.dataset if request.dataset in DATASETS else "own")
    asked = () if request.preset else (request.protocol, request.setting)
    for name in (*(f"{request.dataset}-{own}" for own in (*asked, wanted)), wanted):
        if name in presets():
            return name
    start = f"{request.dataset}-"
    words = [name.removeprefix(start) for name in presets() if name.startswith(start)]
    others = [name for name in presets() if "-" not in name]
    hints = [config.choose(wanted, known) for known in (words, others) if known]
    hint = next((hint for hint in hints if hint.startswith("Did you mean")), hints[0])
    raise ConfigError(f"--preset: no preset {wanted!r} for {request.dataset}. {hint}")


def _preset(request: Request) -> CommentedMap:
    """A preset, its head comment (source, expected result, wall time) indented as it will stand in the file."""
    settings = load(_preset_name(request))
    for line in settings.ca.comment[1]:
        line.start_mark.column = 4
    return settings


def _orders(request: Request) -> list[list[int] | None]:
    """Class orders: the one given or the benchmark's, then shuffled ones, the same for everybody.

    No two bring the same classes in every step. Raises ConfigError where there are not so many, and in the domain
    setting, whose steps bring images and no classes.
    """
    if request.setting == "domain" and (request.orders > 1 or request.order):
        option = "--order" if request.order else "--orders"
        raise ConfigError(f"{option}: in the domain setting no step brings classes, so their order changes nothing.")
    orders = [request.order]
    if request.orders == 1:
        return orders
    classes = protocol.DATASETS.get(request.dataset) or data_set(request.dataset).order()
    contents = [_steps(request, list(classes))]
    for seed in range(1, ORDERS_TRIED):
        order = np.random.RandomState(seed).permutation(classes).tolist()
        if (steps := _steps(request, order)) not in contents:
            orders.append(order)
            contents.append(steps)
        if len(orders) == request.orders:
            return orders
    raise ConfigError(
        f"--orders: {request.orders}, but {request.dataset} {request.protocol} has only {len(orders)} orders whose "
        f"steps differ. Ask for at most {len(orders)}."
    )


def _steps(request: Request, order: list[int]) -> list[set[int]]:
    """The classes of each step."""
    groups = protocol.class_groups(request.dataset, request.protocol, order=order, classes=order)
    return [set(group) for group in groups]


def _assign(settings: CommentedMap, key: str, value) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, CommentedMap())
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {key}: {parent} is no section. Leave out what follows it.")
    settings[last] = value


def _flow(value):
    """A list or mapping on one line; a long mapping on a line for each key."""
    if isinstance(value, dict) and len(value) > 8:
        return CommentedMap({key: _flow(v) if isinstance(v, list) else v for key, v in value.items()})
    node = CommentedSeq(value) if isinstance(value, list) else CommentedMap(value)
    node.fa.set_flow_style()
    return node


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
            lines = [line.strip().removeprefix("#").removeprefix(" ") for line in above.splitlines()]
            indent = len(above.splitlines()[-1]) - len(above.splitlines()[-1].lstrip())
            mapping.yaml_set_comment_before_after_key(following, before="\n".join(lines), indent=indent)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 200, True
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def main(request: Request) -> None:
    """Writes the plan that is asked for, and prints what comes next. Exits with a message where it cannot."""
    try:
        data_set(request.dataset)  # raises ConfigError where there is none
        request.protocol = request.protocol or _preset(request)["protocol"]
        request.setting = request.setting or _preset(request)["setting"]
        named = request.methods is not None
        request.methods = present_names(request.methods)
        next_command = _unnamed(request)
        unknown = [method for method in request.methods if code_of(method) not in INCREMENTAL]
        if unknown:
            wrong = f"no incremental method {unknown[0]!r}. {config.choose(unknown[0], INCREMENTAL)}"
            raise ConfigError(f"--methods: {BROKEN.get(code_of(unknown[0]), wrong)}")
        text = _planned(request)
        settings = config.parse(YAML(typ="safe", pure=True).load(text), request.output)
        notes = plan_check.check_planned(settings)
        files.write_text(paths.project() / request.output, text)
        if not named:
            joint = " and joint training" if settings.joints else ""
            print(f"methods: {', '.join(request.methods)}{joint}. Name others with --methods and --no-joint.")
        plan_check.print_notes(notes)
        runs_planned = plan_check.count(len(settings.runs()), "run")
        first = "read the notes above, then: " if notes else ""
        if (paths.project() / request.output).resolve() != (paths.project() / "params.yaml").resolve():
            command = "ciss train" if next_command == "dvc repro" else next_command
            next_command = f"{command} --config {request.output} (the pipeline reads params.yaml only)"
        print(f"{request.output}: {', '.join(settings.benchmarks)}; {runs_planned}. Next: {first}{next_command}")
    except (ConfigError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _planned(request: Request) -> str:
    """The file as it will be: what is there, if anything, with what the request changes."""
    file = paths.project() / request.output
    document = config.read_yaml(file) if file.is_file() else None
    if document is None:
        document = CommentedMap()
        document.yaml_set_start_comment(HEADER)
    else:
        config.load(request.output)
        document = config.read_yaml(file, _yaml())  # with its comments, now that all is well with it
    buffer = io.StringIO()
    _yaml().dump(plan(document, request), buffer)
    return buffer.getvalue()


def parse_setting(text: str) -> tuple[str, object]:
    """Key and value of a KEY=VALUE, the value read as YAML. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if equals and all(key.split(".")):
        with suppress(ConfigError):
            documents.parse_yaml(value, "--set", documents.safe_yaml())  # refuses numbers such as 4_2
            return key, documents.parse_yaml(value, "--set", _yaml())
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    raise ConfigError(f"{shown!r}: write KEY=VALUE, the value as in the file")
