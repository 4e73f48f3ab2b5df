"""The covering set of studies, their tiny data sets, and the checks of a finished study."""

import base64
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from ciss import cli, config, data, protocol
from ciss.methods import METHODS
from ciss.runs import check as runs_check
from ciss.study import presets
from tests.studies import __main__ as command
from tests.studies import check, cover, study, trees

# Studies that failed when they first ran, and why. The slow test runs one of them in turn.
FAILED_ONCE = {
    "preset-own": "4_forgetting: KeyError 'step' without a hold-out set",
    "preset-voc-gsc": "4_forgetting: KeyError 'step' without a hold-out set",
    "preset-voc-mbs": "4_forgetting: KeyError 'step' without a hold-out set",
    "only-joint": "4_forgetting and 5_background: KeyError without an incremental method",
    "more-domains-than-classes": "a step beyond the last channel",
}
SECONDS = 220  # processor seconds of the slow test's share, by the forecast: two minutes on two cores


# --- the covering set


def asked(words: list[str]) -> set[tuple[str, str]]:
    """What a command of `ciss plan` asks for, read from its text alone."""
    values = dict(word.split("=", 1) for word in words if "=" in word)
    methods = list(itertools.takewhile(lambda word: not word.startswith("--"), words[words.index("--methods") + 1 :]))
    joint = "alone" if not methods else "absent" if "--no-joint" in words else "beside"
    found = {("data", words[0]), ("setting", words[words.index("--setting") + 1]), ("joint", joint)}
    found |= {("decoder", values["model.decoder"]), ("holdout", str(values["holdout"] != "0"))}
    return found | {("method", method) for method in methods}


