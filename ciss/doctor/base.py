"""What a check gives, and what it looks at."""

import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

INSTALL = "uv sync (with conda: conda env update -f environment.yml)"
TORCH = "uv sync --reinstall-package torch --reinstall-package torchvision"


@dataclass(frozen=True)
class Finding:
    level: str  # ok, note (works, but) or FAIL
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    return Finding("ok", text)


def note(text: str, remedy: str) -> Finding:
    return Finding("note", text, remedy)


def fail(text: str, remedy: str) -> Finding:
    return Finding("FAIL", text, remedy)


@dataclass
class Setup:
    """What is looked at: a project's folder and its parameter file."""

    root: Path
    file: str = "params.yaml"

    @cached_property
    def settings(self) -> Any:
        """The Config, or None where it cannot be read; `parameters` says why."""
        with suppress(Exception):
            from ciss import config

            return config.load(self.file)

    @property
    def benchmarks(self) -> dict:
        return self.settings.benchmarks if self.settings else {}

    @property
    def output(self) -> Path:
        return (self.root / (self.settings.output if self.settings else ".")).resolve()

    @cached_property
    def cache(self) -> tuple[Path, list[str]]:
        """DVC's cache folder, and the kinds of link it may use."""
        from dvc.config import Config

        section = Config(str(self.root / ".dvc"))["cache"]
        kinds = section.get("type") or ["reflink", "copy"]
        return Path(section.get("dir") or self.root / ".dvc" / "cache"), [kinds] if isinstance(kinds, str) else kinds

    def folders(self) -> dict[str, Path]:
        """Where runs write: each folder, or the nearest one above that is there."""
        cache = self.root / ".dvc" / "cache"
        with suppress(Exception):  # DVC has a check of its own
            cache = self.cache[0]
        wanted = {"runs/": self.output / "runs", "DVC cache": cache, "temporary files": Path(tempfile.gettempdir())}
        return {name: next(f for f in (folder, *folder.parents) if f.is_dir()) for name, folder in wanted.items()}


def short(error: Exception) -> str:
    """The first line of an error, with its kind where that says more."""
    first = next(iter(str(error).splitlines()), "") or "no message"
    bare = isinstance(error, LookupError | TypeError | AttributeError) or first == "no message"
    return f"{type(error).__name__}: {first}" if bare else first


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def said(*command: str) -> str:
    """What a program prints; nothing where it is missing or fails."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""
