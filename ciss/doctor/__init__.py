"""Checks an installation and says what to do: `ciss doctor`.

One line a finding, `ok`, `note` or `FAIL`; under the last two what to do. Things are tried rather than looked up: a
training step in every precision, a lock between two processes, a file replaced. Nothing is changed, nothing left
behind. What may be missing or broken is imported inside the check that needs it, so that the others still run.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from ciss import paths
from ciss.doctor import machine, software, storage, study
from ciss.doctor.base import INSTALL, Finding, Setup, fail, short

Check = Callable[[Setup], Iterator[Finding]]
CHECKS: dict[str, Check] = {
    "python": software.python,
    "user": software.account,
    "project": software.project,
    "packages": software.packages,
    "torch": software.torch_pair,
    "processor": machine.processor,
    "gpu": machine.gpus,
    "training": machine.passes,
    "parameters": study.parameters,
    "data": study.data,
    "weights": study.weights,
    "disk": storage.disk,
    "links": storage.links,
    "files": storage.files,
    "loaders": machine.loaders,
    "processes": machine.processes,
    "dvc": software.dvc,
    "stages": software.stages,
    "at work": storage.at_work,
    "notebooks": software.notebooks,
}
DISTRIBUTIONS = {"PIL": "pillow", "ruamel": "ruamel.yaml"}  # whose modules have another name
WIDTH = max(map(len, CHECKS))


def main(config_file: str) -> NoReturn:
    """Examines the project around the current folder, and exits with the status of `examine`."""
    try:
        root = paths.project()
    except FileNotFoundError:
        root = Path.cwd()  # the check of the project says it
    warnings.simplefilter("ignore")
    try:
        sys.exit(examine(Setup(root, config_file)))
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


def examine(setup: Setup, checks: dict[str, Check] = CHECKS) -> int:
    """Prints what the checks find as they find it, and a verdict. Returns the exit status: 1 if anything failed."""
    levels = []
    for name, check in checks.items():
        for finding in findings(check, setup):
            levels.append(finding.level)
            print(f"{finding.level:<4}  {name:<{WIDTH}}  {finding.text}", flush=True)
            if finding.remedy:
                print(f"{'':<{WIDTH + 8}}-> {finding.remedy}", flush=True)
    failed, notes = levels.count("FAIL"), levels.count("note")
    if failed:
        print(f"\nNot ready: {failed} FAIL. Do what stands under them, from the top, and ask again.")
    else:
        print(f"\nReady{f', {notes} to note' if notes else ''}. Next: dvc repro")
    return int(failed > 0)


def findings(check: Check, setup: Setup) -> Iterator[Finding]:
    """What a check finds; what it trips over is a finding too."""
    try:
        yield from check(setup)
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        package = DISTRIBUTIONS.get(module, module)
        yield fail(f"cannot import: {short(error)}", f"install {package or 'what is missing'}: {INSTALL}")
    except FileNotFoundError as error:
        yield fail(short(error), "bring it back (git checkout -- FILE), or change to the folder of the project")
    except Exception as error:
        yield fail(short(error), "do what stands above first; if this stays: uv sync --reinstall")