def possible(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two values of different choices may meet in a study."""
    pair = {one, other}
    if ("setting", "domain") in pair and (named := [value for axis, value in pair if axis == "data"]):
        return named[0] in ("cityscapes", "domains")
    values = {"setting": "overlapped", "decoder": "deeplabv3", **dict(pair)}
    if "method" in values and not cover.suited(**{key: values[key] for key in ("method", "setting", "decoder")}):
        return False
    return not (("joint", "alone") in pair and any(axis == "method" for axis, _ in pair))


def test_every_pair_of_choices_is_in_a_study():
    axes = {
        "setting": protocol.SETTINGS,
        "data": cover.DATA,
        "decoder": ("deeplabv3", "mask_transformer"),
        "method": [*(name for name in METHODS if name != "joint"), "plop-released"],
        "holdout": ("True", "False"),
        "joint": ("alone", "beside", "absent"),
    }
    pairs = {
        frozenset(pair)
        for first, second in itertools.combinations(axes, 2)
        for pair in itertools.product([(first, v) for v in axes[first]], [(second, v) for v in axes[second]])
        if possible(*pair)
    }
    covered = set()
    for each in cover.studies():
        for words in each.commands():
            covered |= {frozenset(pair) for pair in itertools.combinations(asked(words), 2)}
    assert not pairs - covered
    assert pairs == cover.wanted()


def test_every_preset_variant_and_named_case_is_in_a_study():
    studies = {each.name: each for each in cover.studies()}
    assert {f"preset-{name}" for name in presets.presets()} <= set(studies)
    trained = {method for each in studies.values() for case in each.cases for method in case.methods}
    assert set(cover.VARIANTS) <= trained
    assert {name for name in METHODS if name != "joint"} <= trained
    for name in presets.presets():
        (case,) = studies[f"preset-{name}"].cases
        # A paper's preset plans its own method; a preset for `ciss tune` none, and the matrix gives it two.
        planned = presets.load(name).get("runs", {}).get("methods") or METHODS
        assert len(case.methods) == min(2, len(planned)) and case.increments() >= 1
    assert studies[f"preset-{cover.UNCUT}"].cases[0].increments() == 4
    assert set(FAILED_ONCE) <= set(studies)
    assert {case.encoder for each in studies.values() for case in each.cases} == set(cover.NETWORKS)


@pytest.mark.slow
def test_the_list_is_the_same_in_every_process():
    """Sets of strings have another order in every process."""
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(study.ROOT)}
    listed = subprocess.run(
        [sys.executable, "-m", "tests.studies", "--list"],
        cwd=study.ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert listed.stdout.rstrip() == cover.describe()


# --- the data sets


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    for name in trees.TREES:
        if name != "voc8":  # VOC's files
            trees.write(name, folder)
    return folder


def test_the_readers_accept_the_trees(tree, monkeypatch):
    monkeypatch.setenv("CISS_DATA", str(tree))
    sizes = {}
    for name in trees.TREES:
        found = data.data_set(name)
        sizes[name] = tuple(len(found.pairs(found.root(), split)) for split in ("train", "val"))
    assert sizes["voc"] == sizes["voc8"] == (80, 10) and sizes["ade20k"] == (200, 50)
    assert sizes["cityscapes"] == (90, 15) and sizes["camvid"] == (33, 6)
    assert sizes["two"] == (12, 4) and sizes["share"] == (14, 6)
    cities = {pair.domain for pair in data.data_set("cityscapes").pairs(tree / "cityscapes", "train")}
    assert len(cities) == 18
    lists = tree / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    assert len((lists / "train.txt").read_text().split()) == 20


@pytest.mark.slow
def test_every_study_can_be_planned_and_prepared(tree, tmp_path, monkeypatch):
    """Every step has the images that its study is about: two, or one where that is the point."""
    monkeypatch.setenv("CISS_DATA", str(tree))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    prepared: dict[str, data.Index] = {}
    for each in cover.studies():
        (tmp_path / "params.yaml").unlink(missing_ok=True)
        for words in each.commands():
            cli.main(["plan", *words])
        settings = config.load()
        runs_check.check(settings)
        assert len(settings.runs()) == sum(case.runs() for case in each.cases), each.name
        for benchmark in settings.benchmarks.values():
            if benchmark.dataset == "shapes":
                continue
            chosen = {key: getattr(benchmark, key) for key in data.index.SELECTION}
            key = json.dumps(chosen, sort_keys=True)
            if key not in prepared:
                prepared[key] = data.prepare(benchmark, tmp_path / "data" / "index" / "one", progress=False)
    for key, index in prepared.items():
        least = min(map(len, index.steps))
        assert least >= 2 or (index.dataset == "single" and least == 1), key
        if index.dataset not in ("lacking", "sizes") and index.selection["setting"] != "domain":
            everything = {raw for group in index.groups for raw in group}
            assert everything <= {raw for present in index.classes["val"] for raw in present}, key
        assert index.holdout or not index.selection["holdout"]
    lacking = next(index for index in prepared.values() if index.dataset == "lacking")
    assert all(3 not in present for present in lacking.classes["val"])
    sizes = next(index.sizes["train"] for index in prepared.values() if index.dataset == "sizes")
    assert len(set(map(tuple, sizes))) == 7


# --- the checks of a finished study


def sentence() -> bytes:
    """A picture of a sentence."""
    picture = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(picture).text((60, 90), "No hold-out set: not measured.", fill="black")
    picture.save(stream := io.BytesIO(), "png")
    return stream.getvalue()


def png(*colours: tuple[int, int, int]) -> bytes:
    """A picture with a stripe of 8 by 8 pixels in each colour."""
    stripes = np.concatenate([np.full((8, 8, 3), colour, np.uint8) for colour in colours])
    Image.fromarray(stripes).save(stream := io.BytesIO(), "png")
    return stream.getvalue()


def embedded(picture: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


GOOD = png((255, 255, 255), (0, 0, 0), (200, 30, 30))
SENTENCE = sentence()
GREY = png((255, 255, 255), (0, 0, 0))
BLANK = png((255, 255, 255))
VALUES = {
    "introduced": 0, "step": 1, "convention": "ciss", "kind": "old", "pair": "old", "rule": "mbs", "factor": "gradient",
    "metric": "all", "error": "old called background", "group": "step0", "class": "road", "nearest": "car",
}  # fmt: skip
TEX = r"""
\begin{table}
\caption{two: methods}
\label{tab:two-methods}
\begin{tabular}{lr}
\toprule
method & all \\
\midrule
finetune & $0.1$ \\
mib & $\mathbf{0.2}$ \\
\bottomrule
\end{tabular}
\end{table}
"""


FORGETTING, BACKGROUND = (f"benchmarks/two/{name}/{name}.png" for name in ("forgetting", "background"))
COST = "timings/cost.png"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A project as a sound study leaves it: two methods on two classes, with a hold-out; a row an end in each table."""
    project = tmp_path_factory.mktemp("sound") / "project"
    reports, ends = project / "reports", {"two-s0-finetune": "finetune", "two-s0-mib": "mib"}
    for folder in ("two", "compare", "benchmarks/two/forgetting", "benchmarks/two/background", "../timings"):
        (reports / folder).mkdir(parents=True)
    tiny = {"dataset": "two", "protocol": "1-1", "setting": "overlapped", "model": {"decoder": "deeplabv3"}}
    chain = {f"two-s0-{method}-1": {"after": "two-s0", "method": method} for method in ends.values()}
    document = {
        "benchmarks": {"two": tiny},
        "methods": {"finetune": {}, "mib": {}},
        "bases": {"two-s0": {"method": "finetune"}},
        "joints": {},
        "chain": chain,
        "ends": {end: {"run": f"{end}-1", "benchmark": "two"} for end in ends},
    }
    YAML().dump(document, project / "params.yaml")
    trees.write("two", project / "data")
    index = {
        "groups": [[1], [2]], "steps": [[0], [1]], "holdout": [2], "validation": [[0], [0]],
        "classes": {"train": [[0, 1], [0, 2], [0, 1, 2]], "val": [[0, 1, 2]]},
    }  # fmt: skip
    (project / "data" / "index" / "two").mkdir(parents=True)
    (project / "data" / "index" / "two" / "index.json").write_text(json.dumps(index))
    folders = {"columns": reports / "compare", "timings": project / "timings", "benchmark": reports / "benchmarks/two"}
    for section, folder in folders.items():
        for file, names in check.columns(section).items():
            rows = [
                {name: {"end": end, "method": method, "benchmark": "two", **VALUES}.get(name, 0.5) for name in names}
                for end, method in ends.items()
            ]
            pd.DataFrame(rows, columns=names).to_csv(folder / file, index=False)
    for file in (reports / FORGETTING, reports / BACKGROUND, project / COST):
        file.write_bytes(GOOD)
    cell = {"cell_type": "code", "source": "1", "outputs": [{"output_type": "stream", "name": "stdout", "text": "ok"}]}
    for name in ("two/4_forgetting", "two/5_background", "6_compare"):
        (reports / f"{name}.ipynb").write_text(json.dumps({"cells": [cell]}))
    text = f'<a href="#two">two</a><h2 id="two">two</h2>{embedded(GOOD)}<td>finetune</td><td>mib</td>'
    (reports / "report.html").write_text(text)
    for file in (reports / "compare" / "tables.tex", project / "timings" / "cost.tex"):
        file.write_text(TEX)
    (reports / "metrics.json").write_text(json.dumps({"two": {name: {} for name in ends.values()}}))
    return project


@pytest.fixture
def sample(sound, tmp_path) -> Path:
    """A copy of the sound project, to be spoilt."""
    return Path(shutil.copytree(sound, tmp_path / "project"))


def test_a_sound_study_passes(sample):
    assert check.failures(sample, 0, "Running stage 'compare':\n") == []


def edit(file: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Changes the text of the file of this name, in whichever folder of `reports/` or `timings/` it lies."""

    def apply(project: Path) -> None:
        (path,) = (path for folder in ("reports", "timings") for path in (project / folder).rglob(file))
        path.write_text(change(path.read_text()))

    return apply


def table(file: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Changes the table in the file of this name, in whichever folder of `reports/` or `timings/` it lies."""

    def apply(project: Path) -> None:
        (path,) = (path for folder in ("reports", "timings") for path in (project / folder).rglob(file))
        change(pd.read_csv(path)).to_csv(path, index=False)

    return apply


def output(**values) -> Callable[[Path], None]:
    return edit("6_compare.ipynb", lambda text: json.dumps({"cells": [{"cell_type": "code", "outputs": [values]}]}))


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda p: (p / "reports" / FORGETTING).write_bytes(BLANK), r"two/forgetting/forgetting\.png: is blank"),
    (lambda p: (p / COST).write_bytes(GREY), r"cost\.png: shows axes and no data"),
    (lambda p: (p / COST).write_bytes(SENTENCE), r"cost\.png: shows a sentence although"),
    (lambda p: (p / COST).write_bytes(GOOD[:60]), r"cost\.png: cannot be decoded"),
    (lambda p: (p / "reports" / "report.html").unlink(), r"report\.html: missing"),
    (lambda p: (p / "reports" / "compare/runs.csv").unlink(), r"runs\.csv: missing"),
    (lambda p: (p / "reports" / "compare/runs.csv").write_text("\n"), r"runs\.csv: has no columns"),
    (table("runs.csv", lambda t: t[:1]), r"runs\.csv: no row for the ends \['two-s0-mib'\]"),
    (table("methods.csv", lambda t: t[:1]), r"methods\.csv: no row for the methods \['mib'\]"),
    (table("cost.csv", lambda t: t.replace("mib", "lwf")), r"cost\.csv: rows of methods that were not planned"),
    (table("curves.csv", lambda t: t[:0]), r"curves\.csv: no rows$"),
    (table("beside_published.csv", lambda t: t[:0]), r"beside_published\.csv: no rows, and neither 6_compare nor"),
    (table("runs.csv", lambda t: t.assign(old=np.nan, undefined="")), r"scores of .* are NaN, and the column"),
    (table("runs.csv", lambda t: t.assign(all=[0.5, np.nan])), r"runs\.csv: all is empty in 1 rows .* end two-s0-mib"),
    (table("cost.csv", lambda t: t.assign(base_seconds=np.inf)), r"cost\.csv: base_seconds is empty in 2 rows"),
    (table("pace.csv", lambda t: t.assign(iou=np.nan)), r"two/pace\.csv: iou is empty in 2 rows"),
    (table("pace.csv", lambda t: t[:0]), r"two/pace\.csv: no rows$"),
    (table("background.csv", lambda t: t[:1]), r"two/background\.csv: no row for \['two-s0-mib'\]"),
    (table("gradients.csv", lambda t: t.assign(value=np.nan)), r"gradients\.csv: no gradient of two-s0-finetune"),
    (table("label_rules.csv", lambda t: t.drop(columns="rule")), r"label_rules\.csv: has the columns"),
    (table("label_rules.csv", lambda t: t.assign(step=2)), r"label_rules\.csv: no row for the steps \[1\]"),
    (table("calibration.csv", lambda t: t.assign(pixels=0, new=np.nan)), r"calibration\.csv: has NaN, and"),
    (table("background_errors.csv", lambda t: t.assign(share=np.nan)), r"a share of two-s0-mib, step 1 is NaN"),
    (edit("report.html", lambda text: text.replace('id="two"', "")), r"report\.html: the link #two leads nowhere"),
    (edit("report.html", lambda text: text + '<img src="x.png">'), r"the link x\.png leads out of the page"),
    (edit("report.html", lambda text: text + "<h3 id='two'>"), r"the anchor #two stands twice"),
    (edit("report.html", lambda text: text.replace("<td>mib</td>", "")), r"report\.html: does not name \['mib'\]"),
    (edit("report.html", lambda text: text + "<td>nan</td>"), r"report\.html: a table shows NaN"),
    (edit("report.html", lambda text: text + embedded(BLANK)), r"report\.html: an embedded picture is blank"),
    (edit("tables.tex", lambda text: text.replace(r"$0.1$ \\", r"$0.1$ & 3 \\")), r"3 cells in a table of 2"),
    (edit("tables.tex", lambda text: text.replace("0.2}", "0.2")), r"tables\.tex: \d+ opening and \d+ closing braces"),
    (edit("tables.tex", lambda text: text.replace(r"\end{table}", "")), r"tables\.tex: \['table'\] are not closed"),
    (edit("tables.tex", lambda text: text.replace(r"\begin{table}", "")), r"\\end\{table\} closes nothing"),
    (edit("tables.tex", lambda text: text.replace("$0.1$", "$0.1")), r"tables\.tex: a \$ is not closed"),
    (edit("tables.tex", lambda text: text + text), r"the label tab:two-methods stands 2 times"),
    (edit("tables.tex", lambda text: text.replace("mib", "gsc_mbs")), r"_, # or nan outside of mathematics"),
    (edit("tables.tex", lambda text: text.replace("mib", "lwf")), r"tables\.tex: no row for \['mib'\]"),
    (edit("metrics.json", lambda text: text.replace("mib", "lwf")), r"metrics\.json: no scores of \['mib'\]"),
    (output(output_type="error", ename="KeyError", evalue="'step'"), r"6_compare\.ipynb, cell 0: KeyError: 'step'"),
    (output(output_type="stream", name="stderr", text="x.py:1: RuntimeWarning: mean of empty slice\n"), "RuntimeWarn"),
])  # fmt: skip
def test_a_broken_study_fails(sample, spoil, words):
    spoil(sample)
    found = check.failures(sample, 0, "")
    assert any(re.search(words, failure) for failure in found), found


