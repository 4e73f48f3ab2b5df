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
from ciss.runs.run import Run

BATCH = 16  # images; gradients of parameters are of the first batch
MOMENTS = ("end of the step", "start of the step")
LAYERS = 24  # rows of a figure; layers of a larger network are grouped


@dataclass
class ImageArrays:
    """Arrays of one image at the resolution of its pixels. Labels are positions, uint8, 255 ignored."""

    given: np.ndarray  # (H,W) given labels of the step
    labels: np.ndarray  # (H,W) labels that the method learns
    truth: np.ndarray  # (H,W) ground truth
    gradient: np.ndarray  # (H,W) |dCE/dz_y|, in [0, 1]
    weight: np.ndarray  # (H,W) compensation weights
    probabilities: np.ndarray  # (C,H,W)

    def class_gradient(self, position: int) -> np.ndarray:
        """(H,W) gradient magnitude on the logit of a class; 0 on ignored pixels."""
        # |dCE/dz_c| = |P_c - [y = c]|
        gradient = np.abs(self.probabilities[position] - (self.labels == position))
        return np.where(self.labels == protocol.VOID, 0, gradient)


class Step:
    """One run on some images (`numbers` of the index). Networks are in evaluation mode."""

    def __init__(self, run: Run, numbers: list[int]):
        self.run, self.numbers = run, numbers
        self.trained = OpenedRun(run)
        self.trained.student.requires_grad_(True)
        # without the cache of `upsample`: full resolution is computed again for single images
        self.batches = [
            (batch, truth, old and old.without_cache())
            for start in range(0, len(numbers), BATCH)
            for batch, truth, old in self.trained.learnt(numbers[start : start + BATCH])
        ]
        self.first_batches = sum(set(batch.ids) <= {self._id(n) for n in numbers[:BATCH]} for batch, *_ in self.batches)
        rows = {name: (b, row) for b, (batch, *_) in enumerate(self.batches) for row, name in enumerate(batch.ids)}
        self.rows = [rows[self._id(number)] for number in numbers]  # batch and row of each image
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
        """(C,) the step of each channel; 0 for all in joint training."""
        return self.trained.maker.class_steps.cpu().numpy()

    @property
    def old(self) -> int:
        """Channels of the teacher with the background; 1 without a teacher."""
        return self.run.old_channels

    @cached_property
    def own_weights(self) -> bool:
        """Whether the method has pixel weights; otherwise weights are those of GSC with its defaults."""
        batch = self.batches[0][0]
        return self._weights(self._forward(MOMENTS[0], batch).upsample(batch.size), batch) is not None

    def _weights(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Pixel weights of the method; None without any, as in a base step."""
        return self.trained.method.pixel_weights(logits, batch) if self.trained.teacher is not None else None

    def arrays(self, image: int, moment: str = MOMENTS[0]) -> ImageArrays:
        """Labels, gradients, weights and probabilities of one image (its number among the images)."""
        number, row = self.rows[image]
        batch, truth, _ = self.batches[number]
        gradient, weight, logits = self._maps(moment)[number]
        low = self._low_resolution[number]
        full = low.with_rows(logits[row : row + 1]).upsample(batch.size)
        arrays = [labels[row].cpu().numpy().astype(np.uint8) for labels in (batch.given, batch.labels, truth)]
        return ImageArrays(*arrays, _array(gradient[row]), _array(weight[row]), _array(full[0].softmax(dim=0)))

    @torch.no_grad()
    def _maps_of_batches(self, moment: str) -> list[tuple[Tensor, Tensor, Tensor]]:
        maps, self._low_resolution = [], []
        for batch, _, _ in self.batches:
            output = self._forward(moment, batch)
            logits = output.upsample(batch.size)
            weights = self._weights(logits, batch)
            if weights is None:
                weights = compensation_weights(logits, batch.labels, batch.class_steps)
            maps.append((gradient_magnitude(logits, batch.labels), weights, output.rows))
            more = {name: getattr(output, name) for name in ("padding", "extras", "prediction")}
            self._low_resolution.append(Output(output.logits, *[None] * 4, **more))
        return maps

    def labels(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Given labels, learnt labels and ground truth (B,H,W) of all batches."""
        labels = [(batch.given, batch.labels, truth) for batch, truth, _ in self.batches]
        return tuple([array.cpu().numpy() for array in kind] for kind in zip(*labels, strict=True))

    def pixel_gradients(self, moment: str = MOMENTS[0]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Gradient magnitudes, weights and learnt labels (B,H,W) of all batches."""
        maps = self._maps(moment)
        return [_array(gradient) for gradient, *_ in maps], [_array(weight) for _, weight, _ in maps], self.labels()[1]

    def layer_names(self) -> list[str]:
        """Layers with features: the dense features before the classifier, then the encoder's stages, deepest first."""
        stages = len(self._outputs[0].stages)
        return ["features"] + [f"stage {k}" for k in range(stages, 0, -1)]

    def reached_layers(self) -> list[str]:
        """Layers of `layer_names` with a gradient.

        A vision transformer has only its deepest stage: earlier stages and a mask transformer's features are copies,
        not inputs of the next block.
        """
        names = self.layer_names()
        with torch.enable_grad():
            output = self._forward(MOMENTS[0], self._one(0)[0])
            layers = [_layer(output, name) for name in names]
            gradients = torch.autograd.grad(output.logits.sum(), layers, allow_unused=True)
        return [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]

    def feature_gradient(self, image: int, position: int | None, layer: str, moment: str = MOMENTS[0]) -> np.ndarray:
        """(h,w) |dL/df_i|, the gradient of the pixels labelled as a class (None: all) on each feature of a layer.

        L is the sum of their cross-entropies, so that a map does not depend on the number of pixels.
        """
        batch, labels = self._one(image)
        with torch.enable_grad():
            output = self._forward(moment, batch)
            chosen = labels if position is None else labels.masked_fill(labels != position, protocol.VOID)
            loss = cross_entropy(output.upsample(batch.size), chosen) * (chosen != protocol.VOID).sum()
            (gradient,) = torch.autograd.grad(loss, [_layer(output, layer)])
        return _array(gradient[0].norm(dim=0))

    # --- parameters

    def _gradients(self, moment: str) -> dict[str, dict[str, np.ndarray]]:
        """Gradient of each loss by the parameters of each layer, on the first BATCH images: loss to layer to array.

        Losses: plain cross-entropy over the pixels learnt as background, as old classes and as new classes; over the
        pixels of old classes by ground truth, with their true labels; and the terms of the method with their
        coefficients. Losses without a pixel are left out.
        """
        network = self.network(moment)
        layers = layer_groups(network)
        sums: dict[str, list[Tensor]] = {}
        for losses in self._losses(moment):
            for name, value in losses.items():
                gradients = _by_parameter(value, network)
                if name in sums:
                    gradients = [a + b for a, b in zip(sums[name], gradients, strict=True)]
                sums[name] = gradients
        order = {id(p): k for k, p in enumerate(network.parameters())}
        return {
            name: {
                layer: np.concatenate([_array(gradients[order[id(p)]]).ravel() for p in parameters])
                for layer, parameters in layers.items()
            }
            for name, gradients in sums.items()
        }

    def _losses(self, moment: str) -> Iterator[dict[str, Tensor]]:
        """Losses by name, for each batch of the first BATCH images."""
        for batch, truth, old in self.batches[: self.first_batches]:
            with torch.enable_grad():
                output = self._forward(moment, batch)
                losses = self._pixel_losses(output, batch, truth)
                with self.trained.autocast():
                    teacher = old and old.without_cache()
                    own = self.trained.method.losses(output, teacher, replace(batch, logs={}))
            yield losses | {f"{name} (method)": value for name, value in own.items()}

    def _pixel_losses(self, output: Output, batch: Batch, truth: Tensor) -> dict[str, Tensor]:
        logits, old, learnt = output.upsample(batch.size), self.old, batch.labels
        losses = {}
        for name, labels, low, high in (
            ("background", learnt, 0, 1),
            ("old classes", learnt, 1, old),
            ("old classes, truth", truth, 1, old),
            ("new classes", learnt, old, protocol.VOID),
        ):
            pixels = (labels >= low) & (labels < high)
            if pixels.any():
                losses[name] = cross_entropy(logits, labels.masked_fill(~pixels, protocol.VOID))
        return losses

    @cached_property
    def terms(self) -> list[str]:
        """Names of the losses."""
        return list(dict.fromkeys(name for losses in self._losses(MOMENTS[0]) for name in losses))

    @cached_property
    def pixel_terms(self) -> list[str]:
        """Names of the cross-entropies over groups of pixels that have a pixel."""
        names = ("old classes", "new classes", "old classes, truth", "background")
        return [name for name in names if name in self.terms]

    # --- features

    @torch.no_grad()
    def _features(self, layer: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Features (D,h,w) of each image, and the true positions (h,w) of the nearest pixels."""
        images = []
        for image in range(len(self.numbers)):
            number, row = self.rows[image]
            truth = self.batches[number][1][row]
            output = self._outputs[number]
            features = _layer(output, layer)[row]
            near = patch_labels(truth[None], features.shape[-2:], covered=output.covered_by(tuple(truth.shape)))
            images.append((_array(features), near[0].cpu().numpy().astype(np.uint8)))
        return images

    @cached_property
    @torch.no_grad()
    def _outputs(self) -> list[Output]:
        return [self._forward(MOMENTS[0], batch) for batch, *_ in self.batches]

    def _prototypes(self, layer: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means (T,D) and numbers (T,) of the features of each true class, and their spreads (T,).

        Spread: root mean square distance from the mean, NaN for a class without features.
        """
        points, labels = (torch.from_numpy(array) for array in self.points(layer))
        labels = labels.long()
        prototypes = ClassPrototypes(len(self.run.classes), points.shape[1])
        prototypes.update(points.T[None, :, None], labels[None, None])
        squares = torch.zeros(len(prototypes.counts), dtype=torch.float64)
        squares.index_add_(0, labels, (points.double() ** 2).sum(dim=1))
        means, counts = prototypes.means, prototypes.counts
        spreads = (squares / counts.clamp(min=1) - (means**2).sum(dim=1)).clamp(min=0).sqrt()
        return means.numpy(), counts.numpy(), np.where(counts > 0, spreads, np.nan)

    def known_prototypes(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Means (T,D) and counts (T,) of `prototypes`, with counts of 0 for classes of later steps."""
        means, counts, _ = self.prototypes(layer)
        return means, np.where(np.arange(len(counts)) < self.channels, counts, 0)

    def sample(self, layer: str, each: int = 24) -> tuple[np.ndarray, np.ndarray]:
        """At most `each` features (N,D) of every true class, evenly over the images, and their positions (N,)."""
        points, labels = self.points(layer)
        chosen = []
        for position in np.unique(labels):
            rows = np.flatnonzero(labels == position)
            chosen.append(rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)])
        chosen = np.concatenate(chosen)
        return points[chosen], labels[chosen]

    def points(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """All features (N,D) and their true positions (N,), without ignored pixels."""
        images = self.features(layer)
        points = np.concatenate([features.reshape(len(features), -1).T for features, _ in images])
        labels = np.concatenate([truth.ravel() for _, truth in images])
        return points[labels != protocol.VOID], labels[labels != protocol.VOID]

    @torch.no_grad()
    def method_maps(self, image: int) -> dict[str, np.ndarray]:
        """Maps (.,.) of the method by name; empty without a teacher."""
        number, row = self.rows[image]
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
        number, row = self.rows[image]
        batch = self.batches[number][0]
        parts = {name: getattr(batch, name)[row : row + 1] for name in ("images", "given", "labels")}
        return replace(batch, **parts, ids=batch.ids[row : row + 1], logs={}), parts["labels"]

    def _forward(self, moment: str, batch: Batch) -> Output:
        with self.trained.autocast():
            return self.network(moment)(batch.images)

    def _network(self, moment: str) -> Network:
        """The trained network, or the network at the start of the step, with channels for its new classes."""
        if moment not in MOMENTS:
            raise ValueError(f"moment is {moment!r}. Use {' or '.join(map(repr, MOMENTS))}.")
        if moment == MOMENTS[0]:
            return self.trained.student
        return self.trained.started


def layer_groups(network: nn.Module, most: int = LAYERS) -> dict[str, list[nn.Parameter]]:
    """Parameters by module, in the order of the network.

    Modules are joined, starting at the leaves, until there are at most `most`, or only encoder and decoder.
    """
    names = [name.split(".")[:-1] for name, _ in network.named_parameters()]
    for depth in range(max(map(len, names)), 0, -1):
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in zip(names, network.parameters(), strict=True):
            groups.setdefault(".".join(name[:depth]), []).append(parameter)
        if len(groups) <= most:
            break
    return groups


def _by_parameter(loss: Tensor, network: nn.Module) -> list[Tensor]:
    """Gradients of a loss by all parameters; zeros for parameters without a gradient."""
    parameters = list(network.parameters())
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True))


def _layer(output: Output, layer: str) -> Tensor:
    if layer == "features":
        return output.features
    return output.stages[int(layer.removeprefix("stage ")) - 1]


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
