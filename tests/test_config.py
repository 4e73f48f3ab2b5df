"""A parameter file is right, or every mistake in it is named by file and key, with what to do about it."""

import copy
import datetime
import math
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ciss import config
from ciss.config import ConfigError

FILES = ("params.yaml", "tests/smoke.yaml")
RUNS = """
benchmarks:
  b: &b
    dataset: shapes
    protocol: 4-2
    train: {base: {epochs: 1, lr: 1}, increment: {epochs: 1, lr: 1}, crop: 8, batch: 2}
  c: *b
methods: {finetune: {}, joint: {}, mib: {}}
bases: {s0: {benchmark: b, method: finetune, seed: 0}, s1: {benchmark: b, method: finetune, seed: 1}}
joints: {s0-joint: {benchmark: b, method: joint, seed: 0}}
chain:
  s0-mib-1: {after: s0, method: mib, step: 1, benchmark: b, seed: 0}
  s0-mib-2: {after: s0-mib-1, method: mib, step: 2, benchmark: b, seed: 0}
ends: {s0-mib: {run: s0-mib-2, benchmark: b}, joint: {run: s0-joint, benchmark: b}}
"""

CIRCLE = "continues this run in turn. Name a base step or an earlier increment."


@pytest.fixture
def document():
    document = YAML(typ="safe", pure=True).load(RUNS)
    document["benchmarks"]["c"] = copy.deepcopy(document["benchmarks"]["c"])
    return document


def put(document: dict, key: str, value) -> None:
    """Sets a dotted key; `...` deletes it."""
    *parents, last = key.split(".")
    for parent in parents:
        document = document[parent]
    if value is ...:
        del document[last]
    else:
        document[last] = value


def mistakes(document) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(document)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("file", FILES)
def test_the_committed_files_are_right(file):
    settings = config.load(file)
    assert settings.file == file
    assert list(settings.runs()) == [*settings.bases, *settings.joints, *settings.chain]
    for end in settings.ends:
        path = settings.path(end)
        assert path[-1] == settings.ends[end].run
        assert [settings.chain[name].after for name in path[1:]] == path[:-1]
        assert path[0] in {**settings.bases, **settings.joints}
    with pytest.raises(AttributeError):
        settings.output = "elsewhere"


def test_the_path_to_an_end(document):
    settings = config.parse(document)
    assert settings.path("s0-mib") == ["s0", "s0-mib-1", "s0-mib-2"]
    assert settings.path("joint") == ["s0-joint"]


