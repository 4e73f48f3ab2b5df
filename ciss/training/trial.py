"""A trial of a run: two updates, then everything that a training does at its end, in a folder of its own."""

from dataclasses import replace
from pathlib import Path

from ciss.data import Index
from ciss.runs.run import Run

UPDATES = 2


def trial_run(run: Run, folder: Path) -> Run:
    """The run with one epoch and one process, under another folder, into which its predecessors are linked."""
    train = replace(
        run.settings.train,
        processes=1,
        base=replace(run.settings.train.base, epochs=1),
        increment=replace(run.settings.train.increment, epochs=1),
    )
    before = run.before and _moved(run.before, folder)
    return replace(run, settings=replace(run.settings, train=train), root=folder, before=before)


def _moved(run: Run, folder: Path) -> Run:
    moved = replace(run, root=folder, before=run.before and _moved(run.before, folder))
    for source, link in ((run.folder, moved.folder), (run.results, moved.results)):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source.absolute(), target_is_directory=True)
    return moved


def trial_index(run: Run, index: Index) -> Index:
    """The index with the training images of `UPDATES` updates a step, and one batch to score of every list."""
    train = run.settings.train
    images = UPDATES * train.batch * train.accumulate
    scored = run.settings.evaluation.batch
    return replace(
        index,
        steps=[step[:images] for step in index.steps],
        joint=index.joint[:images],
        holdout=index.holdout[:scored],
        validation=[step[:scored] for step in index.validation],
    )
