"""The table of checks of an installation, what they find, and how it is printed."""

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

INSTALL = "uv sync (with conda: conda env update -f environment.yml)"
DISTRIBUTIONS = {"PIL": "pillow", "ruamel": "ruamel.yaml"}  # packages whose module has another name


@dataclass(frozen=True)
class Finding:
    level: str  # ok, note (works, but) or FAIL
    text: str
    remedy: str = ""


note = partial(Finding, "note")
fail = partial(Finding, "FAIL")
Found = str | Finding  # a text alone: what is sound


@dataclass(frozen=True)
class Check:
    """Looks at one thing, and may raise anything. `remedy`: that of exceptions, and of findings without one."""

    function: Callable[[Any], Found | Iterable[Found]] | str  # a text names it: "module:function"
    remedy: str = ""

    def findings(self, setup: Any) -> Iterator[Finding]:
        try:
            function = pkgutil.resolve_name(self.function) if isinstance(self.function, str) else self.function
            result = function(setup)
            for found in [result] if isinstance(result, Found) else result:
                found = Finding("ok", found) if isinstance(found, str) else found
                yield found if found.remedy or found.level == "ok" else replace(found, remedy=self.remedy)
        except ImportError as error:
            module = (error.name or "").partition(".")[0]
            package = DISTRIBUTIONS.get(module, module) or "what is missing"
            yield fail(f"cannot import: {short(error)}", f"install {package}: {INSTALL}")
        except FileNotFoundError as error:
            yield fail(short(error), "bring it back (git checkout -- FILE), or change to the folder of the project")
        except Exception as error:
            yield fail(short(error), self.remedy or "correct what is above first; if this stays: uv sync --reinstall")


CHECKS: dict[str, Check] = {}


def check(remedy: str = "") -> Callable[[Callable], Check]:
    """Adds a function to the table, under its name."""
    return lambda function: CHECKS.setdefault(function.__name__.replace("_", " "), Check(function, remedy))


def examine(setup: Any, checks: Mapping[str, Check] = CHECKS) -> int:
    """Prints findings as the checks make them, and a verdict. Returns the exit status: 1 if anything failed."""
    levels = []
    width = max(map(len, CHECKS))
    for name, one in checks.items():
        for finding in one.findings(setup):
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