@pytest.mark.parametrize("log", ["ERROR: failed to reproduce", "a.py:3: UserWarning: x", "Traceback (most recent"])
def test_what_the_pipeline_prints_is_checked(sample, log):
    assert check.failures(sample, 1, f"fine\n{log}\n") == ["dvc repro: exit status 1", f"dvc repro: {log}"]


def test_an_empty_table_needs_a_reason_and_a_sentence(sample):
    """Without a hold-out the pace may be empty, if the notebook says why."""
    index = sample / "data" / "index" / "two" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "holdout": []}))
    for name in ("pace", "pace_factors", "pace_correlations"):
        table(f"benchmarks/two/forgetting/{name}.csv", lambda t: t[:0])(sample)
    silent = check.failures(sample, 0, "")
    assert len(silent) == 3 and all("no rows (no hold-out set), and the notebook does not say why" in f for f in silent)
    (sample / "reports" / "benchmarks/two/forgetting/forgetting.md").write_text(
        "No hold-out set: the pace is not measured.\n"
    )
    (sample / "reports" / "benchmarks/two/forgetting/pace.png").write_bytes(SENTENCE)
    assert check.failures(sample, 0, "") == []
    table("benchmarks/two/forgetting/gradients.csv", lambda t: t[:0])(sample)
    assert check.failures(sample, 0, "") == ["two/gradients.csv: no rows"]