def test_yaml_is_read_as_version_1_2(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1e-3\nb: on\nc: no\nd: 12\ne: null\nf: 0o17\ng: true\nh: 4-2\n")
    values = {"a": 1e-3, "b": "on", "c": "no", "d": 12, "e": None, "f": 15, "g": True, "h": "4-2"}
    read = config.read_yaml(file)
    assert read == values and [type(v) for v in read.values()] == [type(v) for v in values.values()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", ["line 4, column 3", 'duplicate key "c"', "Correct this line."]),
        ("a: [1\nb: 2\n", ["line 2, column 2", "not valid YAML"]),
        ("a: 1\n\tb: 2\n", ["line 2, column 1", "'\\t'"]),
        ("a: b: c\n", ["line 1, column 5"]),
        ("a: *b\n", ["line 1, column 4", "undefined alias 'b'"]),
        ("a: 1\n---\nb: 2\n", ["line 2, column 1", "another document"]),
        ("a: !!python/object x\n", ["line 1, column 4", "python/object"]),
        ("a: 2001-99-99\n", ["line 1, column 4", "'2001-99-99' (month must be in 1..12). Correct this line."]),
        (
            "a: 1\nb: \0\n",
            ["line 2: not valid YAML: unacceptable character #x0000: special characters are not allowed. Correct"],
        ),
        ("a: 1\nb: \xff\n", ["line 2: not UTF-8: invalid start byte. Save the file as UTF-8."]),
        ("a: !!bool x\n", ["line 1, column 4: not valid YAML: 'x' ('x'). Correct this line."]),
        (f"a: 1\nb: {'1' * 5000}\n", ["line 2, column 4", "Exceeds the limit", "Correct this line."]),
        ("a: " + "{a: " * 1000, ["line 1: sections are nested too deeply. Correct"]),
    ],
)
def test_syntax_errors_name_file_and_line(tmp_path, text, words):
    file = tmp_path / "a.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_missing_empty_and_other_documents(tmp_path):
    file = tmp_path / "a.yaml"
    remedy = "Write one with: ciss plan shapes 4-2"
    for folder in (file, tmp_path):
        with pytest.raises(ConfigError, match=re.escape(f"{folder}: there is no such file. {remedy}")):
            config.load(folder)
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match=re.escape(f"{file}: the file is empty. {remedy}")):
        config.load(file)
    for text in ("[1, 2]", "word", "3", f"[{'x, ' * 100}]"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="sections such as benchmarks, methods and chain") as caught:
            config.load(file)
        assert len(str(caught.value)) < 200 + len(str(file))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.bse", {}, "unknown key. Did you mean 'base'?"),
        ("train.base.epoch", 3, "unknown key. Did you mean 'epochs'?"),
        ("train.base.zzz", 3, "unknown key. There are: epochs, lr, norm."),
        ("modell", {}, "unknown key. Did you mean 'model'?"),
        ("model", {"encoderr": "x"}, None),
        ("train", 3, "found 3, but it should be a section."),
        ("train", None, "found None, but it should be a section."),
        ("train.base", [1, 2], "found [1, 2], but it should be a section."),
        ("train.base.epochs", ..., "this key is missing. Add it."),
        ("train.batch", True, "found True, but it should be a valid integer."),
        ("train.batch", 8.0, "found 8.0, but it should be a valid integer."),
        ("train.batch", "8", "found '8', but it should be a valid integer."),
        ("train.batch", 0, "found 0, but it should be greater than or equal to 1."),
        ("holdout", -1, "found -1, but it should be greater than or equal to 0."),
        ("train.base.lr", -0.1, "found -0.1, but it should be greater than 0."),
        ("train.base.lr", 0, "found 0, but it should be greater than 0."),
        ("train.base.lr", True, "found True, but it should be a valid number."),
        ("train.base.lr", "1e-3", "found '1e-3', but it should be a valid number."),
        ("train.base.lr", math.nan, "found nan, but it should be a finite number."),
        ("train.power", math.inf, "found inf, but it should be a finite number."),
        ("train.momentum", 1, "found 1, but it should be less than 1."),
        ("train.weight_decay", datetime.date(2020, 1, 1), "but it should be text, a number, true, false, null, a list"),
        ("train.flip", "on", "found 'on', but it should be true or false."),
        ("train.flip", 1, "found 1, but it should be true or false."),
        ("train.scale", 3, "found 3, but it should be a list."),
        ("train.scale", [1, 2, 3], "found [1, 2, 3], but it should have at most 2 items"),
        ("train.scale", [2, 0.5], "found [2, 0.5], but it should go from small to large."),
        ("train.curve", [0], None),
        ("train.augmentation", "crop", "found 'crop', but it should be 'none', 'resized_crop' or 'scaled_crop'."),
        ("setting", "overlaped", "it should be 'overlapped', 'disjoint', 'sequential', 'partitioned' or 'domain'."),
        ("dataset", 5, "found 5, but it should be text."),
        ("model", {"weights": ""}, None),
        ("order", [1, True], None),
        ("order", 12, "found 12, but it should be a list."),
        ("order", "x" * 500, f"found '{'x' * 56}..., but it should be a list."),
    ],
)
def test_a_mistake_in_a_benchmark(document, key, value, words):
    put(document, f"benchmarks.b.{key}", value)
    nested = {"model": "model.", "order": "order.1", "train.curve": "train.curve.0"}
    place = key if words else nested[key]
    (line,) = mistakes(document)
    assert line.startswith(f"params.yaml: benchmarks.b.{place}")
    assert words is None or line.startswith(f"params.yaml: benchmarks.b.{key}: ")
    assert (words or "") in line


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("benchmark", {}, "unknown key. Did you mean 'benchmarks'?"),
        ("file", 1, "unknown key. There are: bases, benchmarks, chain, complete, ends, joints, methods, output, own, "
         "version."),
        ("bases", ..., "this key is missing. Add it."),
        ("benchmarks", [], "found [], but it should be a section."),
        ("bases.s0.seeds", 1, "unknown key. Did you mean 'seed'?"),
        ("bases.s0.seed", -1, "found -1, but it should be greater than or equal to 0."),
        ("chain.s0-mib-1.step", 0, "found 0, but it should be greater than or equal to 1."),
        ("methods.mib", None, "found None, but it should be a section."),
        ("output", "", "found '', but it should have at least 1 character."),
        # --- the chain
        ("chain.s0-mib-1.after", ..., "this key is missing. Add it."),
        ("chain.s0-mib-1.after", "s00", "there is no base step or increment 's00'. Did you mean 's0'?"),
        ("chain.s0-mib-2.after", "s0-joint", "there is no base step or increment 's0-joint'. There are: s0, s0-mib-1, "
         "s0-mib-2, s1."),
        ("chain.s0-mib-2.step", 3, "3 cannot follow step 1 of 's0-mib-1'. Make it 2."),
        ("chain.s0-mib-2.after", "s0-mib-2", f"'s0-mib-2' {CIRCLE}"),
        ("chain.s0-mib-2.seed", 1, "1 differs from 0 of 's0-mib-1'. Use the same."),
        ("chain.s0-mib-2.method", "finetune", "'finetune' continues 'mib' of 's0-mib-1'. Use one method."),
        ("bases.s1.method", "fine", "there is no method 'fine'. Did you mean 'finetune'?"),
        ("bases.s0.method", "x", "there is no method 'x'. There are: finetune, joint, mib."),
        ("joints.s0-joint.method", "mb", "there is no method 'mb'. Did you mean 'mib'?"),
        ("bases.s1.benchmark", "voc", "there is no benchmark 'voc'. There are: b, c."),
        ("ends.s0-mib.run", "s0-mib-3", "there is no run 's0-mib-3'. Did you mean 's0-mib-2'?"),
        ("ends.joint.benchmark", "c", "'c' is not the benchmark of 's0-joint'. Use 'b'."),
    ],
)  # fmt: skip
def test_a_mistake_in_the_runs(document, key, value, words):
    put(document, key, value)
    assert mistakes(document) == [f"params.yaml: {key}: {words}"]


