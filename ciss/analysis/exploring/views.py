"""What the figures of an explore notebook show, and the control bar that chooses it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from ciss.documents import counted
from ciss.inspection.chain import ALONE, Explorer, RunChain
from ciss.inspection.step import MOMENTS, Step
from ciss.inspection.widgets import ControlBar

# menus by the name of their value in the first cell
WORDS = {
    "run": "run",
    "compared": "beside it",
    "step": "step",
    "moment": "network at",
    "image": "image",
    "class_name": "class",
    "layer": "layer",
    "losses": "losses",
    "projection": "projection",
}
PROJECTIONS = [("principal components (PCA)", "pca"), ("neighbours (t-SNE)", "tsne")]


@dataclass(frozen=True)
class View:
    """One run, or two beside each other, at the same step, image, class and layer."""

    chains: dict[str, RunChain]  # by the title of the method
    step: int
    image: int  # its number among the images
    position: int  # of the class
    layer: str  # with features: "features", "stage 1"
    moment: str = MOMENTS[0]  # whose network is shown
    losses: tuple[str, str] = ("", "")
    projection: str = "pca"

    @property
    def first(self) -> RunChain:
        return next(iter(self.chains.values()))

    @property
    def steps(self) -> dict[str, Step]:
        """The runs at the step, by the title of the method."""
        return {title: chain.at(self.step) for title, chain in self.chains.items()}

    @property
    def names(self) -> list[str]:
        """Class names by position."""
        return self.first.classes.names

    @property
    def class_name(self) -> str:
        return self.names[self.position]

    @property
    def layer_words(self) -> str:
        return layer_words(self.layer)

    def image_panels(self) -> list[tuple]:
        """The image and its ground truth, as panels of `method_pictures`."""
        truth = self.first.at(self.step).arrays(self.image).truth
        return [("image", self.first.pictures[self.image]), ("ground truth", truth)]

    def __str__(self) -> str:
        kind = "of the hold-out set" if self.first.held_out else "of the last step's training images"
        steps, images = counted(len(self.first.runs), "step"), counted(len(self.first.numbers), "image")
        return f"{' and '.join(self.chains)}: {steps}, {images} {kind}"


def layer_words(layer: str) -> str:
    """A layer with features in words."""
    return "before the classifier" if layer == "features" else f"encoder {layer}"


def gradient_bar(config: str, **chosen: Any) -> ControlBar:
    """The control bar of `explore_gradients`. `chosen`: values of WORDS at the start, see `ControlBar`."""
    runs = _explorer(config, chosen)

    def losses(run: str, compared: str, step: int) -> list[tuple[str, tuple[str, str]]]:
        both = [runs.open(name).at(step).pixel_terms for name in (run, compared) if name != ALONE]
        pairs = combinations([name for name in both[0] if name in both[-1]], 2)
        return [(" and ".join(pair), pair) for pair in pairs]

    menus = {
        **_menus(runs, lambda run, step: _in_words(runs.open(run).at(step).reached_layers())),
        "moment": list(MOMENTS),
        "losses": losses,
    }
    return ControlBar(menus, partial(_view, runs), chosen, WORDS)


def prototype_bar(config: str, **chosen: Any) -> ControlBar:
    """The control bar of `explore_prototypes`. `chosen`: values of WORDS at the start, see `ControlBar`."""
    runs = _explorer(config, chosen)
    layers = lambda run, step: _in_words(runs.open(run).at(step).layer_names())  # noqa: E731
    return ControlBar({**_menus(runs, layers), "projection": PROJECTIONS}, partial(_view, runs), chosen, WORDS)


def _explorer(config: str, chosen: dict) -> Explorer:
    return Explorer(config, chosen.get("run") or "", chosen.get("compared") or "")


def _menus(runs: Explorer, layers: Callable) -> dict[str, Any]:
    """The menus that both notebooks have. Most depend on earlier ones."""
    return {
        "run": runs.names(),
        "compared": lambda run: runs.comparable(run),
        "step": lambda run: runs.open(run).step_choices(),
        "image": lambda run: runs.open(run).images(),
        "class_name": lambda run, step: runs.open(run).known(step),  # shows names; its values are positions
        "layer": layers,
    }


def _in_words(layers: list[str]) -> list[tuple[str, str]]:
    return [(layer_words(layer), layer) for layer in layers]


def _view(runs: Explorer, run: str, compared: str, **values: Any) -> View:
    """The view of the values of all menus."""
    position = values.pop("class_name")
    shown = [runs.open(name) for name in (run, compared) if name != ALONE]
    last = [chain.runs[-1] for chain in shown]
    words = ([o.title for o in last], [f"{o.title}, seed {o.seed}" for o in last], [o.name for o in last])
    titles = next(names for names in words if len(set(names)) == len(names))
    return View(dict(zip(titles, shown, strict=True)), position=position, **values)
