"""Stored images: training images of earlier steps that increments draw again, as in SSUL-M and DKD-M.

The store is a list of image ids with the classes that each image was chosen for. It holds no copies of images.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ciss.config import Count, section

FILE = "memory.json"  # beside a run's checkpoint
BREAKS_PROTOCOL = "The protocol allows no old data, and rows with -M use stored images of earlier steps"


@section
class Memory:
    """The coefficient `memory` of every method. Defaults: SSUL-M (Cha et al., NeurIPS 2021). DKD has its own."""

    images: Count  # in the store, whatever the number of steps
    # balanced: class after class takes an image that shows it; random: any images
    selection: Literal["balanced", "random"] = "balanced"
    # half: stored images replace a random half of every batch; append: they are added to the images of the step
    mix: Literal["half", "append"] = "half"
    # labels of stored images: of all classes seen so far, by the full annotation, or of the step's new classes alone
    labels: Literal["seen", "step"] = "seen"
    # least score with which a class that the teacher finds in the background counts as shown
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.7

    @property
    def appended(self) -> int:
        """Images by which they make an epoch longer."""
        return self.images if self.mix == "append" else 0

    def words(self) -> str:
        """What is stored, how often it is drawn, and how it is labelled."""
        drawn = {
            "half": "a random half of every batch is stored images",
            "append": "each is drawn once an epoch, beside the images of the step",
        }
        labelled = {
            "seen": "labelled with all classes seen so far, by the full annotation",
            "step": "labelled with the new classes of the step alone",
        }
        selected = {"balanced": "chosen class by class", "random": "chosen at random"}
        phrases = [selected[self.selection], drawn[self.mix], labelled[self.labels]]
        return f"{self.images} stored images of earlier steps ({'; '.join(phrases)})"


@dataclass
class Stored:
    """Stored images of a training, for its loader. `numbers`: in the index, known after the selection."""

    memory: Memory
    table: Any  # (256,) raw id -> label of stored images
    total: int  # training images in the index
    numbers: list[int] = field(default_factory=list)

    def appended(self, images: Tensor) -> Tensor:
        """The images of an epoch: those of the step, and with `mix: append` the stored ones."""
        if self.memory.mix == "half":
            return images
        return torch.cat([images, torch.tensor(self.numbers, dtype=images.dtype) + self.total])

    def replace_half(self, batches: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Batches of image numbers in which stored images replace a random half, with `mix: half`.

        Stored images are drawn in rounds: every one once, in random order, then again. In round k, a number n becomes
        n + (k + 1) total, so that it has the labels of stored images and another view in every round.
        """
        if self.memory.mix == "append":
            return list(batches)
        numbers, rounds = torch.tensor(self.numbers), []
        needed = sum(len(batch) // 2 for batch in batches)
        while len(rounds) * len(numbers) < needed:
            shuffled = numbers[torch.randperm(len(numbers), generator=generator)]
            rounds.append(shuffled + (len(rounds) + 1) * self.total)
        draws = torch.cat(rounds) if rounds else numbers
        mixed = []
        for batch in batches:
            half, batch = len(batch) // 2, batch.clone()
            places = torch.randperm(len(batch), generator=generator)[:half]
            batch[places], draws = draws[:half], draws[half:]
            mixed.append(batch)
        return mixed


def record(memory: Memory, images: list[dict], draws: list[int]) -> dict:
    """What the record of a run has: a sentence, the switches, and the stored images by id.

    Args:
        images: `id`, and `classes` as positions, of each stored image.
        draws: how many of the images that the training drew were stored ones, and how many it drew in all.
    """
    drawn = {"stored_draws": draws[0], "all_draws": draws[1]}
    return {"note": f"{BREAKS_PROTOCOL}: {memory.words()}.", **asdict(memory), **drawn, "stored": images}


def choose_images(candidates: Sequence[Collection[int]], order: Sequence[int], memory: Memory) -> list[int]:
    """Positions of the candidates that are stored, in the order in which they are taken.

    With `selection: balanced`, each class in turn takes the first candidate left that shows it, until enough are taken
    or a round takes none. An image serves one class. Source: the published code of SSUL and DKD, whose loop does not
    end when the candidates run out.

    Args:
        candidates: the classes that each image shows, in shuffled order.
        order: the old classes, shuffled.
    """
    if memory.selection == "random":
        return list(range(min(memory.images, len(candidates))))
    waiting = {wanted: [i for i, shown in enumerate(candidates) if wanted in shown][::-1] for wanted in order}
    taken: dict[int, None] = {}
    while len(taken) < memory.images:
        before = len(taken)
        for wanted in order:
            while waiting[wanted] and waiting[wanted][-1] in taken:
                waiting[wanted].pop()
            if waiting[wanted] and len(taken) < memory.images:
                taken[waiting[wanted].pop()] = None
        if len(taken) == before:
            break
    return list(taken)
