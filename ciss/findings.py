"""What the checks of an installation share: the set-up that they check, their findings, and how these are printed."""

import pkgutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ciss import paths

INSTALL = "uv sync (with conda: conda env update -f environment.yml)"


class Setup:
    """The installation to check: a project's folder and its parameter file.

    `settings`: the Config, or None where the file cannot be read: the check `parameters` says why.
    """

    def __init__(self, root: Path, file: str = "params.yaml"):
        self.root, self.file = root, file
        self.settings = None
        with suppress(Exception):
            from ciss import config  # here, because it may be broken

            self.settings = config.load(file)
        self.benchmarks = self.settings.benchmarks if self.settings else {}
        self.runs = self.settings.runs() if self.settings else {}
        self.output = (root / (self.settings.output if self.settings else ".")).resolve()

    def dvc(self, section: str) -> dict:
        from dvc.config import Config

        return Config(str(self.root / ".dvc"))[section]

    def folders(self) -> dict[str, Path]:
        """The folders that runs write to; for a missing one its nearest parent."""
        cache = self.root / ".dvc" / "cache"
        with suppress(Exception):  # the check `dvc` says why
            cache = Path(self.dvc("cache").get("dir") or cache)
        folders = {"runs/": self.output / "runs", "DVC cache": cache, "temporary files": Path(tempfile.gettempdir())}
        return {name: paths.existing_parent(folder) for name, folder in folders.items()}


@dataclass(frozen=True)
class Finding:
    level: str  # "ok", "note" (works, but) or "FAIL"
    text: str
    remedy: str = ""


note = partial(Finding, "note")
fail = partial(Finding, "FAIL")
Result = str | Finding  # a text alone is "ok"


@dataclass(frozen=True)
class Check:
    """Inspects one thing; may raise anything. `remedy`: of exceptions, and of findings without one."""

    function: (
        Callable[[Setup], Result | Iterable[Result]] | str
    )  # a text is imported when the check runs: "module:name"
    remedy: str = ""

    def findings(self, setup: Setup) -> Iterator[Finding]:
        try:
            function = pkgutil.resolve_name(self.function) if isinstance(self.function, str) else self.function
            results = function(setup)
            for result in [results] if isinstance(results, Result) else results:
                finding = Finding("ok", result) if isinstance(result, str) else result
                yield finding if finding.remedy or finding.level == "ok" else replace(finding, remedy=self.remedy)
        except ImportError as error:
            yield fail(f"cannot import: {short(error)}", f"install it: {INSTALL}")
        except FileNotFoundError as error:
            yield fail(short(error), "restore it (git checkout -- FILE), or change to the folder of the project")
        except Exception as error:
            yield fail(short(error), self.remedy or "correct the problems above; if this stays: uv sync --reinstall")


CHECKS: dict[str, Check] = {}  # by name, in the order in which they run


def check(remedy: str = "") -> Callable[[Callable], Check]:
    """Adds a function to CHECKS, under its name."""
    return lambda function: CHECKS.setdefault(function.__name__.replace("_", " "), Check(function, remedy))


def examine(setup: Setup, checks: Mapping[str, Check]) -> int:
    """Runs checks and prints their findings and a verdict. Returns the exit status: 1 if anything failed."""
    levels = []
    width = max(map(len, checks))
    for name, entry in checks.items():
        for finding in entry.findings(setup):
            levels.append(finding.level)
            print(f"{finding.level:<4}  {name:<{width}}  {finding.text}", flush=True)
            if finding.remedy:
                print(f"{'':<{width + 8}}-> {finding.remedy}", flush=True)
    failed, notes = levels.count("FAIL"), levels.count("note")
    if failed:
        print(f"\nNot ready: {failed} FAIL. Follow the remedies from the top, and run this again.")
    else:
        print(f"\nReady{f', {notes} to note' if notes else ''}. Next: dvc repro")
    return int(failed > 0)


def short(error: Exception) -> str:
    """The first line of an error, with its kind where that says more."""
    first = next(iter(str(error).splitlines()), "")
    bare = isinstance(error, LookupError | TypeError | AttributeError) or not first
    return f"{type(error).__name__}: {first or 'no message'}" if bare else first
