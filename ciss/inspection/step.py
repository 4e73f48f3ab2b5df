"""One step of a run: its networks, labels, gradients and features on a few images, kept in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ciss import protocol
from ciss.inspection.trained import OpenedRun
from ciss.labels.patches import patch_labels
from ciss.labels.prototypes import ClassPrototypes
from ciss.losses import compensation_weights, cross_entropy, gradient_magnitude
from ciss.methods import Batch
from ciss.models import Network, Output
from ciss.runs.run import Run, starting_network

LOT = 16  # images of a batch; gradients by the parameters are of the first one
MOMENTS = ("end of the step", "start of the step")
LAYERS = 24  # rows of a figure; a network of more has its layers put together


@dataclass
class Seen:
    """One image, its arrays on the grid of its pixels. Positions are uint8, 255 ignored."""

    given: np.ndarray  # (H,W), as the step is told
    labels: np.ndarray  # (H,W), as the method learns them
    truth: np.ndarray  # (H,W)
    gradient: np.ndarray  # (H,W) |dCE/dz_y|, in [0, 1]
    weight: np.ndarray  # (H,W) compensation weights
    probabilities: np.ndarray  # (C,H,W)

    def of_class(self, position: int) -> np.ndarray:
        """(H,W) |dCE/dz_c| = |P_c - [y = c]|: how hard a pixel pulls on a class's logit; 0 on ignored pixels."""
        pull = np.abs(self.probabilities[position] - (self.labels == position))
        return np.where(self.labels == protocol.VOID, 0, pull)


