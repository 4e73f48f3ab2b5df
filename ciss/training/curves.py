"""What a training shows while it runs: progress, the curve file of `ciss.runs.live`, and TensorBoard's files.

`Curves` is called after each epoch. It is outside of the training clock, changes no weight and draws no random number.
With a hold-out set its scores are those that the training computes. Without one, 16 fixed training images are compared
with the labels that the step gives them. Validation images are never read.
"""

import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from ciss import distributed, metrics
from ciss.data import Index
from ciss.data.loaders import Loader, evaluation_loader
from ciss.models import Network
from ciss.runs import live
from ciss.runs.live import AGREEMENT, HOLDOUT
from ciss.runs.run import Run
from ciss.runs.state import TrainingState
from ciss.store.files import CheckpointError
from ciss.training.board import Board, wanted
from ciss.training.evaluation import evaluate
from ciss.training.progress import Progress

AFFECTS_RESULTS = False  # changes here do not outdate results, see store/code
IMAGES = 16  # training images that are compared with their given labels
PICTURES = 4  # of them, shown in TensorBoard
PICTURE_TIMES = 10  # how often these are shown in a training, at most
SHARE = 0.05  # of the training time that scoring may take


class Pace:
    """Chooses in which epochs some images are scored or drawn, so that this takes at most `SHARE` of the training time.

    Args:
        share: number of these images as a share of the images of an epoch. The first estimate of their cost is this
            share of half the seconds of an epoch, because there is no backward pass.
        least: smallest number of epochs between two times.
    """

    def __init__(self, share: float, least: int = 1):
        self.share, self.least = share, least
        self.last = 0  # epoch of the last time
        self.cost: float | None = None  # seconds of the last time

    def every(self, seconds: float) -> int:
        """Epochs from one time to the next. `seconds`: of an epoch of training."""
        cost = 0.5 * self.share * seconds if self.cost is None else self.cost
        return max(self.least, math.ceil(cost / (SHARE * seconds) - 1e-9)) if seconds > 0 else self.least

    def due(self, epoch: int, seconds: float) -> bool:
        return epoch >= self.last + self.every(seconds)

    @contextmanager
    def measured(self, epoch: int) -> Iterator[None]:
        """Measures the seconds of the block as the cost. On a GPU, the block must end with a copy to the host."""
        started = time.perf_counter()
        yield
        self.last, self.cost = epoch, time.perf_counter() - started


