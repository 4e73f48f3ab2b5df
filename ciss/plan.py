"""Writes `params.yaml` for a benchmark: data, network, schedule, methods, and the chain of runs.

python -m ciss.plan shapes 4-2                                      # the default
python -m ciss.plan voc 15-1 --methods finetune mib --seeds 0 1 2   # a paper's benchmark
python -m ciss.plan shapes 4-2 --orders 3 --set train.batch=8       # three class orders
python -m ciss.plan --check                                         # check params.yaml, write nothing
"""

import argparse
import copy
import io
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from ciss import checkpoint, config, paths, runs
from ciss.config import ConfigError
from ciss.methods import METHODS

PRESETS = Path(__file__).with_name("presets")
HEADER = (
    "The only place for numbers. Written by `python -m ciss.plan`, made to be edited: comments survive the next plan.\n"
    "Every key is checked before anything runs: python -m ciss.plan --check"
)
INCREMENTAL = [name for name in METHODS if not METHODS[name].sees_all]
ABOUT = {
    "benchmarks": "what the runs share: data, protocol, network, schedule",
    "methods": "coefficients of each method",
    "bases": "step 0, shared by the methods that continue it",
    "joints": "all classes at once: the upper bound",
    "chain": "every later step, naming the run it continues",
    "ends": "what the analyses compare",
}


def presets() -> dict[str, Path]:
    return {file.stem: file for file in sorted(PRESETS.glob("*.yaml"))}


def plan(document: CommentedMap, arguments: argparse.Namespace) -> CommentedMap:
    """The document with the asked benchmark and its runs in place of the others (or beside them, with `--add`)."""
    document = copy.deepcopy(document)
    for section, about in ABOUT.items():
        if section not in document:
            document[section] = CommentedMap()
            document.yaml_set_comment_before_after_key(section, before=f"\n{about}")
    existing, first = copy.deepcopy(document["benchmarks"]), arguments.name or _name(arguments)
    if not arguments.add:
        for section in ("benchmarks", "bases", "joints", "chain", "ends"):
            _clear(document[section])
    for method in [*arguments.methods, "finetune", *(["joint"] if arguments.joint else [])]:
        if method not in document["methods"]:
            document["methods"][method] = _defaults(method)
    for number, order in enumerate(_orders(arguments)):
        name = first if number == 0 else f"{first}-order{number}"
        fresh = name not in existing or arguments.fresh
        settings = _preset(arguments) if fresh else existing[name]
        settings["dataset"], settings["protocol"], settings["setting"] = (
            arguments.dataset,
            arguments.protocol,
            arguments.setting,
        )
        settings["order"] = _flow(order) if order else None
        for key, value in arguments.set:
            _assign(settings, key, value)
        document["benchmarks"][name] = settings
        if fresh:
            _head_comment(document["benchmarks"], name, arguments)
        groups = runs.class_groups(config.validate(config.Benchmark, settings, "plan", name), f"plan: {name}")
        for seed in arguments.seeds:
            _add_runs(document, name, seed, len(groups), arguments)
    return document


def _add_runs(document: CommentedMap, benchmark: str, seed: int, steps: int, arguments: argparse.Namespace) -> None:
    base = f"{benchmark}-s{seed}"
    document["bases"][base] = _flow({"benchmark": benchmark, "method": "finetune", "seed": seed})
    for method in arguments.methods:
        after = base
        for step in range(1, steps):
            run = f"{base}-{method}-{step}"
            document["chain"][run] = _flow(
                {"after": after, "method": method, "step": step, "benchmark": benchmark, "seed": seed}
            )
            after = run
        document["ends"][f"{base}-{method}"] = _flow({"run": after, "benchmark": benchmark})
    if arguments.joint:
        document["joints"][f"{base}-joint"] = _flow({"benchmark": benchmark, "method": "joint", "seed": seed})
        document["ends"][f"{base}-joint"] = _flow({"run": f"{base}-joint", "benchmark": benchmark})


def _name(arguments: argparse.Namespace) -> str:
    """The preset's own protocol goes by its name; others carry what differs."""
    file = _preset_file(arguments)
    own = config.read_yaml(file).get("protocol") == arguments.protocol
    name = file.stem if own else f"{arguments.dataset}-{arguments.protocol}"
    return name if arguments.setting == "overlapped" else f"{name}-{arguments.setting}"


def _preset_file(arguments: argparse.Namespace) -> Path:
    wanted = arguments.preset or arguments.dataset
    if wanted not in presets():
        raise ConfigError(f"no preset {wanted!r}. {config.choose(wanted, presets())}")
    return presets()[wanted]


def _preset(arguments: argparse.Namespace) -> CommentedMap:
    text = _preset_file(arguments).read_text(encoding="utf-8")
    return _yaml().load("\n".join(line for line in text.splitlines() if not line.startswith("#")))


