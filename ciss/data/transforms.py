"""Transforms of an image and its mask together. Images stay uint8, and masks never gain ids."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ciss import protocol
from ciss.config import Train
from ciss.data.normalisation import IMAGENET


class Resize(v2.Transform):
    """Resizes image and mask to the (height, width) that `choose_size` returns for their own height and width."""

    def __init__(self, choose_size: Callable[[int, int], Sequence[int]]):
        super().__init__()
        self.choose_size = choose_size

    def make_params(self, flat_inputs: list) -> dict:
        return {"size": list(self.choose_size(*v2.query_size(flat_inputs)))}

    def transform(self, inpt, params: dict):
        return self._call_kernel(F.resize, inpt, params["size"], antialias=True)


def random_size(height: int, width: int, scale: tuple[float, float]) -> list[int]:
    """Height and width times a factor drawn from the range `scale`."""
    factor = torch.empty(()).uniform_(*scale).item()
    return [max(1, round(side * factor)) for side in (height, width)]


def transpose(inpt):
    """Swaps height and width of an image or a mask."""
    return tv_tensors.wrap(inpt.transpose(-1, -2), like=inpt)


def training_transform(train: Train, colour: tuple[int, int, int] = IMAGENET.colour) -> v2.Compose:
    """A transform of (Image, Mask) that returns both with `crop` pixels a side.

    `resized_crop`: random area and aspect ratio (MiB, PLOP); `scale` is a share of the AREA. `scaled_crop`: random
    resize, then crop (SSUL, MBS); `scale` is a factor of the sides. `none`: crop only. `resize` first brings the
    shorter side to a size (MBS). Padding is ignored. It has a `colour`, the mean of the input statistics.
    """
    fill = {tv_tensors.Image: colour, tv_tensors.Mask: protocol.VOID}
    crop = v2.RandomCrop(train.crop, pad_if_needed=True, fill=fill)
    steps: list[v2.Transform] = {
        "none": [crop],
        "resized_crop": [v2.RandomResizedCrop(train.crop, scale=train.scale, antialias=True)],
        "scaled_crop": [Resize(partial(random_size, scale=train.scale)), crop],
    }[train.augmentation]
    if train.resize:
        steps.insert(0, v2.Resize(train.resize, antialias=True))
    if train.flip:
        steps.append(v2.RandomHorizontalFlip())
    if train.transpose:
        # With both flips, these are the eight symmetries of a square.
        steps += [v2.RandomVerticalFlip(), v2.RandomApply([v2.Lambda(transpose)], p=0.5)]
    return v2.Compose(steps)


def statistics_size(height: int, width: int, train: Train) -> tuple[int, int]:
    """Height and width in pixels at which method statistics (medians, prototypes) read a whole image.

    This is the resolution of training: the image's own, or `train.resize` for its shorter side. The area is at most
    four times that of a training crop, which bounds the memory.
    """
    if train.resize:
        short, long = sorted((height, width))
        longer = int(train.resize * long / short)  # as torchvision's Resize rounds
        height, width = (train.resize, longer) if height <= width else (longer, train.resize)
    factor = min(1.0, math.sqrt(4 * train.crop**2 / (height * width)))
    return max(1, math.floor(height * factor)), max(1, math.floor(width * factor))


def evaluation_transform(crop: int | None) -> v2.Compose:
    """A transform of (Image, Mask): shorter side to `crop`, then its centre. None: unchanged."""
    return v2.Compose([v2.Resize(crop, antialias=True), v2.CenterCrop(crop)] if crop else [v2.Identity()])
