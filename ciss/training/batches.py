"""Batches as methods see them, weights of losses in one update, and the pass over the data that prepares a method."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ciss import distributed, documents
from ciss.data import Index
from ciss.data.loaders import Loader, available_memory, cache_size, stable_seed, statistics_loader, training_loader
from ciss.data.processes import loader_processes
from ciss.data.saliency import NOT_SALIENT
from ciss.methods import Batch, Method
from ciss.models import Network, Output
from ciss.runs.run import Run

IMAGES = "images"  # the number of images of a batch, beside the counts of `Method.normalisers`


class BatchMaker:
    """Makes batches on the device from what a loader reads."""

    def __init__(self, run: Run, index: Index, device: torch.device):
        classes, channels = run.classes, sum(run.channel_groups)
        steps = torch.from_numpy(classes.steps[:channels])
        self.class_steps = (torch.zeros_like(steps) if run.joint else steps).to(device)
        self.new_classes = torch.arange(run.old_channels, channels, device=device)
        self.run = run
        self.reads_saliency = run.build_method().reads_saliency
        self.ids = index.ids
        self.device = device
        self.step = run.step
        self.old_channels = run.old_channels if run.after else 0
        given = np.arange(256)
        given[: len(classes)] = run.label_table(training=True)[classes.raw]
        self.given_table = torch.from_numpy(given).to(device)  # true position -> label that the step is given

    def read(self, loader: Loader, epoch: int | None = None) -> Iterator[Batch]:
        """Batches of a loader. `epoch`: sets the order of a training loader."""
        if epoch is not None:
            loader.batch_sampler.epoch = epoch
        for images, labels, numbers in loader:
            labels = labels.to(self.device, non_blocking=True).long()
            salient = labels != NOT_SALIENT if self.reads_saliency else None
            batch = self._batch(images, labels if salient is None else torch.where(salient, labels, 0), numbers)
            yield replace(batch, salient=salient)

    def as_given(self, item: tuple[Tensor, Tensor, Tensor], split: str = "train") -> tuple[Batch, Tensor]:
        """A batch with the labels that the step is given, and the true labels (B,H,W).

        Args:
            item: images, true labels and image numbers from an evaluation loader of the `split`.
        """
        images, truth, numbers = item
        truth = truth.to(self.device).long()
        return self._batch(images, self.given_table[truth], numbers, split), truth

    def _batch(self, images: Tensor, labels: Tensor, numbers: Tensor, split: str = "train") -> Batch:
        return Batch(
            images=self.run.normalise(images, self.device),
            given=labels,
            labels=labels,
            # on the host: no wait for the device. Stored images have larger numbers: `Stored.replace_half`
            ids=[self.ids[split][n % len(self.ids[split])] for n in numbers.tolist()],
            step=self.step,
            old_channels=self.old_channels,
            class_steps=self.class_steps,
            new_classes=self.new_classes,
        )


@dataclass
class LossWeights:
    """Factors of the losses of one batch: see `loss_weights`."""

    weights: dict[str, Tensor]  # by loss; IMAGES: of losses that `Method.normalisers` does not name

    def apply(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value * self.weights.get(name, self.weights[IMAGES]) for name, value in losses.items()}


@torch.no_grad()
def loss_weights(
    method: Method, teacher_outputs: Sequence[Output | None], batches: Sequence[Batch]
) -> list[LossWeights] | None:
    """Factors of each batch's losses, with which their mean over batches is the loss of one large batch.

    n_b: elements of batch b (`Method.normalisers`); B: batches of the update in all processes. None where B is 1.
    """
    if len(batches) * distributed.world() == 1:
        return None
    counts = []
    for output, batch in zip(teacher_outputs, batches, strict=True):
        # filled on the device: torch.tensor(n, device=device) would wait for the device
        images = torch.full((), float(len(batch.images)), device=batch.labels.device)
        counts.append({IMAGES: images, **method.normalisers(output, batch)})
    names = list(counts[0])
    table = torch.stack([torch.stack([count[name].double() for name in names]) for count in counts])  # (batches, names)
    total = distributed.all_sum(table.sum(dim=0)).clamp(min=1)
    # w_b = B n_b / sum_b n_b
    table = (table * len(batches) * distributed.world() / total).float()
    return [LossWeights(dict(zip(names, row, strict=True))) for row in table]


def prepare_method(
    method: Method,
    run: Run,
    index: Index,
    teacher: Network,
    batches: BatchMaker,
    cache: dict | None = None,
    student: Network | None = None,
) -> None:
    """Calls `method.before_step` with the images of this step and of the step before, each labelled as in its step.

    `Method.statistics_from` decides how they are read.

    Args:
        cache: decoded images of this step, by number.
        student: of a training that begins: `method.start` comes first and writes into it.
    """

    def read_step(step: int, cache: dict | None = None) -> Iterator[Batch]:  # opens no file until a batch is taken
        at_step = replace(run, step=step)
        images = at_step.images(index)
        table = at_step.label_table(training=True)
        if method.statistics_from == "images":
            yield from batches.read(statistics_loader(run.settings, index, images, table, cache))
        else:
            seed = stable_seed("data", run.seed, step)
            yield from batches.read(training_loader(run.settings, index, images, table, seed), epoch=0)

    if student is not None:
        method.start(student, teacher, read_step(run.step, cache), read_step(run.step - 1))
    method.before_step(read_step(run.step, cache), teacher, read_step(run.step - 1))


def without_large_cache(run: Run, index: Index) -> Run:
    """The run without `train.cache` if the cache needs more than half of the free memory. Results do not change."""
    train = run.settings.train
    free = available_memory()
    needed = cache_size(run.settings, index, [*run.images(index), *index.holdout])
    if not train.cache or distributed.broadcast_result(lambda: needed <= free / 2):
        return run
    distributed.log(
        f"{run.name}: train.cache would take {documents.size(needed)} in {max(1, loader_processes(train))} loader "
        f"process(es), but {documents.size(free)} of memory are free. Images are read every epoch. Lower train.workers."
    )
    return replace(run, settings=replace(run.settings, train=replace(train, cache=False)))
