"""The state of one training, saved after every epoch. Results are written from it."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor


@dataclass
class TrainingState:
    """What a training has recorded. T classes of the benchmark, K of the teacher, C of the student, N new ones.

    `training.loop` changes it, `store.weights.save_state` saves its fields, `results.write` writes results from them.
    """

    epoch: int = 0  # finished epochs
    # one row per epoch: `epoch`, `updates` so far, `lr` of the last update, and means over the batches of the epoch:
    # `loss`, `loss/NAME` of each term, and the names in `Batch.logs`
    log: list[dict] = field(default_factory=list)
    trace: list[dict] = field(default_factory=list)  # columns and values of every batch, one entry per epoch
    curve: list[tuple[float, Tensor]] = field(default_factory=list)  # epochs, (T,T) confusion matrix of the hold-out
    cosines: list[tuple[float, Tensor]] = field(default_factory=list)  # epochs, (N,C) of `evaluation.token_cosines`
    label_counts: dict[str, np.ndarray] = field(default_factory=dict)  # (T,K+1) each, of `evaluation.judge_labels`
    stored: list[dict] = field(default_factory=list)  # stored images: `id`, and `classes` as positions
    preparation_seconds: float = 0.0  # of the choice of stored images, `start` and `before_step`
    training_seconds: float = 0.0  # of this preparation and all epochs, without scoring
    peak_memory_bytes: int | None = None  # of the epochs, without scoring; None: not measured on this system

    # --- known after the last epoch
    draws: list[int] = field(default_factory=list)  # images that the training has drawn: stored ones, and all
    confusion: Tensor | None = None  # (T,T) on the validation images
    samples: dict[str, np.ndarray] = field(default_factory=dict)  # predictions (H,W) uint8 by image id
    wall_seconds: float = 0.0  # of the process that finished the training
    processor_seconds: float = 0.0  # of the same process
    other_cores: float | None = None  # cores that other programs used on average; None: not known on this system
    idle_machine: bool | None = None  # whether those were few
    precision: str = "float32"