class Step:
    """One run on the line's images. Networks are in evaluation mode: dropout is off, normalisation by the statistics of
    the training."""

    def __init__(self, run: Run, numbers: list[int]):
        self.run, self.numbers = run, numbers
        self.trained = OpenedRun(run)
        self.trained.student.requires_grad_(True)
        # outputs without what `upsample` keeps: full resolution is made again for the images that are looked at
        self.batches = [
            (batch, truth, old and old.without_cache())
            for start in range(0, len(numbers), LOT)
            for batch, truth, old in self.trained.learnt(numbers[start : start + LOT])
        ]
        self.first_lot = sum(set(batch.ids) <= {self._id(n) for n in numbers[:LOT]} for batch, *_ in self.batches)
        place = {id_: (b, row) for b, (batch, *_) in enumerate(self.batches) for row, id_ in enumerate(batch.ids)}
        self.places = [place[self._id(number)] for number in numbers]
        self.channels = sum(run.channel_groups)
        self.network = lru_cache(self._network)
        self.gradients = lru_cache(self._gradients)
        self.prototypes = lru_cache(self._prototypes)
        self.features = lru_cache(self._features)
        self._maps = lru_cache(self._maps_of_batches)

    def _id(self, number: int) -> str:
        return self.trained.index.ids["train"][number]

    # --- pixels

    @property
    def introduced(self) -> np.ndarray:
        """(C,) the step that brought each channel; joint training brings all at once."""
        return self.trained.maker.class_steps.cpu().numpy()

    @property
    def old(self) -> int:
        """Channels of the step before, the background's with them; 1 where there is none."""
        return self.run.old_channels

    @property
    def own_weights(self) -> bool:
        """Whether the method weighs pixels itself; otherwise they weigh what they would with GSC's defaults."""
        batch = self.batches[0][0]
        return self._weights(self._forward(MOMENTS[0], batch).upsample(batch.size), batch) is not None

    def _weights(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """The method's own; None where it has none, as in a base step."""
        return self.trained.method.pixel_weights(logits, batch) if self.trained.teacher is not None else None

    def seen(self, image: int, moment: str = MOMENTS[0]) -> Seen:
        """An image by its place among the line's."""
        number, row = self.places[image]
        batch, truth, _ = self.batches[number]
        gradient, weight, logits = self._maps(moment)[number]
        full = Output(logits[row : row + 1], *[None] * 4, filled=self._filled[number]).upsample(batch.size)
        arrays = [labels[row].cpu().numpy().astype(np.uint8) for labels in (batch.given, batch.labels, truth)]
        return Seen(*arrays, _array(gradient[row]), _array(weight[row]), _array(full[0].softmax(dim=0)))

    @torch.no_grad()
    def _maps_of_batches(self, moment: str) -> list[tuple[Tensor, Tensor, Tensor]]:
        found, self._filled = [], []
        for batch, _, _ in self.batches:
            output = self._forward(moment, batch)
            logits = output.upsample(batch.size)
            weights = self._weights(logits, batch)
            if weights is None:
                weights = compensation_weights(logits, batch.labels, batch.class_steps)
            found.append((gradient_magnitude(logits, batch.labels), weights, output.logits))
            self._filled.append(output.filled)
        return found

    def labels(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Of all images, a batch (B,H,W) of one size each: given, as the method learns them, true."""
        found = [(batch.given, batch.labels, truth) for batch, truth, _ in self.batches]
        return tuple([labels.cpu().numpy() for labels in kind] for kind in zip(*found, strict=True))

    def everywhere(self, moment: str = MOMENTS[0]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Gradient magnitudes, weights and learnt labels (B,H,W) of all images, a batch of one size each."""
        maps = self._maps(moment)
        return [_array(gradient) for gradient, *_ in maps], [_array(weight) for _, weight, _ in maps], self.labels()[1]

    def layer_names(self) -> list[str]:
        """Where in the network gradients and features can be looked at: the dense features before the classifier, then
        the encoder's stages, deepest first."""
        stages = len(self._outputs[0].stages)
        return ["features"] + [f"stage {k}" for k in range(stages, 0, -1)]

    def reached_layers(self) -> list[str]:
        """Those of `layer_names` that a gradient arrives at. Of a vision transformer the deepest stage alone: the
        others are copies of what its next block sees, as a mask transformer's features are of what becomes logits."""
        names = self.layer_names()
        with torch.enable_grad():
            output = self._forward(MOMENTS[0], self._one(0)[0])
            layers = [_layer(output, name) for name in names]
            found = torch.autograd.grad(output.logits.sum(), layers, allow_unused=True)
        return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]

    def arriving(self, image: int, position: int | None, layer: str, moment: str = MOMENTS[0]) -> np.ndarray:
        """(h,w) |dL/df_i|: how hard the pixels labelled as a class, or all, pull on each place of a layer. L is the sum
        of their cross-entropies, so a map says the same whatever the class's size."""
        batch, labels = self._one(image)
        with torch.enable_grad():
            output = self._forward(moment, batch)
            chosen = labels if position is None else labels.masked_fill(labels != position, protocol.VOID)
            loss = cross_entropy(output.upsample(batch.size), chosen) * (chosen != protocol.VOID).sum()
            (gradient,) = torch.autograd.grad(loss, [_layer(output, layer)])
        return _array(gradient[0].norm(dim=0))

    # --- parameters

    def _gradients(self, moment: str) -> dict[str, dict[str, np.ndarray]]:
        """Gradient of each loss by the parameters of each layer, over the first `LOT` images: loss -> layer -> array.

        Losses: plain cross-entropy over the pixels learnt as background, as old classes, as new ones, and over those
        that are truly old, as what they are; then the method's own terms, each with its coefficient, all pixels in.
        Those that no pixel enters are left out.
        """
        network = self.network(moment)
        layers = layer_groups(network)
        sums: dict[str, list[Tensor]] = {}
        for losses in self._losses(moment):
            for name, value in losses.items():
                found = _by_parameter(value, network)
                sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
        order = {id(p): k for k, p in enumerate(network.parameters())}
        return {
            name: {
                layer: np.concatenate([_array(found[order[id(p)]]).ravel() for p in parameters])
                for layer, parameters in layers.items()
            }
            for name, found in sums.items()
        }

    def _losses(self, moment: str) -> Iterator[dict[str, Tensor]]:
        """Named scalars of each batch of the first lot."""
        for batch, truth, old in self.batches[: self.first_lot]:
            with torch.enable_grad():
                output = self._forward(moment, batch)
                losses = self._parts(output, batch, truth)
                with self.trained.autocast():
                    teacher = old and old.without_cache()
                    own = self.trained.method.losses(output, teacher, replace(batch, logs={}))
            yield losses | {f"{name} (method)": value for name, value in own.items()}

    def _parts(self, output: Output, batch: Batch, truth: Tensor) -> dict[str, Tensor]:
        logits, old = output.upsample(batch.size), self.old
        told, void = batch.labels, protocol.VOID
        parts = {
            "background": (told, told == 0),
            "old classes": (told, (told > 0) & (told < old)),
            "old classes, truth": (truth, (truth > 0) & (truth < old)),
            "new classes": (told, (told >= old) & (told != void)),
        }
        return {
            name: cross_entropy(logits, labels.masked_fill(~where, void))
            for name, (labels, where) in parts.items()
            if where.any()
        }

    @cached_property
    def terms(self) -> list[str]:
        """Names of the losses."""
        return list(dict.fromkeys(name for losses in self._losses(MOMENTS[0]) for name in losses))

    def parameter_layers(self) -> list[str]:
        return ["all layers", *layer_groups(self.network(MOMENTS[0]))]

    def sides(self) -> tuple[list[str], list[str]]:
        """Losses to set against each other, old classes first in one list and new ones first in the other."""
        names = self.terms
        wanted = (["old classes", "old classes, truth", "background"], ["new classes"])
        return tuple([n for n in side if n in names] + [n for n in names if n not in side] for side in wanted)

    # --- features

    @torch.no_grad()
    def _features(self, layer: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features (D,h,w) of each image and the true positions (h,w) at their places, nearest pixels."""
        found = []
        for image in range(len(self.numbers)):
            number, row = self.places[image]
            truth = self.batches[number][1][row]
            output = self._outputs[number]
            features = _layer(output, layer)[row]
            near = patch_labels(truth[None], features.shape[-2:], covered=output.covered_by(tuple(truth.shape)))
            found.append((_array(features), near[0].cpu().numpy().astype(np.uint8)))
        return found

    @cached_property
    @torch.no_grad()
    def _outputs(self) -> list[Output]:
        return [self._forward(MOMENTS[0], batch) for batch, *_ in self.batches]

    def _prototypes(self, layer: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By the truth, classes to come among them: means (T,D), counts (T,), and root mean squared distances (T,) of a
        class's features from their mean, NaN for a class without any."""
        found = self.features(layer)
        centres = ClassPrototypes(len(self.run.classes), len(found[0][0]))
        squares = torch.zeros(len(centres.counts), dtype=torch.float64)
        for features, truth in found:
            at, labels = torch.from_numpy(features)[None], torch.from_numpy(truth.astype(np.int64))[None]
            centres.update(at, labels)
            kept = labels[labels != protocol.VOID]
            squares.index_add_(0, kept, (at[0].double() ** 2).sum(dim=0)[labels[0] != protocol.VOID])
        means, counts = centres.means, centres.counts
        spreads = (squares / counts.clamp(min=1) - (means**2).sum(dim=1)).clamp(min=0).sqrt()
        return means.numpy(), counts.numpy(), np.where(counts > 0, spreads, np.nan)

    def known_prototypes(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Means (T,D) and counts (T,), 0 for classes that the network does not know yet."""
        means, counts, _ = self.prototypes(layer)
        return means, np.where(np.arange(len(counts)) < self.channels, counts, 0)

    def sample(self, layer: str, each: int = 24) -> tuple[np.ndarray, np.ndarray]:
        """Up to `each` features of every true class, evenly over the images: points (N,D), positions (N,)."""
        points, labels = self.points(layer)
        chosen = []
        for position in np.unique(labels):
            mine = np.flatnonzero(labels == position)
            chosen.append(mine[np.linspace(0, len(mine) - 1, min(each, len(mine))).round().astype(int)])
        chosen = np.concatenate(chosen)
        return points[chosen], labels[chosen]

    def points(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """All features (N,D) with their true positions (N,); ignored ones are left out."""
        found = self.features(layer)
        points = np.concatenate([features.reshape(len(features), -1).T for features, _ in found])
        labels = np.concatenate([truth.ravel() for _, truth in found])
        return points[labels != protocol.VOID], labels[labels != protocol.VOID]

    @torch.no_grad()
    def method_maps(self, image: int) -> dict[str, np.ndarray]:
        """What the method itself looks at, name -> (.,.); empty without a teacher."""
        number, row = self.places[image]
        batch, _, old = self.batches[number]
        if old is None:
            return {}
        teacher = old.without_cache()
        student = self._outputs[number].without_cache()
        with self.trained.autocast():
            maps = self.trained.method.maps(student, teacher, replace(batch, logs={}))
        return {name: _array(values[row]) for name, values in maps.items()}

    # --- networks

    def _one(self, image: int) -> tuple[Batch, Tensor]:
        number, row = self.places[image]
        batch = self.batches[number][0]
        parts = {name: getattr(batch, name)[row : row + 1] for name in ("images", "given", "labels")}
        return replace(batch, **parts, ids=batch.ids[row : row + 1], logs={}), parts["labels"]

    def _forward(self, moment: str, batch: Batch) -> Output:
        with self.trained.autocast():
            return self.network(moment)(batch.images)

    def _network(self, moment: str) -> Network:
        """At the end of the step, as it was trained; at its start, as it was then, new classes with it."""
        if moment not in MOMENTS:
            raise ValueError(f"moment is {moment!r}. Use {' or '.join(map(repr, MOMENTS))}.")
        if moment == MOMENTS[0]:
            return self.trained.student
        with torch.random.fork_rng(devices=[]):
            network = starting_network(self.run, self.run.build_method())
        return network.to(self.trained.device).eval()


def layer_groups(network: nn.Module, most: int = LAYERS) -> dict[str, list[nn.Parameter]]:
    """Parameters by the module they belong to; modules are put together from the leaves on until there are at most
    `most`, or only encoder and decoder left. In the order of the network."""
    names = [name.split(".")[:-1] for name, _ in network.named_parameters()]
    for depth in range(max(map(len, names)), 0, -1):
        found: dict[str, list[nn.Parameter]] = {}
        for name, parameter in zip(names, network.parameters(), strict=True):
            found.setdefault(".".join(name[:depth]), []).append(parameter)
        if len(found) <= most:
            break
    return found


def _by_parameter(loss: Tensor, network: nn.Module) -> list[Tensor]:
    """Zeros where a loss does not reach."""
    parameters = list(network.parameters())
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _layer(output: Output, layer: str) -> Tensor:
    if layer == "features":
        return output.features
    return output.stages[int(layer.removeprefix("stage ")) - 1]


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
