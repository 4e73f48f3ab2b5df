"""The README says what the committed reports say, and its commands exist."""

import csv
import re
import statistics
import subprocess
from pathlib import Path

import pytest

from ciss import paths
from ciss.analysis.forgetting.pace import interval
from ciss.methods import METHODS, code_of
from ciss.study.presets import presets
from tests.helpers.modules import analysis_modules

ROOT = paths.project()
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
ROWS = {"gsc †": "gsc", "gsc-source †": "gsc-paper"}  # README's names of rows -> sections of the kept study


def table(file: str, text: str = README) -> dict[str, list[str]]:
    block = text.split(f"<!-- table of {file} -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def shown(scores: dict, key: str) -> str:
    """Mean and, of several seeds, sample deviation."""
    if scores[key] is None:
        return ""
    return f"{scores[key]:.3f}" + (f" ± {scores[f'{key}_std']:.3f}" if scores["seeds"] > 1 else "")


def scores_of(file: Path) -> dict[str, dict]:
    """Means over the runs of each method of a `runs.csv` with one benchmark. Those of `metrics.json` are rounded."""
    with open(file, newline="") as stream:
        runs = list(csv.DictReader(stream))
    methods = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        runs_of_method = [run for run in runs if run["method"] == method]
        scores = methods[method] = {"seeds": len(runs_of_method)}
        for key in ("all", "old", "new", "forgetting"):
            values = [float(run[key]) for run in runs_of_method if run[key]]
            scores[key] = statistics.mean(values) if values else None
            scores[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return methods


def check_scores(file: Path, rows: dict[str, list[str]]) -> None:
    methods = scores_of(file)
    assert set(rows) == set(methods)
    for method, scores in methods.items():
        for cell, key in zip(rows[method], ("all", "old", "new", "forgetting"), strict=False):
            assert cell == shown(scores, key), f"{method}: {key}"


def test_the_table_of_the_default_benchmark():
    file = "reports/compare/runs.csv"
    check_scores(ROOT / file, table(file, (ROOT / "docs/reports.md").read_text(encoding="utf-8")))


def test_the_table_of_the_readme_is_the_studys_in_percent():
    rows = table("reports/study/runs.csv, in percent")
    methods = scores_of(ROOT / "reports/study/runs.csv")
    assert {ROWS.get(row, row) for row in rows} == set(methods)
    for row, cells in rows.items():
        scores = methods[ROWS.get(row, row)]
        for cell, key in zip(cells, ("all", "old", "new", "forgetting"), strict=True):
            percent = "" if scores[key] is None else f"{100 * scores[key]:.1f} ± {100 * scores[f'{key}_std']:.1f}"
            assert cell == percent, f"{row}: {key}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


SCORES = sorted(file.with_name("runs.csv") for file in (ROOT / "reports").glob("*/**/metrics.json"))


@pytest.mark.parametrize("file", SCORES, ids=[file.parent.relative_to(ROOT / "reports").as_posix() for file in SCORES])
def test_the_tables_of_a_report_are_its_runs(file):
    report = ROOT / "reports" / file.relative_to(ROOT / "reports").parts[0]
    name = file.relative_to(report).as_posix()
    check_scores(file, table(name, (report / "README.md").read_text(encoding="utf-8")))


PARTS = sorted((ROOT / "reports/study/orders").glob("*/runs.csv"))


@pytest.mark.parametrize("file", PARTS, ids=[file.parent.name for file in PARTS])
def test_the_tables_of_a_study_in_parts_are_its_runs(file):
    text = (ROOT / "reports/study/orders/README.md").read_text(encoding="utf-8")
    check_scores(file, table(f"{file.parent.name}/runs.csv", text))


def test_the_tables_of_trials_are_the_committed_scores():
    """Rows of `tuning.csv`: the mean by which is chosen, then all, old and new; of several seeds their mean."""
    study = (ROOT / "reports/study/README.md").read_text(encoding="utf-8")
    for file in re.findall(r"<!-- table of (\S*(?:tuning|terms)\.csv) -->", study):
        with open(ROOT / "reports/study" / file, newline="") as stream:
            trials = list(csv.DictReader(stream))
        rows = table(file, study)
        assert set(rows) == {trial["trial"] for trial in trials}
        for name, cells in rows.items():
            mine = [trial for trial in trials if trial["trial"] == name]
            means = [sum(float(trial[key]) for trial in mine) / len(mine) for key in ("mean", "all", "old", "new")]
            assert cells[: len(means)] == [f"{mean:.3f}" for mean in means], name


def test_the_table_of_paired_differences_is_the_committed_one():
    study = (ROOT / "reports/study/README.md").read_text(encoding="utf-8")
    with open(ROOT / "reports/study/paired.csv", newline="") as stream:
        pairs = {(row["method"], row["against"]): row for row in csv.DictReader(stream) if row["metric"] == "all"}
    rows = table("paired.csv", study)
    for method, cells in rows.items():
        for cell, against in zip(cells, ("finetune", "mib"), strict=True):
            row = pairs.get((method, against))
            mean, low, high = (float(row[key]) for key in ("mean", "low", "high")) if row else (0, 0, 0)
            assert cell == (f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" if row else ""), f"{method}, {against}"


def test_the_table_of_stage_ridge_is_the_committed_scores():
    """Means over the seeds of scores on the hold-out, and of their differences to the whole method."""
    folder = ROOT / "reports/study/stage_ridge"
    with open(folder / "shapes.csv", newline="") as stream:
        runs = list(csv.DictReader(stream))
    scores = {(run["method"], run["seed"]): run for run in runs}
    rows = table("stage_ridge/shapes.csv", (folder / "README.md").read_text(encoding="utf-8"))
    assert set(rows) == {run["method"] for run in runs}
    for method, cells in rows.items():
        seeds = [run for run in runs if run["method"] == method]
        for cell, key in zip(cells, ("holdout_all", "holdout_old", "holdout_new"), strict=False):
            assert cell == f"{sum(float(run[key]) for run in seeds) / len(seeds):.3f}", f"{method}: {key}"
        whole = [float(scores["stage_ridge", run["seed"]]["holdout_all"]) for run in seeds]
        differences = [float(run["holdout_all"]) - other for run, other in zip(seeds, whole, strict=True)]
        low, high = interval(differences)
        mean = sum(differences) / len(differences)
        assert cells[3] in ((f"{mean:+.3f} ({low:+.3f} to {high:+.3f})",) if any(differences) else ("", "0")), method


def test_the_lines_that_check_results_print_them():
    """Every number of the comment before a command, with its digits, is in what the command prints."""
    study = (ROOT / "reports/study/README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", study, re.DOTALL)
    checks = re.findall(r"^# (\d+)\. (.*)\n(.*)$", block, re.MULTILINE)
    assert [int(number) for number, _, _ in checks] == list(range(1, 11)) and len(block.splitlines()) == 20
    for _, result, command in checks:
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
        printed = {
            f"{float(value):.{digits}f}"
            for value in re.findall(r"-?\d+\.?\d*(?:e-\d+)?", done.stdout)
            for digits in (2, 3)
        }
        claimed = re.findall(r"-?\d\.\d+", result)
        assert claimed and set(claimed) <= printed, f"{result}: {done.stdout}"


def test_the_table_of_kills_is_the_campaigns():
    """Kills by where they landed and by process; trainings, and those that ended identical."""
    folder = ROOT / "reports" / "trust"
    with open(folder / "campaign.csv", newline="") as stream:
        kills = list(csv.DictReader(stream))
    processes = ("trainer", "papermill", "dvc")
    counts = {(name, "kills"): 0 for name in processes}
    trials: dict[str, dict[str, bool]] = {name: {} for name in processes}
    for kill in kills:
        for row in (kill["landed"], "kills"):
            counts[kill["process"], row] = counts.get((kill["process"], row), 0) + 1
        trials[kill["process"]][kill["trial"]] = kill["identical"] == "True"
    for name, ends in trials.items():
        counts |= {(name, "trainings"): len(ends), (name, "that ended identical"): sum(ends.values())}
    rows = table("campaign.csv", (folder / "README.md").read_text(encoding="utf-8"))
    assert {row for _, row in counts} <= set(rows)
    for row, cells in rows.items():
        found = [counts.get((name, row), 0) for name in processes]
        assert [int(cell) for cell in cells] == [*found, sum(found)], row


def test_it_opens_with_the_two_commands():
    first = [line.strip() for line in README.splitlines() if line.startswith("    ")][:2]
    assert first[0].startswith("pip install uv && uv run dvc repro")
    assert first[1].startswith("uv run pytest")


def test_files_and_figures_exist():
    # by the reader, and by the first `dvc repro`
    written = {"ciss/methods/distil.py", "tests/methods/test_distil.py", "reports/notebooks/"}
    count = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        linked = [page.parent / name for name in re.findall(r"\]\((?!https?:)([^\s)#]+)[^\s)]*\)", text)]
        named = re.findall(r"`((?:ciss|reports|notebooks|tests|docs|\.ci)/[\w./]+)`", text)
        files = [*linked, *(ROOT / name for name in named if name not in written)]
        count += len(files)
        for file in files:
            if file.suffix not in (".ipynb", ".html"):  # made by the pipeline, kept in DVC's cache
                assert file.exists(), f"{page.name}: {file}"
    assert count > 20


def test_planned_benchmarks_and_methods_exist():
    planned = re.findall(r"uv run ciss plan (\w+)", TEXT)
    assert len(planned) > 5
    for dataset in planned:
        assert dataset in presets() or f"data/{dataset}/dataset.yaml" in TEXT  # a data set of the reader's own
    for methods in re.findall(r"--methods ([a-z -]+?)(?: --| &&|\n|$)", TEXT):
        assert {code_of(name) for name in methods.split()} <= {*METHODS, "distil"}


def test_the_example_method_works():
    import torch

    from ciss.methods import Batch
    from ciss.models import Output

    names: dict = {}
    (block,) = (part for part in TEXT.split("```python")[1:] if "class Distil" in part)
    exec(block.split("```")[0], names)
    method, labels = names["Distil"](weight=2.0), torch.zeros(1, 4, 4, dtype=torch.int64)
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    student = Output(logits, logits, [logits], logits.flatten(2), logits[0, :, 0])
    batch = Batch(torch.zeros(1, 3, 4, 4), labels, labels, ["a"], 1, 2, torch.tensor([0, 0, 1]), torch.tensor([2]))
    losses = method.losses(student, Output(logits[:, :2], logits, [], logits, logits), batch)
    assert losses["cross_entropy"].item() == pytest.approx(1.0986, abs=1e-4)  # log 3
    assert losses["distillation"].item() == pytest.approx(2 * 0.6931 / 2, abs=1e-3)  # 2 log 2, mean over 2 channels


def test_tables_of_a_benchmark_have_the_documented_columns():
    """Those of `reports/benchmarks/shapes`: each is documented, its columns by its function too."""
    text = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    rows = text.split("<!-- benchmark -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    documented = {}
    functions = {name: value for module in analysis_modules() for name, value in vars(module).items()}
    for row in rows:
        file, function, _, columns = (cell.strip() for cell in row.strip("|").split(" | "))
        documented[file.strip(" `")] = names = re.findall(r"`(\w+)`", columns)
        words = re.findall(r"\w+", functions[function.strip("`")].__doc__)
        assert not [name for name in names if name not in words and "_to_" not in name], file
    tables = (ROOT / "reports/benchmarks/shapes").glob("*/*.csv")
    made = {f"{file.parent.name}/{file.name}": file.read_text().splitlines()[0].split(",") for file in tables}
    assert documented == made
