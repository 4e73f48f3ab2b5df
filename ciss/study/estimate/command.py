"""`ciss plan --estimate`, the last lines of every plan, and what a finished training says about its estimate."""

import os
import sys
from contextlib import suppress

from ciss import config as configuration
from ciss import documents, paths
from ciss.config import Config, ConfigError
from ciss.data import DataError
from ciss.runs import timings
from ciss.runs.run import resolve
from ciss.store.files import CheckpointError
from ciss.study.estimate import counts, measure, tables
from ciss.study.estimate.measure import EstimateError
from ciss.study.estimate.tables import HOUR, Cost
from ciss.study.slurm import resources

ERRORS = (ConfigError, DataError, CheckpointError, EstimateError, OSError, ValueError)


def main(file: str, seconds: float = measure.SECONDS) -> None:
    """Measures each kind of run of a parameter file, and prints the estimate. Exits with a message if it cannot.

    Args:
        seconds: for the updates of one kind.
    """
    try:
        settings = configuration.load(file)
        kinds = len(counts.representatives(settings))
        print(f"{file}: {kinds} kinds of runs; of each, up to five updates are measured now.", flush=True)
        found = dict(measure.measured(settings, seconds))
        print("\n".join([*tables.table(settings, found), *tables.totals(settings, found, devices())]))
    except ERRORS as error:
        sys.exit(f"error: {error}")


def devices_are_gpus() -> bool:
    import torch  # here, because it takes seconds to import

    return torch.cuda.is_available()


def devices() -> int:
    """GPUs of this machine; without any, 1."""
    import torch  # here, because it takes seconds to import

    return max(1, torch.cuda.device_count())


def after_plan(file: str, estimate: bool, cluster: str | None) -> None:
    """What `ciss plan` prints and writes after the plan itself.

    Args:
        estimate: whether to measure what is not at hand.
        cluster: a file with resources for Slurm to write, or add sections to; None: none.
    """
    if estimate:
        main(file)
    settings = configuration.load(file)
    if not estimate and (lines := at_hand(settings)):
        print("\n".join(["estimate, measured before:", *lines]))
    if cluster is not None:
        write_cluster(settings, cluster or "cluster.yaml")


def write_cluster(settings: Config, file: str) -> None:
    """Writes `cluster.yaml`, with hours and memory of the estimate where there is one."""
    found = costs_at_hand(settings)
    needs = {}
    for name in settings.benchmarks:
        if alike := [one for one in found.values() if one.work.benchmark == name]:
            hours = max(one.seconds[1] for one in alike) / HOUR
            memory = None if devices_are_gpus() else tables.peak_memory(alike)  # of a GPU it is not the machine's
            needs[name] = resources.Needs(hours, memory)
    try:
        added = resources.write(paths.project() / file, settings, needs)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")
    text = f"sections added: {', '.join(added) or 'none'}"
    source = "hours and memory: twice the estimate" if needs else "for estimated hours and memory add --estimate"
    print(f"{file}: {text}; {source}. Check the numbers, then run: ciss train --slurm")


def at_hand(settings: Config) -> list[str]:
    """The sums of the estimate if every kind of run was measured before with this code on this device."""
    with suppress(*ERRORS):
        found = measure.known(settings)
        if found and len(found) == len(counts.representatives(settings)):
            return tables.totals(settings, found, devices())
    return []


def costs_at_hand(settings: Config) -> dict[str, Cost]:
    """Estimates of runs by name; only those whose kind was measured before."""
    with suppress(*ERRORS):
        if found := measure.known(settings):
            return {one.work.run: one for one in tables.costs(settings, found)}
    return {}


def compare(names: list[str], file: str) -> list[str]:
    """What runs took, and what was estimated; empty where there is no estimate or no measured training."""
    with suppress(*ERRORS):
        settings = configuration.load(file)
        estimated = costs_at_hand(settings)
        lines, sums, number = [], [0.0, 0.0], 0
        for name in names:
            run = resolve(settings, name)
            took = timings.read(run.root, run.benchmark, name)
            if name not in estimated or took is None or "processor_seconds" not in took:
                continue
            line, pair = _compared(name, estimated[name], took)
            lines.append(line)
            number += 1
            sums = [total + value for total, value in zip(sums, pair, strict=True)]
        if number > 1:
            lines.append(f"{number} runs: {sums[0] / HOUR:.3g} hours, estimated {sums[1] / HOUR:.3g}")
        return lines
    return []


def _compared(name: str, estimate: Cost, took: dict) -> tuple[str, tuple[float, float]]:
    clock = 0 if "threads" in took["device"] else 1  # the name of a processor ends with them
    expected = estimate.seconds[clock] - estimate.start[clock]  # a training is measured after its imports
    seconds = took["wall_seconds"] if clock else took["processor_seconds"]
    kind = "on the clock" if clock else "of processor time"
    text = f"{name}: {seconds:.0f} s {kind}, estimated {expected:.0f}"
    if took["peak_memory_bytes"] and estimate.memory:
        text += f"; memory {documents.size(took['peak_memory_bytes'])}, estimated {documents.size(estimate.memory)}"
    if took["idle_machine"] is False:
        text += f"; other programs used {took['other_cores']:.1f} cores"
    return text, (seconds, expected)


def print_comparison(names: list[str], file: str, only_sum: bool = False) -> None:
    """Prints what finished runs took against their estimates, once for all processes of a training."""
    lines = compare(names, file) if os.environ.get("RANK", "0") == "0" else []
    if only_sum and len(lines) != 1:
        lines = lines[-1:] if len(lines) > 1 else []
    for line in lines:
        print(line, flush=True)
