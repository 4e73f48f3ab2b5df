"""A git and DVC repository of its own, made of the working tree's code and small parameters."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, *plan: str) -> Path:
    """The working tree without outputs, committed, with the parameters that `ciss plan` writes for these arguments."""
    return commit(make_code(folder), plan)


def make_code(folder: Path) -> Path:
    """The working tree without parameters and outputs, as a git and DVC repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reports").mkdir()
    for name in ("ciss", "notebooks", "dvc.yaml", ".dvcignore", ".gitignore", "reports/published.yaml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else:
            shutil.copy(source, folder / name)
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.email", "tests@example.org")
    run(folder, "git", "config", "user.name", "tests")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "config", "core.analytics", "false")
    return folder


def commit(folder: Path, *plans: Sequence[str], **variables: str) -> Path:
    """The repository with the parameters that `ciss plan` writes for these arguments, one command after the other.

    `variables`: of the environment.
    """
    for plan in plans:
        run(folder, sys.executable, "-m", "ciss", "plan", *plan, **variables)
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", "small")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Of commands in the repository: its own code, one thread, nothing of what started the tests."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "CISS_DATA", "WORLD_SIZE", "RANK")}
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    return {**inherited, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run(folder: Path, *command: str, **variables: str) -> str:
    """What a command prints; it must succeed, and end. `variables`: of the environment."""
    inherited = environment(folder) | variables
    done = subprocess.run(command, cwd=folder, env=inherited, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy(source: Path, target: Path) -> None:
    """A file or a folder, as it is."""
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


def numbers(files: dict[str, bytes]) -> dict:
    """What must be equal in a run's results, by the contents of its files: arrays, texts and values."""
    found = {}
    for name, content in files.items():
        if name.endswith(".npz"):
            with np.load(io.BytesIO(content)) as arrays:
                for part in arrays.files:
                    values = arrays[part]
                    whole = repr((values.dtype, values.shape)).encode() + values.tobytes()
                    found[f"{name}:{part}"] = hashlib.sha256(whole).hexdigest()
        elif name.endswith(".txt"):
            found[name] = content.decode()
        else:
            values = json.loads(content)
            found |= {f"{name}:{k}": v for k, v in values.items()}
    return found
