"""A finished run opened again: its networks and its method, and what the method sees in training images: labels before
and after, and the method's own maps."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ciss import distributed
from ciss.data import evaluation_loader
from ciss.methods import Batch
from ciss.models import Output
from ciss.runs.run import Run, load_network
from ciss.training.batches import BatchMaker, prepare_method
from ciss.training.evaluation import precision_of


class Trained:
    """A finished run in memory, in evaluation mode: the network after it (`student`), the one it continues (`teacher`;
    None for a base or joint run), and its method, which prepares itself anew (prototypes, thresholds), as it did at the
    start of the step.

    Raises CheckpointError for a run or predecessor that is missing or was made with other parameters, DataError for
    data that are not prepared.
    """

    def __init__(self, run: Run):
        self.run, self.index, self.device = run, run.index(), distributed.device()
        self.method = run.build_method()
        self.precision = precision_of(run.settings.train, self.device)
        self.teacher = load_network(run.before, self.device) if run.after else None
        self.student = load_network(run, self.device)
        self.maker = BatchMaker(run, self.index, self.device)
        self._prepared = self.teacher is None  # without a teacher there is nothing to prepare

    def autocast(self) -> torch.autocast:
        """The precision of the training."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    @torch.no_grad()
    def see(self, numbers: list[int]) -> Iterator[tuple[Batch, Tensor, Output | None]]:
        """Training images (`numbers` of the index) as the step learns them, those of one size together in batches of
        `evaluation.batch`: the batch with the method's labels, true labels (B,H,W), and the teacher's output."""
        self._prepare()
        run, truth = self.run, self.run.label_table(training=False)
        for item in evaluation_loader(run.settings, self.index, "train", numbers, truth):
            batch, true = self.maker.as_given(item)
            with self.autocast():
                old = self.teacher(batch.images) if self.teacher is not None else None
                batch.labels = batch.given if old is None else self.method.labels(batch, old)
            yield batch, true, old

    def _prepare(self) -> None:
        if self._prepared:
            return
        with self.autocast():
            prepare_method(self.method, self.run, self.index, self.teacher, self.maker)
        self._prepared = True


@dataclass
class Explanation:
    """Lists with an array for each image. Labels (H,W) are positions, 255 is ignored; maps (.,.) are float32, some on
    a coarser grid."""

    given: list[np.ndarray] = field(default_factory=list)  # as the step is told
    labels: list[np.ndarray] = field(default_factory=list)  # as the method learns them
    truth: list[np.ndarray] = field(default_factory=list)
    maps: dict[str, list[np.ndarray]] = field(default_factory=dict)
    tokens: np.ndarray | None = None  # (C,D), the trained network's class tokens, or its classifier's rows


@torch.no_grad()
def explain(run: Run, numbers: list[int]) -> Explanation:
    """A finished increment's method on training images (`numbers` of the index), with the networks before and after.

    Raises CheckpointError for a missing run or predecessor, ValueError for a run that continues none.
    """
    if run.after is None:
        raise ValueError(f"{run.name} continues no run: there is no teacher to explain. Name an increment.")
    trained, found = Trained(run), Explanation()
    for number in numbers:  # one by one: their sizes may differ
        for batch, true, old in trained.see([number]):
            with trained.autocast():
                new = trained.student(batch.images)
                maps = trained.method.maps(new, old, batch)
            found.tokens = new.class_tokens.float().cpu().numpy()
            for labels, into in ((batch.given, found.given), (batch.labels, found.labels), (true, found.truth)):
                into.append(labels[0].cpu().numpy().astype(np.uint8))
            for name, values in maps.items():
                found.maps.setdefault(name, []).append(values[0].float().cpu().numpy())
    return found


def telling_images(run: Run, count: int, among: list[int] | None = None) -> list[int]:
    """Training images of the step (or `among` others) with old and new classes in them, those with most first."""
    index = run.index()
    old, new = {c for group in run.groups[: run.step] for c in group}, set(run.new_classes)

    def wealth(number: int) -> tuple[bool, bool, int]:
        found = set(index.classes["train"][number])
        return bool(old & found), bool(new & found), len((old | new) & found)

    return sorted(run.images(index) if among is None else among, key=wealth, reverse=True)[:count]
