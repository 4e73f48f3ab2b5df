"""Thousands of random mistakes in `params.yaml` and in the arguments of the plan. The result is a valid study, or one
line for each mistake: file, key or line, and what to do. Fast tests make the same edits every time, slow ones new ones.
A failing example is a seed, which makes the same edits again."""

import copy
import dataclasses
import datetime
import functools
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ciss import cli, config, paths
from ciss.config import ConfigError
from ciss.models import create_network
from ciss.runs.check import check
from ciss.runs.run import resolve, steps
from ciss.study import presets

FILES = ("params.yaml", "tests/smoke.yaml")
TEXTS = {file: (paths.project() / file).read_bytes() for file in FILES}
DOCUMENTS = {file: config.read_yaml(paths.project() / file) for file in FILES}
for preset in presets.presets():  # a preset in the place of a file's benchmark, with as many steps as it has
    if preset == "own":  # describes no data set, but how to use one of one's own
        continue
    document = copy.deepcopy(DOCUMENTS["params.yaml"])
    settings_ = json.loads(json.dumps(presets.load(preset)))
    document["methods"] |= settings_.pop("methods", {})
    settings_.pop("runs", None)
    settings_["model"].pop("weights", None)  # a file that need not be here
    document["benchmarks"]["shapes"] = settings_
    if steps(config.validate(config.Benchmark, copy.deepcopy(settings_), preset, "x"), "x") == 2:
        document["chain"] = {name: run for name, run in document["chain"].items() if run["step"] == 1}
        for end in document["ends"].values():
            end["run"] = re.sub("-2$", "-1", end["run"])
    DOCUMENTS[preset] = document

NAMES = ["", "other", "a.b", "seed", "mib", "a\nb", "\x1b[31m", "x" * 3000, "a\0", "\ud800", "ä", 7, None, True, (1, 2)]
NUMBERS = [-1, 0, 1, 2, 3, 8, 16, 64, 4096, 10**6, 10**9, 10**12, 2**63, 10**30, 10**5000, 1.5, 1e300, 1e-300]
NUMBERS += [math.nan, math.inf, -math.inf]
WORDS = [
    "",
    " ",
    "\n",
    "a\0b",
    "\ud800",
    "ä",
    "x" * 5000,
    "x/" * 2000,
    "4-2",
    "joint",
    "1-1",
    "２-1",
    "1" * 5000 + "-1",
]
WORDS += ["shapes-s0", "smoke-s0", "a.b", "..", "/", "sequential", "mask_transformer", "mib", "gsc-mine", "resnet18"]
WORDS += ["vit_tiny_patch16_224", "resnet18.nothing", "hf_hub:x/y"]
OTHERS = [None, True, False, [], [1], ["x", None], {}, {"a": 1}, {1: 2}, {"benchmark": "shapes"}, b"x", {"x"}]
OTHERS += [datetime.date(2020, 1, 1), [10**9] * 3, [1] * 5000, [8, 7, 6, 5, 4, 3, 2, 1]]
VALUES = NUMBERS + WORDS + OTHERS
OPTIONAL = {  # keys that the files leave to their defaults
    "model": ["image_size", "atrous_rates", "dropout", "layers", "heads", "drop_path", "weights", "pretrained"],
    "train": ["resize", "augmentation", "scale", "accumulate", "workers", "threads", "curve", "precision"],
}
PIECES = rb"""
\t|\0|\xff|\xef\xbb\xbf|\r\n|\r|---\n|...\n|&a |*a|<<: *a\n|<<: 3\n|&a [*a]|!!python/object:os.system x|!!binary x
!!set {a}|!!omap [a: 1]|!foo |!!int x|!!float x|!!bool x|!!null x|!!timestamp 2001-99-99|!!str 3|!!merge x|!!value x
? [a, b]\n: c\n|{a: b}: c\n|= |%YAML 1.1\n---\n|%YAML 9.9\n---\n|%TAG ! x\n|#|: |- |[|]|{|}|'|"|>\n|@|`|? |~|0o9|0x1F
1_000|1e999|\xe2\x80\xa8|\xc2\x85|\xf0\x9f\x98\x80|"\\ud800"|"\\x00"|"\\n"|.nan|-.inf|2001-01-01|12:30:45|\x1b[31m|\x7f
"""
PIECES = [piece.decode("unicode_escape").encode("latin-1") for piece in re.split(rb"[|\n]", PIECES.strip(b"\n"))]
PIECES += [b"1" * 5000, b"0x" + b"f" * 6000, b"9" * 400 + b".0", b"{a: " * 400, b"- " * 1000, b"|9\n"]
REMEDY = re.compile(
    r"(should (be|match|have|go)|Did you mean|There are|Add|Change|Close ones|Choose|Correct|Cut|Fetch|Give|Leave|Make"
    r"|Move|Name|Put|Remove|Rename|Save|Set|Use|Write|set CISS_DATA)[^\n]*([.?]|plan shapes 4-2)$"
)


