"""Measurements of the runs of a plan, kept in `timings/estimates/` for the same benchmark, device and code."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

from ciss import paths
from ciss.config import Config
from ciss.documents import counted
from ciss.runs import live, timings
from ciss.runs.run import Run, digest, resolve
from ciss.store import files
from ciss.study.estimate import counts

FOLDER = Path("timings", "estimates")
SECONDS = 90.0  # for the updates of one case; its process is ended after twice as many
WORKER = ["-m", "ciss.study.estimate.worker"]
KILLED = -9  # what subprocess gives for SIGKILL
KEYS = frozenset(  # of a measurement
    "start build prepare updates rows decode epoch peak cache holdout validation write checkpoint row files channels "
    "accumulated drawn device gpu other_cores cores threads".split()
)
FREE = ("epochs", "lr")  # keys of a phase on which the time of an update does not depend


class EstimateError(Exception):
    """A run that cannot be measured. The message gives the reason."""


def file_of(config: Config, benchmark: str) -> Path:
    """The file with the measurements of a benchmark."""
    return (paths.project() / config.output).resolve() / FOLDER / f"{benchmark}.json"


def key(run: Run) -> str:
    """What a measurement depends on: parameters, code, version of torch, and device.

    The order of the classes and their ids do not count, only how many a step has.
    """
    identity = run.identity("", None)
    parameters = json.loads(json.dumps(identity["parameters"]))
    del parameters["seed"], parameters["benchmark"]["order"]
    parameters["groups"] = [len(classes) for classes in parameters["groups"]]
    train = parameters["benchmark"]["train"]
    for phase in ("base", "increment"):
        train[phase] = {name: value for name, value in train[phase].items() if name not in FREE}
    train["curve"] = train["curve_every"] = None
    for name in ("workers", "cache"):  # not part of the identity
        train[name] = getattr(run.settings.train, name)
    return digest({**identity, "parameters": parameters, "device": timings.device_name()})


def known(config: Config) -> dict[str, dict]:
    """Measurements that are at hand, by the name of the measured run."""
    stored: dict[str, dict] = {}  # of all benchmarks: those that differ in the order of the classes alone share
    for name in config.benchmarks:
        stored |= _stored(file_of(config, name))
    return {name: stored[number] for name, number in keys(config).items() if number in stored} if stored else {}


def keys(config: Config) -> dict[str, str]:
    """The keys of the measurements of a plan, by the name of the run to measure."""
    return {name: key(with_threads(resolve(config, name))) for name in counts.representatives(config)}


def with_threads(run: Run) -> Run:
    """The run, after setting the number of threads that its training has, which is part of the device's name."""
    import torch  # here, because it takes seconds to import

    torch.set_num_threads(run.settings.train.threads)
    return run


def _stored(file: Path) -> dict:
    """The measurements of a file. Of a damaged one none, and a line says so."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        stored = None
    if isinstance(stored, dict) and all(isinstance(one, dict) and one.keys() >= KEYS for one in stored.values()):
        return stored
    _note_damaged(file)
    return {}


@cache  # a command reads a file several times
def _note_damaged(file: Path) -> None:
    print(f"note: {file} is damaged, so its measurements are not used. Measure again: ciss plan --estimate", flush=True)


def measured(config: Config, seconds: float = SECONDS) -> tuple[dict[str, dict], list[str]]:
    """Measures what is not at hand, each run in a process of its own, and prints a line as it starts and ends.

    Returns: measurements by the name of the run, and a message for each run that could not be measured.
    """
    measurements = known(config)
    kinds, numbers = counts.representatives(config), keys(config)
    for benchmark in {config.runs()[name].benchmark for name in kinds if name not in measurements}:
        images_of(config, benchmark)  # reads the data once, before the time of the kinds is limited
    problems, tried = [], set()
    for name in kinds:
        if name in measurements or numbers[name] in tried:
            continue
        tried.add(numbers[name])
        sharing = [other for other in kinds if numbers[other] == numbers[name]]
        runs = sum(len(kinds[other]) for other in sharing)
        others = f" (for {runs} runs)" if runs > 1 else ""
        print(f"{name}{others}: measuring, at most {live.duration(2 * seconds)}", flush=True)
        began = time.monotonic()
        try:
            measurement = _measure(config, name, seconds)
        except EstimateError as error:  # the other kinds are measured, and kept
            problems.append(str(error))
            print(f"{name}: not measured", flush=True)
            continue
        print(f"{name}: measured in {live.duration(time.monotonic() - began)}", flush=True)
        measurements |= dict.fromkeys(sharing, measurement)
        file = file_of(config, config.runs()[name].benchmark)
        files.write_text(file, json.dumps({**_stored(file), numbers[name]: measurement}, indent=1) + "\n")
    return {name: measurements[name] for name in kinds if name in measurements}, problems


def _measure(config: Config, name: str, seconds: float) -> dict:
    """One run, in a process that is ended after twice the seconds. Raises EstimateError."""
    command = [sys.executable, *WORKER]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with tempfile.TemporaryDirectory(prefix="ciss-estimate-", ignore_cleanup_errors=True) as folder:
        case = {"config": config.file, "run": name, "seconds": seconds, "started": time.time(), "folder": folder}
        with subprocess.Popen(command, env=environment, **options) as process:
            try:
                out, errors = process.communicate(json.dumps(case), timeout=2 * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise EstimateError(_too_long(config, name, seconds, process.communicate()[0])) from None
    if process.returncode == KILLED:
        raise EstimateError(
            f"{name}: the system ended its measurement, usually for lack of memory. {_less(config, name)}"
        )
    if process.returncode:
        lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
        raise EstimateError(f"{name}: {lines[-1]}")
    return json.loads(out.splitlines()[-1])


def _too_long(config: Config, name: str, seconds: float, out: str) -> str:
    """The message about a process that was ended.

    Args:
        out: what the process wrote: the part that it was at, as the last line.
    """
    part = (out.strip().splitlines() or ["start of the process"])[-1]
    return (
        f"{name}: its measurement was ended after {live.duration(2 * seconds)}, at this part: {part}. "
        f"This machine is too slow. {_less(config, name)}"
    )


def _less(config: Config, name: str) -> str:
    """What to do where a machine is too small or too slow for a run."""
    train = resolve(config, name).settings.train
    size = f"{counted(train.batch * train.accumulate, 'image')} of {train.crop} x {train.crop} pixels an update"
    return (
        f"The run has {size}. Measure on the machine that trains, or plan less: --set train.crop=... or "
        "train.batch=... Kinds that were measured are kept."
    )


def images_of(config: Config, benchmark: str) -> counts.Images:
    """Numbers of images of a benchmark; those of the preset where the data were not read yet."""
    from ciss.data import DataError

    run = next(resolve(config, name) for name, entry in config.runs().items() if entry.benchmark == benchmark)
    try:
        return counts.Images.of_index(run.index())
    except (DataError, OSError):
        return counts.expected_images(replace(run.settings), list(run.classes.sizes))
