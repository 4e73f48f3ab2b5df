"""A finished run, opened again: its networks, its method, and images with the labels of its step."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ciss import distributed
from ciss.data.loaders import evaluation_loader
from ciss.methods import Batch, Method
from ciss.models import Network, Output
from ciss.runs.run import Run, load_network, starting_network
from ciss.training.batches import BatchMaker, prepare_method
from ciss.training.evaluation import autocast, precision_of


class OpenedRun:
    """A finished run in memory: the trained network (`student`), the one it continues (`teacher`; None for a base or
    joint run) and its method. Networks are frozen and in evaluation mode.

    Raises CheckpointError for a run or predecessor that is missing or was made with other parameters, DataError for
    data that are not prepared.
    """

    def __init__(self, run: Run):
        self.run = run
        self.index = run.index()
        self.device = distributed.device()
        self.precision = precision_of(run.settings.train, self.device)
        self.method = run.build_method()
        self.teacher = load_network(run.before, self.device, reader=run) if run.after else None
        self.student = load_network(run, self.device)
        self.maker = BatchMaker(run, self.index, self.device)
        self._prepared = False

    def autocast(self) -> torch.autocast:
        """The precision of the training."""
        return autocast(self.device, self.precision)

    def given(self, numbers: list[int], split: str = "train") -> Iterator[tuple[Batch, Tensor]]:
        """Images with the labels that the step is given, in batches of `evaluation.batch` images of one size.

        Args: numbers, split: of the index. Returns: batches, each with its true labels (B,H,W).
        """
        truth = self.run.label_table(training=False)
        for item in evaluation_loader(self.run.settings, self.index, split, numbers, truth):
            yield self.maker.as_given(item, split)

    @torch.no_grad()
    def learnt(self, numbers: list[int], split: str = "train") -> Iterator[tuple[Batch, Tensor, Output | None]]:
        """Images with the labels that the method learns.

        Args: numbers, split: of the index. Returns: batches, each with its true labels (B,H,W) and the teacher's
        output.
        """
        if self.teacher is not None and not self._prepared:
            self.prepare(self.method)
            self._prepared = True
        for batch, truth in self.given(numbers, split):
            with self.autocast():
                output = self.teacher(batch.images) if self.teacher is not None else None
                if output is not None:
                    batch.labels = self.method.labels(batch, output)
            yield batch, truth, output

    @torch.no_grad()
    def prepare(self, method: Method) -> None:
        """Collects what a method needs at the start of this step, such as prototypes and thresholds.

        `Method.start` writes into another network, that of the start of the step.
        """
        student = self.started if type(method).start is not Method.start else None
        with self.autocast():
            prepare_method(method, self.run, self.index, self.teacher, self.maker, student=student)

    @cached_property
    def started(self) -> Network:
        """The network at the start of the step, with channels for its new classes, before `Method.start`."""
        with torch.random.fork_rng(devices=[]):
            network = starting_network(self.run, self.run.build_method())
        return network.to(self.device).eval()


@dataclass
class Explanation:
    """Lists with an array for each image. Labels (H,W): positions, 255 ignored. Maps (.,.): float32, any resolution."""

    given: list[np.ndarray] = field(default_factory=list)  # given labels of the step
    labels: list[np.ndarray] = field(default_factory=list)  # labels that the method learns
    truth: list[np.ndarray] = field(default_factory=list)
    maps: dict[str, list[np.ndarray]] = field(default_factory=dict)
    tokens: np.ndarray | None = None  # (C,D) class tokens, or classifier rows, of the trained network


@torch.no_grad()
def explain(run: Run, numbers: list[int]) -> Explanation:
    """Labels and maps of a finished increment's method on training images (`numbers` of the index).

    Raises CheckpointError for a missing run or predecessor, ValueError for a run that continues none.
    """
    if run.after is None:
        raise ValueError(f"{run.name} continues no run: there is no teacher to explain. Name an increment.")
    opened = OpenedRun(run)
    explanation = Explanation()
    for number in numbers:  # one at a time: their sizes may differ
        for batch, truth, teacher in opened.learnt([number]):
            with opened.autocast():
                student = opened.student(batch.images)
                maps = opened.method.maps(student, teacher, batch)
            explanation.tokens = student.class_tokens.float().cpu().numpy()
            explanation.given.append(_labels(batch.given))
            explanation.labels.append(_labels(batch.labels))
            explanation.truth.append(_labels(truth))
            for name, values in maps.items():
                explanation.maps.setdefault(name, []).append(values[0].float().cpu().numpy())
    return explanation


def _labels(labels: Tensor) -> np.ndarray:
    """Labels (H,W) uint8 of the only image of a batch."""
    return labels[0].cpu().numpy().astype(np.uint8)


def images_with_most_classes(run: Run, count: int, numbers: list[int] | None = None) -> list[int]:
    """The `count` training images with most old and new classes of the step.

    Images with both kinds come first. `numbers`: images to choose from; None: those of the step.
    """
    index = run.index()
    positions = (run.classes.old(run.step), run.classes.new(run.step))
    old, new = (set(run.classes.raw[part].tolist()) for part in positions)

    def class_counts(number: int) -> tuple[bool, bool, int]:
        present = set(index.classes["train"][number])
        return bool(old & present), bool(new & present), len((old | new) & present)

    return sorted(run.images(index) if numbers is None else numbers, key=class_counts, reverse=True)[:count]