def _head_comment(benchmarks: CommentedMap, name: str, arguments: argparse.Namespace) -> None:
    """The preset's source, expected result and wall time, above the benchmark."""
    lines = _preset_file(arguments).read_text(encoding="utf-8").splitlines()
    head = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    benchmarks.yaml_set_comment_before_after_key(name, before="\n".join(head), indent=2)


def _orders(arguments: argparse.Namespace) -> list[list[int] | None]:
    """Class orders: the one given or the data set's, then shuffled ones, the same for everybody."""
    if arguments.order:
        return [arguments.order]
    groups = runs.class_groups(
        config.validate(
            config.Benchmark, {**_preset(arguments), "protocol": arguments.protocol}, "plan", arguments.dataset
        ),
        "plan",
    )
    classes = [c for group in groups for c in group]
    return [None] + [np.random.RandomState(n).permutation(classes).tolist() for n in range(1, arguments.orders)]


def _defaults(method: str) -> CommentedMap:
    return (
        _flow({field.name: field.default for field in fields(METHODS[method])})
        if fields(METHODS[method])
        else _flow({})
    )


def _assign(settings: CommentedMap, key: str, value: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, CommentedMap())
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {key}: {parent} is a number, not a section. Leave out what follows it.")
    settings[last] = _yaml().load(value)


def _flow(value):
    """A list or mapping on one line."""
    node = CommentedSeq(value) if isinstance(value, list) else CommentedMap(value)
    node.fa.set_flow_style()
    return node


def _clear(section: CommentedMap) -> None:
    """Removes a section's items and keeps the comment that belongs to the next section."""
    for key in list(section):
        del section[key]


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 200, True
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def check(file: str) -> None:
    """Checks a parameter file; for the pipeline also forgets results of runs that the file no longer names."""
    settings = config.load(file)
    runs.check(settings)
    root = (paths.project() / settings.output).resolve()
    for folder in (root / "results").glob("*/*"):
        if folder.name not in settings.runs() and not folder.name.startswith("."):
            print(f"removing {folder.relative_to(root)}: {file} names no such run")
            shutil.rmtree(folder)
    print(f"{file}: {len(settings.benchmarks)} benchmark(s), {len(settings.runs())} runs, no mistake found.")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ciss.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dataset", nargs="?", help=f"data set; there are presets for {', '.join(presets())}")
    add("protocol", nargs="?", help="base classes, then classes a step: 15-1; a dataset's preset says its usual one")
    add(
        "--setting",
        default="overlapped",
        choices=["overlapped", "disjoint", "sequential", "partitioned"],
        help="which images and labels a step sees (default: %(default)s)",
    )
    add(
        "--methods",
        nargs="*",
        default=INCREMENTAL,
        metavar="METHOD",
        help="of %(default)s (default: all)",
    )
    add("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="one chain each (default: 0)")
    add(
        "--orders",
        type=int,
        default=1,
        metavar="N",
        help="class orders: the data set's own and N-1 shuffled ones, a benchmark each",
    )
    add("--order", nargs="+", type=int, metavar="ID", help="one class order, as raw ids")
    add("--no-joint", dest="joint", action="store_false", help="leave joint training out")
    add("--preset", help="start from this preset rather than the data set's")
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
    add(
        "--fresh",
        action="store_true",
        help="take the preset's numbers, also where the file has this benchmark with your own",
    )
    add("--output", default="params.yaml", help="file to write, relative to the project (default: %(default)s)")
    add("--check", action="store_true", help="check the file and write nothing")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            check(arguments.output)
            _mark()
            return
        if not arguments.dataset:
            parser.error("name a data set, or use --check")
        arguments.protocol = arguments.protocol or config.read_yaml(_preset_file(arguments))["protocol"]
        unknown = [m for m in arguments.methods if m not in INCREMENTAL]
        if unknown:
            raise ConfigError(
                f"--methods: no incremental method {unknown[0]!r}. {config.choose(unknown[0], INCREMENTAL)}"
            )
        file = paths.project() / arguments.output
        document = _yaml().load(file.read_text(encoding="utf-8")) if file.is_file() else CommentedMap()
        if not document:
            document = CommentedMap()
            document.yaml_set_start_comment(HEADER)
        planned = plan(document, arguments)
        buffer = io.StringIO()
        _yaml().dump(planned, buffer)
        settings = config.parse(YAML(typ="safe", pure=True).load(buffer.getvalue()), arguments.output)
        checkpoint.write_text(file, buffer.getvalue())
        print(f"{arguments.output}: {', '.join(settings.benchmarks)}; {len(settings.runs())} runs. Next: dvc repro")
    except (ConfigError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY=VALUE")
    return key, value


def _mark() -> None:
    """The pipeline's proof that the check was made: always the same bytes."""
    checkpoint.write_text(paths.project() / ".checked", "params.yaml was checked.\n")


if __name__ == "__main__":
    main()
