"""What a method may do: coefficients, and hooks that see outputs and labels, never the optimiser."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn

from ciss.config import STRICT, Benchmark
from ciss.losses import gradient_magnitude, pod_distillation, sum_by_step
from ciss.models import Network, Output
from ciss.models.encoders import activation_problem
from ciss.protocol import VOID as IGNORE

# Coefficients are fields; an unknown one in `params.yaml` is an error. Not frozen: a method may keep state of a step.
coefficients: Callable = checked(kw_only=True, config=STRICT)


@dataclass
class Batch:
    """One mini-batch as a method sees it. Labels are channel positions; 255 is ignored."""

    images: Tensor  # (B,3,H,W), normalised
    given: Tensor  # (B,H,W) int64: the step's labels as the data gives them
    labels: Tensor  # (B,H,W) int64: the same after `Method.labels`
    ids: list[str]
    step: int  # the step being learnt, 0 the base
    old_channels: int  # K: the teacher's channels, background included; 0 at step 0
    class_steps: Tensor  # (C,) int64: the step that introduced each channel
    new_classes: Tensor  # 1-D int64: positions of this step's classes
    weights: Tensor | None = None  # (B,H,W): what `Method.pixel_weights` gave to `losses`; for the log
    logs: dict[str, Tensor] = field(default_factory=dict)  # scalars for the log; NaN where there is nothing to say

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.labels.shape[-2:])

    @property
    def channels(self) -> int:
        """C: the student's channels."""
        return len(self.class_steps)

    @torch.no_grad()
    def log_labels(self) -> None:
        """Logs the shares of the given background that became an old class, that stays, and that is ignored."""
        background = self.given == 0
        total = background.sum()
        self.logs["background/relabelled"] = (background & (self.labels > 0) & (self.labels != IGNORE)).sum() / total
        self.logs["background/kept"] = (background & (self.labels == 0)).sum() / total
        self.logs["background/ignored"] = (background & (self.labels == IGNORE)).sum() / total

    @torch.no_grad()
    def log_gradients(self, student: Output) -> None:
        """Logs mean gradient magnitudes, by every fourth pixel of every fourth row: of pixels learnt as background, and
        of those whose label each step introduced (the background's: step 0). `compensated/`: the same times `weights`.
        """
        labels, logits = self.labels[:, ::4, ::4], student.upsample(self.size)[..., ::4, ::4]
        size, background = gradient_magnitude(logits, labels), labels == 0
        self.logs["gradient/background"] = (size * background).sum() / background.sum()
        kinds = {"gradient": size}
        steps = self.step + 1 if len(self.new_classes) else 1  # of domains, every class is of step 0
        if self.weights is not None:
            kinds["compensated"] = size * self.weights[:, ::4, ::4]
        for kind, values in kinds.items():
            sums, counts = sum_by_step(values, labels, self.class_steps)
            means = sums / counts
            self.logs |= {f"{kind}/step{s}": means[s] for s in range(steps)}

    @property
    def folded(self) -> int:
        """Channels that stand for the background in MiB's losses: the old ones; of domains, where no class is new and
        none hides in the background, its own."""
        return self.old_channels if len(self.new_classes) else 1

    @torch.no_grad()
    def log_weights(self, weights: Tensor | None, background: bool = True) -> None:
        """Keeps a method's pixel weights (B,H,W) for `log_gradients`, and logs quantiles of those of old pixels, by
        every eighth pixel of every eighth row; the largest by all of them. `background`: whether it is among them."""
        self.weights = weights
        if weights is None:
            return
        old = (self.labels < self.old_channels) & (self.labels != IGNORE)
        if not background:
            old &= self.labels != 0
        picked = torch.where(old, weights, torch.nan)[:, ::8, ::8].flatten()
        shares = torch.arange(1, 20, 9, device=picked.device) / 20  # made on the device, so that the host does not wait
        low, middle, high = torch.nanquantile(picked, shares.to(picked.dtype))
        self.logs |= {"weight/q05": low, "weight/median": middle, "weight/q95": high}
        self.logs["weight/largest"] = torch.where(old, weights, 0).amax()


# In a domain every class is of step 0, so no pixel is old.
NOTHING_TO_COMPENSATE = (
    "methods.compensation",
    "no class is new in the domain setting, so every weight of the gradient compensation is 1. Set `compensation: "
    "false`, or `new_weight: mean`",
)
# Every pixel of a domain has its true label.
TRUE_BACKGROUND = "in the domain setting the background is labelled as such, and pseudo-labels replace it"


