"""What several methods have in common: how new classes start, fusion of weights, and PLOP's distillation."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from ciss.config import Benchmark
from ciss.losses import pod_distillation
from ciss.methods.base import Method, coefficients
from ciss.models import Network, Output
from ciss.models.encoders import activation_problem
from ciss.models.fusion import endpoint_weight, fuse_weights
from ciss.ranges import Choices, Range

# Endpoints weight fusion (Xiao et al., CVPR 2023) of any host, as its published scripts train it: the preset `ewf`.
EWF: dict[str, dict[str, Any]] = {"ewf": {"fusion": "classes", "old_rows": "frozen"}}


def rows_problem(benchmark: Benchmark) -> tuple[str, str] | None:
    """`Method.unsuited` of methods that have rows beside those of their classes and train the rows of new ones."""
    if benchmark.model.decoder != "deeplabv3":
        return "model.decoder", "another token would attend to the patches and shift the class norm. Use deeplabv3"
    if benchmark.setting == "domain":
        return "setting", "no class is new in the domain setting, so it would learn nothing"
    return None


@torch.no_grad()
def copy_to_new_rows(network: Network, weight: Tensor, bias: Tensor) -> None:
    """The newest classes start with these rows, (n,D,1,1) and (n,), or all with one row."""
    new_weight, new_bias = network.decoder.rows(new=True)
    new_weight.copy_(weight.expand_as(new_weight))
    new_bias.copy_(bias.expand_as(new_bias))


@coefficients
class BalancedInitialisation(Method):
    """A method whose new classes start from the background (MiB, section 3.3), or at random (`default`)."""

    # of the rows of new classes: from the row of the background (MiB), or at random
    initialisation: Annotated[Literal["balanced", "default"], Choices()] = "balanced"

    def initialise(self, network: Network, classes: int) -> None:
        network.grow(classes)
        if self.initialisation == "balanced":
            network.decoder.balance()


@coefficients
class WeightFusion(BalancedInitialisation):
    """A method whose weights may be averaged with those before the step (EWF, Xiao et al., CVPR 2023).

    With `fusion: classes`, after the last epoch, for every weight, batch-norm scale, shift, mean and variance that the
    network had before the step:

        theta <- (1 - a) theta_before + a theta_after,   a = sqrt(n / (K + n)),   n new classes, K channels before

    The fused network is the result of the step. Curves end before the fusion.
    """

    unlisted: ClassVar = ("fusion", "count_background", "old_rows", "fused_share")

    fusion: Literal["none", "classes"] = "none"  # classes: weights are averaged with those before the step
    count_background: bool = True  # whether K counts the background, as in the published code
    # frozen: rows of the classifier (tokens) from earlier steps do not learn, that of the background neither
    old_rows: Literal["learn", "frozen"] = "learn"
    # only this share of the weights, those that changed most, is averaged; published option, 0.45: not in the paper
    fused_share: Annotated[float, Field(gt=0, le=1)] | None = None

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        if benchmark.setting != "domain":
            return None
        if self.fusion != "none":
            reason = "no class is new in the domain setting, so a is 0 and the fusion would undo the step"
            return "methods.fusion", f"{reason}. Set `fusion: none`"
        if self.old_rows == "frozen":
            return "methods.old_rows", "all rows are old in the domain setting. Set `old_rows: learn`"
        return None

    def initialise(self, network: Network, classes: int) -> None:
        if self.fusion != "none":
            old_channels = network.channels if self.count_background else network.channels - 1
            self.weight_of_new = endpoint_weight(old_channels, classes)
            self.before = {name: value.detach().clone() for name, value in network.state_dict().items()}
        super().initialise(network, classes)

    def trainable(self, network: Network) -> Iterable[nn.Parameter]:
        if self.old_rows == "learn":
            return super().trainable(network)
        new = {id(parameter) for parameter in network.decoder.rows(new=True)}
        old = {id(parameter) for parameter in network.decoder.rows()} - new
        return [parameter for parameter in network.parameters() if id(parameter) not in old]

    def after_step(self, student: Network) -> None:
        if self.fusion != "none":
            fused = fuse_weights(self.before, student.state_dict(), self.weight_of_new, fused_share=self.fused_share)
            student.load_state_dict(fused)

    def state_dict(self) -> dict[str, Any]:
        # The weights before the step are those of the run before it: `initialise` keeps them on every start.
        recomputed = ("before", "weight_of_new")
        return {name: value for name, value in super().state_dict().items() if name not in recomputed}


@coefficients
class PLOPHost(WeightFusion):
    """PLOP's distillation of pooled outputs and MiB's start, for methods that add to them.

    Defaults are PLOP's for Pascal VOC (ADE20K: pod 0.001, pod_outputs 0.00001). `pod_stages`: POD compares the
    encoder's stages, or the same before their last activation (the sum that ends a residual block), as PLOP's code
    does. Stages that end without an activation (MobileNetV2, vision transformers) are the same in both.
    """

    pod: Annotated[NonNegativeFloat, Range(1e-4, 0.1, log=True)] = 0.01  # weight of the POD of features
    pod_outputs: Annotated[NonNegativeFloat, Range(5e-6, 5e-3, log=True)] = 0.0005  # weight of the POD of logits
    scales: tuple[PositiveInt, ...] = (1, 2, 4)  # cells a side in which POD pools
    # which maps of the encoder POD compares
    pod_stages: Literal["activated", "before_activation"] = "activated"

    @property
    def needs_before_activation(self) -> bool:
        return self.pod_stages == "before_activation" and bool(self.pod or self.pod_outputs)

    def unsuited(self, benchmark: Benchmark) -> tuple[str, str] | None:
        model = benchmark.model
        if (problem := super().unsuited(benchmark)) or not self.needs_before_activation:
            return problem
        problem = activation_problem(model.encoder, model.output_stride, model.image_size)
        if problem is None:
            return None
        reason = f"`pod_stages: before_activation` does not work with {model.encoder}: {problem}"
        return "model.encoder", f"{reason}. Use a ResNet, or `pod_stages: activated`"

    def host_losses(self, student: Output, teacher: Output) -> dict[str, Tensor]:
        """L_pod by name, with its coefficients."""
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
