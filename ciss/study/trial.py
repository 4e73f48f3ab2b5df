"""`ciss train RUN --try`: two updates, every score and every figure of the run's notebook, in a temporary folder."""

import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ciss import config, metrics
from ciss.analysis.figures import masks, training
from ciss.data import Index
from ciss.data.loaders import picture
from ciss.inspection.trained import explain, images_with_most_classes
from ciss.runs import results
from ciss.runs.check import check
from ciss.runs.run import Run, index_folder, resolve
from ciss.store.files import CheckpointError
from ciss.training.checks import explained_memory_errors
from ciss.training.loop import RUN_ERRORS, run_training, training_identity

UPDATES = 2
SAMPLES = 3  # training images in a figure


def main(name: str, config_file: str) -> None:
    """Tries one run of a parameter file. Exits with a message after an error."""
    try:
        settings = config.load(config_file)
        check(settings)
        print(attempt(resolve(settings, name)))
    except RUN_ERRORS as error:
        raise SystemExit(f"error: {error}") from None


def attempt(run: Run) -> str:
    """Trains for two updates in one process, reads the results and draws the figures. Keeps nothing.

    Returns: one sentence for the user. Raises as `training.loop.train`.
    """
    index = shortened_index(run, run.index())
    with tempfile.TemporaryDirectory() as folder:
        trial = shortened_run(run, Path(folder))
        index.save(index_folder(trial.root, trial.benchmark))
        try:
            with explained_memory_errors(run):
                run_training(trial, index, training_identity(trial, index))
        except CheckpointError as error:  # of the predecessor, by its link
            raise CheckpointError(str(error).replace(str(trial.root), str(run.root))) from None
        figures = draw_figures(trial, index)
        for number, figure in enumerate(figures):
            figure.savefig(Path(folder) / f"{number}.png")
            plt.close(figure)
        score = results.read(trial)["scores"]["all"]
    return (
        f"{run.name}: the trial ended well. Its files were written and read (mIoU {100 * score:.1f} %), and "
        f"{len(figures)} figures were drawn. Nothing is kept."
    )


def shortened_run(run: Run, folder: Path) -> Run:
    """The run with one epoch and one process under another folder, with links to its predecessors there."""
    train = replace(
        run.settings.train,
        processes=1,
        base=replace(run.settings.train.base, epochs=1),
        increment=replace(run.settings.train.increment, epochs=1),
    )
    before = run.before and _linked(run.before, folder)
    return replace(run, settings=replace(run.settings, train=train), root=folder, before=before)


def _linked(run: Run, folder: Path) -> Run:
    moved = replace(run, root=folder, before=run.before and _linked(run.before, folder))
    for source, link in ((run.folder, moved.folder), (run.results, moved.results)):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source.absolute(), target_is_directory=True)
    return moved


def shortened_index(run: Run, index: Index) -> Index:
    """The index with training images for `UPDATES` updates of each step, and with one batch of every list to score."""
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


def draw_figures(run: Run, index: Index) -> list[Figure]:
    """The figures of a finished run, as in notebooks `2_base` and `3_increment`.

    Raises CheckpointError for missing results of the run or of its predecessor.
    """
    result = results.read(run)
    before = results.read(run.before) if run.before else None
    names = run.classes.names
    known = sum(run.channel_groups)

    scores, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    training.log_table(result["log"])
    training.loss_curve(left, result["log"])
    old = metrics.class_iou(metrics.seen(before["confusion"], run.old_channels)) if before else None
    ious = metrics.class_iou(metrics.seen(result["confusion"], known))
    training.iou_bars(right, ious, names[:known], before=old)

    table = run.label_table(training=False)
    pairs = [picture(run.settings, index, "val", index.ids["val"].index(i), table) for i in result["samples"]]
    images, truths = zip(*pairs, strict=True)
    rows = [("image", list(images)), ("ground truth", masks.all_painted(truths, run.classes, images))]
    predictions = {"before": before["samples"]} if before else {}
    for name, samples in {**predictions, "prediction": result["samples"]}.items():
        rows.append((name, masks.all_painted(samples.values(), run.classes, images, truths)))
    samples = masks.strips(rows)
    masks.class_legend(samples, run.classes, errors=True)
    return [scores, samples, *_explained(run, index, result["trace"])]


def _explained(run: Run, index: Index, trace: dict) -> list[Figure]:
    """Training images as the step sees them; of an increment also the method's maps, its logs and its class tokens."""
    images = images_with_most_classes(run, SAMPLES) if run.after else run.images(index)[:SAMPLES]
    given = [picture(run.settings, index, "train", i, run.label_table(training=True)) for i in images]
    pictures, labels = ([pair[k] for pair in given] for k in (0, 1))
    rows = [("image", pictures), ("labels", masks.all_painted(labels, run.classes, pictures))]
    if not run.after:
        return [masks.strips(rows)]
    explained = explain(run, images)
    for name, positions in (("learnt", explained.labels), ("ground truth", explained.truth)):
        rows.append((name, masks.all_painted(positions, run.classes, pictures)))
    known = sum(run.channel_groups)
    angles, ax = plt.subplots()
    training.token_angles(ax, explained.tokens, run.classes.names[:known], known - run.old_channels or known)
    return [masks.strips([*rows, *explained.maps.items()]), training.trace_panels(trace), angles]