class Method:
    """The hooks, each with the default of plain training. Order in a step: initialise, before_step, then for every
    batch labels and losses."""

    sees_all: ClassVar[bool] = False  # joint training: every class at once, with all labels
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # named coefficients: `name-preset` under methods
    usual: ClassVar[bool] = True  # planned when no methods are named
    # Whether the hooks below read the teacher. Without it the teacher is not run: they get None, and `labels` is not
    # called. A method may decide by its coefficients.
    uses_teacher = True
    decoder: ClassVar[str | None] = None  # the one it was published on; tables call it "(adapted)" on another
    # What `before_step` reads: every image of the step once, or an epoch of training batches. A method with such
    # statistics may make it a coefficient.
    statistics_from = "images"

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        """A key of the benchmark, or `methods.NAME` for a coefficient, under which the method is not what it says, and
        why with the remedy; or None."""

    def notice(self, benchmark: Benchmark) -> str | None:
        """What the method does not do, or does otherwise, on this benchmark, with the remedy; printed before training.

        Unlike `unsuited`, training goes on.
        """

    @property
    def needs_before_activation(self) -> bool:
        """Whether `losses` reads `Output.before_activation`, which networks do not return otherwise."""
        return False

    def initialise(self, network: Network, classes: int) -> None:
        """Grows the network by this step's classes."""
        network.grow(classes)

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        """The parameters that learn in an incremental step."""
        return network.parameters()

    def before_step(self, batches: Iterable[Batch], teacher: nn.Module, previous: Iterable[Batch]) -> None:
        """A pass over the step's data before training, through the frozen teacher, without gradients.

        `batches`: every image of the step exactly once, whole and without augmentation, whatever the seed, the order
        and `train.batch`. Its size is that of training (after `train.resize`), reduced where it has more than four
        times the area of a training crop. With `statistics_from = "epoch"`: the first epoch of training batches, as
        published code reads them: shuffled, cropped, flipped, and without the images that do not fill a last update.
        `previous`: the data of the step before, labelled as that step saw them. What is made of them by the teacher,
        which is the network that step ended with, is what could have been stored then; nothing is read otherwise.
        """

    def labels(self, batch: Batch, teacher: Output) -> Tensor:
        """Labels (B,H,W) to learn from, once the teacher has seen the images."""
        return batch.given

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """Named scalars, which are added up. Each is a mean, see `normalisers`. `teacher` is None at step 0."""
        raise NotImplementedError(f"{type(self).__name__} defines no losses.")

    def pixel_weights(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """What an incremental step multiplies each pixel's cross-entropy by, (B,H,W); None: every pixel weighs 1.

        Args: logits: the student's, (B,C,H,W), at full resolution; batch: with the labels that the method learns.
        Asked by the method's losses, which log it, and by whoever draws weights.
        """
        return None

    def normalisers(self, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        """Number of elements of a batch that each loss of `losses` is a mean over, by name, after `labels`.

        With several batches in an update, accumulated or of several processes, the loop weighs each batch's loss by
        its share of them: the update is then that of one large batch. A loss that is not named is a mean over images.
        A value may be 0; the loss is 0 then.
        """
        return {"cross_entropy": (batch.labels != IGNORE).sum()}

    def maps(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """Named maps (B,.,.) for the figures: what the method sees in an image, after `labels`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the method keeps beside its coefficients, such as prototypes: plain values and tensors, the same in
        every process. A stopped training goes on with it, and calls `before_step` no second time."""
        chosen = {each.name for each in fields(self)} if is_dataclass(self) else set()
        return {name: value for name, value in vars(self).items() if name not in chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


Statistics = Literal["images", "epoch"]  # what `before_step` reads; see there


@coefficients
class Balanced(Method):
    """A method whose new classes start from the background (MiB, section 3.3), or at random."""

    initialisation: Literal["balanced", "default"] = "balanced"

    def initialise(self, network: Network, classes: int) -> None:
        network.grow(classes)
        if self.initialisation == "balanced":
            network.decoder.balance()


@coefficients
class Host(Balanced):
    """PLOP's distillation of pooled outputs and MiB's start, for what stands on them.

    Defaults are PLOP's for Pascal VOC (ADE20K: pod 0.001, pod_outputs 0.00001). `pod_stages`: which maps of the encoder
    POD compares: its stages, or the same before their last activation, as PLOP's code does (the sum that ends a
    residual block). Stages that end without an activation (MobileNetV2, vision transformers) are the same in both.
    """

    pod: NonNegativeFloat = 0.01
    pod_outputs: NonNegativeFloat = 0.0005
    scales: tuple[PositiveInt, ...] = (1, 2, 4)
    pod_stages: Literal["activated", "before_activation"] = "activated"

    @property
    def needs_before_activation(self) -> bool:
        return self.pod_stages == "before_activation" and bool(self.pod or self.pod_outputs)

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        if not self.needs_before_activation:
            return super().unsuited(benchmark)
        model = benchmark.model
        if problem := activation_problem(model.encoder, model.output_stride, model.image_size):
            reason = f"`pod_stages: before_activation` does not work with {model.encoder}: {problem}"
            return "model.encoder", f"{reason}. Use a ResNet, or `pod_stages: activated`"
        return super().unsuited(benchmark)

    def host_losses(self, student: Output, teacher: Output) -> dict[str, Tensor]:
        if not (self.pod or self.pod_outputs):
            return {}
        return {
            "pod": pod_distillation(
                [*self._pod_stages(student), student.features],
                [*self._pod_stages(teacher), teacher.features],
                student.logits,
                teacher.logits,
                features=self.pod,
                outputs=self.pod_outputs,
                scales=self.scales,
            )
        }

    def _pod_stages(self, output: Output) -> list[Tensor]:
        if self.pod_stages == "activated":
            return output.stages
        if output.before_activation is None:
            raise ValueError(
                "`pod_stages: before_activation` needs outputs with `before_activation`. "
                "Call `network.return_before_activation()` before the forward pass."
            )
        return output.before_activation
