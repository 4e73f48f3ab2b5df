"""Folders are found from wherever a notebook, a stage or a queued experiment runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ciss import paths


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, entered; no data roots in the environment."""
    folder = tmp_path / "project"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "dvc.yaml").touch()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CISS_DATA", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


def test_project_is_the_nearest_ancestor(project, monkeypatch):
    assert paths.project() == project
    monkeypatch.chdir(project / "notebooks")
    assert paths.project() == project
    copy = project / ".dvc" / "tmp" / "copy"  # a queued experiment
    copy.mkdir(parents=True)
    (copy / "dvc.yaml").touch()
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(copy)
    assert paths.project() == copy


def test_project_is_the_checkout_of_the_package_elsewhere(tmp_path, monkeypatch):
    """And without one the remedy is named."""
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    (checkout / "ciss").mkdir(parents=True)
    elsewhere.mkdir()
    shutil.copy(paths.__file__, checkout / "ciss")
    code = "from paths import project; print(project())"
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(checkout / 'ciss')!r}); {code}"]
    result = subprocess.run(run, cwd=elsewhere, capture_output=True, text=True)
    assert "FileNotFoundError: no dvc.yaml in" in result.stderr
    assert "change to the folder of the project" in result.stderr
    (checkout / "dvc.yaml").touch()
    result = subprocess.run(run, cwd=elsewhere, capture_output=True, text=True)
    assert result.stdout.strip() == str(checkout)


def test_data_roots_in_order(project, tmp_path, monkeypatch):
    origin, own, set_by_user = tmp_path / "origin", project, tmp_path / "sets"
    monkeypatch.setenv("DVC_ROOT", str(origin))
    monkeypatch.setenv("CISS_DATA", "../sets")
    for root in (origin / "data", own / "data", set_by_user):
        (root / "VOCdevkit").mkdir(parents=True)
        found = paths.data_root("VOCdevkit")
        assert found.is_absolute()
        assert found.samefile(root / "VOCdevkit")


def test_data_outside_a_project(project, tmp_path, monkeypatch):
    def nowhere():
        raise FileNotFoundError

    (tmp_path / "sets" / "CamVid").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CISS_DATA", "~/sets")
    monkeypatch.setattr(paths, "project", nowhere)
    assert paths.data_root("CamVid") == tmp_path / "sets" / "CamVid"


def test_missing_data_names_places_and_remedy(project, tmp_path, monkeypatch):
    monkeypatch.setenv("CISS_DATA", str(tmp_path / "sets"))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "origin"))
    with pytest.raises(FileNotFoundError) as caught:
        paths.data_root("cityscapes")
    message = str(caught.value)
    for part in ("cityscapes", tmp_path / "sets", project / "data", tmp_path / "origin" / "data", "set CISS_DATA"):
        assert str(part) in message
    assert len(message.splitlines()) == 1


def test_a_link_to_data_that_are_away_is_named(project, tmp_path, monkeypatch):
    """As of a disk that is not mounted."""
    (project / "data").mkdir()
    (project / "data" / "VOCdevkit").symlink_to(tmp_path / "disk")
    with pytest.raises(FileNotFoundError, match=r"VOCdevkit is a link to .*disk, which cannot be reached\): set"):
        paths.data_root("VOCdevkit")
    (tmp_path / "disk").mkdir()
    assert paths.data_root("VOCdevkit") == project / "data" / "VOCdevkit"


def test_data_in_a_folder_that_may_not_be_searched(project, tmp_path, monkeypatch):
    """Of another user: the operating system refuses to say what is in it. Root may, so that it is simulated."""
    closed, exists = tmp_path / "closed", os.path.exists
    closed.mkdir()
    monkeypatch.setenv("CISS_DATA", str(closed))
    monkeypatch.setattr(os.path, "exists", lambda path: Path(path).parent != closed and exists(path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileNotFoundError, match=f"no permission to read {closed}"):
        paths.data_root("CamVid")


RUNS = [("shapes", "shapes-s0")]
LINKED = [".source", "data", "data/index", "data/shapes", "runs", "results", "probes", "reports"]
LINKED += ["reports/benchmarks", "reports/compare", "reports/notebooks"]
LINKED += ["runs/shapes", "results/shapes/shapes-s0", "data/index/shapes", "reports/shapes"]


@pytest.mark.parametrize("name", LINKED)
def test_outputs_behind_a_link_are_named(project, tmp_path, name):
    (tmp_path / "scratch").mkdir()
    folder = project / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(tmp_path / "scratch")
    ((problem, remedy),) = paths.links(project, RUNS)
    assert problem.startswith(f"{folder} is a link to {tmp_path / 'scratch'}")
    assert ("CISS_DATA" if name == "data" else "dvc cache dir") in remedy


def test_links_that_do_no_harm(project, tmp_path):
    """A data set, a link inside of the project, the project itself."""
    for folder in ("VOCdevkit", "big"):
        (tmp_path / folder).mkdir()
    (project / "data").mkdir()
    (project / "data" / "VOCdevkit").symlink_to(tmp_path / "VOCdevkit")
    (project / "large").mkdir()
    (project / "runs").symlink_to("large")
    (tmp_path / "entrance").symlink_to(project)
    assert not [*paths.links(project, RUNS), *paths.links(tmp_path / "entrance", RUNS)]


def test_git_ignores_outputs_that_are_links(project, tmp_path):
    shutil.copy(Path(__file__).parents[1] / ".gitignore", project)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (project / "data").mkdir()
    names = ["runs", "results", "probes", ".source", "predictions", "data/shapes", "data/index"]
    for name in names:
        (project / name).symlink_to(tmp_path)
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=project, capture_output=True, text=True)
    assert ignored.stdout.split() == names
