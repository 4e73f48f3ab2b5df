"""How much each run of a plan does: images, updates, and images that are scored."""

import math
from dataclasses import dataclass

from ciss.config import Benchmark, Config, Phase, Train
from ciss.data import Index
from ciss.data.loaders import ShuffledBatches
from ciss.runs.run import Run, resolve


@dataclass(frozen=True)
class Images:
    """Numbers of images of a benchmark. `known`: whether they are those of the data, or only of the preset."""

    steps: tuple[int, ...]
    joint: int
    holdout: int
    validation: tuple[int, ...]  # scored after each step
    known: bool = True

    @classmethod
    def of_index(cls, index: Index) -> "Images":
        validation = tuple(map(len, index.validation))
        return cls(tuple(map(len, index.steps)), len(index.joint), len(index.holdout), validation)


def expected_images(benchmark: Benchmark, sizes: list[int]) -> Images:
    """Numbers for data that are not here: those that the preset expects, in proportion to the classes of a step.

    Args:
        sizes: classes of each step.
    """
    expects = benchmark.expects
    train, val = (expects.train, expects.val) if expects else (1000, 200)
    left = max(1, train - benchmark.holdout)
    steps = tuple(max(1, round(left * size / max(1, sum(sizes)))) for size in sizes)
    return Images(steps, left, benchmark.holdout, (val,) * len(sizes), known=False)


@dataclass(frozen=True)
class Work:
    """What one run does."""

    run: str
    benchmark: str
    method: str
    step: int
    images: int  # for training
    before: int  # images of the step before; 0: none
    epochs: int
    updates: int  # of one epoch
    batches: int  # of one update
    batch: int  # images of a full update
    points: int  # of the curves: how often the hold-out set is scored
    holdout: int
    validation: int  # with the sample predictions

    @property
    def all_updates(self) -> int:
        return self.epochs * self.updates


def updates_of(train: Train, images: int) -> tuple[int, int]:
    """Updates of an epoch, and batches of an update, of so many images: as `training.loop.prepare_training`."""
    batches = len(ShuffledBatches(list(range(images)), train.batch, train.accumulate, 0))
    per_update = min(train.accumulate, batches)
    return batches // per_update, per_update


def points_of(train: Train, phase: Phase, updates: int) -> int:
    """How often a training scores the hold-out set: as `training.loop.train_epoch`, and once before."""
    inside = {max(1, round(point * updates)) for point in train.curve}
    number = 1
    for done in range(1, phase.epochs * updates + 1):
        epoch, rest = divmod(done, updates)
        if rest:
            number += done in inside
        else:
            number += epoch % train.curve_every == 0 or epoch == phase.epochs or done in inside
    return number


def work_of(run: Run, images: Images) -> Work:
    """What a run does.

    Args:
        images: of its benchmark.
    """
    train = run.settings.train
    number = images.joint if run.joint else images.steps[run.step]
    updates, batches = updates_of(train, number + (run.memory.appended if run.memory else 0))
    return Work(
        run=run.name,
        benchmark=run.benchmark,
        method=run.method,
        step=run.step,
        images=number,
        before=images.steps[run.step - 1] if run.after else 0,
        epochs=run.epochs,
        updates=updates,
        batches=batches,
        batch=train.batch * train.accumulate,
        points=(points_of(train, run.phase, updates) if run.epochs else 1) if images.holdout else 0,
        holdout=images.holdout,
        validation=images.validation[-1 if run.joint else run.step] + run.settings.evaluation.samples,
    )


def representatives(config: Config) -> dict[str, list[str]]:
    """Runs that are measured for all that are alike: by the first of each group's name, all of the group.

    Alike are the base steps of a benchmark, its joint trainings, and the increments of one method. The last increment
    is measured, which has the most classes.
    """
    groups: dict[tuple, list[str]] = {}
    for name, run in config.runs().items():
        kind = "base" if name in config.bases else "joint" if name in config.joints else "increment"
        groups.setdefault((run.benchmark, kind, run.method), []).append(name)
    return {max(names, key=lambda name: resolve(config, name).step): names for names in groups.values()}


def stage_count(config: Config) -> dict[str, int]:
    """Stages of `dvc repro` beside the trainings themselves, by kind: each run and analysis is a notebook."""
    benchmarks, runs = len(config.benchmarks), len(config.runs())
    return {"notebook": runs + benchmarks + 2 * benchmarks + 1, "other": 5 + benchmarks}


def rounded_up(value: float, step: float) -> float:
    """The next multiple of a step."""
    return step * math.ceil(value / step)
