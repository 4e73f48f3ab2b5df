"""A tiny project for tests that train: 24 drawn images, networks of width 8, epochs of a fraction of a second."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
import repository
import timm
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

import ciss
import ciss.models.tiny  # timm knows it from here on
from ciss import config
from ciss.data import prepare
from ciss.data.sets import shapes as sets_shapes
from ciss.runs.run import Run, index_folder, resolve
from ciss.training import loop

# A shell that starts tests in the background has them ignore Ctrl-C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["CISS_CONNECT_SECONDS"] = "0"  # no test asks whether the server of pretrained weights answers
torch.set_num_threads(1)

DOCUMENT = {
    "benchmarks": {
        "tiny": {
            "dataset": "shapes",
            "protocol": "4-2",
            "setting": "overlapped",
            "holdout": 4,
            "model": {"width": 8, "atrous_rates": [1]},
            "train": {
                "base": {"epochs": 2, "lr": 0.05},
                "increment": {"epochs": 2, "lr": 0.02},
                "crop": 32,
                "batch": 4,
                "threads": 1,
                "cache": True,
                "curve": [0.5, 1],
            },
            "evaluation": {"size": "full", "batch": 3, "samples": 2},
        }
    },
    "methods": {"finetune": {}, "joint": {}, "mib": {"distillation": 10.0}},
    "bases": {"base": {"benchmark": "tiny", "method": "finetune", "seed": 0}},
    "joints": {"all": {"benchmark": "tiny", "method": "joint", "seed": 0}},
    "chain": {
        "tune-1": {"benchmark": "tiny", "method": "finetune", "seed": 0, "after": "base", "step": 1},
        "tune-2": {"benchmark": "tiny", "method": "finetune", "seed": 0, "after": "tune-1", "step": 2},
        "mib-1": {"benchmark": "tiny", "method": "mib", "seed": 0, "after": "base", "step": 1},
    },
    "ends": {"tune": {"run": "tune-2", "benchmark": "tiny"}},
}


class Project:
    """A folder that is a project, and its parameters. `set` takes dotted keys: set("methods.mib.distillation", 1.0)."""

    def __init__(self, folder: Path):
        self.folder, self.document = folder, deepcopy(DOCUMENT)
        folder.mkdir(parents=True)
        (folder / "dvc.yaml").touch()

    def set(self, key: str, value) -> None:
        *parents, last = key.replace("train.", "benchmarks.tiny.train.", key.startswith("train.")).split(".")
        section = self.document
        for parent in parents:
            section = section[parent]
        section[last] = value

    @property
    def config(self) -> config.Config:
        return config.parse(self.document)

    def run(self, name: str = "base") -> Run:
        """Enters the folder: what a run is called does not say which project it is of."""
        os.chdir(self.folder)
        return resolve(self.config, name)

    def prepare(self, name: str = "tiny") -> None:
        prepare(self.config.benchmarks[name], index_folder(self.folder, name), progress=False)

    def write(self) -> None:
        YAML().dump(self.document, self.folder / "params.yaml")

    def command(self, *arguments: str, **options) -> subprocess.Popen:
        """A process in the project, with the parameters as they are now."""
        self.write()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, *arguments], cwd=self.folder, **(pipes | options))


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


@contextmanager
def environment(tiny_data: Path):
    """One thread, the tiny data, and nothing of what started the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CISS_DATA", str(tiny_data))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        for name in ("DVC_ROOT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        yield patch


def make(folder: Path, frozen_code: Path, patch: pytest.MonkeyPatch) -> Project:
    made = Project(folder)
    os.symlink(frozen_code, folder / "ciss")
    patch.chdir(folder)
    made.prepare()
    return made


@pytest.fixture
def make_project(tmp_path, tiny_data, frozen_code):
    """make_project(name) -> a Project with prepared data; the current directory is in the latest."""
    with environment(tiny_data) as patch:
        yield lambda name="project": make(tmp_path / name, frozen_code, patch)


@pytest.fixture
def project(make_project) -> Project:
    return make_project()


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
