"""The runs that can be opened, and the steps of one run on the same images."""

import atexit
import gc
from functools import cached_property, lru_cache

import numpy as np

from ciss.config import Config, ConfigError, load
from ciss.data.loaders import picture
from ciss.inspection.step import Step
from ciss.inspection.trained import images_with_most_classes
from ciss.runs.check import check
from ciss.runs.run import index_folder, predecessor, resolve
from ciss.training import loop
from ciss.training.progress import runs_by_hand

IMAGES = 32
SMALL = 2000  # training images; all steps of a smaller data set are opened at once
PIPELINE = "params.yaml"


class Explorer:
    """The runs that can be opened: the one that is shown first, then the other trained runs.

    A person who runs the notebook sees the trained runs of `params.yaml`, and then those of its file. An execution
    without a person sees those of its file alone, so that its result does not depend on other runs.

    Args: config: the parameter file; run: a name in it that is shown first; if empty, the last increment of GSC, else
    the last increment, else the first base step. With `complete: true` in the file, a missing run is trained. Raises
    ConfigError for a wrong file or name.
    """

    def __init__(self, config: str, run: str = ""):
        settings = load(config)
        check(settings)
        pipeline = _pipeline() if runs_by_hand() else None
        candidates = [] if run or pipeline is None else _trained_runs(pipeline)
        file = pipeline if candidates else settings
        default = default_run(file)
        self.first = run or (default if default in candidates or not candidates else candidates[-1])
        if file is settings:
            resolve(settings, self.first)
            loop.complete(settings, [self.first])
        self.runs = {self.first: file}
        for other in filter(None, (pipeline, settings)):
            self.runs |= {name: other for name in _trained_runs(other) if name not in self.runs}
        self.open = lru_cache(maxsize=2)(self._open)

    def names(self) -> list[str]:
        return list(self.runs)

    def _open(self, run: str) -> "RunChain":
        chain = RunChain(self.runs[run], run)
        gc.freeze()  # otherwise garbage collection takes half a second every few figures
        atexit.register(gc.unfreeze)  # frozen objects are reported as leaks at the end
        return chain


class RunChain:
    """A run and its predecessors, one run a step, on the same images.

    The images are of the hold-out set; without one, of the run's last step. Images with most old and new classes come
    first. Steps are opened on demand, those of a small data set at once. Raises CheckpointError for a missing run.
    """

    def __init__(self, settings: Config, run: str, images: int = IMAGES):
        names = [run]
        while names[0] in settings.chain:
            names.insert(0, settings.chain[names[0]].after)
        self.runs = [resolve(settings, name) for name in names]
        last, index = self.runs[-1], self.runs[-1].index()
        self.numbers = images_with_most_classes(last, images, index.holdout or None)
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
        """Steps, the last one first."""
        return list(range(len(self.runs)))[::-1]

    def images(self) -> list[tuple[str, int]]:
        """Labels and numbers of the images, for a list of choices."""
        return [(f"{number}: {name}", number) for number, name in enumerate(self.ids)]

    def at(self, step: int) -> Step:
        if step not in self._steps:
            self._steps[step] = Step(self.runs[step], self.numbers)
        return self._steps[step]

    def known(self, step: int) -> list[tuple[str, int]]:
        """Names and positions of the classes of the network after a step: new classes, old classes, background."""
        channels, old = self.at(step).channels, self.at(step).old
        return [(self.classes.names[position], position) for position in [*range(old, channels), *range(1, old), 0]]

    def prototypes(self, layer: str, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`Step.prototypes` of steps 0..last: means (S,T,D), counts (S,T), spreads (S,T)."""
        steps = [self.at(step).prototypes(layer) for step in range(last + 1)]
        return tuple(np.stack(arrays) for arrays in zip(*steps, strict=True))


def default_run(settings: Config, benchmark: str = "") -> str:
    """The run that is shown first: the last increment of GSC, else the last increment, else the first run.

    Args:
        benchmark: runs of it alone; empty: of all benchmarks.
    """
    runs = {name: run for name, run in settings.runs().items() if benchmark in ("", run.benchmark)}
    increments = [name for name in settings.chain if name in runs]
    gsc = [name for name in increments if resolve(settings, name).code == "gsc"]
    return [*increments, *gsc][-1] if increments else next(iter(runs))


def _pipeline() -> Config | None:
    """`params.yaml`; None if it is missing or wrong, which the pipeline reports."""
    try:
        settings = load(PIPELINE)
        check(settings)
    except (ConfigError, OSError):
        return None
    return settings


def _trained_runs(settings: Config) -> list[str]:
    return [name for name in settings.runs() if _trained(settings, name)]


def _trained(settings: Config, name: str) -> bool:
    run = resolve(settings, name)
    index = index_folder(run.root, run.benchmark) / "index.json"
    files = [run.folder / "weights.safetensors", predecessor(run), index]
    return all(file is None or file.is_file() for file in files)
