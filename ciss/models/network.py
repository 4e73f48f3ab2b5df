"""One network interface for every method: what a forward pass gives, whatever encoder and decoder made it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.config import Model
from ciss.models.deeplabv3 import DeepLabV3
from ciss.models.encoders import create_encoder
from ciss.models.mask_transformer import MaskTransformer
from ciss.precision import at_least_float32


@dataclass
class Output:
    """What losses and analyses see of a network. B images, C channels, D width, h w grid, H W full resolution."""

    logits: Tensor  # (B,C,h,w)
    features: Tensor  # (B,D,h,w), before the classifier
    stages: list[Tensor]  # (B,D_l,h_l,w_l), deepest last
    class_features: Tensor  # (B,C,D)
    class_tokens: Tensor  # (C,D)
    # pixels (H,W) of the image, and those the grid stands for, where the last patches had to be filled up
    filled: tuple[tuple[int, int], tuple[int, int]] | None = None
    before_activation: list[Tensor] | None = None  # `stages` before their last activation, by request only
    _full: dict = field(default_factory=dict, repr=False)

    def upsample(self, size: tuple[int, int]) -> Tensor:
        """Logits (B,C,H,W) in float32 or wider. Computed once, however many losses ask, as are the next two."""
        return self._once("logits", size, self._upsample)

    def probabilities(self, size: tuple[int, int]) -> Tensor:
        """Softmax of the full-resolution logits, (B,C,H,W), which are not kept."""
        return self._once("probabilities", size, lambda size: self._upsample(size).softmax(dim=1))

    def log_probabilities(self, size: tuple[int, int]) -> Tensor:
        """Their logarithm, (B,C,H,W)."""
        return self._once("log_probabilities", size, lambda size: self._upsample(size).log_softmax(dim=1))

    def without_cache(self) -> "Output":
        """The same output without the full-resolution maps that it keeps."""
        return replace(self, _full={})

    def covered_by(self, size: tuple[int, int]) -> tuple[int, int]:
        """What the grid stands for when the image is drawn at a size."""
        if self.filled is None:
            return size
        return tuple(-(-side * whole // own) for side, own, whole in zip(size, *self.filled, strict=True))

    def _upsample(self, size: tuple[int, int]) -> Tensor:
        logits = at_least_float32(self.logits)
        whole = F.interpolate(logits, self.covered_by(size), mode="bilinear", align_corners=False)
        return whole[..., : size[0], : size[1]]

    def _once(self, name: str, size: tuple[int, int], make: Callable[[tuple[int, int]], Tensor]) -> Tensor:
        size = tuple(size)
        if (name, size) not in self._full:
            with torch.enable_grad():  # whoever asks next may need the gradients that the first one switched off
                self._full[name, size] = make(size)
        return self._full[name, size]


class Network(nn.Module):
    """Encoder and decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.returns_before_activation = False
        self.frozen: list[nn.Module] = []  # modules that stay in evaluation mode

    def return_before_activation(self) -> None:
        """From now on, outputs have `before_activation`. Raises ValueError, see `split_activations` of the encoder."""
        self.encoder.split_activations()
        self.returns_before_activation = True

    def freeze(self, modules: Iterable[nn.Module]) -> None:
        """Puts modules into evaluation mode; they stay in it after `train()`."""
        self.frozen += modules
        self.train(self.training)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> Output:
        """images (B,3,H,W), normalised -> Output."""
        if self.returns_before_activation:
            stages, before = self.encoder.stages(images)
        else:
            stages, before = self.encoder(images), None
        logits, features, class_features, tokens = self.decoder(stages)
        image, patch = tuple(images.shape[-2:]), self.encoder.patch
        whole = tuple(-(-side // patch) * patch for side in image)
        filled = (image, whole) if whole != image else None
        return Output(logits, features, stages, class_features, tokens, filled, before)

    def grow(self, classes: int) -> None:
        """Adds a group of `classes` new channels; every old parameter keeps its bits."""
        self.decoder.grow(classes)

    @property
    def channels(self) -> int:
        return self.decoder.channels


def create_network(model: Model, groups: list[int], weights: Path | None = None) -> Network:
    """A network by the `model` section.

    Args: groups: channels of each group of classes, the first one with the background (protocol 4-2 at step 1: [5, 2]);
    weights: the encoder's weight file, resolved. Raises: ValueError and WeightsError, see `create_encoder`.
    """
    encoder = create_encoder(model.encoder, model.output_stride, weights, model.pretrained, model.image_size)
    return Network(encoder, create_decoder(model, encoder.widths[-1], groups))


def create_decoder(model: Model, in_width: int, groups: list[int]) -> DeepLabV3 | MaskTransformer:
    """A decoder by the `model` section over `in_width` channels. Raises ValueError for sizes that do not fit."""
    if model.decoder == "deeplabv3":
        return DeepLabV3(in_width, model.width, groups, atrous_rates=model.atrous_rates, dropout=model.dropout)
    options = {"layers": model.layers, "heads": model.heads, "drop_path": model.drop_path}
    return MaskTransformer(in_width, model.width, groups, **options)


def needs_two_images(model: Model, crop: int) -> str | None:
    """Which layer of a network cannot be trained with the batch statistics of one image, since it normalises one value
    per channel; None where there is no such layer. `crop`: side of the training images in pixels."""
    if model.decoder == "deeplabv3":
        return "the pooled branch of deeplabv3"
    from timm.models import is_model_in_modules  # here, because timm takes seconds to import

    convolutional = not is_model_in_modules(model.encoder, ["vision_transformer", "deit"])
    if convolutional and crop <= model.output_stride:
        return f"the last stage of {model.encoder}, of 1 x 1 pixel"
    return None


def set_norm_mode(network: Network, norm: str) -> Network:
    """Training mode with the normalisation of a phase: `batch` statistics, `sync` across processes, or `frozen` ones.

    Frozen: statistics stay as they are, scale and shift still learn. Sync needs CUDA and is `batch` without it. Returns
    the network (sync replaces its layers).
    """
    synced = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    if norm == "sync" and next(network.parameters()).is_cuda and not synced:  # timm's drops activations the second time
        from timm.layers import convert_sync_batchnorm

        network = convert_sync_batchnorm(network)
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    network.frozen = [module for module in network.frozen if module not in layers]
    network.train()
    if norm == "frozen":
        network.freeze(layers)
    return network