def places(node, path=()):
    """Every key and list item of a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node[:5]) if isinstance(node, list) else ()
    for key, child in items:
        yield (*path, key)
        if len(path) < 8:
            yield from places(child, (*path, key))


def at(document, path: tuple):
    for key in path:
        document = document[key]
    return document


def edit(document: dict, dice: random.Random) -> None:
    """One mistake in a document."""
    every = list(places(document)) or [("x",)]
    *parents, last = path = dice.choice(every)
    node, other = at(document, tuple(parents)), dice.choice(every)
    kind = dice.choice(
        ["delete", "replace", "replace", "replace", "rename", "double", "swap", "nest", "into", "refer", "insert"]
    )
    if len(every) == 1 or (kind in ("rename", "double") and not isinstance(node, dict)):
        kind = "replace"
    if kind == "delete":
        del node[last]
    elif kind == "replace":
        node[last] = copy.deepcopy(dice.choice(VALUES))
    elif kind == "rename":
        node[dice.choice([f"{last}x", str(last)[1:], *NAMES])] = node.pop(last)
    elif kind == "double":
        node[f"{last}2"] = copy.deepcopy(node[last])
    elif kind == "swap" and path[: len(other)] != other and other[: len(path)] != path:
        there = at(document, other[:-1])
        node[last], there[other[-1]] = there[other[-1]], node[last]
    elif kind == "nest":
        node[last] = {dice.choice(["x", last]): node[last]}
    elif kind == "into" and isinstance(at(document, other), dict):
        at(document, other)[str(last)] = copy.deepcopy(node[last])
    elif kind == "refer":
        node[last] = other[-1]
    elif kind == "insert":
        section = dice.choice(list(OPTIONAL))
        benchmarks = document.get("benchmarks")
        for benchmark in benchmarks.values() if isinstance(benchmarks, dict) else ():
            if isinstance(benchmark, dict) and isinstance(benchmark.get(section), dict):
                benchmark[section][dice.choice(OPTIONAL[section])] = copy.deepcopy(dice.choice(VALUES))


def scratch(text: bytes, dice: random.Random) -> bytes:
    """One mistake in the bytes of a file."""
    kind = dice.choice(["insert", "insert", "value", "value", "value", "delete", "double", "swap", "cut", "indent"])
    kind = dice.choice([kind, kind, kind, "random", "byte", "windows", "mark", "documents", "encoding"])
    lines, where = text.split(b"\n"), dice.randrange(len(text) + 1)
    number, piece = dice.randrange(len(lines)), dice.choice(PIECES)
    if kind == "insert":
        return text[:where] + piece + text[where:]
    if kind == "random":
        return dice.randbytes(dice.randrange(300))
    if kind == "byte":
        return text[:where] + dice.randbytes(1) + text[where + 1 :]
    if kind == "cut":
        return text[:where]
    if kind == "windows":
        return text.replace(b"\n", b"\r\n")
    if kind == "mark":
        return b"\xef\xbb\xbf" + text
    if kind == "encoding":
        return text.decode("utf-8", "replace").encode(dice.choice(["utf-16", "utf-16-le", "latin-1"]), "replace")
    if kind == "value":
        key, colon, value = lines[number].partition(b": ")
        lines[number] = key + colon + piece + dice.choice([b"", value])
    elif kind == "delete":
        del lines[number]
    elif kind == "double":
        lines.insert(number, lines[number])
    elif kind == "swap":
        other = dice.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
    elif kind == "indent":
        lines[number] = dice.choice([b" ", b"  ", b"\t", b""]) + lines[number].lstrip()
    elif kind == "documents":
        lines.insert(number, b"---")
    return b"\n".join(lines)


@functools.cache
def channels(model: config.Model, groups: tuple[int, ...]) -> int:
    with torch.device("meta"):
        return create_network(model, list(groups)).channels


def judge(load: Callable[[], config.Config], file: str, keys: list[str]) -> bool:
    """Whether it is a valid study; if not, every line names file, key or line, and what to do."""
    try:
        settings = load()
        check(settings)
    except ConfigError as error:
        message = str(error)
        assert message and message.split("\n") == message.splitlines() and message.replace("\n", "").isprintable()
        for line in message.splitlines():
            assert line.startswith(f"{file}: ") and REMEDY.search(line), line
            place = line.removeprefix(f"{file}: ")
            whole = place.startswith(("the file is empty. Write one", "found ", "there is no such file. Write one"))
            named = re.match(r"line \d+(, column \d+)?: ", place) or place.startswith(tuple(keys))
            assert whole or named, line
            assert len(line) < 3000
        return False
    for name in settings.runs():
        run = resolve(settings, name)
        run.build_method()
        for training in (True, False):
            assert run.label_table(training).shape == (256,)
        assert run.channel_groups[0] >= 2 and run.folder.name == name
    model = dataclasses.replace(run.settings.model, pretrained=False, weights=None)  # nothing is fetched here
    assert channels(model, tuple(run.channel_groups)) == sum(run.channel_groups), "the last run's network"
    assert all(settings.path(end) for end in settings.ends)
    return True


def edited_document(seed: int) -> bool:
    dice = random.Random(seed)
    file = dice.choice([*FILES * 4, *DOCUMENTS])
    document = copy.deepcopy(DOCUMENTS[file])
    keys = [*config.Config.__dataclass_fields__, "''"]
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        edit(document, dice)
    keys += [key if key.isprintable() else repr(key)[1:-1] for key in map(str, document)]
    return judge(lambda: config.parse(document, file), file, [key[:50] for key in keys])


def edited_text(seed: int, file: Path) -> bool:
    dice = random.Random(seed)
    text = TEXTS[dice.choice(FILES)]
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        text = scratch(text, dice)
    file.write_bytes(text)
    return judge(lambda: config.load(file), str(file), [""])


SEEDS = st.integers(0, 10**9)


def edits(examples: int, **options) -> Callable:
    """Decorates a test that makes the edits of many seeds."""
    return lambda test: given(seed=SEEDS)(settings(max_examples=examples, deadline=None, **options)(test))


@edits(700, derandomize=True)
def test_any_edit_of_a_document_is_a_study_or_a_message(seed):
    edited_document(seed)


@edits(150, derandomize=True)
def test_any_edit_of_a_file_is_a_study_or_a_message(tmp_path_factory, seed):
    edited_text(seed, tmp_path_factory.getbasetemp() / "edited.yaml")


@pytest.mark.slow
@edits(5_000)
def test_many_edits_of_documents(seed):
    edited_document(seed)


@pytest.mark.slow
@edits(1_000)
def test_many_edits_of_files(tmp_path_factory, seed):
    edited_text(seed, tmp_path_factory.getbasetemp() / "edited.yaml")


@pytest.mark.parametrize("file", DOCUMENTS)
def test_what_is_edited_is_right_before(file):
    """An edit of a file that is wrong already would find that mistake, and no other."""
    assert judge(lambda: config.parse(copy.deepcopy(DOCUMENTS[file]), file), file, [])


def test_the_edits_meet_both_ends():
    """A generator that only ever breaks files, or never does, would prove nothing."""
    found = [edited_document(seed) for seed in range(200)]
    assert 5 < sum(found) < 150


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.width", 10**9),
        ("model.heads", 0),
        ("model.layers", 10**9),
        ("model.image_size", 10**9),
        ("model.atrous_rates", [10**9]),
        ("train.base.epochs", 10**12),
        ("train.crop", 10**6),
        ("train.workers", 10**6),
        ("train.threads", 10**6),
        ("train.scale", [1, 1e9]),
        ("train.batch", 10**12),
        ("evaluation.batch", 10**30),
    ],
)
def test_numbers_beyond_all_use(key, value):
    document = copy.deepcopy(DOCUMENTS["params.yaml"])
    *parents, last = key.split(".")
    at(document["benchmarks"]["shapes"], tuple(parents))[last] = value
    with pytest.raises(ConfigError, match=rf"^params\.yaml: benchmarks\.shapes\.{key}\S*: found .* or equal to \d+\.$"):
        config.parse(document)


def test_aliases_are_not_written_out_without_end(tmp_path):
    """A few lines that stand for a million million values."""
    lines = [f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 10)}]" for n in range(1, 13)]
    (tmp_path / "a.yaml").write_text("\n".join(["b0: &b0 [x, x]", *lines]))
    with pytest.raises(ConfigError, match="written out it has more than 1000000 values. Use fewer aliases.$"):
        config.load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"#" * 9_000_000)
    with pytest.raises(ConfigError, match="9000000 bytes are no parameter file. Name another.$"):
        config.load(tmp_path / "a.yaml")


# --- ciss plan

ARGUMENTS = [
    "",
    "x",
    " ",
    "\n",
    "a\0b",
    "\udc80",
    "ä",
    "x" * 5000,
    "a.b",
    "a/b",
    "-1",
    "0",
    "7",
    "1.5",
    "9" * 300,
    "nan",
]
ARGUMENTS += ["gsc-clamped", "gsc-x", "joint", "mib-", "4-2", "7-1", "voc8", "null", "[", "{a: 1}", "&a [*a]", "*a"]
ARGUMENTS += ["!!python/object x", "1e999", "[1, 2]", "true", "0x" + "f" * 6000, '"\\ud800"', "{a: " * 400, "a: b: c"]
ARGUMENTS += ["|\n x", "# c", "!x y", "2001-01-01", "<<: 3", "? a", "=", "'", "1_000"]
KEYS = ["train.batch", "train.base.lr", "train", "", "a..b", ".", "model.encoder", "dataset", "protocol", "order", "ä"]
KEYS += ["holdout", "model.weights", "train.base.epochs.x", "setting", "x" * 300, "\n", "train.curve", "methods"]


def plan_random_arguments(seed: int, folder: Path, capsys) -> None:
    """The plan writes a valid file, or ends with a message and changes nothing."""
    dice = random.Random(seed)
    words = ["shapes", dice.choice(["4-2", "4-2", "joint", *ARGUMENTS])]
    for option in dice.sample(
        ["--set", "--methods", "--seeds", "--orders", "--order", "--name", "--preset", "--add"], 2
    ):
        words.append(option)
        if option == "--set":
            words.append(f"{dice.choice(KEYS)}={dice.choice(ARGUMENTS)}")
        elif option != "--add":
            words.append(dice.choice([dice.choice(ARGUMENTS), {"--name": "mine", "--preset": "voc8"}.get(option, "1")]))
    before = TEXTS["params.yaml"]  # for every seed the same file, so that a seed alone makes the same again
    (folder / "params.yaml").write_bytes(before)
    try:
        cli.main(["plan", *words])
    except SystemExit as error:
        stderr = capsys.readouterr().err
        message = str(error) if stderr == "" else stderr[stderr.index("error: ") :].strip()
        assert message.startswith("error: ") and "Traceback" not in message
        assert (folder / "params.yaml").read_bytes() == before
    else:
        assert config.load("params.yaml").benchmarks


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(1000, 1200), marks=pytest.mark.slow)], ids=len)
def test_any_argument_of_the_plan_is_done_or_explained(tmp_path, monkeypatch, capsys, seeds):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for seed in seeds:
        plan_random_arguments(seed, tmp_path, capsys)
