"""The experiment queue: two workers give the numbers of one after the other, and the workspace stays as it was."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests.helpers import repository
from tests.helpers.repository import run

EXPERIMENTS = {"low": "methods.mib.distillation=1", "high": "methods.mib.distillation=100"}
TARGET = "increment@shapes-s0-mib-1"  # with everything that it needs
WAIT = 600  # seconds for both experiments


def shorten(user: Path) -> None:
    """The study with one increment of one method is all that there is: an experiment is a training and a comparison.
    Nothing is trained for it: the cache of runs has it."""
    yaml, parameters = YAML(), user / "params.yaml"
    document = yaml.load(parameters)
    document["joints"].clear()
    for part, kept in {"chain": "shapes-s0-mib-1", "ends": "shapes-s0-mib"}.items():
        for name in set(document[part]) - {kept}:
            del document[part][name]
    document["ends"]["shapes-s0-mib"]["run"] = "shapes-s0-mib-1"
    yaml.dump(document, parameters)
    (user / "dvc.lock").unlink()
    for made in ("runs", "results"):
        shutil.rmtree(user / made)
    assert "Running stage 'increment" not in run(user, "dvc", "repro", TARGET)


@pytest.fixture
def repositories(study, tmp_path, monkeypatch):
    """(a user's repository, a copy of it): one study made and committed, edits that are not, and a file of weights that
    git does not know."""
    user, alone = tmp_path / "user", tmp_path / "alone"
    monkeypatch.setenv("CISS_QUEUE", str(tmp_path))  # a mark: the queue's workers keep it
    repository.copy(study, user)
    shorten(user)
    run(user, "git", "add", ".")
    run(user, "git", "commit", "-qm", "made")
    parameters = user / "params.yaml"
    text = parameters.read_text().replace("alpha: 1.0", "alpha: 0.5")
    assert text != parameters.read_text()
    parameters.write_text(text + "# a remark\n")
    (user / "notes.txt").write_text("mine\n")
    repository.copy(user, alone)
    yield user, alone
    with suppress(AssertionError):  # no worker is left to be stopped
        run(user, "dvc", "queue", "stop", "--kill")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("CISS_QUEUE") == str(tmp_path):
                process.kill()


def workspace(folder: Path) -> dict[str, str]:
    """Every file with its hash, and what git says."""
    files = (file for file in folder.rglob("*") if file.is_file())
    names = {file: file.relative_to(folder) for file in files}
    hashes = {
        str(name): hashlib.sha256(file.read_bytes()).hexdigest()
        for file, name in names.items()
        if name.parts[0] not in (".git", ".dvc")
    }
    return {**hashes, "git status": run(folder, "git", "status", "--porcelain")}


def outcome(folder: Path, name: str) -> tuple[dict, dict]:
    """An experiment's results, and the hashes of its checkpoints with their losses."""
    revisions = [line.split() for line in run(folder, "git", "for-each-ref", "refs/exps").splitlines()]
    (revision,) = [sha for sha, _, ref in revisions if ref.endswith(f"/{name}")]
    stages = YAML(typ="safe").load(run(folder, "git", "show", f"{revision}:dvc.lock"))["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    (results,) = (path for path in outs if path.startswith("results/") and path.endswith("-mib-1"))
    files = {entry["relpath"]: cached(folder, entry["md5"]) for entry in json.loads(cached(folder, outs[results]))}
    return repository.numbers(files), {path: md5 for path, md5 in outs.items() if path.startswith("runs/")}


def cached(folder: Path, md5: str) -> bytes:
    """What DVC keeps under this hash."""
    return (folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).read_bytes()


@pytest.mark.slow
def test_two_workers_are_one_after_the_other(repositories):
    user, alone = repositories
    before, committed = workspace(user), run(user, "git", "rev-parse", "HEAD")
    for name, change in EXPERIMENTS.items():
        run(user, "dvc", "exp", "run", "--queue", "-n", name, "-S", change, TARGET)
    assert workspace(user) == before, "queueing leaves the workspace alone"
    # Its workers inherit the output: a pipe would be read until they are gone.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    subprocess.run(["dvc", "queue", "start", "-j", "2"], cwd=user, env=repository.environment(user), **quiet)
    started, together = time.monotonic(), 0
    while True:
        status = run(user, "dvc", "queue", "status")
        together = max(together, status.count("Running"))
        if not any(word in status for word in ("Running", "Queued")):
            break
        assert time.monotonic() - started < WAIT, status + logs(user)
        time.sleep(2)
    assert status.count("Success") == len(EXPERIMENTS), status + logs(user)
    assert together == 2, "both at a time"
    assert workspace(user) == before
    assert run(user, "git", "rev-parse", "HEAD") == committed

    queued = {name: outcome(user, name) for name in EXPERIMENTS}
    for name, change in EXPERIMENTS.items():
        run(alone, "dvc", "exp", "run", "-n", name, "-S", change, TARGET)
    assert queued == {name: outcome(alone, name) for name in EXPERIMENTS}
    base, increment = (f"runs/shapes/shapes-s0{end}" for end in ("", "-mib-1"))
    assert {name for _, found in queued.values() for name in found} == {base, increment}
    (_, low_runs), (_, high_runs) = queued.values()
    assert low_runs[increment] != high_runs[increment], "two experiments"
    assert low_runs[base] == high_runs[base]
    stages = YAML(typ="safe").load(user / "dvc.lock")["stages"].values()
    (own,) = [out["md5"] for stage in stages for out in stage.get("outs", []) if out["path"] == increment]
    assert own not in (low_runs[increment], high_runs[increment]), "nor is it the workspace's"


def logs(folder: Path) -> str:
    """Of experiments that failed or do not end."""
    found = []
    for name in EXPERIMENTS:
        with suppress(AssertionError):
            found.append(f"{name}:\n{run(folder, 'dvc', 'queue', 'logs', name)}")
    return "\n".join(found)