NO_STEP = "there is no base step or increment 's0-mib-1'. Did you mean 's0-mib-2'?"


@pytest.mark.parametrize(
    ("key", "value", "lines"),
    [
        ("s0-mib-1", ..., [f"s0-mib-2.after: {NO_STEP}"]),
        ("s0-mib-2.after", "s0", ["s0-mib-2.step: 2 cannot follow step 0 of 's0'. Make it 1."]),
        ("s0-mib-1.after", "s1", ["s0-mib-1.seed: 0 differs from 1 of 's1'. Use the same."]),
        (
            "s0-mib-1.after",
            "s0-mib-2",
            [f"s0-mib-1.after: 's0-mib-2' {CIRCLE}", f"s0-mib-2.after: 's0-mib-1' {CIRCLE}"],
        ),
    ],
)
def test_a_mistake_in_another_run_of_the_chain(document, key, value, lines):
    put(document, f"chain.{key}", value)
    assert mistakes(document) == [f"params.yaml: chain.{line}" for line in lines]


def test_what_continues_a_circle_is_no_part_of_it(document):
    put(document, "chain.s0-mib-1.after", "s0-mib-2")
    document["chain"]["s0-mib-3"] = {**document["chain"]["s0-mib-2"], "after": "s0-mib-2", "step": 3}
    assert len(mistakes(document)) == 2


def test_a_run_of_another_benchmark(document):
    put(document, "chain.s0-mib-2.benchmark", "c")
    assert mistakes(document) == [
        "params.yaml: chain.s0-mib-2.benchmark: 'c' differs from 'b' of 's0-mib-1'. Use the same.",
        "params.yaml: ends.s0-mib.benchmark: 'b' is not the benchmark of 's0-mib-2'. Use 'c'.",
    ]


@pytest.mark.parametrize("part", ["joints", "chain"])
def test_two_runs_of_one_name(document, part):
    run = next(iter(document[part].values()))
    document[part] = {"s1": run}
    document["ends"] = {}
    assert mistakes(document)[0] == f"params.yaml: {part}.s1: another run has this name. Rename one of them."


@pytest.mark.parametrize("name", ["", ".", "..", "a.b", "a/b", "a b", "-a", "_a", "ä", "a@b", "${x}"])
@pytest.mark.parametrize("part", ["benchmarks", "bases", "ends"])
def test_names_that_no_folder_or_stage_can_have(document, part, name):
    """A dot would make DVC look for a key inside a key."""
    document[part][name] = next(iter(document[part].values()))
    (line,) = mistakes(document)
    shown = name or "''"
    assert line.startswith(f"params.yaml: {part}.{shown}: found the name {name!r}, but it should match")


TAKEN = ["benchmarks.compare", "benchmarks.benchmarks", "benchmarks.notebooks"]
TAKEN += ["bases.1_data", "joints.4_forgetting", "chain.5_background"]


@pytest.mark.parametrize("place", TAKEN)
def test_names_that_reports_have(document, place):
    """Two stages would write one file; DVC's message does not name the run."""
    part, name = place.split(".")
    document[part][name] = next(iter(document[part].values()))
    line = f"params.yaml: {part}.{name}: the reports have a file or folder of this name. Rename it."
    assert mistakes(document)[0] == line


@pytest.mark.parametrize("name", ["a", "7", "voc-15-1_s0", "A" * 80])
def test_names_that_are_fine(document, name):
    document["bases"][name] = document["bases"]["s0"]
    assert name in config.parse(document).bases


