"""Systems other than the one that tests run on, by simulation: no POSIX modules and signals (Windows), loader processes
that are spawned (macOS), a Python without the packages."""

import ast
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ciss import config, paths
from ciss.data import prepare
from ciss.data.loaders import evaluation_loader, training_loader
from ciss.runs import timings
from ciss.runs.results import _copy
from ciss.training import loop
from tests.helpers.training import left_by

ROOT = paths.project()
MODULES = {"crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}
SIGNALS = {"SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"}
FUNCTIONS = {"chown", "fork", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "nice"}
FUNCTIONS |= {"sched_getaffinity", "setsid", "statvfs", "sysconf", "uname", "wait"}
# Third-party packages know Windows by its name, so they are imported before anything is hidden.
WINDOWS = f"""
import os, runpy, signal, sys
import filelock, papermill, psutil, timm, torch, torchvision
for name in {sorted(MODULES)}:
    sys.modules[name] = None
for name in {sorted(SIGNALS)}:
    delattr(signal, name)
for name in {sorted(FUNCTIONS - {"fork", "statvfs", "uname"})}:
    delattr(os, name)
import ciss.doctor, ciss.inspection.predict, ciss.inspection.probe
import ciss.study.execute, ciss.study.launch, ciss.study.plan, ciss.study.report.page, ciss.study.tune.command
from ciss import cli
cli.main(["train", "base"])
"""
SPAWN = """
import multiprocessing
from ciss import config
from ciss.runs.run import resolve
from ciss.training import loop
multiprocessing.set_start_method("spawn", force=True)
loop.train(resolve(config.load("params.yaml"), "base"))
"""


def posix_only(tree: ast.AST) -> set[str]:
    """Names that only POSIX has: modules outside of `try`, signals, and functions of `os` without `hasattr` beside."""
    guarded, names = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(handler) for handler in node.handlers):
            guarded |= {id(child) for statement in node.body for child in ast.walk(statement)}
        if isinstance(node, ast.If | ast.IfExp) and "hasattr(os" in ast.unparse(node.test):
            guarded |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names.add(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            known = {"signal": SIGNALS, "os": FUNCTIONS}.get(node.value.id, set())
            names |= {f"{node.value.id}.{node.attr}"} if node.attr in known else set()
    return names


def test_the_package_stands_on_nothing_that_windows_lacks():
    sources = {file: file.read_text(encoding="utf-8") for file in (ROOT / "ciss").rglob("*.py")}
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        sources[file] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert len(sources) > 50
    unguarded = {file.name: posix_only(ast.parse(text)) for file, text in sources.items()}
    assert not {name: names for name, names in unguarded.items() if names}


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import resource", {"resource"}),
        ("def f():\n    from fcntl import flock", {"fcntl"}),
        ("try:\n    import fcntl\nexcept ImportError:\n    pass", set()),
        ("try:\n    import fcntl\nexcept OSError:\n    pass", {"fcntl"}),
        ("x = signal.SIGKILL", {"signal.SIGKILL"}),
        ("x = getattr(signal, 'SIGKILL', None), signal.SIGINT", set()),
        ("x = os.getuid()", {"os.getuid"}),
        ("x = os.getuid() if hasattr(os, 'getuid') else 0", set()),
    ],
)
def test_what_windows_lacks_is_seen(code, names):
    assert posix_only(ast.parse(code)) == names


@pytest.mark.slow
def test_it_trains_without_posix_modules_and_signals(project):
    process = project.command("-c", WINDOWS)
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert "base: epoch 2/2" in out
    assert timings.read(project.folder, "tiny", "base")["peak_memory_bytes"] > 1e7


def test_loader_processes_may_be_spawned(project):
    """What loaders hand to their processes can be pickled, and gives the same images there."""
    project.set("train.cache", False)
    run = project.run()
    index, table = run.index(), run.label_table(training=True)
    for loader in (
        training_loader(run.settings, index, run.images(index), table, seed=1),
        evaluation_loader(run.settings, index, "val", index.validation[0], table),
    ):
        key = next(iter(loader.batch_sampler))[0]
        for one, other in zip(loader.dataset[key], pickle.loads(pickle.dumps(loader.dataset))[key], strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.slow
def test_spawned_loader_processes_train_the_same(make_project):
    """From a notebook, whose main module a spawned process must not run again."""
    alone, spawned = make_project("alone"), make_project("spawned")
    loop.train(alone.run())
    spawned.set("train.workers", 1)  # a process takes seconds to import torch
    cell = {"cell_type": "code", "execution_count": None, "outputs": [], "metadata": {}, "id": "a", "source": SPAWN}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    (spawned.folder / "a.ipynb").write_text(json.dumps(notebook))
    process = spawned.command("-m", "ciss", "execute", "a.ipynb", "copy.ipynb")
    _, error = process.communicate(timeout=800)
    assert process.returncode == 0, error
    assert left_by(alone.run())["weights"] == left_by(spawned.run())["weights"]


@pytest.mark.parametrize("module", ["source", "plan", "execute", "doctor"])
def test_a_python_without_the_packages_is_one_message(module):
    """`-S`: without site-packages, as the system's Python that a shell finds first."""
    command = [sys.executable, "-S", "-m", f"ciss.{module}"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"this Python ({sys.executable}) lacks the packages" in done.stderr and "uv run dvc repro" in done.stderr


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Base"], "runs: base and Base are the same folder on macOS and Windows. Rename one."),
        (["NUL"], "runs: NUL is the name of a device on Windows. Rename it."),
        (["null", "base-0"], None),
    ],
)
def test_names_are_folders_on_every_system(project, names, message):
    for name in names:
        project.document["bases"][name] = project.document["bases"]["base"]
    if message is None:
        assert len(project.config.bases) == 3
    else:
        with pytest.raises(config.ConfigError, match=f"^params.yaml: {message}$"):
            project.config  # noqa: B018


@pytest.mark.parametrize("linked", ["data/shapes", "data", "CISS_DATA"])
def test_data_may_be_links(project, tiny_data, tmp_path, monkeypatch, linked):
    """A data set, the folder of data sets, and the project that holds it: the index is the same."""
    wanted = project.run().index().fingerprint
    entrance = tmp_path / "entrance"
    entrance.symlink_to(project.folder)
    monkeypatch.chdir(entrance)
    if linked == "CISS_DATA":
        (tmp_path / "sets").symlink_to(tiny_data)
        monkeypatch.setenv("CISS_DATA", str(tmp_path / "sets"))
    else:
        monkeypatch.delenv("CISS_DATA")
        link = entrance / linked
        shutil.rmtree(project.folder / "data")
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tiny_data / Path(linked).relative_to("data"))
    index = prepare(project.config.benchmarks["tiny"], tmp_path / "index", progress=False)
    assert index.fingerprint == wanted


def test_runs_are_kept_on_file_systems_without_links_and_modes(tmp_path, monkeypatch):
    """vfat has no hard links; some network file systems refuse to set the mode or the times of a folder."""

    def refuse(*arguments, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    for name in ("link", "chmod", "utime"):
        monkeypatch.setattr(os, name, refuse)
    (tmp_path / "run" / "part").mkdir(parents=True)
    (tmp_path / "run" / "part" / "log.json").write_text("[1]")
    _copy(tmp_path / "run", tmp_path / "kept")
    assert (tmp_path / "kept" / "part" / "log.json").read_text() == "[1]"
