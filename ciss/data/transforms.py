"""Views of an image and its mask: a rectangle of the image, resized, padded and flipped.

A view is drawn from an image's size and a random generator, without its pixels. It is applied afterwards, in a loader
process or on a device, by the same function. The steps of an augmentation are composed along each axis:

* A crop that comes first is taken first. Resizes that follow each other are one interpolation of the image (bilinear;
  antialiased where it becomes smaller).
* The mask is read once. Its pixels are those that nearest-neighbour interpolation gives after each step, so a mask
  gains no ids.

Random numbers of one image, in this order, as torchvision's transforms draw them (`torchvision.transforms.v2`):

1. `scaled_crop`: the factor of the sides. `resized_crop`: share of the area and aspect ratio, up to ten times, then
   top and left. The others: top, then left, each only where there is a choice.
2. With `flip`: whether the view is mirrored.
3. With `transpose`: whether it is turned upside down, and whether height and width are swapped.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import protocol
from ciss.config import Train

ASPECTS = torch.log(torch.tensor([3 / 4, 4 / 3])).tolist()  # limits of width / height in `resized_crop`, as logarithms


@dataclass(frozen=True)
class Axis:
    """The rows, or the columns, of a view.

    Rows `start` to `stop` of the image are resized to `length` rows. The view shows those from `first` on, as many as
    `nearest` has, between rows of padding.
    """

    start: int
    stop: int
    length: int
    first: int
    nearest: np.ndarray  # (N,) int64: the mask's row in each of the shown rows
    before: int = 0  # rows of padding
    after: int = 0
    flipped: bool = False  # at the end

    @classmethod
    def whole(cls, length: int) -> "Axis":
        """All `length` rows of an image, as they are."""
        return cls(0, length, length, 0, np.arange(length))

    def __len__(self) -> int:
        return self.before + len(self.nearest) + self.after

    def resize(self, length: int) -> "Axis":
        """The view in `length` rows. It has no padding, and was not both resized and cropped before."""
        # torch's nearest neighbour: row i shows floor(i old / new), with the ratio in float32
        ratio = np.float32(len(self)) / np.float32(length)
        rows = np.floor(np.arange(length, dtype=np.float32) * ratio).astype(np.int64).clip(max=len(self) - 1)
        if self.length == self.stop - self.start:  # not resized yet: a crop comes before the resize
            start = self.start + self.first
            return Axis(start, start + len(self), length, 0, self.nearest[rows])
        if (self.first, len(self)) != (0, self.length):
            raise ValueError("a resized and cropped view cannot be resized: take a view of it")
        return replace(self, length=length, nearest=self.nearest[rows])

    def crop(self, offset: int, length: int) -> "Axis":
        """`length` rows from row `offset` on. Rows before the first and after the last one are padding."""
        first, last = max(offset, 0), min(offset + length, len(self))
        return replace(
            self,
            first=self.first + first,
            nearest=self.nearest[first:last],
            before=first - offset,
            after=offset + length - last,
        )


@dataclass(frozen=True)
class View:
    """What is shown of one image and its mask."""

    rows: Axis
    columns: Axis
    transposed: bool = False  # height and width are swapped at the end
    base: "View | None" = None  # the view that this is a view of; None: of the image itself

    def image(self, pixels: Tensor, colour: Tensor) -> Tensor:
        """The view (N,M,3) of an image (H,W,3) uint8. `colour`: (3,) uint8 of padding, on the same device."""
        if self.base is not None:
            pixels = self.base.image(pixels, colour)
        axes = (self.rows, self.columns)
        shown = pixels[tuple(slice(axis.start, axis.stop) for axis in axes)]
        if shown.shape[:2] != (size := tuple(axis.length for axis in axes)):
            shown = resize(shown, size)
        shown = shown[tuple(slice(axis.first, axis.first + len(axis.nearest)) for axis in axes)]
        return self._placed(shown, colour)

    def mask(self, numbers: Tensor) -> Tensor:
        """The view (N,M) of a mask (H,W) uint8; padding is ignored."""
        if self.base is not None:
            numbers = self.base.mask(numbers)
        rows, columns = self.rows.nearest, self.columns.nearest
        if numbers.device.type == "cpu":  # a fifth of torch's time
            shown = torch.from_numpy(numbers.numpy().take(rows, axis=0).take(columns, axis=1))
        else:
            rows, columns = (torch.from_numpy(a).to(numbers.device, non_blocking=True) for a in (rows, columns))
            shown = numbers[rows[:, None], columns]
        return self._placed(shown, protocol.VOID)

    def _placed(self, shown: Tensor, padding: Tensor | int) -> Tensor:
        """The view with its padding, flipped and transposed."""
        axes = (self.rows, self.columns)
        if any(axis.before or axis.after for axis in axes):
            view = shown.new_empty(*map(len, axes), *shown.shape[2:])
            view[:1] = padding
            view[1:] = view[:1]  # a row at a time: a tenth of the time
            view[tuple(slice(axis.before, axis.before + len(axis.nearest)) for axis in axes)] = shown
            shown = view
        if flipped := [number for number, axis in enumerate(axes) if axis.flipped]:
            shown = shown.flip(flipped)
        return shown.transpose(0, 1) if self.transposed else shown


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (H,W,3) uint8 at a size (height, width)."""
    # torch's kernel for bytes is fast with the colours of a pixel side by side. GPUs have none for bytes.
    planes = pixels.contiguous()[None].permute(0, 3, 1, 2)
    on_cpu = pixels.device.type == "cpu"
    resized = F.interpolate(planes if on_cpu else planes.float(), size, mode="bilinear", antialias=True)
    if not on_cpu:
        resized = resized.round_().clamp_(0, 255).byte()
    return resized.permute(0, 2, 3, 1)[0]


def shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side becomes `size`, rounded as by torchvision's Resize."""
    longer = int(size * max(height, width) / min(height, width))
    return (size, longer) if height <= width else (longer, size)


def training_view(height: int, width: int, generator: torch.Generator, train: Train) -> View:
    """A random view of an image, `crop` pixels a side.

    `resized_crop`: random area and aspect ratio (MiB, PLOP); `scale` is a share of the AREA. `scaled_crop`: random
    resize, then crop (SSUL, MBS); `scale` is a factor of the sides. `none`: crop only. `resize` first brings the
    shorter side to a size (MBS). Where the image is too small, it lies somewhere in the padding.
    """
    crop = train.crop
    if train.resize:
        rows, columns = _resized(height, width, shorter_side(height, width, train.resize))
    else:
        rows, columns = Axis.whole(height), Axis.whole(width)
    if train.augmentation == "scaled_crop":
        factor = torch.empty(()).uniform_(*train.scale, generator=generator).item()
        rows, columns = (axis.resize(max(1, round(len(axis) * factor))) for axis in (rows, columns))
    base = None
    if train.augmentation == "resized_crop":
        if train.resize:
            base = View(rows, columns)
            rows, columns = Axis.whole(len(rows)), Axis.whole(len(columns))
        top, left, tall, wide = _random_area(len(rows), len(columns), train.scale, generator)
        rows, columns = rows.crop(top, tall).resize(crop), columns.crop(left, wide).resize(crop)
    else:
        rows, columns = (axis.crop(_random_offset(len(axis), crop, generator), crop) for axis in (rows, columns))
    if train.flip and _coin(generator):
        columns = replace(columns, flipped=True)
    if not train.transpose:
        return View(rows, columns, base=base)
    # With both flips, these are the eight symmetries of a square.
    if _coin(generator):
        rows = replace(rows, flipped=True)
    return View(rows, columns, transposed=_coin(generator), base=base)


def resized_view(height: int, width: int, size: tuple[int, int]) -> View:
    """The whole image at a size (height, width)."""
    return View(*_resized(height, width, size))


def evaluation_view(height: int, width: int, crop: int | None) -> View:
    """The view that is scored: shorter side to `crop`, then the centre. None: the image as it is."""
    if crop is None:
        return View(Axis.whole(height), Axis.whole(width))
    axes = _resized(height, width, shorter_side(height, width, crop))
    return View(*(axis.crop(round((len(axis) - crop) / 2), crop) for axis in axes))


def statistics_size(height: int, width: int, train: Train) -> tuple[int, int]:
    """Height and width in pixels at which method statistics (medians, prototypes) read a whole image.

    This is the resolution of training: the image's own, or `train.resize` for its shorter side. The area is at most
    four times that of a training crop, which bounds the memory.
    """
    if train.resize:
        height, width = shorter_side(height, width, train.resize)
    factor = min(1.0, math.sqrt(4 * train.crop**2 / (height * width)))
    return max(1, math.floor(height * factor)), max(1, math.floor(width * factor))


def _resized(height: int, width: int, size: tuple[int, int]) -> tuple[Axis, Axis]:
    return Axis.whole(height).resize(size[0]), Axis.whole(width).resize(size[1])


def _coin(generator: torch.Generator) -> bool:
    return torch.rand(1, generator=generator).item() < 0.5


def _random_offset(length: int, crop: int, generator: torch.Generator) -> int:
    """The first row of a crop of `crop` rows; negative where it begins in padding."""
    choices = abs(length - crop) + 1
    chosen = torch.randint(choices, (), generator=generator).item() if choices > 1 else 0
    return chosen - max(0, crop - length)


def _random_area(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a rectangle with a random share of the area and a random aspect ratio.

    After ten that do not fit into the image, it is the largest one in the centre with an allowed aspect ratio.
    """
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(*scale, generator=generator).item()
        aspect = torch.exp(torch.empty(1).uniform_(*ASPECTS, generator=generator)).item()
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = (
                torch.randint(side - part + 1, (1,), generator=generator).item()
                for side, part in ((height, tall), (width, wide))
            )
            return top, left, tall, wide
    tall, wide = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
