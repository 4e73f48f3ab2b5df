"""Reproducing leaves the commit clean: the same code and data give the same bytes, however long it takes."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import nbformat
import pytest
from ruamel.yaml import YAML

from ciss.runs import timings
from ciss.study import execute
from ciss.training import loop
from tests.helpers import repository
from tests.helpers.repository import run

# A second machine, slower and in another place of the world; Python runs this file before anything else.
CLOCK = "import time\nreal = time.perf_counter\ntime.perf_counter = lambda: 3 * real()\n"
TRAINING = """import os, sys, time, warnings
print(f"a: epoch 1/2: loss 0.5; {time.perf_counter():.9f} s, 3 s left", flush=True)
warnings.warn(os.getcwd())
sys.stderr.write(str(os.getpid()))
os.path.join(os.getcwd(), "data")"""
LINES = """print(os.environ["CISS_DATA"] + "/a.png")
for number in range(20):
    print(number, flush=number % 2)
    time.sleep(0.003)"""


def notebook(folder: Path) -> Path:
    """A cell of parameters, a training, and lines that arrive in several messages."""
    cells = [nbformat.v4.new_code_cell(text) for text in ("name = 'nobody'", TRAINING, LINES)]
    for cell, tags in zip(cells, (["parameters"], [execute.UNPRINTED], []), strict=True):
        cell["metadata"]["tags"] = tags
    file = folder / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    return file


def test_an_executed_notebook_has_the_same_bytes_each_time(tmp_path, monkeypatch):
    source = notebook(tmp_path)
    copies = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("CISS_DATA", f"{folder}{folder.name}")
        execute.execute(source, Path("copy.ipynb"), {"name": "you"})
        copies.append(Path("copy.ipynb").read_bytes())
    assert copies[0] == copies[1]
    cells = nbformat.reads(copies[0].decode(), as_version=4).cells
    assert [cell["source"] for cell in cells][1].endswith('name = "you"\n')
    assert [output.output_type for output in cells[2].outputs] == ["execute_result"], "what it prints is not kept"
    assert cells[2].outputs[0].data["text/plain"] == "'./data'"
    (output,) = cells[3].outputs
    assert output.text == "$CISS_DATA/a.png\n" + "".join(f"{number}\n" for number in range(20))
    text = copies[0].decode()
    assert str(tmp_path) not in text and str(os.getpid()) not in text and sys.version.split()[0] not in text


def test_a_slower_training_leaves_the_same_bytes(make_project, monkeypatch):
    """In `runs/` and `results/`, in another folder, by another clock, and of a later step too."""
    left, times, clock = [], [], time.perf_counter
    for name, speed in (("one", 1), ("two", 3)):
        monkeypatch.setattr(time, "perf_counter", lambda speed=speed: speed * clock())
        monkeypatch.setattr(timings, "device_name", lambda name=name: name)
        project = make_project(name)
        for run_name in ("base", "mib-1"):
            loop.train(project.run(run_name))
        files = [file for part in ("runs", "results") for file in (project.folder / part).glob("tiny/*/*")]
        left.append({str(file.relative_to(project.folder)): file.read_bytes() for file in files})
        times.append(timings.read(project.folder, "tiny", "mib-1"))
    assert left[0] == left[1] and len(left[0]) > 15
    assert [timing["device"] for timing in times] == ["one", "two"]
    assert times[0]["weights"] == times[1]["weights"] and times[0]["wall_seconds"] != times[1]["wall_seconds"]
    assert timings.read(project.folder, "tiny", "tune-1") is None, "not trained here"


def hashed_files(folder: Path) -> dict[str, str]:
    """Hashes of every file of every out in `dvc.lock`, and of the lock."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"].values()
    outs = [folder / out["path"] for stage in stages for out in stage.get("outs", ())]
    files = [file for out in outs for file in (sorted(out.rglob("*")) if out.is_dir() else [out]) if file.is_file()]
    hashes = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return hashes | {"dvc.lock": hashlib.sha256((folder / "dvc.lock").read_bytes()).hexdigest()}


@pytest.mark.slow
def test_the_pipeline_in_an_empty_clone_leaves_the_commit_clean(study, tmp_path):
    """Elsewhere, with another clock, without DVC's cache: `git diff` is empty, and every hashed file is the same."""
    clock, clone = tmp_path / "clock", tmp_path / "a" / "clone"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(CLOCK)
    clone.parent.mkdir()
    run(tmp_path, "git", "clone", "-q", str(study), str(clone))
    repository.copy(study / "data" / "weights", clone / "data" / "weights")
    run(clone, "dvc", "repro", PYTHONPATH=f"{clock}{os.pathsep}{clone}", TZ="Asia/Tokyo")
    assert run(clone, "git", "status", "--porcelain") == ""
    first, second = hashed_files(study), hashed_files(clone)
    assert [name for name in first if first[name] != second.get(name)] == [] and len(first) == len(second) > 50
    assert run(clone, sys.executable, "-m", "ciss", "report", "--against", "HEAD").count("equal to HEAD") == 2

    # --- what differs lies apart
    timings = [json.loads(file.read_text()) for file in sorted((clone / "timings").glob("*/*.json"))]
    assert timings and all(timing["training_seconds"] > 0 and timing["device"] for timing in timings)
    assert not run(clone, "git", "ls-files", "timings", "reports/report.html", ".reported")
    page = (clone / "reports" / "report.html").read_text(encoding="utf-8")
    assert "Measured on: " in page and page != (study / "reports" / "report.html").read_text(encoding="utf-8")