# --- running


def test_a_finished_study_is_not_run_again(tmp_path, monkeypatch, capsys):
    """The results of the same code count; a failure is printed and gives exit status 1."""
    ran = []

    def run(each, folder, code, template):
        ran.append(each.name)
        bad = ["4_forgetting: KeyError"] if each.name == "only-joint" else []
        result = study.Result(each.name, code, 1.0, 1.0, bad)
        (folder / f"{each.name}.json").write_text(json.dumps(vars(result)))
        return result

    monkeypatch.setattr(study, "run", run)
    monkeypatch.setattr(study, "make_template", lambda folder: folder)
    words = ["--folder", str(tmp_path), "--only", "only-joint", "one-method"]
    assert command.main(words) == 1 and sorted(ran) == ["one-method", "only-joint"]
    assert command.main(words) == 1 and len(ran) == 2
    printed = capsys.readouterr().out
    assert "only-joint:    1.0 s,    1.0 processor s: FAILED (1) done before\n    4_forgetting: KeyError\n" in printed
    assert command.main([*words[:2], "--only", "one-method"]) == 0 and len(ran) == 2
    monkeypatch.setattr(study, "code_hash", lambda: "other")
    assert command.main([*words, "--seconds", "-1"]) == 1 and len(ran) == 2
    assert "0 of 2 studies done, 0 failed, 2 not started" in capsys.readouterr().out


