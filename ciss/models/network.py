"""One network interface for every method: what a forward pass gives, whatever encoder and decoder made it."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from ciss.config import Model
from ciss.models.deeplabv3 import DeepLabV3
from ciss.models.encoders import create_encoder


@dataclass
class Output:
    """What losses and analyses see of a network. B images, C channels, D width, h w grid, H W full resolution."""

    logits: Tensor  # (B,C,h,w)
    features: Tensor  # (B,D,h,w), before the classifier
    stages: list[Tensor]  # (B,D_l,h_l,w_l), deepest last
    class_features: Tensor  # (B,C,D)
    class_tokens: Tensor  # (C,D)
    _full: dict = field(default_factory=dict, repr=False)

    def upsample(self, size: tuple[int, int]) -> Tensor:
        """Logits (B,C,H,W) in float32 or wider; computed once, however many losses ask."""
        size = tuple(size)
        if size not in self._full:
            logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
            with torch.enable_grad():  # whoever asks next may need the gradients that the first one switched off
                self._full[size] = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return self._full[size]


class Network(nn.Module):
    """Encoder and decoder.

    Args: model: the `model` section; groups: channels of each group of classes, the first one with the background
    (protocol 4-2 at step 1: [5, 2]); weights: the encoder's weight file, resolved. Raises: see `create_encoder`.
    """

    def __init__(self, model: Model, groups: list[int], weights: Path | None = None):
        super().__init__()
        self.encoder = create_encoder(model.encoder, model.output_stride, weights, model.pretrained)
        self.decoder = DeepLabV3(self.encoder.widths[-1], model.width, model.atrous_rates, model.dropout, groups)

    def forward(self, images: Tensor) -> Output:
        """images (B,3,H,W), normalised -> Output."""
        stages = self.encoder(images)
        logits, features, class_features, tokens = self.decoder(stages)
        return Output(logits, features, stages, class_features, tokens)

    def grow(self, classes: int) -> None:
        """Adds a group of `classes` new channels; every old parameter keeps its bits."""
        self.decoder.grow(classes)

    @property
    def channels(self) -> int:
        return self.decoder.channels


def set_norm_mode(network: nn.Module, norm: str) -> nn.Module:
    """Training mode with the normalisation of a phase: `batch` statistics, `sync` across processes, or `frozen` ones.

    Frozen: statistics stay as they are, scale and shift still learn. Sync needs CUDA and is `batch` without it. Returns
    the network (sync replaces its layers).
    """
    synced = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    if norm == "sync" and next(network.parameters()).is_cuda and not synced:  # timm's drops activations the second time
        network = convert_sync_batchnorm(network)
    network.train()
    if norm == "frozen":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    return network
