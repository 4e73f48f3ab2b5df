"""The check of the committed lock, on a small pipeline of the same shape as the real one, in a fresh clone."""

import importlib.util
import json
import subprocess
from contextlib import chdir
from pathlib import Path

import pytest
from dvc.repo import Repo

from ciss.store import code as store_code

FILE = Path(__file__).parents[1] / ".ci" / "check_lock.py"
LOOP = "ciss/training/loop.py"
SPEC = importlib.util.spec_from_file_location("check_lock", FILE)
check_lock = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_lock)

PIPELINE = """
stages:
  source:
    cmd: cp -r {reduced} .source
    deps: [ciss, notebooks]
    outs: [.source]
  base:
    foreach: ${{bases}}
    do:
      cmd: mkdir -p runs/${{key}} && cp params.yaml runs/${{key}}
      deps: [.source/2_base/finetune]
      params: ["bases.${{key}}"]
      outs: ["runs/${{key}}"]
  compare:
    cmd: mkdir -p reports && echo 1 > reports/metrics.json && touch .reported
    deps: [runs, runs/s0, runs/s0/params.yaml, .source, table.csv]
    params: [title]
    outs: [.reported: {{cache: false, persist: true}}]
    metrics: [reports/metrics.json: {{cache: false}}]
"""


def git(*arguments: str, folder: Path) -> None:
    identity = ["-c", "user.name=ciss", "-c", "user.email=ciss@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def make_code(folder: Path) -> None:
    """The least package that has what the stages start from; `train` uses a constant."""
    places = [store_code.TRAIN, *store_code.OUTPUT_STAGES.values(), *store_code.STAGES.values()]
    for module, name in places:
        file = folder / f"{module.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a") as stream:
            stream.write(f"def {name}(): return x\n")
    with open(folder / LOOP, "a") as stream:
        stream.write("x = 1\n")
    (folder / "ciss/methods").mkdir()
    (folder / "ciss/methods/finetune.py").write_text("class Finetune: ...\n")
    cell = {"cell_type": "code", "metadata": {}, "source": "from ciss.training.loop import train\ntrain()"}
    (folder / "notebooks").mkdir()
    (folder / "notebooks/2_base.ipynb").write_text(json.dumps({"cells": [cell]}))


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository whose pipeline has run and is committed."""
    root, reduced = tmp_path_factory.mktemp("origin"), tmp_path_factory.mktemp("reduced")
    for folder in (root, reduced):  # reduced here once: a Python in the stage would take most of the time
        make_code(folder)
    check_lock.write(reduced)
    (root / "dvc.yaml").write_text(PIPELINE.format(reduced=reduced / ".source"))
    (root / "table.csv").touch()
    (root / ".gitignore").write_text(".reported\n")
    (root / "params.yaml").write_text("bases: {s0: {seed: 0}}\ntitle: one\n")
    git("init", "-q", folder=root)
    with chdir(root):
        Repo.init().close()
        with Repo() as repo:
            repo.reproduce()
    git("add", "-A", folder=root)
    git("commit", "-qm", "all", folder=root)
    return root


@pytest.fixture
def clone(origin, tmp_path):
    git("clone", "-q", str(origin), "clone", folder=tmp_path)
    return tmp_path / "clone"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_fresh_clone_and_the_repository_itself(origin, clone):
    assert not (clone / "runs/s0").exists() and not (clone / ".reported").exists()
    assert list(check_lock.problems(clone)) == []
    assert list(check_lock.problems(origin)) == []
    (clone / ".source/stale").write_text("")
    edit(clone / LOOP, "x = 1", '"""Docstring."""\n\nx = 1  # comment')
    assert list(check_lock.problems(clone)) == []


EDITS = {
    "code": (
        LOOP,
        "1",
        "2",
        ["source: output .source is", "base@s0: dependency .s", "compare: dependency .s"],
    ),
    "parameter": ("params.yaml", "seed: 0", "seed: 1", ["base@s0: parameter bases.s0 is modified"]),
    "parameter gone": ("params.yaml", "title: one", "", ["compare: parameter title is deleted"]),
    "parameter added": ("dvc.yaml", "[title]", "[title, bases]", ["compare: parameter bases is new"]),
    "command": ("dvc.yaml", "echo 1", "echo 2", ["compare: another command"]),
    "new stage": ("params.yaml", "{s0: {seed: 0}}", "{s0: {seed: 0}, s1: {seed: 1}}", ["base@s1: not in dvc.lock"]),
    "dependency added": ("dvc.yaml", "[runs, ", "[runs, params.yaml, ", ["compare: dependency params.yaml is new"]),
    "missing input": ("dvc.yaml", "[runs, ", "[runs, absent.csv, ", ["compare: dependency absent.csv is new"]),
    "output added": ("dvc.yaml", 'outs: ["runs', 'outs: [also.txt, "runs', ["base@s0: output also.txt is new"]),
    "committed table": ("reports/metrics.json", "1", "2", ["compare: output reports/metrics.json is modified"]),
}


@pytest.mark.parametrize(("file", "old", "new", "expected"), EDITS.values(), ids=EDITS)
def test_an_edit_without_a_run(clone, file, old, new, expected):
    edit(clone / file, old, new)
    found = list(check_lock.problems(clone))
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_files_that_were_not_committed(clone):
    (clone / "reports/metrics.json").unlink()
    (clone / "table.csv").unlink()
    wanted = ["compare: output reports/metrics.json is deleted", "compare: dependency table.csv is deleted"]
    assert list(check_lock.problems(clone)) == wanted


def test_a_pipeline_run_in_part(clone):
    lock = clone / "dvc.lock"
    start, last = lock.read_text().split("  compare:")
    hashed = last.split("path: runs/s0")[1].split("md5: ")[1][:32]
    lock.write_text(f"{start}  compare:{last.replace(hashed, 'a' * 32)}")
    assert list(check_lock.problems(clone)) == ["compare: was not run after base@s0 made another runs/s0"]


def test_the_remedy_is_named(clone, capsys):
    assert check_lock.main(clone) == 0
    (clone / LOOP).write_text("x = ")
    assert check_lock.main(clone) == 1
    assert "loop.py, line 1" in capsys.readouterr().err
    (clone / "dvc.lock").unlink()
    (clone / LOOP).write_text("def train(): return x\nx = 1\n")
    assert check_lock.main(clone) == 1
    assert "there is no dvc.lock" in (message := capsys.readouterr().err)
    assert check_lock.REMEDY in message
