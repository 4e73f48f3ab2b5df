"""What a method may do: coefficients, and hooks that see outputs and labels, never the optimiser."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn

from ciss.config import STRICT
from ciss.models import Network, Output

# Coefficients are fields; an unknown one in `params.yaml` is an error. Not frozen: a method may keep state of a step.
coefficients: Callable = checked(kw_only=True, config=STRICT)


@dataclass
class Batch:
    """One mini-batch as a method sees it. Labels are channel positions; 255 is ignored."""

    images: Tensor  # (B,3,H,W), normalised
    given: Tensor  # (B,H,W) int64: the step's labels as the data gives them
    labels: Tensor  # (B,H,W) int64: the same after `Method.labels`
    ids: list[str]
    old_channels: int  # K: the teacher's channels, background included; 0 at step 0
    class_steps: Tensor  # (C,) int64: the step that introduced each channel
    new_classes: Tensor  # 1-D int64: positions of this step's classes

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.labels.shape[-2:])


class Method:
    """The hooks, each with the default of plain training. Order in a step: initialise, before_step, then for every
    batch labels and losses, at the end after_step."""

    sees_all: ClassVar[bool] = False  # joint training: every class at once, with all labels

    def initialise(self, network: Network, classes: int) -> None:
        """Grows the network by this step's classes."""
        network.grow(classes)

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        """The parameters that learn in an incremental step."""
        return network.parameters()

    def before_step(self, batches: Iterable[Batch], teacher: nn.Module) -> None:
        """A pass over the step's data before training, through the frozen teacher."""

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        """Labels (B,H,W) to learn from, once the teacher has seen the images."""
        return batch.given

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """Named scalars; the engine adds them up. `teacher` is None at step 0."""
        raise NotImplementedError(f"{type(self).__name__} defines no losses.")

    def after_step(self, network: Network) -> None:
        """A last change to the trained network."""
