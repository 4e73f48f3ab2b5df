"""Trains a small benchmark several times: does one seed give the same weights, also after a kill?

    python -m ciss.study.bench.repeat FILE.json                  # twice, and once killed and continued
    python -m ciss.study.bench.repeat FILE.json --processes 2    # two processes, and one with the same batches

Writes, for each comparison, whether the weight files have the same bytes, and the largest difference of a weight.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML
from safetensors.torch import load_file

from ciss import config, updates
from ciss.data.sets import shapes
from ciss.runs.run import Run, resolve
from ciss.training.loop import STATE, train_all

CODE = Path(__file__).resolve().parents[3]
RUN = {"benchmark": "small", "seed": 0}
PHASES = {"base": {"epochs": 3, "lr": 0.1}, "increment": {"epochs": 4, "lr": 0.02}}
DOCUMENT = {
    "version": updates.VERSION,
    "benchmarks": {
        "small": {
            "dataset": "shapes",
            "protocol": "4-2",
            "holdout": 8,
            "model": {"width": 48, "atrous_rates": [2, 4]},
            "train": {
                **PHASES,
                "crop": 64,
                "batch": 8,
                "cache": True,
            },
        }
    },
    "methods": {"finetune": {}, "gsc": {}},
    "bases": {"base": {**RUN, "method": "finetune"}},
    "chain": {"gsc-1": {**RUN, "method": "gsc", "after": "base", "step": 1}},
}
IMAGES = {"train": 96, "val": 16}


class Project:
    """A temporary project with the small benchmark. `train` changes to its folder.

    Args:
        changes: keys of the section `train`.
    """

    def __init__(self, folder: Path, changes: dict | None = None):
        self.folder = folder
        folder.mkdir()
        (folder / "dvc.yaml").touch()
        document = json.loads(json.dumps(DOCUMENT))
        document["benchmarks"]["small"]["train"].update(changes or {})
        YAML(typ="safe").dump(document, folder / "params.yaml")

    def run(self, name: str) -> Run:
        os.chdir(self.folder)
        return resolve(config.load(), name)

    def train(self, name: str) -> Path:
        """Trains a run and its predecessors, or continues it. Returns the file of its weights."""
        os.chdir(self.folder)
        train_all(config.load(), [name])
        return self.run(name).folder / "weights.safetensors"

    def train_and_kill(self, name: str) -> bool:
        """Starts a training in another process and kills it after its first epoch; False: it ended before."""
        run = self.run(name)
        if run.before:
            self.train(run.before.name)
        command = [sys.executable, "-m", "ciss", "train", name]
        process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (run.resume / STATE).is_file():
            time.sleep(0.005)
        ended = process.poll() is not None
        process.kill()
        process.wait()
        return not ended


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of normalisation


def compare(one: Path, other: Path) -> dict:
    """Whether two weight files have the same bytes, and the largest absolute difference of a learnt weight."""
    tensors, others = load_file(one), load_file(other)
    learnt = [name for name in tensors if not name.endswith(STATISTICS)]
    difference = max((tensors[name].double() - others[name].double()).abs().max().item() for name in learnt)
    return {"same_bytes": one.read_bytes() == other.read_bytes(), "largest_difference": difference}


def repeated(folder: Path) -> dict:
    """Comparisons of a training with a second one of the same seed, and with one that was killed and continued."""
    first, second, killed = (Project(folder / name) for name in ("first", "second", "killed"))
    weights = first.train("gsc-1")
    differences = {"second run of the seed": compare(weights, second.train("gsc-1"))}
    was_killed = killed.train_and_kill("gsc-1")
    differences["killed and continued"] = {"killed": was_killed, **compare(weights, killed.train("gsc-1"))}
    return differences


def in_processes(folder: Path, processes: int) -> dict:
    """Comparison of a training in several processes with one process that has the same batches."""
    # Frozen statistics, because those of a batch amplify rounding.
    phases = {name: {**values, "norm": "frozen"} for name, values in PHASES.items()}
    several = Project(folder / "several", {**phases, "processes": processes, "batch": 4 * processes})
    single = Project(folder / "single", {**phases, "batch": 4 * processes})
    differences = compare(several.train("base"), single.train("base"))
    return {f"{processes} processes, and one with the same batches": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--processes", type=int)
    arguments = parser.parse_args()
    file = arguments.file.absolute()
    with tempfile.TemporaryDirectory(prefix="ciss-repeat-") as name:
        folder = Path(name)
        os.environ |= {"CISS_DATA": str(folder), "PYTHONPATH": str(CODE)}  # of the processes that are started, too
        shapes.write(folder / "shapes", **IMAGES)
        result = in_processes(folder, arguments.processes) if arguments.processes else repeated(folder)
        os.chdir("/")
    file.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
