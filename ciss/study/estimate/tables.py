"""From counts and measurements to hours, memory and disk, and their text."""

import re
import shutil
from dataclasses import dataclass

from ciss import documents, paths
from ciss.config import Config
from ciss.runs import live
from ciss.runs.run import Run, resolve
from ciss.study.estimate import counts, measure
from ciss.study.estimate.counts import Work

# Processor seconds of a stage of `dvc repro` beside the training: reports/speed/start.md
STAGES = {"notebook": 6.0, "other": 3.5}
CACHE_COPIES = 2  # DVC keeps a copy of what a run leaves
STATES = 5  # times a checkpoint: the state of a training, and the file that replaces it
FEW_CORES = 0.1  # of all: what other programs may use while a measurement counts as undisturbed
HOUR = 3600.0
# On a processor the memory of a process grows over its updates, measured by reports/speed/estimates.md
GROWTH, GROWTH_UPDATES = 1.1, 50


@dataclass(frozen=True)
class Cost:
    """What one run takes. Seconds are [processor, wall]."""

    work: Work
    seconds: tuple[float, float]
    start: tuple[float, float]  # of these, until the process has its imports
    memory: int | None  # bytes at the peak of the updates
    checkpoint: float  # bytes
    disk: float  # bytes that stay, the checkpoint among them


