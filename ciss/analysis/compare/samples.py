"""Validation images and the predictions of each method, to be drawn."""

from dataclasses import dataclass

import numpy as np

from ciss.analysis.figures.masks import all_painted, painted
from ciss.data.loaders import picture
from ciss.protocol import VOID, Classes
from ciss.runs.run import Run

COLUMNS = 8  # that a page has room for
OVERVIEW = ("finetune", "mbs", "joint")  # the methods of `Pictures.overview`


@dataclass(frozen=True)
class Pictures:
    """Validation images and the predictions of one seed of each method.

    classes: those of the last step.
    results: by the method's title, of the runs that lead to its end.
    images: by id, (H,W,3) uint8 and labels as positions (H,W) uint8, in the size in which they are scored.
    """

    classes: Classes
    results: dict[str, list[dict]]
    images: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def last_step(self) -> int:
        return max(result["reached"] for path in self.results.values() for result in path)

    @property
    def steps(self) -> list[int]:
        """The steps that are shown."""
        return shown_steps(self.last_step)

    def after_last(self) -> list[tuple[str, list[np.ndarray]]]:
        """Rows for `strips`: all images, their ground truth, and the predictions of each method after the last step.
        Wrong pixels have an outline."""
        images, truths = ([pair[k] for pair in self.images.values()] for k in (0, 1))
        rows = [("image", images), ("ground truth", all_painted(truths, self.classes, images))]
        for method, path in self.results.items():
            predictions = [path[-1]["samples"][name] for name in self.images]
            rows.append((method, all_painted(predictions, self.classes, images, truths)))
        return rows

    def overview(self, setting: str, count: int = 2) -> list[tuple[str, list[np.ndarray]]]:
        """Columns for `titled_columns`: the images with classes of the most steps, the labels that the last step of a
        setting gives them, their ground truth, and the predictions of the methods OVERVIEW. Wrong pixels have an
        outline."""
        names = most_steps({name: labels for name, (_, labels) in self.images.items()}, self.classes, count)
        images, truths = ([self.images[name][k] for name in names] for k in (0, 1))
        table = np.arange(256, dtype=np.uint8)  # true position -> label that the step gives
        raw_table = self.classes.label_table(self.last_step, setting, training=True)
        table[: len(self.classes)] = raw_table[self.classes.raw]
        given = [table[truth] for truth in truths]
        columns = [("image", images)]
        for title, masks in ((f"labels of step {self.last_step}", given), ("ground truth", truths)):
            columns.append((title, all_painted(masks, self.classes, images)))
        for method, path in self.results.items():
            if method.partition(" ")[0] in OVERVIEW:
                predictions = [path[-1]["samples"][name] for name in names]
                columns.append((method, all_painted(predictions, self.classes, images, truths)))
        return columns

    def after_steps(self) -> list[dict]:
        """Blocks for `step_strips`: the images with classes of the most steps; two if there is room. Wrong pixels have
        an outline."""
        count = 1 if len(self.steps) > COLUMNS // 2 else 2
        blocks = []
        for image in most_steps({name: labels for name, (_, labels) in self.images.items()}, self.classes, count):
            photograph, labels = self.images[image]
            truths = {step: mask_future(labels, self.classes, step) for step in range(self.last_step + 1)}
            rows = {"ground truth": {s: painted(truths[s], self.classes, photograph) for s in self.steps}}
            for method, path in self.results.items():
                # Joint training knows all classes: its prediction is in the column of the last step.
                steps = (self.last_step if result["joint"] else result["reached"] for result in path)
                rows[method] = {
                    step: painted(result["samples"][image], self.classes, photograph, truths[step])
                    for step, result in zip(steps, path, strict=True)
                }
            blocks.append({"image": photograph, "rows": rows})
        return blocks


def sample_pictures(run: Run, ends: dict[str, list[dict]]) -> Pictures:
    """The images whose predictions the runs of a benchmark keep, and the first seed of each method. `run`: one that
    knows all classes."""
    results: dict[str, list[dict]] = {}
    for path in ends.values():
        results.setdefault(path[-1]["title"], path)
    shown = next(iter(results.values()))[-1]["samples"]
    if not shown:  # of a study's parts; they have no data either
        return Pictures(classes=run.classes, results=results, images={})
    index, table = run.index(), run.label_table(training=False)
    numbers = {image: index.ids["val"].index(image) for image in shown}
    images = {image: picture(run.settings, index, "val", number, table) for image, number in numbers.items()}
    return Pictures(classes=run.classes, results=results, images=images)


def most_steps(labels: dict[str, np.ndarray], classes: Classes, count: int) -> list[str]:
    """Ids of the `count` images with classes of the most steps. Of equal ones, those with the most pixels of the step
    that has the fewest. `labels`: positions (H,W) by id."""

    def key(image: str) -> tuple[int, int]:
        pixels = np.bincount(labels[image].ravel(), minlength=256)[1 : len(classes)]
        steps = np.bincount(classes.steps[1:], weights=pixels)
        return int((steps > 0).sum()), int(steps[steps > 0].min(initial=labels[image].size))

    return sorted(labels, key=key, reverse=True)[:count]


def mask_future(labels: np.ndarray, classes: Classes, step: int) -> np.ndarray:
    """Labels (H,W) as they are scored after a step: future classes are void."""
    return np.where(labels < classes.known(step), labels, VOID).astype(np.uint8)


def shown_steps(last: int, most: int = COLUMNS) -> list[int]:
    """Steps 0 to `last`; at most `most` of them, evenly spaced, with the first and the last."""
    return sorted({round(float(step)) for step in np.linspace(0, last, min(most, last + 1))})
