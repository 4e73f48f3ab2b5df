"""The network interface that all methods use, for every encoder and decoder."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss import distributed
from ciss.config import Model
from ciss.models.deeplabv3 import DeepLabV3
from ciss.models.encoders import create_encoder
from ciss.models.extras import Extra
from ciss.models.mask_transformer import MaskTransformer
from ciss.models.prediction import Rule, fold
from ciss.models.synchronised import synchronise
from ciss.precision import at_least_float32


@dataclass
class Output:
    """The result of a forward pass. B images, C channels, D width, h w grid, H W full resolution."""

    logits: Tensor  # (B,C,h,w); with `Extra.stages` the grid may be finer than that of the features
    features: Tensor  # (B,D,h,w), before the classifier
    stages: list[Tensor]  # (B,D_l,h_l,w_l), deepest last
    class_features: Tensor  # (B,C,D); of deeplabv3 the weight rows of the classifier, the same for every image
    class_tokens: Tensor  # (C,D)
    # (image size, padded size) if the image was padded to a multiple of the patch size, else None
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    before_activation: list[Tensor] | None = None  # `stages` before their last activation, by request only
    of_strip: tuple[tuple[int, int], slice] | None = None  # of a strip: the whole size (H,W), and its rows
    extras: dict[str, Tensor] = field(default_factory=dict)  # (B,e,h,w) logits of rows that are no classes, by name
    prediction: Rule = "learnt"  # how full-resolution logits follow from the rows, see `models.prediction`
    _upsampled: dict = field(default_factory=dict, repr=False)
    _matrices: dict = field(default_factory=dict, repr=False)  # shared with strips

    def upsample(self, size: tuple[int, int]) -> Tensor:
        """Logits (B,C,H,W) in float32 or wider, by the prediction rule; computed once and kept, as the next three."""
        return self._cached("logits", size, self._folded)

    def raw(self, size: tuple[int, int]) -> Tensor:
        """Full-resolution rows (B,e+C,H,W) without the prediction rule, the extra ones first."""
        return self._cached("raw", size, lambda size: self.enlarge(self.rows, size))

    @property
    def rows(self) -> Tensor:
        """Low-resolution logits of all rows (B,e+C,h,w) in float32 or wider, the extra ones first."""
        if not self.extras:
            return at_least_float32(self.logits)
        return torch.cat([at_least_float32(rows) for rows in (*self.extras.values(), self.logits)], dim=1)

    def with_rows(self, rows: Tensor) -> "Output":
        """The output with other `rows`."""
        *extras, logits = rows.split([*(part.shape[1] for part in self.extras.values()), self.logits.shape[1]], dim=1)
        return replace(self, logits=logits, extras=dict(zip(self.extras, extras, strict=True)), _upsampled={})

    def probabilities(self, size: tuple[int, int]) -> Tensor:
        """Softmax of the full-resolution logits, (B,C,H,W)."""
        return self._cached("probabilities", size, lambda size: self.upsample(size).softmax(dim=1))

    def log_probabilities(self, size: tuple[int, int]) -> Tensor:
        """Log-softmax of the full-resolution logits, (B,C,H,W)."""
        return self._cached("log_probabilities", size, lambda size: self.upsample(size).log_softmax(dim=1))

    def strip(self, size: tuple[int, int], rows: slice) -> "Output":
        """The output without features, whose full-resolution maps (B,.,r,W) have r rows of pixels only.

        Args:
            size: (H,W) of the whole images.
            rows: which of the H rows of pixels.
        """
        if (rows.start, rows.stop) == (0, size[0]):
            return self
        nothing = dict.fromkeys(("features", "stages", "class_features", "class_tokens", "before_activation"))
        return replace(self, of_strip=(tuple(size), rows), _upsampled={}, **nothing)

    def without_cache(self) -> "Output":
        """The same output without the full-resolution maps that it keeps."""
        return replace(self, _upsampled={}, _matrices={})

    def enlarge(self, maps: Tensor, size: tuple[int, int], every: int = 1) -> Tensor:
        """Bilinear interpolation of maps (B,.,h,w) to full resolution, (B,.,H,W); of a strip to its rows, (B,.,r,W).

        Strips and strides are computed by two products with matrices: they need only some rows of these, and backward
        is a product, too.

        Args:
            maps: on any grid that covers the images as the network's grids do.
            size: (H,W). A strip has its own sizes and does not read it.
            every: stride: only every so many pixels of every so many rows, (B,.,H/every,W/every) rounded up.
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

    def _folded(self, size: tuple[int, int]) -> Tensor:
        """Full-resolution logits by the prediction rule."""
        if self.prediction == "learnt":
            return self.enlarge(at_least_float32(self.logits), size)
        return fold(self.prediction, self.raw(size), sum(part.shape[1] for part in self.extras.values()))

    def _cached(self, name: str, size: tuple[int, int], function: Callable[[tuple[int, int]], Tensor]) -> Tensor:
        size = tuple(size)
        if (name, size) not in self._upsampled:
            with torch.enable_grad():  # the first call may be without gradients, a later one may need them
                self._upsampled[name, size] = function(size)
        return self._upsampled[name, size]