AMBIGUOUS = "has an underscore, a leading zero or a decimal comma. Write"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{lr: 0,1, norm: batch}", "section.1: found the name 1, but it should be text. Write it in quotes. A decimal"),
        ("{lr: 0,05}", f"line 1, column 17: not valid YAML: '05' {AMBIGUOUS} 5"),
        ("{lr: '0,1'}", "section.lr: found '0,1', but it should be a valid number."),
        ("{epochs: '1,000'}", "section.epochs: found '1,000', but it should be a valid integer."),
        ("{norm: 2004-02-01}", "section.norm: found datetime.date(2004, 2, 1), but it should be text, a number, true,"),
        ("{norm: 4_2}", f"line 1, column 17: not valid YAML: '4_2' {AMBIGUOUS} 42 for the number"),
        ("{epochs: 010}", f"line 1, column 19: not valid YAML: '010' {AMBIGUOUS} 10"),
        ("{epochs: 1_6}", f"line 1, column 19: not valid YAML: '1_6' {AMBIGUOUS} 16"),
        ("{lr: 00.5}", f"line 1, column 15: not valid YAML: '00.5' {AMBIGUOUS} 0.5"),
    ],
)
def test_numbers_that_are_easily_misread(tmp_path, text, words):
    """YAML 1.1 reads 010 as 8 and 1_6 as 16; YAML 1.2 reads 10 and text. A typing error makes either."""
    (tmp_path / "a.yaml").write_text(f"section: {text}\n")
    with pytest.raises(config.ConfigError) as caught:
        config.validate(dict[str, config.Phase], config.read_yaml(tmp_path / "a.yaml"), "a.yaml", "")
    assert f"a.yaml: {words}" in str(caught.value)


@pytest.mark.parametrize("number", ["0", "-0.5", "0.001", "1e-3", "0x10", "0o17", "10", ".5", "+3"])
def test_usual_numbers_are_read(tmp_path, number):
    (tmp_path / "a.yaml").write_text(f"a: {number}\n")
    assert isinstance(config.read_yaml(tmp_path / "a.yaml")["a"], int | float)


@pytest.mark.parametrize("key", [7, 1.5, None, True, ("a", "b"), datetime.date(2020, 1, 1)])
def test_keys_that_are_no_text(document, key):
    """DVC makes no stage of them, silently."""
    for section, place in ((document, ""), (document["bases"], "bases."), (document["methods"]["mib"], "methods.mib.")):
        section[key] = {}
        (line,) = mistakes(document)
        assert line.startswith(f"params.yaml: {place}")
        assert f": found the name {key!r}, but it should be text. Write it in quotes." in line
        del section[key]


def test_a_document_inside_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {b: *a, c: *a}\n")
    with pytest.raises(ConfigError, match="line 1: sections are nested too deeply. Correct the brackets and dashes.$"):
        config.load(tmp_path / "a.yaml")


def test_a_message_names_the_line(tmp_path):
    """Of the key, or of the section that lacks it; a key of the file alone has none."""
    file = tmp_path / "a.yaml"
    text = RUNS.replace("crop: 8", "crop: -8").replace("seed: 1}", "seed: x}").replace("run: s0-mib-2, ", "")
    file.write_text(text.replace("joints: ", "joint: "))
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert {line.removeprefix(f"{file}: ").partition(": ")[::2] for line in str(caught.value).splitlines()} == {
        ("line 6", "benchmarks.b.train.crop: found -8, but it should be greater than or equal to 1."),
        ("line 6", "benchmarks.c.train.crop: found -8, but it should be greater than or equal to 1."),
        ("line 9", "bases.s1.seed: found 'x', but it should be a valid integer."),
        ("line 14", "ends.s0-mib.run: this key is missing. Add it."),
        ("line 10", "joint: unknown key. Did you mean 'joints'?"),
    }


def test_every_mistake_is_shown(document):
    put(document, "benchmarks.b.train.bse", 1)
    put(document, "benchmarks.b.train.batch", "many")
    put(document, "bases.s0.seed", ...)
    assert [line.split(": ")[1] for line in mistakes(document)] == [
        "benchmarks.b.train.batch",
        "benchmarks.b.train.bse",
        "bases.s0.seed",
    ]


def test_every_mistake_of_the_chain_is_shown(document):
    put(document, "chain.s0-mib-1.after", "nowhere")
    put(document, "chain.s0-mib-2.seed", 5)
    put(document, "ends.joint.run", "nothing")
    assert [line.split(": ")[1] for line in mistakes(document)] == [
        "chain.s0-mib-1.after",
        "ends.joint.run",
        "chain.s0-mib-2.seed",
    ]


def test_the_nearest_word():
    assert config.choose("overlaped", ["overlapped", "disjoint"]) == "Did you mean 'overlapped'?"
    assert config.choose("x", ["b", "a"]) == "There are: a, b."
    assert config.choose("x", []) == "There are: none."


def test_files_are_read_from_the_project(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(RUNS)
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert config.load().file == "params.yaml"
    assert config.load(tmp_path / "params.yaml").file == str(tmp_path / "params.yaml")
    assert config.load(Path("params.yaml")).file == "params.yaml"
