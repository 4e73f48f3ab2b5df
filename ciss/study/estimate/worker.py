"""A process that measures one run of a parameter file: a few real updates with its network, batches and loader.

It reads a case (JSON) from its standard input, and writes what it measured as the last line of its standard output.
Network and method are built by the training's own code, with random weights, so that neither weight files nor trained
predecessors are needed.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from ciss import config
from ciss.config import Benchmark
from ciss.data import DataError, Index, prepare
from ciss.data.loaders import cache_size
from ciss.data.stored import FILE
from ciss.methods import Batch
from ciss.runs import results
from ciss.runs.run import Run, classes_of, index_folder, predecessor, resolve
from ciss.runs.state import TrainingState
from ciss.runs.timings import device_name
from ciss.store.weights import save_state, save_weights
from ciss.study.bench.worker import EPOCHS, draw
from ciss.training.log import LossLog
from ciss.training.loop import (
    STATE,
    Setup,
    finish,
    prepare_step,
    prepare_training,
    score_holdout,
    train_update,
    training_identity,
)
from ciss.training.meter import read_peak, reset_peak
from ciss.training.usage import Usage, own_seconds

UPDATES = 5
SCORED = 2  # batches of each list that are scored
SLOW = 15.0  # seconds of an update on a processor, above which one update is measured, and few images
FEW = 2  # images of each list that are then scored
DATASET = "drawn"
DRAWN_VALIDATION = 4  # images


class Clock:
    """Processor and wall seconds since the last call."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds()

    def seconds(self) -> list[float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = [own_seconds(), time.perf_counter()]
        passed = [value - before for value, before in zip(now, getattr(self, "last", now), strict=True)]
        self.last = now
        return passed


def opened(case: dict, folder: Path) -> tuple[Run, Index, bool]:
    """The run with its files under a temporary folder, its index, and whether the images are drawn."""
    settings = config.load(case["config"])
    run = resolve(settings, case["run"])
    benchmark = run.settings
    try:
        index = prepare(benchmark, index_folder(run.root, run.benchmark), progress=False)
        drawn = False
    except (FileNotFoundError, DataError):
        benchmark = drawn_benchmark(run, folder)
        index = prepare(benchmark, index_folder(folder, run.benchmark), progress=False)
        drawn = True
    model = replace(benchmark.model, pretrained=False, weights=None)
    train = benchmark.train
    phases = {name: replace(getattr(train, name), epochs=EPOCHS) for name in ("base", "increment")}
    benchmark = replace(benchmark, model=model, train=replace(train, processes=1, **phases))
    return with_few_stored(moved(run, benchmark, folder)), index, drawn


def with_few_stored(run: Run) -> Run:
    """The run with at most as many stored images as there are images to measure with."""
    if run.memory is None:
        return run
    train = run.settings.train
    images = min(run.memory.images, (UPDATES + 2) * train.batch * train.accumulate)
    return replace(run, coefficients={**run.coefficients, "memory": {**run.coefficients["memory"], "images": images}})


def moved(run: Run, benchmark: Benchmark, folder: Path) -> Run:
    """The run and its predecessors with other settings and another folder."""
    before = run.before and moved(run.before, benchmark, folder)
    classes = run.classes
    if benchmark.dataset == DATASET:
        classes = classes_of(benchmark, DATASET)
    return replace(run, settings=benchmark, root=folder, before=before, classes=classes)


def drawn_benchmark(run: Run, folder: Path) -> Benchmark:
    """The benchmark on images of noise with the same numbers of classes, which this function writes."""
    ends, groups = 0, []
    for size in run.classes.sizes:
        groups.append(list(range(ends + 1, ends + size + 1)))
        ends += size
    train = run.settings.train
    os.environ["CISS_DATA"] = str(folder / "data")
    draw(folder / "data" / DATASET, groups, (UPDATES + 3) * train.batch * train.accumulate, train.crop)
    settings = {"dataset": DATASET, "protocol": "1-1", "setting": "overlapped", "groups": tuple(map(tuple, groups))}
    return replace(run.settings, **settings, order=None, limit=0, holdout=0, expects=None, legacy_split=False)


def shortened(run: Run, index: Index, drawn: bool, slow: bool = False) -> Index:
    """The index with images for the measured updates, and with few to score.

    Args:
        slow: whether to measure one update.
    """
    train, scored = run.settings.train, FEW if slow else SCORED * run.settings.evaluation.batch
    images = (1 if slow else UPDATES + 2) * train.batch * train.accumulate
    validation = min(DRAWN_VALIDATION, scored) if drawn else scored
    return replace(
        index,
        steps=[step[:images] for step in index.steps],
        joint=index.joint[:images],
        holdout=index.holdout[:scored],
        validation=[step[:validation] for step in index.validation],
    )


def counted(setup: Setup, read: list[str]) -> Setup:
    """The setup whose batches note the images that pass."""
    original = setup.batches.read

    def noting(*arguments, **options):
        for batch in original(*arguments, **options):
            read.extend(batch.ids)
            yield batch

    setup.batches.read = noting
    return setup


def is_slow(setup: Setup) -> bool:
    """Whether an update on a processor will take longer than SLOW, judged by the forward pass of one image."""
    train = setup.run.settings.train
    if setup.device.type != "cpu":
        return False
    image = torch.zeros(1, 3, train.crop, train.crop)
    setup.student.eval()  # keeps the statistics of batch normalisation
    began = time.perf_counter()
    with torch.no_grad(), setup.autocast():
        setup.student(image)
    seconds = time.perf_counter() - began
    setup.student.train()
    passes = 3 + (setup.teacher is not None)  # a backward pass takes as long as two forward passes
    return passes * seconds * train.batch * train.accumulate > SLOW


def ignore(part: str) -> None:
    """Reports nothing."""


def measure(case: dict, folder: Path, report: Callable[[str], None] = ignore) -> dict:
    """Seconds [processor, wall], bytes and counts of one run.

    Args:
        report: is told each part as it begins.
    """
    report("data and network")
    start = [own_seconds(), time.time() - case["started"]]
    usage = Usage()
    run, whole, drawn = opened(case, folder)
    index = shortened(run, whole, drawn)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock(device)
    if run.before:
        torch.manual_seed(0)
        predecessor(run).parent.mkdir(parents=True, exist_ok=True)
        save_weights(predecessor(run), run.before.build_network(starting_weights=False), run.before.description())
        predecessor(run).with_name(FILE).write_text('{"stored": []}', encoding="utf-8")
    clock.seconds()
    setup = prepare_training(run, index)
    build = clock.seconds()
    if is_slow(setup):
        index = shortened(run, whole, drawn, slow=True)
        setup = prepare_training(run, index)
    clock.seconds()
    found = {"build": build, "drawn": drawn, "device": device_name()}
    identity = training_identity(run, index)  # a training has it before the time that it measures begins
    found["start"] = [before + value for before, value in zip(start, clock.seconds(), strict=True)]
    found["gpu"] = device.type == "cuda"
    state = TrainingState()
    report("pass before the step")
    found["prepare"] = prepared(setup, state, index, clock) if run.after else None
    report("scores")
    score_holdout(setup, state, 0.0)  # as a training does first: its memory stays with the process
    report("updates")
    found |= updates(setup, state, clock, case["seconds"])
    report("scores after the updates")
    found |= scores(setup, state, index, clock)
    found |= written(setup, state, identity, index, clock)
    rest = run.images(whole), whole.holdout
    in_cache = cache_size(run.settings, whole, [*rest[0], *rest[1]]) if run.settings.train.cache else 0
    short = cache_size(run.settings, index, [*run.images(index), *index.holdout])
    found["cache"] = max(0, in_cache - short)
    found["channels"] = setup.student.channels
    found["accumulated"] = setup.per_update
    return found | {
        "other_cores": usage.read()["other_cores"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def prepared(setup: Setup, state: TrainingState, index: Index, clock: Clock) -> dict:
    """What happens before a step: seconds of `before_step`, the passes over both steps' images, and judged labels."""
    read: list[str] = []
    counted(setup, read)
    clock.seconds()
    prepare_step(setup, state)
    seconds = clock.seconds()
    own = {index.ids["train"][number] for number in setup.run.images(index)}
    of_step = sum(image in own for image in read)
    share = state.preparation_seconds / max(seconds[1], 1e-9)
    return {
        "seconds": [value * share for value in seconds],
        "judged": [value * (1 - share) / max(1, len(index.holdout)) for value in seconds],
        "passes": of_step / max(1, len(own)),
        "passes_before": (len(read) - of_step) / max(1, len(index.steps[setup.run.step - 1])),
        "images": len(read),
    }


def updates(setup: Setup, state: TrainingState, clock: Clock, most: float) -> dict:
    """Seconds of each update, of decoding what is cached, and the peak memory.

    Stops after `most` seconds, and on a processor after the first update if it takes longer than SLOW.
    """
    if not setup.run.epochs:
        nothing = [0.0, 0.0]
        peak = read_peak(setup.device) if reset_peak(setup.device) else None
        return {"updates": [nothing], "rows": 1, "decode": nothing, "epoch": nothing, "peak": peak}
    log = LossLog()
    decode = [0.0, 0.0]
    if setup.loader.dataset.cache is not None and not setup.loader.num_workers:
        clock.seconds()
        images = sum(len(numbers) for *_, numbers in setup.loader)
        decode = [value / images for value in clock.seconds()]
    warm = 2 if setup.device.type == "cuda" else 1
    measures = reset_peak(setup.device)
    times, began = [], time.perf_counter()
    clock.seconds()
    for update in endless_updates(setup):
        train_update(setup, update, log)
        times.append(clock.seconds())
        compiled = setup.run.settings.train.compile  # the first update compiles
        if setup.device.type == "cpu" and not compiled and len(times) == 1 and times[0][1] > SLOW:
            break  # without an update to warm up, which matters little for slow ones
        if len(times) >= warm + UPDATES or (len(times) > warm and time.perf_counter() - began > most):
            break
    peak = read_peak(setup.device) if measures else None
    means, rows = log.epoch_means(setup.student)
    state.trace.append(rows)
    state.log.append({"epoch": 1, "updates": len(times), "lr": 0.1, **means})
    state.epoch = 1
    save_state(setup.run.resume / STATE, {}, setup.stateful(), vars(state))
    timed = times[warm:] or times
    return {
        "updates": timed,
        "rows": len(times) * setup.per_update,
        "decode": decode,
        "epoch": clock.seconds(),
        "peak": peak,
    }


def endless_updates(setup: Setup) -> Iterator[tuple[Batch, ...]]:
    """The batches of one update after the other, epoch by epoch."""
    for epoch in count(1):
        batches = setup.batches.read(setup.loader, epoch)
        yield from zip(*[batches] * setup.per_update, strict=False)


def scores(setup: Setup, state: TrainingState, index: Index, clock: Clock) -> dict:
    """Seconds of an image of the hold-out set and of the validation images."""
    found = {"holdout": [0.0, 0.0]}
    if index.holdout:
        clock.seconds()
        score_holdout(setup, state, 1.0)
        found["holdout"] = [value / len(index.holdout) for value in clock.seconds()]
    clock.seconds()
    finish(setup, state)
    images = len(index.validation[-1 if setup.run.joint else setup.run.step]) + len(state.samples)
    return found | {"validation": [value / images for value in clock.seconds()]}


def written(setup: Setup, state: TrainingState, identity: dict, index: Index, clock: Clock) -> dict:
    """Seconds and bytes of the results that stay: of the checkpoint, of one row of a batch, and of everything else."""
    run = setup.run
    clock.seconds()
    results.write(run, setup.student, identity, index, state)
    seconds = clock.seconds()
    weights = (run.folder / "weights.safetensors").stat().st_size
    trace = (run.results / "trace.npz").stat().st_size
    everything = sum(file.stat().st_size for folder in (run.folder, run.results) for file in folder.iterdir())
    return {"write": seconds, "checkpoint": weights, "row": trace, "files": everything - weights - trace}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the training prints is no reply
    case = json.loads(sys.stdin.readline())
    found = measure(case, Path(case["folder"]), lambda part: print(part, file=replies, flush=True))
    print(json.dumps(found), file=replies, flush=True)


if __name__ == "__main__":
    main()
