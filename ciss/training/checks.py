"""Checks before a training starts, and the message where memory runs out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ciss import distributed, updates
from ciss.config import ConfigError
from ciss.data import DataError, Index
from ciss.documents import counted
from ciss.models import needs_two_images
from ciss.runs import results
from ciss.runs.run import Run, digest, lone_image, predecessor
from ciss.store.files import CheckpointError
from ciss.training.memory import stored_before


class MemoryShort(Exception):
    """The device or the machine has no memory left."""


def require_processes(run: Run) -> None:
    """Raises ConfigError if this training has another number of processes than `train.processes`, or one among which
    the batch does not divide. Prints how the images of an update are shared."""
    train, world = run.settings.train, distributed.world()
    if train.processes not in (1, world):
        raise ConfigError(f"train.processes is {train.processes}, but there are {world}. Make them equal.")
    updates.require_divided(train.batch, world, f"{run.config}: benchmarks.{run.benchmark}")
    if world > 1:
        share = f"{train.batch // world} in each of {world} processes"
        distributed.log(f"{run.name}: a batch has {train.batch} images in all, {share}.")


def require_current(run: Run, index: Index) -> None:
    """Raises CheckpointError if the predecessor was trained with other code, data or teacher than the present ones.

    `load_network` compares the parameters.
    """
    before = run.before
    file = predecessor(run)
    if results.weights_of(before) != results.file_hash(file):  # the results belong to another checkpoint
        return
    earlier = predecessor(before)
    missing = earlier is not None and not earlier.is_file()
    expected = before.identity(index.fingerprint, results.file_hash(earlier) if earlier and not missing else None)
    kinds = ("code", "data") if missing else ("code", "data", "teacher")
    if different := [line for line in results.outdated(before, expected) if line.startswith(kinds)]:
        raise CheckpointError(
            f"{file}: {before.name} was trained with other values ({'; '.join(different)}). "
            f"Train it again first: dvc repro, or ciss train {before.name}"
        )


def training_identity(run: Run, index: Index) -> dict:
    """The values that a finished or stopped training must share with this one to be used: see `Run.identity`."""
    file = predecessor(run)
    identity = run.identity(index.fingerprint, results.file_hash(file) if file else None)
    return {**identity, "stored": digest(stored_before(run))} if run.memory else identity


def require_batch_statistics(run: Run, images: int, smallest: int) -> None:
    """Raises DataError if a batch of one image cannot be normalised.

    Args:
        images: number of training images of the step.
        smallest: number of images in the smallest batch, those of all processes together.
    """
    if not lone_image(run.settings, run.phase, smallest):
        return
    phase = "increment" if run.after else "base"
    layer = needs_two_images(run.settings.model, run.settings.train.crop)
    raise DataError(
        f"{run.name}: step {run.step} has {counted(images, 'training image')}, and with train.batch "
        f"{run.settings.train.batch} a batch of one image, which has no batch statistics in {layer}. "
        f"Set benchmarks.{run.benchmark}.train.{phase}.norm: frozen, or change train.batch."
    )


@contextmanager
def explained_memory_errors(run: Run) -> Iterator[None]:
    """Turns errors of a lack of memory into MemoryShort, whose message says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", reason):
            raise
        raise MemoryShort(
            f"{run.name}: no memory left ({reason[:200]}). The last finished epoch is kept. Free some and run the same "
            "command again; or lower train.batch and raise train.accumulate, which starts the run anew."
        ) from None