class Network(nn.Module):
    """Encoder and decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.returns_before_activation = False
        self.prediction: Rule = "learnt"
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
        extras = self.decoder.extra_logits(features) if self.decoder.extras else {}
        more = {"extras": extras, "prediction": self.prediction}
        return Output(logits, features, stages, class_features, tokens, padding, before, **more)

    def grow(self, classes: int) -> None:
        """Adds a group of `classes` new channels. Old parameters keep their bytes."""
        self.decoder.grow(classes)

    @property
    def channels(self) -> int:
        return self.decoder.channels


def create_network(
    model: Model, groups: list[int], weights: Path | None = None, extras: Mapping[str, Extra] | None = None
) -> Network:
    """A network by the `model` section. Raises ValueError and WeightsError, see `create_encoder`.

    Args:
        groups: channels of each group of classes, the first with the background: [5, 2] for protocol 4-2 at step 1.
        weights: the encoder's weight file.
        extras: rows and buffers that belong to no class, by name, see `Method.extras`.
    """
    encoder = create_encoder(model.encoder, model.output_stride, weights, model.pretrained, model.image_size)
    return Network(encoder, create_decoder(model, encoder.widths, groups, extras))


def create_decoder(
    model: Model, stage_widths: list[int], groups: list[int], extras: Mapping[str, Extra] | None = None
) -> DeepLabV3 | MaskTransformer:
    """A decoder by the `model` section over an encoder's stages, the deepest last. Raises ValueError for sizes that do
    not fit, and for extras on a mask transformer, where another token would attend to the patches and shift the class
    norm."""
    if model.decoder == "deeplabv3":
        options = {"atrous_rates": model.atrous_rates, "dropout": model.dropout, "extras": extras}
        return DeepLabV3(stage_widths, model.width, groups, **options)
    if extras:
        raise ValueError(f"a mask transformer has no rows beside its classes: {', '.join(extras)}. Use deeplabv3.")
    options = {"layers": model.layers, "heads": model.heads, "drop_path": model.drop_path}
    return MaskTransformer(stage_widths[-1], model.width, groups, **options)


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
    """Sets training mode and how batch normalisation works. Returns the network, whose layers may be replaced.

    Args:
        norm: `batch` and `sync`: statistics of the batch, those of the images in all processes together. `frozen`:
            running statistics, which stay as they are; scale and shift still learn.
    """
    synced = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    on_gpu = next(network.parameters()).is_cuda
    several = norm != "frozen" and distributed.world() > 1
    if several and not on_gpu:
        network = synchronise(network)
    if (norm == "sync" or several) and on_gpu and not synced:  # timm's drops activations the second time
        from timm.layers import convert_sync_batchnorm

        network = convert_sync_batchnorm(network)
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    network.frozen = [module for module in network.frozen if module not in layers]
    network.train()
    if norm == "frozen":
        network.freeze(layers)
    return network
