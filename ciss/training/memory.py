"""Chooses the stored images of an increment (`Method.memory`), and hands them to its loader."""

import json
from dataclasses import replace

import torch

from ciss import distributed
from ciss.data import Index
from ciss.data.loaders import Loader, ShuffledBatches, stable_seed, statistics_loader
from ciss.data.stored import FILE, Stored, choose_images
from ciss.labels.scores import labels_above
from ciss.methods import Method
from ciss.models import Network
from ciss.runs.run import Run, load_network, predecessor
from ciss.runs.state import TrainingState
from ciss.store.files import CheckpointError
from ciss.training.batches import BatchMaker


def stored_of(run: Run, index: Index) -> Stored | None:
    """The stored images of a run before they are chosen; None: the run has no memory."""
    if run.memory is None:
        return None
    return Stored(run.memory, run.label_table(training=True, stored=True), len(index.ids["train"]))


def choose_stored(
    method: Method, run: Run, index: Index, teacher: Network | None, batches: BatchMaker, state: TrainingState
) -> None:
    """Sets `state.stored`: candidates are the images that the step before stored, and those that it trained on.

    A stored image keeps its classes. An image of the step before has the classes of its labels in that step. From step
    2 on, it also has those that the teacher predicts in its background with a score of at least `memory.threshold`.
    Random numbers depend on the seed and the step alone, so that every process chooses the same images. Without memory,
    the state stays as it is.
    """
    if run.memory is None:
        return
    seen = {image["id"]: set(image["classes"]) for image in stored_before(run)}
    earlier = replace(run, step=run.step - 1)
    table = earlier.label_table(training=True)
    of_step = {n: {int(table[raw]) for raw in index.classes["train"][n]} - {0, 255} for n in earlier.images(index)}
    for number, shown in of_step.items():
        seen.setdefault(index.ids["train"][number], set()).update(shown)
    if run.step > 1:
        teacher = teacher or load_network(run.before, batches.device, reader=run)
        loader = statistics_loader(run.settings, index, earlier.images(index), table)
        for image, found in distributed.gather_dict(classes_found(method, loader, teacher, batches)).items():
            seen[image].update(found)
    generator = torch.Generator().manual_seed(stable_seed("memory", run.seed, run.step))
    images = list(seen)
    shuffled = [images[i] for i in torch.randperm(len(images), generator=generator)]
    classes = (1 + torch.randperm(run.old_channels - 1, generator=generator)).tolist()
    chosen = choose_images([seen[image] for image in shuffled], classes, run.memory)
    state.stored = [{"id": shuffled[i], "classes": sorted(seen[shuffled[i]])} for i in chosen]
    distributed.log(f"{run.name}: {run.memory.words()}")


def classes_found(method: Method, loader: Loader, teacher: Network, batches: BatchMaker) -> dict[str, set[int]]:
    """Classes that the teacher finds in the background of this process's share of the images, by image id.

    The score of a class is its sigmoid or its softmax (`Method.sigmoids`), by the method's prediction rule.
    """
    found = {}
    for batch in batches.read(loader):
        output = teacher(batch.images)
        scores = output.upsample(batch.size).sigmoid() if method.sigmoids else output.probabilities(batch.size)
        labels = labels_above(batch.given, scores, method.memory.threshold)
        labels = labels.masked_fill(batch.given != 0, 0)
        found |= {image: set(shown.unique().tolist()) - {0} for image, shown in zip(batch.ids, labels, strict=True)}
    return found


def stored_before(run: Run) -> list[dict]:
    """What the step before has stored: nothing in step 0. Raises CheckpointError."""
    if run.step < 2:
        return []
    file = predecessor(run).with_name(FILE)
    try:
        return json.loads(file.read_text(encoding="utf-8"))["stored"]
    except (OSError, ValueError, KeyError, TypeError):
        problem = f"{file}: the list of stored images is missing or damaged"
        raise CheckpointError(f"{problem}. Train it again: ciss train {run.after}") from None


def use_stored(batches: ShuffledBatches, index: Index, state: TrainingState) -> TrainingState:
    """Makes the training draw `state.stored`. Returns the state."""
    if batches.stored is not None:
        numbers = {image: number for number, image in enumerate(index.ids["train"])}
        batches.stored.numbers = [numbers[image["id"]] for image in state.stored]
    return state


def count_draws(batches: ShuffledBatches, epochs: int) -> list[int]:
    """How many stored images, and how many images in all, a training has drawn in its epochs; without memory zeros."""
    draws = [0, 0]
    for epoch in range(epochs if batches.stored else 0):
        drawn = torch.cat(list(batches.of_all_processes(epoch)))
        draws = [draws[0] + int((drawn >= batches.stored.total).sum()), draws[1] + len(drawn)]
    return draws