class Curves:
    """Shows and records one training. All processes of the training create one and call it together.

    Args:
        student: the network, neither compiled nor distributed.
        updates: in one epoch.
        state: of the training; it has the epochs that an earlier process finished.
    """

    def __init__(self, run: Run, index: Index, student: Network, updates: int, state: TrainingState):
        self.run, self.student = run, student
        self.main = distributed.is_main()
        self.place = live.folder(run.root, run.benchmark, run.name)
        self.progress = Progress(run.name, run.epochs, updates, state.epoch, enabled=self.main)
        images = run.images(index)
        fixed = fixed_images(images, IMAGES)
        self.given = None if index.holdout else _loader(run, index, fixed)
        self.pace = Pace(len(fixed) / len(images))
        self.picture_pace = Pace(min(PICTURES, len(fixed)) / len(images), math.ceil(run.epochs / PICTURE_TIMES))
        self.about = {
            "run": run.name,
            "benchmark": run.benchmark,
            "method": run.title,
            "step": run.step,
            "last_step": max(len(run.classes.groups), len(index.steps)) - 1,
            "joint": run.joint,
            "epochs": run.epochs,
            "updates": updates,
            "images": len(images),
            "score": HOLDOUT if index.holdout else AGREEMENT,
            "scored_images": len(index.holdout or fixed),
            "device": distributed.device().type,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
        }
        self.board = None
        if distributed.broadcast_result(wanted):
            pictures = fixed_images(fixed, PICTURES)
            self.board = Board(self.place, run, _loader(run, index, pictures), pictures, state.epoch, self.main)
        self.last = time.perf_counter()
        self.writes = self.main
        if self.main:
            rows = self._earlier_rows(state)
            with self._unless_unwritable():
                live.begin(self.place, self.about, rows)

    def __enter__(self) -> "Curves":
        self.progress.start(self.about)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        self.progress.close()
        if self.board:
            self.board.close()
        if error is not None:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            message = "stopped by the user" if stopped else str(error) or kind.__name__
            self._add({"message": message, "time": time.time()})

    def update(self) -> None:
        """Shows one more update."""
        self.progress.update()

    def epoch(self, state: TrainingState, seconds: float) -> None:
        """Scores if it is time, shows and records the epoch that the state ends with.

        Args:
            seconds: of the epoch, without scoring.
        """
        row = {**state.log[-1], **self._score(state, seconds), **memory(state)}
        if self.board:
            self._fill_board(row, seconds)
        now = time.perf_counter()
        # `wall_seconds` has what `seconds` leaves out: scoring and saving
        row |= {"seconds": round(seconds, 3), "wall_seconds": round(now - self.last, 3), "time": time.time()}
        self.last = now
        self._add(row)
        curve = live.read(self.place) if self.main and self.progress.draws else None
        self.progress.epoch(row, seconds, row.get("score") or {}, curve)

    def finish(self, state: TrainingState) -> None:
        """Shows and records the scores of the finished run, on one line."""
        if not self.main:
            return
        convention = metrics.conventions(self.run.classes.background)["ciss"]
        scores = metrics.scores(state.confusion, self.run.classes.sizes, self.run.last_known_step, convention)
        scores = _plain(scores)
        self.progress.close()
        distributed.print_line(f"{self.run.name}  {live.sentence(scores)}")
        self._add({"scores": scores, "wall_seconds": round(state.wall_seconds, 3), "time": time.time()})

    def _score(self, state: TrainingState, seconds: float) -> dict:
        """The new score, and every how many epochs there is one."""
        if self.given is None:
            scored = bool(state.curve) and state.curve[-1][0] == state.epoch
            score = self._holdout_score(state.curve[-1][1]) if scored else None
            return {"score": score, "score_every": self.run.settings.train.curve_every}
        row = {"score": None, "score_every": self.pace.every(seconds)}
        # the clock of one process decides for all
        if distributed.broadcast_result(lambda: self.pace.due(state.epoch, seconds)):
            with self.pace.measured(state.epoch):
                confusion = evaluate(self.run, self.student, self.given)
            # Old and future classes are labelled background, so only classes with given labels count.
            agreement = metrics.mean_iou(confusion, background=False, over="truth")
            row |= {"score": _plain({"agreement": agreement}), "score_seconds": round(self.pace.cost, 4)}
        return row

    def _holdout_score(self, confusion: torch.Tensor) -> dict:
        classes = self.run.classes
        convention = metrics.conventions(classes.background)["ciss"]
        return _plain(metrics.scores(confusion, classes.sizes, self.run.last_known_step, convention))

    def _fill_board(self, row: dict, seconds: float) -> None:
        self.board.scalars(row)
        if distributed.broadcast_result(lambda: self.picture_pace.due(row["epoch"], seconds)):
            with self.picture_pace.measured(row["epoch"]):
                self.board.pictures(self.student, row["epoch"])
            row["picture_seconds"] = round(self.picture_pace.cost, 4)

    def _earlier_rows(self, state: TrainingState) -> list[dict]:
        """The rows of the epochs that the state has. Rows of another training, and of lost epochs, are left out."""
        curve = live.read(self.place)
        written = {row["epoch"]: row for row in curve.trained} if curve and state.epoch else {}
        rows = []
        if state.curve and state.curve[0][0] == 0:
            rows.append({"epoch": 0, "score": self._holdout_score(state.curve[0][1])})
        confusions = dict(state.curve)
        for logged in state.log:
            row = written.get(logged["epoch"], {})
            if any(row.get(key) != value for key, value in logged.items()):
                confusion = confusions.get(logged["epoch"])
                row = {**logged, "score": None if confusion is None else self._holdout_score(confusion)}
            if "score_seconds" in row:
                self.pace.last, self.pace.cost = row["epoch"], row["score_seconds"]
            if "picture_seconds" in row:
                self.picture_pace.last, self.picture_pace.cost = row["epoch"], row["picture_seconds"]
            rows.append(row)
        return rows

    def _add(self, row: dict) -> None:
        if self.writes:
            with self._unless_unwritable():
                live.add(self.place, row)

    @contextmanager
    def _unless_unwritable(self) -> Iterator[None]:
        """A full disk ends the curve, not the training."""
        try:
            yield
        except (OSError, CheckpointError) as error:
            self.writes = False
            text = "the curve cannot be written, the training goes on"
            distributed.print_line(f"{self.run.name}: {self.place}: {text}: {error}")


def fixed_images(images: list[int], count: int) -> list[int]:
    """At most `count` of some images, evenly spread: the same in every training of the step."""
    count = min(count, len(images))
    return [images[number * len(images) // count] for number in range(count)]


def memory(state: TrainingState) -> dict:
    """Peak memory of the training so far in bytes; of a GPU also what all its processes use now, and what it has."""
    row = {"peak_memory_bytes": state.peak_memory_bytes}
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            free, total = torch.cuda.mem_get_info(distributed.device())
            row |= {"gpu_used_bytes": total - free, "gpu_bytes": total}
    return row


def _loader(run: Run, index: Index, images: list[int]) -> Loader:
    """Training images with the labels that the step gives, without augmentation, read by this process."""
    settings = replace(run.settings, train=replace(run.settings.train, workers=0))
    return evaluation_loader(settings, index, "train", images, run.label_table(training=True))


def _plain(scores: dict) -> dict:
    """NaN becomes None, because JSON has no NaN."""
    return {name: None if value != value else round(float(value), 6) for name, value in scores.items()}
