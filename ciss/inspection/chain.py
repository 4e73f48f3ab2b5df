"""The runs that can be opened, and the steps of one run on the same images."""

import atexit
import gc
from collections import Counter
from functools import cached_property, lru_cache

import numpy as np

from ciss.config import Config, ConfigError, load
from ciss.data.loaders import picture
from ciss.inspection.step import Step
from ciss.inspection.trained import images_with_most_classes
from ciss.runs.check import check
from ciss.runs.run import Run, index_folder, predecessor, resolve
from ciss.training import loop
from ciss.training.progress import runs_by_hand

IMAGES = 32
SMALL = 2000  # training images; all steps of a smaller data set are opened at once
PIPELINE = "params.yaml"
ALONE = "none"  # no run beside the first


class Explorer:
    """The runs that can be opened: the one that is shown first, the one beside it, then the other trained runs.

    A person who runs the notebook sees the trained runs of `params.yaml`, and then those of its file. An execution
    without a person sees those of its file alone, so that its result does not depend on other runs.

    Args:
        config: the parameter file.
        run: a name in it that is shown first; if empty, the last increment of GSC, else the last increment, else the
            first base step.
        compared: a name that is shown beside it, see `comparable`; if empty, a run of MBS, else of another method; or
            ALONE.

    With `complete: true` in the file, these two are trained if they are missing. Raises ConfigError for a wrong file or
    name.
    """

    def __init__(self, config: str, run: str = "", compared: str = ""):
        settings = load(config)
        check(settings)
        pipeline = _pipeline() if runs_by_hand() else None
        candidates = [] if run or pipeline is None else _trained_runs(pipeline)
        file = pipeline if candidates else settings
        default = default_run(file)
        self.first = run or (default if default in candidates or not candidates else candidates[-1])
        resolve(file, self.first)
        self.runs = {self.first: file}
        if file is settings:
            possible = list(settings.runs()) if settings.complete else _trained_runs(settings)
            beside = [compared] if compared else self._beside(self.first, possible)[:1]
            self.runs |= {name: file for name in beside if name != ALONE}
            loop.complete(settings, list(self.runs))
        for other in filter(None, (pipeline, settings)):
            self.runs |= {name: other for name in _trained_runs(other) if name not in self.runs}
        self.open = lru_cache(maxsize=4)(self._open)

    def names(self) -> list[tuple[str, str]]:
        """Runs in words, and their names."""
        return [(self._words[name], name) for name in self.runs]

    def comparable(self, run: str) -> list[tuple[str, str]]:
        """Runs of the same benchmark and step in words, and their names; ALONE at the end.

        They have the same images and classes. Other methods come first, those of the same seed before others.
        """
        others = [name for name in self.runs if self.runs[name] is self.runs[run]]
        return [(self._words[name], name) for name in self._beside(run, others)] + [("one run alone", ALONE)]

    def _beside(self, name: str, others: list[str]) -> list[str]:
        """The names of those runs that can be shown beside a run of the same file, the default first."""
        run, *runs = (resolve(self.runs[name], other) for other in (name, *others))
        same = [o for o in runs if (o.benchmark, o.step, o.joint) == (run.benchmark, run.step, run.joint)]
        same.sort(key=lambda o: (o.seed != run.seed, o.code == run.code, o.code != "mbs"))
        return [o.name for o in same if o.name != name]

    @cached_property
    def _words(self) -> dict[str, str]:
        """Runs in words by name. The name follows where other runs have the same words."""
        words = {name: _run_words(resolve(file, name)) for name, file in self.runs.items()}
        counts = Counter(words.values())
        return {name: text if counts[text] == 1 else f"{text} ({name})" for name, text in words.items()}

    def _open(self, run: str) -> "RunChain":
        chain = RunChain(self.runs[run], run)
        gc.freeze()  # otherwise garbage collection takes half a second every few figures
        atexit.register(gc.unfreeze)  # frozen objects are reported as leaks at the end
        return chain


def _run_words(run: Run) -> str:
    kind = "joint training" if run.joint else f"{run.title}, step {run.step}" if run.after else "base step"
    return f"{run.benchmark}: {kind}, seed {run.seed}"


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

    def step_choices(self) -> list[tuple[str, int]]:
        """Steps in words, and their numbers."""
        first = "joint training" if self.runs[-1].joint else "base step"
        return [(f"step {step}" if step else first, step) for step in self.steps()]

    def images(self) -> list[tuple[str, int]]:
        """Images in words, and their numbers."""
        return [(f"image {number} ({name})", number) for number, name in enumerate(self.ids)]

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
