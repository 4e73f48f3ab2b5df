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
        """The mean as a colour of 0 to 255: what padding is filled with, 0 after normalisation."""
        return tuple(round(255 * value) for value in self.mean)


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@functools.cache
def input_statistics(model: Model) -> Statistics:
    """The statistics of a `model` section.

    `input_statistics: encoder` gives those that timm names for the weights of this encoder, and ImageNet's where the
    network starts without weights, or where timm has no weights of this name. `imagenet` gives ImageNet's. A weight
    file (`model.weights`) is assumed to have been trained as timm's weights of the same name: a file from another
    project may need other statistics, which its tensors do not tell.
    """
    if model.input_statistics == "imagenet" or not (model.pretrained or model.weights):
        return IMAGENET
    from timm.models import get_pretrained_cfg  # takes a second, which a network without weights need not wait

    found = get_pretrained_cfg(model.encoder)
    return Statistics(tuple(found.mean), tuple(found.std)) if found else IMAGENET


def normalise(images: Tensor, device: torch.device, channels_last: bool, statistics: Statistics = IMAGENET) -> Tensor:
    """uint8 (B,3,H,W) -> float32 on the device, minus the mean, over the deviation; bytes travel, not floats."""
    images = images.to(device, non_blocking=True).float().div_(255)
    shape = (1, 3, 1, 1)
    # made on the host: torch.tensor(v, device=device) would wait for the device
    mean, deviation = (torch.tensor(v).to(device, non_blocking=True).view(shape) for v in statistics)
    images = (images - mean) / deviation
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images
