"""The interface of methods: coefficients, and hooks that see outputs and labels, never the optimiser."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn

from ciss.config import STRICT, Benchmark, Phase
from ciss.data.stored import Memory
from ciss.labels.entropy import Variant, entropy_labels
from ciss.labels.patches import patch_labels
from ciss.labels.prototypes import ClassPrototypes
from ciss.labels.relabelling import argmax_labels
from ciss.losses import cross_entropy, gradient_magnitude, sum_by_step
from ciss.losses.strips import sum_of_strips
from ciss.models import Extra, Network, Output
from ciss.precision import at_least_float32
from ciss.protocol import VOID as IGNORE

# Bytes of a map of C channels in a strip. On a CPU, full-resolution maps are computed in strips of rows: the dozen maps
# of a strip stay in the processor's cache, and in memory that is used again (reports/speed/losses.md).
STRIP_BYTES = 4 * 2**20

# Coefficients are fields. An unknown one in `params.yaml` is an error. Not frozen: `before_step` may set attributes.
# `Range` and `Choices` beside a coefficient are what `ciss tune` tries, see ciss/ranges.py.
coefficients: Callable = checked(kw_only=True, config=STRICT)


@dataclass
class Batch:
    """One mini-batch as a method sees it. Labels are channel positions; 255 is ignored."""

    images: Tensor  # (B,3,H,W), normalised
    given: Tensor  # (B,H,W) int64: the step's labels as the data give them
    labels: Tensor  # (B,H,W) int64: the same after `Method.labels`
    ids: list[str]
    step: int  # the current step, 0 the base
    old_channels: int  # K: the teacher's channels, background included; 0 in the base step (`Run.old_channels`: 1)
    class_steps: Tensor  # (C,) int64: the step that introduced each channel
    new_classes: Tensor  # 1-D int64: positions of this step's classes
    salient: Tensor | None = None  # (B,H,W) bool: False at background outside objects; by request, in training only
    # (B,H,W): the result of `Method.pixel_weights`; set by `log_weights`, read by the losses of gsc and gsc_mbs
    weights: Tensor | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)  # scalars for the log; NaN: no value in this batch

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.labels.shape[-2:])

    @property
    def channels(self) -> int:
        """C: the student's channels."""
        return len(self.class_steps)

    @property
    def background_channels(self) -> int:
        """Channels that count as background in MiB's losses: the old ones, or 1 in the domain setting."""
        return self.old_channels if len(self.new_classes) else 1

    @property
    def strips(self) -> list[slice]:
        """Rows of the strips in which full-resolution maps are computed, see `STRIP_BYTES`; on a GPU all in one."""
        height, width = self.size
        rows = max(1, STRIP_BYTES // (4 * len(self.labels) * self.channels * width))
        if self.labels.device.type != "cpu" or rows >= height:
            return [slice(0, height)]
        return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]

    def strip(self, rows: slice) -> "Batch":
        """The batch with labels and weights of some rows only. Its `logs` are new and are not kept.

        For all rows, it is this batch with its `logs`.
        """
        if (rows.start, rows.stop) == (0, self.size[0]):
            return self
        optional = {name: getattr(self, name) for name in ("salient", "weights")}
        cut = {name: value[:, rows] for name, value in optional.items() if value is not None}
        return replace(self, given=self.given[:, rows], labels=self.labels[:, rows], **cut, logs={})

    def strips_of(self, output: Output | None) -> Iterator[tuple["Batch", Output | None]]:
        """This batch and an output strip by strip."""
        if output and len(self.strips) > 1:  # contiguous: each strip would copy logits that are channels_last
            output = replace(output, logits=output.logits.contiguous())
        for rows in self.strips:
            yield self.strip(rows), output and output.strip(self.size, rows)

    @torch.no_grad()
    def by_strips(self, function: Callable[["Batch", Output], Tensor], output: Output) -> Tensor:
        """A map (B,H,W) without gradient, strip by strip: `function(batch, output)` of an output and this batch.

        With several strips, values that `function` writes into `batch.logs` are lost. Write them in `Method.labels` or
        `Method.losses`.
        """
        return torch.cat([function(*strips) for strips in self.strips_of(output)], dim=1)

    @torch.no_grad()
    def log_labels(self) -> None:
        """Logs the shares of the given background that became an old class, that stay, and that are ignored."""
        background = self.given == 0
        masks = {
            "relabelled": (self.labels > 0) & (self.labels != IGNORE),
            "kept": self.labels == 0,
            "ignored": self.labels == IGNORE,
        }
        total = background.sum()
        self.logs |= {f"background/{name}": (background & mask).sum() / total for name, mask in masks.items()}

    @torch.no_grad()
    def log_gradients(self, student: Output) -> None:
        """Logs mean gradient magnitudes of the background and by the step of the label, also times `weights`.

        The gradient is that of the softmax cross-entropy with the learnt labels. The loss of the method may be another
        one (MiB). Means are over every fourth pixel of every fourth row.
        """
        labels = self.labels[:, ::4, ::4]
        logits = student.enlarge(at_least_float32(student.logits), self.size, every=4)
        magnitudes = gradient_magnitude(logits, labels)
        background = labels == 0
        self.logs["gradient/background"] = (magnitudes * background).sum() / background.sum()
        maps = {"gradient": magnitudes}
        if self.weights is not None:
            maps["compensated"] = magnitudes * self.weights[:, ::4, ::4]
        steps = self.step + 1 if len(self.new_classes) else 1  # in the domain setting every class is of step 0
        for name, values in maps.items():
            sums, counts = sum_by_step(values, labels, self.class_steps)
            means = sums / counts
            self.logs |= {f"{name}/step{s}": means[s] for s in range(steps)}

    @torch.no_grad()
    def log_weights(self, weights: Tensor | None, background: bool = True) -> None:
        """Sets `weights` to pixel weights (B,H,W), and logs quantiles and the largest of those of old pixels.

        Losses and `log_gradients` read `weights`. Quantiles are of every eighth pixel of every eighth row.

        Args:
            background: whether its pixels count as old.
        """
        self.weights = weights
        if weights is None:
            return
        old = (self.labels < self.old_channels) & (self.labels != IGNORE)
        if not background:
            old &= self.labels != 0
        sample = torch.where(old, weights, torch.nan)[:, ::8, ::8].flatten()
        # The quantiles 0.05, 0.5 and 0.95, made on the device, so that the host does not wait.
        shares = torch.arange(1, 20, 9, device=sample.device) / 20
        low, middle, high = torch.nanquantile(sample, shares.to(sample.dtype))
        self.logs |= {"weight/q05": low, "weight/median": middle, "weight/q95": high}
        self.logs["weight/largest"] = torch.where(old, weights, 0).amax()