def cost(work: Work, measured: dict, checkpoint: float) -> Cost:
    """The cost of one run.

    Args:
        measured: see `worker`; of a run that is alike.
        checkpoint: bytes of its weights.
    """
    seconds = [0.0, 0.0]
    prepare = measured["prepare"]
    for clock in range(2):
        update = sorted(times[clock] for times in measured["updates"])
        # the measured update may have fewer batches, where an epoch of the run is shorter than an update
        share = work.batches / max(1, measured["accumulated"])
        decoded = (work.images + work.holdout) * measured["decode"][clock]
        seconds[clock] = (
            measured["start"][clock]
            + measured["build"][clock]
            + decoded
            + work.all_updates * share * update[len(update) // 2]
            + work.epochs * measured["epoch"][clock]
            + work.points * work.holdout * measured["holdout"][clock]
            + work.validation * measured["validation"][clock]
            + measured["write"][clock]
        )
        if prepare:
            passes = prepare["passes"] * work.images + prepare["passes_before"] * work.before
            seconds[clock] += prepare["seconds"][clock] * (passes / prepare["images"] if prepare["images"] else 1)
            seconds[clock] += prepare["judged"][clock] * work.holdout
    memory = None if measured["peak"] is None else measured["peak"] + measured["cache"]
    if memory and not measured["gpu"] and work.all_updates >= GROWTH_UPDATES:
        memory = round(GROWTH * memory)
    rows = work.all_updates * work.batches * measured["row"] / max(1, measured["rows"])
    start = measured["start"]
    disk = checkpoint + measured["files"] + rows
    return Cost(work, (seconds[0], seconds[1]), (start[0], start[1]), memory, checkpoint, disk)


def checkpoint_bytes(channels: int, sizes: dict[int, int]) -> float:
    """Bytes of a checkpoint with so many channels, on the line through two measured ones.

    Args:
        sizes: measured bytes by number of channels.
    """
    (low, small), (high, large) = min(sizes.items()), max(sizes.items())
    return float(small) if low == high else small + (large - small) * (channels - low) / (high - low)


def costs(config: Config, measured: dict[str, dict]) -> list[Cost]:
    """The cost of every run whose kind was measured."""
    images = {name: measure.images_of(config, name) for name in config.benchmarks}
    found = []
    sizes: dict[str, dict[int, int]] = {}
    for name, values in measured.items():
        sizes.setdefault(config.runs()[name].benchmark, {})[values["channels"]] = values["checkpoint"]
    for name, alike in counts.representatives(config).items():
        if name in measured:
            for other in alike:
                run = resolve(config, other)
                weights = checkpoint_bytes(sum(run.channel_groups), sizes[run.benchmark])
                found.append(cost(counts.work_of(run, images[run.benchmark]), measured[name], weights))
    order = list(config.runs())
    return sorted(found, key=lambda one: order.index(one.work.run))


def stages_seconds(config: Config) -> float:
    """Processor seconds of the notebooks and other stages of `dvc repro` beside the trainings."""
    return sum(STAGES[kind] * number for kind, number in counts.stage_count(config).items())


def critical_seconds(config: Config, found: list[Cost], devices: int, clock: int = 1) -> float:
    """Seconds until all runs have ended on so many devices, each run on one, after the run that it continues."""
    seconds = {one.work.run: one.seconds[clock] for one in found}
    after = {name: run.after for name, run in config.chain.items()}
    ends: dict[str, float] = {}
    free = [0.0] * devices
    behind: dict[str, float] = {}

    def remaining(name: str) -> float:
        if name not in behind:
            later = [remaining(other) for other, before in after.items() if before == name and other in seconds]
            behind[name] = seconds[name] + max(later, default=0.0)
        return behind[name]

    left = set(seconds)
    while left:
        ready = [name for name in left if after.get(name) not in left]
        device = min(range(devices), key=lambda number: free[number])
        starts = {name: max(free[device], ends.get(after.get(name, ""), 0.0)) for name in ready}
        name = min(ready, key=lambda name: (starts[name], -remaining(name)))
        ends[name] = free[device] = starts[name] + seconds[name]
        left.remove(name)
    return max(ends.values(), default=0.0)


def table(config: Config, measured: dict[str, dict]) -> list[str]:
    """A row for each kind of run, with its head."""
    found = costs(config, measured)
    lines = [_row(("method", "runs", "images a step", "updates", "s an update", "time", "memory", "checkpoint"))]
    groups: dict[tuple, list[Cost]] = {}
    for one in found:
        groups.setdefault((one.work.benchmark, _label(resolve(config, one.work.run))), []).append(one)
    names = {benchmark for benchmark, _ in groups}
    representative = {other: name for name, alike in counts.representatives(config).items() for other in alike}
    clock = clock_of(measured)
    for (benchmark, label), alike in groups.items():
        values = measured[representative[alike[0].work.run]]
        update = sorted(times[clock] for times in values["updates"])
        lines.append(
            _row(
                (
                    f"{benchmark} {label}" if len(names) > 1 else label,
                    str(len(alike)),
                    _range([one.work.images for one in alike]),
                    _range([one.work.all_updates for one in alike]),
                    f"{update[len(update) // 2]:.3g}",
                    live.duration(sum(one.seconds[clock] for one in alike)),
                    documents.size(max(one.memory or 0 for one in alike)) if alike[0].memory else "unknown",
                    documents.size(max(one.checkpoint for one in alike)),
                )
            )
        )
    return lines


def totals(config: Config, measured: dict[str, dict], devices: int = 1) -> list[str]:
    """Time, memory and disk of all runs, and what limits the estimate."""
    found = costs(config, measured)
    clock = clock_of(measured)
    values = next(iter(measured.values()))
    stages = stages_seconds(config)
    total = sum(one.seconds[clock] for one in found)
    kind = "on the clock" if clock else "of processor time"
    lines = [f"training: {live.duration(total)} {kind} on {device_text(values['device'])}"]
    numbers = sorted({1, 2, 4, devices})
    several = [f"{live.duration(critical_seconds(config, found, number))} on {number}" for number in numbers]
    lines.append(f"on the clock: {several[0]} device, {', '.join(several[1:])}")
    busy = max((one["other_cores"] or 0.0) for one in measured.values())
    if busy > FEW_CORES * (values["cores"] or 1):
        remark = f"  (other programs used {busy:.1f} of {values['cores']} cores meanwhile; on an idle machine "
        idle = critical_seconds(config, found, 1, clock=0)
        lines.append(remark + ("less)" if clock else f"{duration_range(idle / values['threads'], idle)} on 1)"))
    lines.append(f"notebooks and other stages of dvc repro: {live.duration(stages)} of processor time")
    disk = sum(one.disk for one in found)
    state = STATES * max(one.checkpoint for one in found)
    root = (paths.project() / config.output).resolve()
    free = shutil.disk_usage(paths.existing_parent(root)).free
    need = disk * CACHE_COPIES + state
    lines.append(
        f"disk: {documents.size(disk)} of results, as much again in DVC's cache, and {documents.size(state)} while a "
        f"run trains: {documents.size(need)} in all; {documents.size(free)} are free"
    )
    if need > free:
        lines.append(f"warning: {documents.size(need - free)} of disk space are missing in {root}")
    if any(one["drawn"] for one in measured.values()):
        lines.append(
            "The data are not here: updates were measured on drawn images of the size of a crop. Numbers of images are "
            "those of the preset, divided in proportion to the classes of a step."
        )
    return lines


def device_text(name: str) -> str:
    """The name of a device, for people: "1 thread" instead of "1 threads"."""
    return re.sub(r"\b1 threads$", "1 thread", name)


def duration_range(low: float, high: float) -> str:
    """Two durations in words, or one if both read the same."""
    texts = [live.duration(low), live.duration(high)]
    return " to ".join(dict.fromkeys(texts))


def clock_of(measured: dict[str, dict]) -> int:
    """Which seconds count: 1 (on the clock) for a GPU, 0 (of processor time) for a processor."""
    return 1 if any(values["gpu"] for values in measured.values()) else 0


def peak_memory(found: list[Cost]) -> int | None:
    """Bytes of the largest run."""
    return max((one.memory for one in found if one.memory is not None), default=None)


def _label(run: Run) -> str:
    return "joint" if run.joint else run.method if run.after else "base step"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _row(cells: tuple[str, ...]) -> str:
    widths = (16, 4, 16, 18, 11, 11, 9, 10)
    first, *others = cells
    padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return "  ".join(padded).rstrip()
