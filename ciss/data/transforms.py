"""Augmentation: torchvision's transforms on image and mask together. Images stay uint8, masks never gain ids."""

import math

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ciss import protocol
from ciss.config import Train
from ciss.data.normalisation import IMAGENET


class RandomScale(v2.Transform):
    """Resizes by a factor drawn from a range, relative to the image's own size."""

    def __init__(self, scale: tuple[float, float]):
        super().__init__()
        self.scale = scale

    def make_params(self, flat_inputs: list) -> dict:
        factor = torch.empty(()).uniform_(*self.scale).item()
        return {"size": [max(1, round(side * factor)) for side in v2.query_size(flat_inputs)]}

    def transform(self, inpt, params: dict):
        return self._call_kernel(F.resize, inpt, params["size"], antialias=True)


class RandomTranspose(v2.Transform):
    """Swaps height and width half of the time; with both flips, the eight symmetries of a square."""

    def make_params(self, flat_inputs: list) -> dict:
        return {"swap": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt, params: dict):
        return tv_tensors.wrap(inpt.transpose(-1, -2), like=inpt) if params["swap"] else inpt


def training_transform(train: Train, colour: tuple[int, int, int] = IMAGENET.colour) -> v2.Compose:
    """(Image, Mask) -> both `crop` pixels square.

    `resized_crop`: random area and aspect (MiB, PLOP; `scale` is a share of the AREA); `scaled_crop`: random resize,
    then crop (SSUL, MBS; `scale` is a factor of the sides); `none`: crop only. `resize` brings the shorter side to a
    size first (MBS). Padding has a `colour`, the mean of the input statistics, and is ignored.
    """
    fill = {tv_tensors.Image: colour, tv_tensors.Mask: protocol.VOID}
    crop = v2.RandomCrop(train.crop, pad_if_needed=True, fill=fill)
    steps: list[v2.Transform] = {
        "none": [crop],
        "resized_crop": [v2.RandomResizedCrop(train.crop, scale=train.scale, antialias=True)],
        "scaled_crop": [RandomScale(train.scale), crop],
    }[train.augmentation]
    if train.resize:
        steps.insert(0, v2.Resize(train.resize, antialias=True))
    if train.flip:
        steps.append(v2.RandomHorizontalFlip())
    if train.transpose:
        steps += [v2.RandomVerticalFlip(), RandomTranspose()]
    return v2.Compose(steps)


class StatisticsResize(v2.Transform):
    """Resizes an image to the size at which method statistics read it: see `statistics_size`."""

    def __init__(self, train: Train):
        super().__init__()
        self.train = train

    def make_params(self, flat_inputs: list) -> dict:
        return {"size": list(statistics_size(*v2.query_size(flat_inputs), self.train))}

    def transform(self, inpt, params: dict):
        if list(inpt.shape[-2:]) == params["size"]:
            return inpt
        return self._call_kernel(F.resize, inpt, params["size"], antialias=True)


def statistics_size(height: int, width: int, train: Train) -> tuple[int, int]:
    """Height and width in pixels at which method statistics (medians, prototypes) read a whole image.

    This is the resolution of training: the image's own, or `train.resize` for its shorter side. An image with more
    than four times the area of a training crop is reduced to that area, so that memory is bounded.
    """
    if train.resize:
        short, long = sorted((height, width))
        longer = int(train.resize * long / short)  # as torchvision's Resize rounds
        height, width = (train.resize, longer) if height <= width else (longer, train.resize)
    factor = min(1.0, math.sqrt(4 * train.crop**2 / (height * width)))
    return max(1, math.floor(height * factor)), max(1, math.floor(width * factor))


def evaluation_transform(crop: int | None) -> v2.Compose:
    """(Image, Mask) -> shorter side to `crop`, then its centre; unchanged for None."""
    return v2.Compose([v2.Resize(crop, antialias=True), v2.CenterCrop(crop)] if crop else [v2.Identity()])
