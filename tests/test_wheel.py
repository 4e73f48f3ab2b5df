"""The wheel: it builds, imports and runs without the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from ciss import paths

ROOT = paths.project()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed"),
]
OUTSIDE = "error: no dvc.yaml in {} or above: change to the folder of the project, or to one inside it"


def clean() -> dict[str, str]:
    """The environment without what leads to the repository."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CISS_DATA", "DVC_ROOT", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = ["uv", "build", "--wheel", "--no-create-gitignore", "--out-dir", folder, ROOT]
    done = subprocess.run(command, env=clean(), capture_output=True, text=True)
    if "Failed to fetch" in done.stderr or "Request failed" in done.stderr:
        pytest.skip("the package registry does not answer")
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def scripts(wheel) -> Path:
    """Commands of a new environment with the wheel. Its other packages are those of this Python."""
    folder = wheel.with_name("environment")
    run = {"check": True, "env": clean(), "capture_output": True}
    subprocess.run(["uv", "venv", "--python", sys.executable, folder], **run)
    subprocess.run(["uv", "pip", "install", "--python", folder / "bin/python", "--no-deps", wheel], **run)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))  # after its own: the wheel is found first
    return folder / "bin"


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=clean(), capture_output=True, text=True, timeout=120)


def test_the_wheel_has_all_files_of_the_package(wheel):
    tracked = subprocess.run(["git", "ls-files", "ciss"], cwd=ROOT, capture_output=True, text=True, check=True)
    present = {name for name in tracked.stdout.split() if (ROOT / name).exists()}
    assert present <= set(zipfile.ZipFile(wheel).namelist())


def test_the_import_is_that_of_the_wheel(scripts, empty):
    done = run(scripts / "python", "-c", "import ciss, ciss.losses, ciss.protocol; print(ciss.__file__)")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(scripts.parent)


def test_help_is_shown(scripts, empty):
    assert "Example: ciss plan shapes 4-2" in run(scripts / "ciss", "--help").stdout
    assert "Label pictures with a trained run" in run(scripts / "ciss", "predict", "--help").stdout


COMMANDS = ["plan shapes 4-2", "train", "predict a b.png", "export a --no-onnx", "watch", "tune", "bench", "report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_needs_the_project_says_so(scripts, empty, command):
    done = run(scripts / "ciss", *command.split())
    assert (done.returncode, done.stderr.strip()) == (1, OUTSIDE.format(empty.resolve()))
    assert not list(empty.iterdir())


def test_the_doctor_names_the_project(scripts, empty):
    done = run(scripts / "ciss", "doctor")
    assert done.returncode == 1 and OUTSIDE.removeprefix("error: ").format(empty.resolve()) in done.stdout


def test_an_exported_network_opens(scripts, project, empty, monkeypatch):
    from ciss.inspection.export import export
    from ciss.store.weights import save_weights

    trained = project.run("tune-1")
    save_weights(trained.folder / "weights.safetensors", trained.build_network(), trained.description())
    export(trained, empty / "exported/folder", onnx=False)
    monkeypatch.chdir(empty / "exported")
    program = "import ciss, numpy; print(ciss.load('folder')(numpy.zeros((9, 7, 3), numpy.uint8)).shape)"
    done = run(scripts / "python", "-c", program)
    assert done.stdout.strip() == "(9, 7)", done.stderr
