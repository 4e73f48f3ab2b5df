"""A tiny project for tests that train: 24 drawn images, networks of width 8, epochs of a fraction of a second."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ciss import config
from ciss.data import prepare
from ciss.runs.run import Run, index_folder, resolve

DOCUMENT = {
    "version": 2,
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

    def copy(self, folder: Path) -> "Project":
        """The same files and parameters in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        other = copy(self)
        other.folder, other.document = folder, deepcopy(self.document)
        return other

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


MASKS = {"decoder": "mask_transformer", "width": 8, "heads": 2, "layers": 1}


def choose_decoder(project, decoder):
    """The network of the project: its own, or a mask transformer over the same encoder, or over a plain one."""
    if decoder != "deeplabv3":
        plain = {"encoder": "test_vit", "image_size": 32, "output_stride": 16} if decoder == "test_vit" else {}
        project.document["benchmarks"]["tiny"]["model"] = {**MASKS, **plain}
    return project
