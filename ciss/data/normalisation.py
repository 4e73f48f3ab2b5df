"""Input statistics: the mean and deviation by which images are normalised before the network sees them."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ciss.config import Model


class Statistics(NamedTuple):
    """Mean and deviation of the red, green and blue channel, for values from 0 to 1."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @property
    def colour(self) -> tuple[int, int, int]:
        """The mean as a colour of 0 to 255. It fills padding, because it is 0 after normalisation."""
        return tuple(round(255 * value) for value in self.mean)


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@functools.cache
def input_statistics(model: Model) -> Statistics:
    """The statistics of a `model` section.

    `input_statistics: encoder` gives those of timm's weights for this encoder. Without weights, or without an entry in
    timm, it gives ImageNet's, as `imagenet` does. A weight file (`model.weights`) is assumed to have the statistics of
    timm's weights of the same name. (The package efficientnet-lite0 has: on 150 photographs of a single class, top-1
    accuracy is 0.65 with mean and deviation 0.5, 0.61 with ImageNet's.)
    """
    if model.input_statistics == "imagenet" or not (model.pretrained or model.weights):
        return IMAGENET
    from timm.models import get_pretrained_cfg  # takes a second to import

    weights = get_pretrained_cfg(model.encoder)
    return Statistics(tuple(weights.mean), tuple(weights.std)) if weights else IMAGENET


def normalise(images: Tensor, device: torch.device, channels_last: bool, statistics: Statistics = IMAGENET) -> Tensor:
    """uint8 (B,3,H,W) -> float32 (B,3,H,W) on the device, minus the mean, over the deviation."""
    images = images.to(device, non_blocking=True).float().div_(255)
    # Made on the host: torch.tensor(v, device=device) would wait for the device.
    mean, deviation = (torch.tensor(v).to(device, non_blocking=True).view(1, 3, 1, 1) for v in statistics)
    # Loaders deliver pixels with their colours side by side, as in channels_last.
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return ((images - mean) / deviation).contiguous(memory_format=layout)