def plain_cross_entropy(student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
    """The loss of fine-tuning and of every base step, for `Method.over_strips`."""
    return {"cross_entropy": cross_entropy(student.upsample(batch.size), batch.labels)}


def certain_labels(thresholds: Tensor, batch: Batch, teacher: Output, variant: Variant = "paper") -> Tensor:
    """PLOP's labels, for `Batch.by_strips`. `thresholds`: (K,)."""
    logits = teacher.upsample(batch.size)
    return entropy_labels(batch.given, logits, thresholds, variant=variant, channels=batch.channels)


def teachers_labels(batch: Batch, teacher: Output) -> Tensor:
    """Labels in which background pixels take the teacher's class, for `Batch.by_strips`."""
    return argmax_labels(batch.given, teacher.upsample(batch.size))


# Every pixel of a domain has its true label.
TRUE_BACKGROUND = "in the domain setting the background is labelled as such, and pseudo-labels replace it"


def compensation_problem(benchmark: Benchmark, compensation: bool, new_weight: str) -> tuple[str, str] | None:
    """`Method.unsuited` of gradient compensation: in the domain setting no pixel is old, so every weight would be 1."""
    if benchmark.setting != "domain" or not compensation or new_weight != "one":
        return None
    reason = "no class is new in the domain setting, so every weight of the gradient compensation is 1"
    return "methods.compensation", f"{reason}. Set `compensation: false`, or `new_weight: mean`"


def add_to_prototypes(
    prototypes: ClassPrototypes | None, features: Tensor, labels: Tensor, batch: Batch, teacher: Output
) -> ClassPrototypes:
    """Adds the teacher's features (B,D,h,w) by labels (B,H,W), each patch by its label in `patch_labels`.

    Args:
        prototypes: of the earlier batches; None in the first one.
    """
    prototypes = prototypes or ClassPrototypes(batch.old_channels, features.shape[1], features.device)
    prototypes.update(features, patch_labels(labels, features.shape[-2:], covered=teacher.covered_by(batch.size)))
    return prototypes


@coefficients
class Method:
    """The hooks of a method. The defaults are those of plain training.

    Order in a step: initialise, start, before_step, then for every batch labels and losses, after_step. Which hooks run
    under autocast, with gradients and with the teacher: table in docs/own_method.md.
    """

    memory: Memory | None = None  # stored images that increments draw again; its keys: docs/methods/memory.md

    sees_all: ClassVar[bool] = False  # joint training: every class at once, with all labels
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # named coefficients: `name-preset` under methods
    unlisted: ClassVar[tuple[str, ...]] = ()  # coefficients that plans write only where a preset has them; `memory` too
    memory_recipe: ClassVar[dict[str, Any]] = {}  # published switches of stored images that differ from SSUL's
    usual: ClassVar[bool] = True  # planned when no methods are named
    # Whether the hooks read the teacher. If not, it is not run: they get None, and `labels` is not called. A method may
    # decide this by its coefficients.
    uses_teacher = True
    decoder: ClassVar[str | None] = None  # the published one; tables say "(adapted)" with another
    statistics_from = "images"  # what `before_step` reads, see there; a method may make it a coefficient
    sigmoids = False  # whether the score of a class is its sigmoid; if not, scores are a softmax
    reads_saliency = False  # whether training batches have `Batch.salient`, see `data.saliency`
    prediction = "learnt"  # how predictions follow from the rows of a network, see `models.prediction`
    # The method of a base step of its own, a section under `methods`; None: the base step that methods share.
    own_base: ClassVar[str | None] = None

    @classmethod
    def variants(cls, stored: int = 100) -> dict[str, dict[str, Any]]:
        """`presets`, and the defaults and each preset with `stored` images: `memory`, `released-memory`."""
        memory = {"memory": {"images": stored, **cls.memory_recipe}}
        named = {"memory": memory, **{f"{name}-memory": values | memory for name, values in cls.presets.items()}}
        return {**cls.presets, **named}

    @property
    def softmax(self) -> bool:
        """Whether the loss has a softmax. If not, gradient magnitudes are not logged, see `Batch.log_gradients`."""
        return not self.sigmoids

    @property
    def remarks(self) -> list[str]:
        """What sets the method apart from the others of a table, in few words: its row has them in brackets."""
        return []

    def extras(self, sizes: list[int], step: int) -> dict[str, Extra]:
        """What networks have beside their classes' rows after a step, by name, see `Output.extras`.

        Args:
            sizes: number of classes of every step of the benchmark, without the background.
        """
        return {}

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        """Why the method cannot be used on a benchmark, or None.

        Returns: a key of the benchmark, or `methods.NAME` for a coefficient; the reason and what to do.
        """

    def notice(self, benchmark: Benchmark) -> str | None:
        """What the method does differently on a benchmark, and what to do; printed before training. Or None."""

    @property
    def needs_before_activation(self) -> bool:
        """Whether `losses` reads `Output.before_activation`, which networks do not return otherwise."""
        return False

    def initialise(self, network: Network, classes: int) -> None:
        """Adds this step's classes to the network."""
        network.grow(classes)

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        """The parameters that learn in an incremental step."""
        return network.parameters()

    def epochs(self, phase: Phase) -> int:
        """Epochs of an incremental step; 0: `start` alone makes the result, without gradients."""
        return phase.epochs

    def start(self, student: Network, teacher: nn.Module, batches: Iterable[Batch], previous: Iterable[Batch]) -> None:
        """Writes new rows that depend on the data into the student, in place and in every process alike.

        It is called once, before `before_step`, with the same data; a resumed training does not call it again. Each
        iterable can be read once.
        """

    def before_step(self, batches: Iterable[Batch], teacher: nn.Module, previous: Iterable[Batch]) -> None:
        """A pass over the step's data before training, through the frozen teacher, without gradients.

        Args:
            batches: every image of the step once, whole and without augmentation, for every seed and batch size alike.
                It has the size of training (after `train.resize`), reduced where its area is more than four times that
                of a crop. With `statistics_from = "epoch"`: the first epoch of training batches as in published code,
                shuffled, cropped and flipped, without the images that do not fill a last update.
            teacher: the network of the step before; None where `uses_teacher` is False.
            previous: the data of the step before, with the labels of that step. They do not break the rule of no old
                images: a method could store what the teacher computes from them at the end of that step. They are read
                only when iterated.
        """

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        """Labels (B,H,W) to learn from."""
        return batch.given

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name. Their sum is the loss. Each is a mean, see `normalisers`.

        Args:
            teacher: None in the base step and where `uses_teacher` is False.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no losses.")

    def over_strips(
        self,
        losses: Callable[[Output, Output | None, Batch], dict[str, Tensor]],
        student: Output,
        teacher: Output | None,
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Losses of pixels, `losses(student, teacher, batch)`, computed strip by strip (`Batch.strips`).

        In a strip, outputs have logits and no features. Each loss is a mean over its `pixel_counts`, or else over all
        pixels, in a strip as in the result. With several strips, values that `losses` writes into `batch.logs` are
        lost. Write them in `Method.labels` or `Method.losses`.
        """
        if len(batch.strips) == 1:
            return losses(student, teacher, batch)
        counts = [self.pixel_counts(old, strip) for strip, old in batch.strips_of(teacher)]
        totals = {name: sum(count[name] for count in counts).clamp(min=1) for name in counts[0]}
        pixels = batch.labels.numel()

        def of_strip(low_resolution: Tensor, number: int) -> dict[str, Tensor]:
            rows = batch.strips[number]
            strip = batch.strip(rows)
            new = student.with_rows(low_resolution).strip(batch.size, rows)
            values = losses(new, teacher and teacher.strip(batch.size, rows), strip)
            # L = sum_s n_s L_s / n,   n_s of n pixels in strip s
            return {
                name: value * counts[number].get(name, strip.labels.numel()) / totals.get(name, pixels)
                for name, value in values.items()
            }

        return sum_of_strips(of_strip, range(len(counts)), student.rows.contiguous())

    def pixel_weights(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """Weights (B,H,W) of the pixels' cross-entropies in an incremental step; None: all are 1.

        The training loop does not apply them: `losses` must multiply by them. Figures call this hook, too.

        Args:
            logits: the student's, (B,C,H,W), at full resolution.
            batch: with the labels that the method learns.
        """
        return None

    def pixel_counts(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """The part of `normalisers` that counts pixels, which holds for a strip as well."""
        return {"cross_entropy": (batch.labels != IGNORE).sum()}

    def normalisers(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """Number of elements that each loss of `losses` is a mean over, by name; 0 where the loss is 0.

        An update may have several batches, accumulated or of several processes. The loop weighs each batch's loss by
        its share of the elements, so that the update is that of one large batch. Losses without a number here are means
        over images.
        """
        return self.pixel_counts(teacher, batch)

    def maps(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """Maps (B,.,.) by name, for figures of what the method computes in an image, after `labels`."""
        return {}

    def after_step(self, student: Network) -> None:
        """Changes the network after the last epoch of an increment: in place, and in the same way in every process.

        It is called once. The network that it leaves is scored, saved and continued.
        """

    def state_dict(self) -> dict[str, Any]:
        """What `start` and `before_step` left, such as prototypes: plain values, arrays and tensors, the same in every
        process.

        It is saved after every epoch. A resumed training loads it and calls neither of the two again.
        """
        names = {entry.name for entry in fields(self)} if is_dataclass(self) else set()
        return {name: value for name, value in vars(self).items() if name not in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


Statistics = Literal["images", "epoch"]  # what `before_step` reads; see there
