"""Writes `params.yaml` for a benchmark: data, network, schedule, methods, and the chain of runs.

python -m ciss.plan shapes 4-2                                      # the default
python -m ciss.plan voc 15-1 --methods finetune mib --seeds 0 1 2   # a paper's benchmark
python -m ciss.plan shapes 4-2 --orders 3 --set train.batch=8       # three class orders
python -m ciss.plan --check                                         # check params.yaml and its data
python -m ciss.plan --clean                                         # remove results that params.yaml does not name
"""

import argparse
import copy
import io
import json
import re
import sys
from contextlib import suppress
from dataclasses import asdict
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
from ciss.study.presets import load, presets

HEADER = (
    "The only place for numbers. Written by `python -m ciss.plan`, made to be edited: comments survive the next plan.\n"
    "Every key is checked before anything runs: python -m ciss.plan --check"
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


def plan(document: CommentedMap, arguments: argparse.Namespace) -> CommentedMap:
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
    old, first = copy.deepcopy(document), arguments.name or _name(arguments)
    config.validate(dict[config.Name, None], {first: None}, "plan", "--name")
    if not arguments.add:
        for section in ("benchmarks", "bases", "joints", "chain", "ends"):
            for name in list(document[section]):
                del document[section][name]
    for method in [*arguments.methods, "finetune", *(["joint"] if arguments.joint else [])]:
        mine, preset = document["methods"].get(method), _preset(arguments)
        if mine is None or (_knows(preset, method) and not arguments.add and _unedited(method, mine)):
            theirs = _coefficients(method, preset)
            if mine != theirs:
                document["methods"][method] = _flow(theirs)
        elif _knows(preset, method):
            _tell_differences(method, mine, preset)
    for number, order in enumerate(_orders(arguments)):
        name = first if number == 0 else f"{first}-order{number}"
        if name in old["benchmarks"] and not arguments.fresh:
            settings = old["benchmarks"][name]
        elif number and first in old["benchmarks"] and not arguments.fresh:  # the orders of one study share all else
            settings = copy.deepcopy(document["benchmarks"][first])
        else:
            settings = _preset(arguments)
            for key in ("methods", "runs"):
                settings.pop(key, None)
            document["benchmarks"].ca.items.pop(name, None)
            if (settings["dataset"], settings["protocol"]) != (arguments.dataset, arguments.protocol):
                settings.pop("groups", None)  # the preset's are of the other protocol; those of the file are somebody's
            if settings["dataset"] != arguments.dataset:
                settings.pop("expects", None)  # of the preset's data set
        for key in ("dataset", "protocol", "setting"):
            settings[key] = getattr(arguments, key)
        if order:
            settings["order"] = _flow(order)
        for key, value in arguments.set:
            _assign(settings, key, copy.deepcopy(value))
        document["benchmarks"][name] = settings
        place = f"benchmarks.{name}"
        steps = runs_run.steps(config.validate(config.Benchmark, settings, "plan", place), f"plan: {place}")
        for seed in arguments.seeds:
            _add_runs(document, name, seed, steps, arguments)
    if not arguments.add:
        _remove_unused_variants(document, arguments.fresh)
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
    return document


def _add_runs(document: CommentedMap, benchmark: str, seed: int, steps: int, arguments: argparse.Namespace) -> None:
    base = f"{benchmark}-s{seed}"
    document["bases"][base] = _flow({"benchmark": benchmark, "method": "finetune", "code": "finetune", "seed": seed})
    for method in arguments.methods:
        after = base
        for step in range(1, steps):
            run = f"{base}-{method}-{step}"
            document["chain"][run] = _flow(
                {
                    "after": after,
                    "method": method,
                    "code": code_of(method),
                    "step": step,
                    "benchmark": benchmark,
                    "seed": seed,
                }
            )
            after = run
        document["ends"][f"{base}-{method}"] = _flow({"run": after, "benchmark": benchmark})
    if arguments.joint:
        document["joints"][f"{base}-joint"] = _flow(
            {"benchmark": benchmark, "method": "joint", "code": "joint", "seed": seed}
        )
        document["ends"][f"{base}-joint"] = _flow({"run": f"{base}-joint", "benchmark": benchmark})
    elif not arguments.methods:  # the base step alone is a study, too
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


def _unnamed(arguments: argparse.Namespace) -> str:
    """Takes methods and seeds that the command does not name from the preset's `runs`. Returns the command after the
    plan."""
    theirs = _preset(arguments).get("runs", {})
    arguments.methods = list(theirs.get("methods", USUAL)) if arguments.methods is None else arguments.methods
    arguments.seeds = list(theirs.get("seeds", [0])) if arguments.seeds is None else arguments.seeds
    arguments.joint = arguments.joint and theirs.get("joint", True)
    return theirs.get("next", "dvc repro")


def _name(arguments: argparse.Namespace) -> str:
    """The preset's own data set and protocol go by its name; others carry what differs."""
    stem, preset = _preset_name(arguments), _preset(arguments)
    own = (preset["dataset"], preset["protocol"]) == (arguments.dataset, arguments.protocol)
    kind = stem if stem.startswith(f"{arguments.dataset}-") else arguments.dataset
    name = stem if own else f"{kind}-{arguments.protocol}"
    return name if arguments.setting == preset["setting"] else f"{name}-{arguments.setting}"


def _preset_name(arguments: argparse.Namespace) -> str:
    """The data set's own, or that of the asked protocol or setting if it has one (voc8-4-2); of `--preset mbs` what the
    data set has by that name (voc-mbs), or the preset itself."""
    wanted = arguments.preset or (arguments.dataset if arguments.dataset in DATASETS else "own")
    asked = () if arguments.preset else (arguments.protocol, arguments.setting)
    for name in (*(f"{arguments.dataset}-{own}" for own in (*asked, wanted)), wanted):
        if name in presets():
            return name
    start = f"{arguments.dataset}-"
    words = [name.removeprefix(start) for name in presets() if name.startswith(start)]
    others = [name for name in presets() if "-" not in name]
    hints = [config.choose(wanted, known) for known in (words, others) if known]
    hint = next((hint for hint in hints if hint.startswith("Did you mean")), hints[0])
    raise ConfigError(f"--preset: no preset {wanted!r} for {arguments.dataset}. {hint}")


def _preset(arguments: argparse.Namespace) -> CommentedMap:
    """A preset, its head comment (source, expected result, wall time) indented as it will stand in the file."""
    settings = load(_preset_name(arguments))
    for line in settings.ca.comment[1]:
        line.start_mark.column = 4
    return settings


def _orders(arguments: argparse.Namespace) -> list[list[int] | None]:
    """Class orders: the one given or the benchmark's, then shuffled ones, the same for everybody."""
    classes = protocol.DATASETS.get(arguments.dataset) or data_set(arguments.dataset).order()
    shuffled = [np.random.RandomState(n).permutation(classes).tolist() for n in range(1, arguments.orders)]
    return [arguments.order, *shuffled]


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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ciss.plan",
        usage="%(prog)s DATASET [PROTOCOL] [OPTION ...]   (all options: --help)",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    own = ", ".join(name for name in presets() if name in DATASETS)
    add("dataset", nargs="?", help=f"data set; there are presets for {own}")
    add("protocol", nargs="?", help="base classes, then classes a step: 15-1; a dataset's preset says its usual one")
    add(
        "--setting",
        choices=protocol.SETTINGS,
        help="which images and labels a step sees (default: the preset's, overlapped but for domains)",
    )
    add(
        "--methods",
        nargs="*",
        metavar="METHOD",
        help=f"of {', '.join(INCREMENTAL)} (default: the preset's, or {', '.join(USUAL)}), or a variant: plop-released",
    )
    add("--seeds", nargs="+", type=int, metavar="SEED", help="one chain each (default: the preset's, or 0)")
    orders = parser.add_mutually_exclusive_group().add_argument
    orders(
        "--orders",
        type=_orders_asked,
        default=1,
        metavar="N",
        help="class orders: the data set's own and N-1 shuffled ones, a benchmark each",
    )
    orders("--order", nargs="+", type=int, metavar="ID", help="one class order, as raw ids")
    add("--no-joint", dest="joint", action="store_false", help="leave joint training out")
    add("--preset", help="start from this preset rather than the data set's: mbs")
    add("--name", help="name of the benchmark (default: the data set, with the protocol where it is not the preset's)")
    add(
        "--set",
        nargs="+",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="change the benchmark: train.base.epochs=30 model.encoder=resnet50",
    )
    add("--add", action="store_true", help="keep the benchmarks that the file has")
    add("--fresh", action="store_true", help="take the preset's numbers, not the file's for this benchmark")
    add("--output", default="params.yaml", help="file to write, relative to the project (default: %(default)s)")
    add("--check", action="store_true", help="check the file and its data, change nothing")
    add("--clean", action="store_true", help="remove results of runs that the file does not name")
    arguments = parser.parse_args()
    try:
        if arguments.check or arguments.clean:
            (plan_check.check if arguments.check else plan_check.clean)(arguments.output)
            return
        if not arguments.dataset:
            parser.error("name a data set, or use --check or --clean")
        data_set(arguments.dataset)  # is there one?
        arguments.protocol = arguments.protocol or _preset(arguments)["protocol"]
        arguments.setting = arguments.setting or _preset(arguments)["setting"]
        named = arguments.methods is not None
        next_command = _unnamed(arguments)
        unknown = [m for m in arguments.methods if code_of(m) not in INCREMENTAL]
        if unknown:
            wrong = f"no incremental method {unknown[0]!r}. {config.choose(unknown[0], INCREMENTAL)}"
            raise ConfigError(f"--methods: {BROKEN.get(code_of(unknown[0]), wrong)}")
        file = paths.project() / arguments.output
        document = config.read_yaml(file) if file.is_file() else None
        if document is None:
            document = CommentedMap()
            document.yaml_set_start_comment(HEADER)
        else:
            config.load(arguments.output)
            document = config.read_yaml(file, _yaml())  # with its comments, now that all is well with it
        planned = plan(document, arguments)
        buffer = io.StringIO()
        _yaml().dump(planned, buffer)
        settings = config.parse(YAML(typ="safe", pure=True).load(buffer.getvalue()), arguments.output)
        notes = plan_check.check_planned(settings)
        files.write_text(file, buffer.getvalue())
        if not named:
            joint = " and joint training" if settings.joints else ""
            print(f"methods: {', '.join(arguments.methods)}{joint}. Name others with --methods and --no-joint.")
        plan_check.print_notes(notes)
        runs_planned = plan_check.count(len(settings.runs()), "run")
        first = "read the notes above, then: " if notes else ""
        print(f"{arguments.output}: {', '.join(settings.benchmarks)}; {runs_planned}. Next: {first}{next_command}")
    except (ConfigError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _setting(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if equals and all(key.split(".")):
        with suppress(ConfigError):
            documents.parse_yaml(value, "--set", documents.safe_yaml())  # refuses numbers such as 4_2
            return key, documents.parse_yaml(value, "--set", _yaml())
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    raise argparse.ArgumentTypeError(f"{shown!r}: write KEY=VALUE, the value as in the file")


def _orders_asked(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: write a number from 1 to 999")
    return int(text)


if __name__ == "__main__":
    main()