def share(commit: str) -> list[cover.Study]:
    """The studies of a commit: one that failed once, then others in an order that the commit's hash gives."""
    studies = {each.name: each for each in cover.studies()}
    names = sorted(studies, key=lambda name: study.hashed(f"{commit} {name}"))
    chosen = [next(name for name in names if name in FAILED_ONCE)]
    for name in names:
        if name not in chosen and sum(studies[each].seconds() for each in [*chosen, name]) <= SECONDS:
            chosen.append(name)
    return [studies[name] for name in chosen]


def test_every_commit_has_another_share():
    shares = [tuple(each.name for each in share(f"{number:040x}")) for number in range(20)]
    assert len(set(shares)) == 20 and all(len(names) >= 2 for names in shares)
    assert all(sum(each.seconds() for each in share(f"{number:040x}")) <= 1.2 * SECONDS for number in range(20))


@pytest.mark.slow
def test_the_studies_of_this_commit(tmp_path, capsys):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=study.ROOT, capture_output=True, text=True).stdout.strip()
    chosen = share(commit or study.code_hash())
    with capsys.disabled():
        print(f"\nstudies of commit {commit[:12]}: {', '.join(each.name for each in chosen)}")
        results, _, seconds = command.run(chosen, tmp_path, jobs=2)
        print(f"{len(results)} studies in {seconds:.0f} s")
    assert {result.name: result.failures for result in results} == {each.name: [] for each in chosen}
