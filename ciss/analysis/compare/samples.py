"""Which pictures to show, and what of them: the same images after every step."""

from dataclasses import dataclass

import numpy as np

from ciss.analysis.figures.masks import colour
from ciss.data.loaders import picture
from ciss.protocol import VOID, Classes
from ciss.runs.run import Run

COLUMNS = 8  # that a page has room for


@dataclass(frozen=True)
class Pictures:
    """Validation images and what one run of each method says of them. `paths`: the results of the runs that lead to
    its end, by the method's title; `images` by id: (H,W,3) uint8 with labels, positions (H,W) uint8, sized as scored.
    """

    classes: Classes
    paths: dict[str, list[dict]]
    images: dict[str, tuple[np.ndarray, np.ndarray]]

    @property
    def last(self) -> int:
        """The number of the last step."""
        return max(result["reached"] for path in self.paths.values() for result in path)

    @property
    def steps(self) -> list[int]:
        """Those that are shown."""
        return shown_steps(self.last)

    def after_last(self) -> list[tuple[str, list[np.ndarray]]]:
        """Rows for `viz.strips`: all images, their truth, and what each method says after the last step."""
        rows = [("image", [image for image, _ in self.images.values()])]
        rows.append(("truth", [colour(labels, self.classes.colours) for _, labels in self.images.values()]))
        for method, path in self.paths.items():
            samples = path[-1]["samples"]
            rows.append((method, [colour(samples[image], self.classes.colours) for image in self.images]))
        return rows

    def after_steps(self) -> list[dict]:
        """Blocks for `viz.step_strips`: the most telling images, as many as there is room for, at most two."""
        count = min(2, max(1, COLUMNS // len(self.steps)))
        blocks = []
        for image in telling({name: labels for name, (_, labels) in self.images.items()}, self.classes, count):
            photograph, labels = self.images[image]
            rows = {"truth": {step: known(labels, self.classes, step) for step in self.steps}}
            rows |= {method: predictions(path, image, self.last) for method, path in self.paths.items()}
            coloured = {
                name: {step: colour(mask, self.classes.colours) for step, mask in row.items()}
                for name, row in rows.items()
            }
            blocks.append({"image": photograph, "rows": coloured})
        return blocks


def sample_pictures(job: Run, ends: dict[str, list[dict]]) -> Pictures:
    """The images whose predictions the runs of a benchmark keep, with the first seed's path of each method. `job`: a
    run that knows all classes."""
    paths: dict[str, list[dict]] = {}
    for path in ends.values():
        paths.setdefault(path[-1]["title"], path)
    index, table = job.index(), job.label_table(training=False)
    shown = {image: index.ids["val"].index(image) for image in next(iter(paths.values()))[-1]["samples"]}
    images = {image: picture(job.settings, index, "val", number, table) for image, number in shown.items()}
    return Pictures(classes=job.classes, paths=paths, images=images)


def telling(labels: dict[str, np.ndarray], classes: Classes, count: int) -> list[str]:
    """Ids of the `count` images that show most: classes of the most steps, then the most pixels of the step that has
    the fewest; equal ones in the order given. `labels`: positions (H,W) by id."""

    def shown(image: str) -> tuple[int, int]:
        pixels = np.bincount(labels[image].ravel(), minlength=256)[1 : len(classes)]
        steps = np.bincount(classes.steps[1:], weights=pixels)
        return int((steps > 0).sum()), int(steps[steps > 0].min(initial=labels[image].size))

    return sorted(labels, key=shown, reverse=True)[:count]


def known(labels: np.ndarray, classes: Classes, step: int) -> np.ndarray:
    """Labels (H,W) as they are scored after a step: classes that come later are void."""
    return np.where(labels < classes.known(step), labels, VOID).astype(np.uint8)


def shown_steps(last: int, most: int = COLUMNS) -> list[int]:
    """Steps 0 to `last`; of more than `most`, that many, evenly from the first to the last."""
    return sorted({round(float(step)) for step in np.linspace(0, last, min(most, last + 1))})


def predictions(results: list[dict], image: str, last: int) -> dict[int, np.ndarray]:
    """What the runs of a path say of an image, (H,W) by step; joint training, which knows all, after the last one."""
    return {last if r["joint"] else r["reached"]: r["samples"][image] for r in results}
