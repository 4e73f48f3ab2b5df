"""`ciss plan --estimate`, the last lines of every plan, and what a finished training says about its estimate."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from ciss import config as configuration
from ciss import documents, paths
from ciss.config import Config, ConfigError
from ciss.data import DataError
from ciss.runs import live, timings
from ciss.runs.run import resolve
from ciss.store.files import CheckpointError
from ciss.study import places
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
        numbers = measure.keys(settings)  # benchmarks that differ in the order of the classes alone share kinds
        kinds, before = len(set(numbers.values())), len({numbers[name] for name in measure.known(settings)})
        each = "of each" if not before else f"{before} were measured before; of each other"
        text = "all were measured before" if before == kinds else f"{each}, up to five updates are measured now"
        print(f"{file}: {kinds} kinds of runs; {text}.", flush=True)
        measurements, problems = measure.measured(settings, seconds)
        if measurements:
            print("\n".join(tables.table(settings, measurements)))
        if problems:
            there_are = f"{len(problems)} of {kinds} kinds of runs were not measured, so there are no sums"
            raise EstimateError("\n".join([f"{there_are}.", *problems]))
        print("\n".join(tables.totals(settings, measurements, devices())))
    except ERRORS as error:
        sys.exit(f"error: {error}")


def devices() -> int:
    """GPUs of this machine; without any, 1."""
    import torch  # here, because it takes seconds to import

    return max(1, torch.cuda.device_count())


def checked_files(output: str, cluster: list[str] | None) -> str | None:
    """The file with resources for Slurm to write, or None. Exits with a message if it or the parameter file cannot be.

    Args:
        cluster: the values of --cluster: a file, or ""; None: the option is not given.
    """
    try:
        places.require_file(output, "--output")
        if cluster is None:
            return None
        file, *others = cluster
        if others or (file and Path(file).suffix not in (".yaml", ".yml")):
            text = f"--cluster takes one FILE.yaml, but found {' '.join(cluster)}."
            raise ConfigError(f"{text} Write data set and protocol before it: ciss plan shapes 4-2 --cluster")
        file = file or "cluster.yaml"
        places.require_writable(file, "--cluster")
        resources.require_sections(paths.project() / file, output)
        return file
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


def after_plan(file: str, estimate: bool, cluster: str | None) -> None:
    """What `ciss plan` prints and writes after the plan itself. Exits with a message if it cannot.

    Args:
        estimate: whether to measure what is not at hand.
        cluster: a file with resources for Slurm to write, or add sections to; None: none.
    """
    if estimate:
        main(file)
    try:
        settings = configuration.load(file)
        if not estimate and (lines := at_hand(settings)):
            print("\n".join(["estimate, measured before:", *lines]))
        if cluster is not None:
            write_cluster(settings, cluster)
    except ERRORS as error:
        sys.exit(f"error: {error}")


def write_cluster(settings: Config, file: str) -> None:
    """Writes `cluster.yaml`, with hours and memory of the benchmarks all of whose kinds of runs were measured."""
    needs, missing = cluster_needs(settings)
    added = resources.write(paths.project() / file, settings, needs)
    print(f"{file}: sections added: {', '.join(added) or 'none, because every benchmark has one; nothing changed'}.")
    for name in added:
        if name in missing:
            print(f"{name}: {missing[name]}")
        else:
            print(f"{name}: {needs[name].describe(settings.benchmarks[name].train.processes)}")
    print("Check the numbers, then run: ciss train --slurm")


def cluster_needs(settings: Config) -> tuple[dict[str, resources.Needs], dict[str, str]]:
    """What the longest run of each benchmark takes; of the other benchmarks the reason why it is not known."""
    known: dict[str, dict] = {}
    estimated: list[Cost] = []
    with suppress(*ERRORS):
        known = measure.known(settings)
        estimated = tables.costs(settings, known) if known else []
    needs, missing = {}, {}
    for name in settings.benchmarks:
        kinds = [run for run in counts.representatives(settings) if settings.runs()[run].benchmark == name]
        present = [known[run] for run in kinds if run in known]
        alike = [one for one in estimated if one.work.benchmark == name]
        if not present or len(present) < len(kinds) or not alike:
            part = f"only {len(present)} of {len(kinds)} kinds of runs were measured" if present else "not measured"
            missing[name] = f"{part}, so hours and memory are defaults. Measure with: ciss plan --estimate"
            continue
        gpu = present[0]["gpu"]
        memory = None if gpu else tables.peak_memory(alike)  # of a GPU it is not the machine's
        hours = max(one.seconds[1] for one in alike) / HOUR
        needs[name] = resources.Needs(hours, memory, tables.device_text(present[0]["device"]), gpu)
    return needs, missing


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
            lines.append(f"{number} runs: {live.duration(sums[0])}, estimated {live.duration(sums[1])}")
        return lines
    return []


def _compared(name: str, estimate: Cost, took: dict) -> tuple[str, tuple[float, float]]:
    clock = 0 if "threads" in took["device"] else 1  # the name of a processor ends with them
    expected = estimate.seconds[clock] - estimate.start[clock]  # a training is measured after its imports
    seconds = took["wall_seconds"] if clock else took["processor_seconds"]
    kind = "on the clock" if clock else "of processor time"
    text = f"{name}: {live.duration(seconds)} {kind}, estimated {live.duration(expected)}"
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
