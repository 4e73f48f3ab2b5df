"""The network interface that all methods use, for every encoder and decoder."""

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
    """The result of a forward pass. B images, C channels, D width, h w grid, H W full resolution."""

    logits: Tensor  # (B,C,h,w)
    features: Tensor  # (B,D,h,w), before the classifier
    stages: list[Tensor]  # (B,D_l,h_l,w_l), deepest last
    class_features: Tensor  # (B,C,D)
    class_tokens: Tensor  # (C,D)
    # (image size, padded size) if the image was padded to a multiple of the patch size, else None
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    before_activation: list[Tensor] | None = None  # `stages` before their last activation, by request only
    of_strip: tuple[tuple[int, int], slice] | None = None  # of a strip: the whole size (H,W), and its rows
    _upsampled: dict = field(default_factory=dict, repr=False)
    _matrices: dict = field(default_factory=dict, repr=False)  # shared with strips

    def upsample(self, size: tuple[int, int]) -> Tensor:
        """Logits (B,C,H,W) in float32 or wider; computed once and kept, as the next two."""
        return self._cached("logits", size, lambda logits: logits)

    def probabilities(self, size: tuple[int, int]) -> Tensor:
        """Softmax of the full-resolution logits, (B,C,H,W)."""
        return self._cached("probabilities", size, lambda logits: logits.softmax(dim=1))

    def log_probabilities(self, size: tuple[int, int]) -> Tensor:
        """Log-softmax of the full-resolution logits, (B,C,H,W)."""
        return self._cached("log_probabilities", size, lambda logits: logits.log_softmax(dim=1))

    def strip(self, size: tuple[int, int], rows: slice) -> "Output":
        """The logits alone, with full-resolution maps that are some rows of those of a size (H,W), that of all rows."""
        if (rows.start, rows.stop) == (0, size[0]):
            return self
        nothing = dict.fromkeys(("features", "stages", "class_features", "class_tokens", "before_activation"))
        return replace(self, of_strip=(tuple(size), rows), _upsampled={}, **nothing)

    def without_cache(self) -> "Output":
        """The same output without the full-resolution maps that it keeps."""
        return replace(self, _upsampled={}, _matrices={})

    def enlarge(self, maps: Tensor, size: tuple[int, int], every: int = 1) -> Tensor:
        """Bilinear interpolation of maps (B,.,h,w) on the network's grid to full resolution, (B,.,H,W).

        Strips, and `every` so many pixels of every so many rows, are computed by two products with matrices: they need
        only some rows of these, and the way back is a product, too.
        """
        if self.of_strip is None and every == 1:
            # contiguous: `interpolate` keeps channels_last, in which a softmax over channels copies the whole map
            full = F.interpolate(maps.contiguous(), self.covered_by(size), mode="bilinear", align_corners=False)
            return full[..., : size[0], : size[1]]
        whole, rows = self.of_strip or (size, slice(None))
        height, width = self.covered_by(whole)
        down = self._matrix(maps, 2, height)[: whole[0]][rows][::every]
        across = self._matrix(maps, 3, width)[: whole[1] : every]
        with torch.autocast(maps.device.type, enabled=False):  # it would multiply matrices in half precision
            return down @ maps @ across.T

    def covered_by(self, size: tuple[int, int]) -> tuple[int, int]:
        """Pixels (H,W) that the grid stands for in an image of a size; more than that where patches were padded."""
        if self.padding is None:
            return size
        return tuple(-(-side * whole // own) for side, own, whole in zip(size, *self.padding, strict=True))

    def _matrix(self, maps: Tensor, dim: int, size: int) -> Tensor:
        """Matrix (size,n) of linear interpolation along a dimension of n values: interpolated unit vectors. Kept."""
        key = (maps.shape[dim], size, maps.dtype)
        if key not in self._matrices:
            unit = torch.eye(maps.shape[dim], dtype=maps.dtype, device=maps.device)
            self._matrices[key] = F.interpolate(unit[None], size, mode="linear", align_corners=False)[0].T
        return self._matrices[key]

    def _cached(self, name: str, size: tuple[int, int], function: Callable[[Tensor], Tensor]) -> Tensor:
        size = tuple(size)
        if (name, size) not in self._upsampled:
            with torch.enable_grad():  # the first call may be without gradients, a later one may need them
                self._upsampled[name, size] = function(self.enlarge(at_least_float32(self.logits), size))
        return self._upsampled[name, size]


class Network(nn.Module):
    """Encoder and decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.returns_before_activation = False
        self.frozen: list[nn.Module] = []  # modules that stay in evaluation mode

    def return_before_activation(self) -> None:
        """Makes outputs have `before_activation`. Raises ValueError, see `Convolutional.split_activations`."""
        self.encoder.split_activations()
        self.returns_before_activation = True

    def freeze(self, modules: Iterable[nn.Module]) -> None:
        """Puts modules into evaluation mode, also after later calls of `train()`."""
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
        padded_size = tuple(-(-side // patch) * patch for side in image)
        padding = (image, padded_size) if padded_size != image else None
        return Output(logits, features, stages, class_features, tokens, padding, before)

    def grow(self, classes: int) -> None:
        """Adds a group of `classes` new channels. Old parameters keep their bytes."""
        self.decoder.grow(classes)

    @property
    def channels(self) -> int:
        return self.decoder.channels


def create_network(model: Model, groups: list[int], weights: Path | None = None) -> Network:
    """A network by the `model` section. Raises ValueError and WeightsError, see `create_encoder`.

    Args:
        groups: channels of each group of classes, the first with the background: [5, 2] for protocol 4-2 at step 1.
        weights: the encoder's weight file.
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
    """The layer that cannot normalise a batch of one image, because it has one value per channel; None: no layer.

    Args:
        crop: side of the training images in pixels.
    """
    if model.decoder == "deeplabv3":
        return "the pooled branch of deeplabv3"
    from timm.models import is_model_in_modules  # here, because timm takes seconds to import

    convolutional = not is_model_in_modules(model.encoder, ["vision_transformer", "deit"])
    if convolutional and crop <= model.output_stride:
        return f"the last stage of {model.encoder}, of 1 x 1 pixel"
    return None


def set_norm_mode(network: Network, norm: str) -> Network:
    """Sets training mode and how batch normalisation works. Returns the network, whose layers `sync` replaces.

    Args:
        norm: `batch`: statistics of the batch. `sync`: of the batches of all processes; needs CUDA, otherwise as
            `batch`. `frozen`: running statistics, which stay as they are; scale and shift still learn.
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
