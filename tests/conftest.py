"""Fixtures of several rooms: tiny projects, trained runs, data sets, a repository whose pipeline has run."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import ciss
import ciss.models.tiny  # timm knows it from here on
from ciss.data.sets import shapes as sets_shapes
from ciss.training import loop
from tests.helpers import repository
from tests.helpers.gardens import GARDEN, SEASONS, paint
from tests.helpers.plans import Plans
from tests.helpers.project import Project, environment, make

# A shell that starts tests in the background has them ignore Ctrl-C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["CISS_CONNECT_SECONDS"] = "0"  # no test asks whether the server of pretrained weights answers
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    """For every test, whatever the one before it set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """The folder that holds `shapes/`."""
    folder = tmp_path_factory.mktemp("data")
    sets_shapes.write(folder / "shapes", train=24, val=8)
    return folder


@pytest.fixture(scope="session")
def frozen_code(tmp_path_factory) -> Path:
    """A copy of the package: code that someone edits during a test would change what counts as the same training."""
    package = tmp_path_factory.mktemp("code") / "ciss"
    shutil.copytree(Path(ciss.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


@pytest.fixture
def make_project(tmp_path, tiny_data, frozen_code):
    """make_project(name) -> a Project with prepared data; the current directory is in the latest."""
    with environment(tiny_data) as patch:
        yield lambda name="project": make(tmp_path / name, frozen_code, patch)


@pytest.fixture
def project(make_project) -> Project:
    return make_project()


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "dvc.yaml").touch()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CISS_DATA", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return Plans(folder, monkeypatch, capsys)


@pytest.fixture
def garden(tmp_path, monkeypatch):
    """20 training and 8 validation images of four classes in three seasons."""
    folder = tmp_path / "data" / "garden"
    dice = np.random.default_rng(0)
    for split, images in (("train", 20), ("val", 8)):
        for number in range(images):
            ids = [1 + number % 4, *dice.choice(4, 2) + 1]
            paint(folder, f"{split}/{SEASONS[number % 3]}/{number:02d}", ids, number)
    (folder / "dataset.yaml").write_text(GARDEN)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CISS_DATA", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


@pytest.fixture
def plot(garden, project):
    """The garden as the data of a tiny project."""
    with pytest.MonkeyPatch.context() as patch:  # of its own, ended before the project's: else its value would stay
        patch.setenv("CISS_DATA", str(garden.parent))
        yield project


@pytest.fixture(scope="session")
def _finished(tmp_path_factory, tiny_data, frozen_code) -> Project:
    with environment(tiny_data) as patch:
        made = make(tmp_path_factory.mktemp("finished") / "project", frozen_code, patch)
        for key, value in {"base.epochs": 9, "base.lr": 0.1, "crop": 64}.items():  # enough to see some classes
            made.set(f"train.{key}", value)
        for name in made.config.runs():
            loop.train(made.run(name))
    return made


@pytest.fixture
def finished(_finished, tiny_data) -> Project:
    """A project whose runs are all trained: to look at, not to change."""
    with environment(tiny_data) as patch:
        patch.chdir(_finished.folder)
        yield _finished


@pytest.fixture
def finished_copy(_finished, tmp_path, tiny_data):
    """A copy of the project whose runs are all trained: to change."""
    with environment(tiny_data) as patch:
        copied = _finished.copy(tmp_path / "project")
        patch.chdir(copied.folder)
        yield copied


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """A repository whose pipeline has run once, committed, with weights that git does not know: to look at and
    to copy, not to change. It takes minutes."""
    folder, weights = tmp_path_factory.mktemp("study"), "weights/encoder.safetensors"
    (folder / "data" / weights).parent.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(timm.create_model("ciss_tiny").state_dict(), folder / "data" / weights)
    sizes = "limit=60 holdout=6 model.width=8 train.base.epochs=1 train.increment.epochs=1 train.threads=1".split()
    plan = ["shapes", "4-2", "--name", "shapes", "--methods", "finetune", "mib"]
    repository.make(folder, *plan, "--set", *sizes, f"model.weights={weights}")
    repository.run(folder, "dvc", "repro")
    repository.run(folder, "git", "add", ".")
    repository.run(folder, "git", "commit", "-qm", "made")
    return folder


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
