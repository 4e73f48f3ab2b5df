"""Which runs there are to look into, and the steps of one, seen through the same images."""

import atexit
import gc
from functools import cached_property, lru_cache

import numpy as np

from ciss.config import Config, ConfigError, load
from ciss.data.loaders import picture
from ciss.inspection.step import Step
from ciss.inspection.trained import telling_images
from ciss.runs import check as runs_check
from ciss.runs import run as runs_run
from ciss.runs.check import check
from ciss.runs.run import index_folder, predecessor, resolve
from ciss.training import loop

IMAGES = 32
SMALL = 2000  # training images: steps of so few are opened at once, so that nobody waits for them later
PIPELINE = "params.yaml"


class Explorer:
    """The runs that can be opened: the one that is asked for first, then those that are trained, of its file and of
    `params.yaml`.

    `run`: a name of the file; if empty, the last increment of GSC, else the last increment, else the first base. With
    `complete: true` in the file it is trained if it is missing. Raises ConfigError for a file or name that is wrong.
    """

    def __init__(self, config: str, run: str = ""):
        settings = load(config)
        check(settings)
        self.first = run or _telling_run(settings)
        runs_run.resolve(settings, self.first)
        loop.complete(settings, [self.first])
        self.runs = {self.first: settings}
        for each in (_readable(PIPELINE), settings):
            for name in each.runs() if each else ():
                if name not in self.runs and _trained(each, name):
                    self.runs[name] = each
        self.open = lru_cache(maxsize=2)(self._open)

    def names(self) -> list[str]:
        return list(self.runs)

    def _open(self, run: str) -> "Line":
        line = Line(self.runs[run], run)
        gc.freeze()  # or Python walks through all of torch, for half a second, every few figures
        atexit.register(gc.unfreeze)  # what is frozen at the end is reported as a leak
        return line


class Line:
    """A run and those it continues, a run a step, all seen through the same images: of the hold-out, which no step has
    trained on, or, without one, of the run's last step; those with most old and new classes first.

    Steps are opened when they are asked for, those of a small data set at once. Raises CheckpointError then, for a run
    that is missing.
    """

    def __init__(self, settings: Config, run: str, images: int = IMAGES):
        names = [run]
        while names[0] in settings.chain:
            names.insert(0, settings.chain[names[0]].after)
        self.runs = [runs_run.resolve(settings, name) for name in names]
        last, index = self.runs[-1], self.runs[-1].index()
        self.numbers = telling_images(last, images, index.holdout or None)
        self.held_out = bool(index.holdout)
        self.classes = last.classes
        self.ids = [index.ids["train"][number] for number in self.numbers]
        self.index = index
        self._steps: dict[int, Step] = {}
        if len(index.ids["train"]) <= SMALL:
            for step in self.steps():
                self.at(step)

    @cached_property
    def pictures(self) -> list[np.ndarray]:
        """Images (H,W,3) uint8."""
        last = self.runs[-1]
        table = last.label_table(training=False)
        return [picture(last.settings, self.index, "train", number, table)[0] for number in self.numbers]

    def steps(self) -> list[int]:
        """The last one first."""
        return list(range(len(self.runs)))[::-1]

    def images(self) -> list[tuple[str, int]]:
        """Ids and places of the images."""
        return [(f"{place}: {name}", place) for place, name in enumerate(self.ids)]

    def at(self, step: int) -> Step:
        if step not in self._steps:
            self._steps[step] = Step(self.runs[step], self.numbers)
        return self._steps[step]

    def known(self, step: int) -> list[tuple[str, int]]:
        """Names and positions of the classes that the network knows after a step: its new ones, old ones, and the
        background."""
        channels, old = self.at(step).channels, self.at(step).old
        return [(self.classes.names[position], position) for position in [*range(old, channels), *range(1, old), 0]]

    def prototypes(self, layer: str, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of steps 0..last: means (S,T,D) of the features of each true class, counts (S,T), spreads (S,T)."""
        found = [self.at(step).prototypes(layer) for step in range(last + 1)]
        return tuple(np.stack(parts) for parts in zip(*found, strict=True))


def _telling_run(settings: Config) -> str:
    own = [name for name in settings.chain if runs_run.resolve(settings, name).code == "gsc"]
    return [*settings.runs(), *settings.chain, *own][-1] if settings.chain else next(iter(settings.runs()))


def _readable(config: str) -> Config | None:
    """None for a file that is missing or wrong: the pipeline says why, and other runs can be looked at."""
    try:
        settings = load(config)
        runs_check.check(settings)
    except (ConfigError, OSError):
        return None
    return settings


def _trained(settings: Config, name: str) -> bool:
    run = resolve(settings, name)
    files = [
        run.folder / "weights.safetensors",
        predecessor(run),
        index_folder(run.root, run.benchmark) / "index.json",
    ]
    return all(file is None or file.is_file() for file in files)
