"""`ciss report --against REVISION`: which scores differ, and by how much."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ciss import cli, paths
from ciss.study.report.against import changed_provenance, differences, parse

METRICS = {
    "b": {"mib": {"all": 0.5, "all_std": 0.1, "forgetting": 0.2, "seeds": 2}, "joint": {"all": 0.9, "seeds": 1}},
}
RUNS = pd.DataFrame(
    {
        "end": ["e", "j"],
        "all": [0.5, 0.9],
        "forgetting": [0.2, np.nan],
        "training_seconds": [7.0, 8.0],  # of a table from before times lay apart
        "code": ["c", "c"],
        "versions": ["torch 2", "torch 2"],
        "weights": ["w", "x"],
    }
)


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.email=tests@example.org", "-c", "user.name=tests")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def write(folder: Path, metrics: dict = METRICS, runs: pd.DataFrame = RUNS) -> None:
    (folder / "reports" / "compare").mkdir(parents=True, exist_ok=True)
    (folder / "reports" / "metrics.json").write_text(json.dumps(metrics))
    runs.to_csv(folder / "reports" / "compare" / "runs.csv", index=False)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project in a folder of a repository, its tables committed."""
    project = tmp_path / "inside"
    project.mkdir()
    text = (paths.project() / "tests" / "smoke.yaml").read_text(encoding="utf-8").replace("output: .smoke\n", "")
    (project / "params.yaml").write_text(text)
    (project / "dvc.yaml").write_text("")
    write(project)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.chdir(project)
    return project


def call(capsys, revision: str = "HEAD") -> tuple[int, list[str], str]:
    """Exit status, printed lines, errors."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", "--against", revision])
    out, error = capsys.readouterr()
    return stopped.value.code, out.splitlines(), error


def test_equal_scores(repository, capsys):
    write(repository, runs=RUNS.drop(columns="training_seconds").assign(weights=["y", "z"]))
    equal = [f"{name}: equal to HEAD" for name in ("reports/metrics.json", "reports/compare/runs.csv")]
    assert call(capsys) == (0, equal, "")


def test_other_scores_are_named_with_the_largest_difference(repository, capsys):
    methods = {**METRICS["b"], "mib": {**METRICS["b"]["mib"], "all": 0.5004}}
    other = RUNS.assign(all=[0.50035, 0.9], forgetting=[0.2003, 0.0], training_seconds=99.0, code="d")
    write(repository, {"b": methods}, other)
    code, lines, error = call(capsys)
    assert (code, error) == (1, "")
    assert lines == [
        "reports/metrics.json: differs from HEAD",
        "  b, mib: 1 of 3 scores, by at most 0.000400 (all)",
        "  all, largest: 0.000400 (b, mib)",
        "reports/compare/runs.csv: differs from HEAD",
        "  e: 2 of 2 scores, by at most 0.000350 (all)",
        "  j: 1 of 2 scores, by at most undefined on one side (forgetting)",
        "  all, largest: 0.000350 (e)",
        "  forgetting, largest: undefined on one side (j)",
        "  HEAD was made with other values of: code",
    ]


def test_ends_that_one_side_lacks(repository, capsys):
    write(repository, runs=RUNS.assign(end=["e", "new"]))
    code, lines, _ = call(capsys)
    assert code == 1 and lines[1:] == [
        "reports/compare/runs.csv: differs from HEAD", "  new: only here", "  j: only in HEAD",
    ]  # fmt: skip


def test_an_older_revision(repository, capsys):
    write(repository, runs=RUNS.assign(all=0.1))
    git(repository, "commit", "-qam", "two")
    assert call(capsys)[0] == 0
    assert call(capsys, "HEAD~1")[0] == 1


def test_what_made_the_scores_is_compared_in_both_sides_rows():
    here = RUNS.set_index("end")
    assert changed_provenance(here, here.assign(weights="y", versions=["torch 2", "torch 3"])) == ["versions"]
    assert changed_provenance(here.drop(columns="code"), here) == []
    assert differences(here, here.drop(columns="all"), "HEAD") == []


def test_metrics_of_several_benchmarks():
    several = json.dumps({**METRICS, "c": METRICS["b"]})
    assert list(parse("metrics.json", several, "x").index) == ["b, mib", "b, joint", "c, mib", "c, joint"]


def no_repository(folder: Path, monkeypatch) -> None:
    (folder.parent / ".git").rename(folder.parent / "git")


def no_git(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")


def no_table_here(folder: Path, monkeypatch) -> None:
    (folder / "reports" / "metrics.json").unlink()


def no_table_there(folder: Path, monkeypatch) -> None:
    git(folder, "rm", "-q", "--cached", "reports/metrics.json")
    git(folder, "commit", "-qm", "without")


def broken_there(folder: Path, monkeypatch) -> None:
    (folder / "reports" / "metrics.json").write_text("{")
    git(folder, "commit", "-qam", "broken")
    write(folder)


@pytest.mark.parametrize(
    ("spoil", "revision", "words"),
    [
        (no_repository, "HEAD", "not a git repository"),
        (no_git, "HEAD", "--against needs git, which is not installed. Install it."),
        (no_table_here, "HEAD", "reports/metrics.json: there is no such file. Run: dvc repro compare"),
        (no_table_there, "HEAD", "git show HEAD:./reports/metrics.json: path "),
        (broken_there, "HEAD", "HEAD:./reports/metrics.json cannot be read as a table of scores: "),
        (lambda *_: None, "nowhere", "git show nowhere:./reports/metrics.json: invalid object name 'nowhere'."),
    ],
)
def test_what_cannot_be_compared_is_one_message(repository, monkeypatch, capsys, spoil, revision, words):
    spoil(repository, monkeypatch)
    code, lines, error = call(capsys, revision)
    assert (code, lines) == (2, [])
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
