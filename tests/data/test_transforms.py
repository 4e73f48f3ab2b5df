"""Views of images and masks, against torchvision's transforms one after the other, which drew the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ciss.config import Phase, Train
from ciss.data.transforms import Axis, View, evaluation_view, resize, training_view

PHASE = Phase(epochs=1, lr=0.1)
TRAIN = Train(base=PHASE, increment=PHASE, crop=40, batch=1)
COLOUR = (10, 200, 90)
SIZES = [(40, 40), (37, 61), (80, 53), (24, 90), (121, 100)]
AUGMENTATIONS = {
    "none": {},
    "none after resize": {"resize": 50},
    "scaled_crop": {"augmentation": "scaled_crop"},
    "scaled_crop after resize": {"augmentation": "scaled_crop", "resize": 48},
    "resized_crop": {"augmentation": "resized_crop", "scale": (0.3, 1.0)},
    "resized_crop after resize": {"augmentation": "resized_crop", "scale": (0.3, 1.0), "resize": 64},
    "transposed": {"augmentation": "scaled_crop", "transpose": True},
    "turned without a flip": {"flip": False, "transpose": True},
    "as it is": {"flip": False},
    "a rectangle that never fits": {"augmentation": "resized_crop", "scale": (3.0, 4.0)},
}


def scene(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image as smooth as a photograph, and a mask of random ids."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(2, height // 6), max(2, width // 6), generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).mul(255).byte()
    mask = torch.randint(0, 21, (height, width), generator=generator, dtype=torch.uint8)
    return image[0].permute(1, 2, 0).contiguous().numpy(), mask.numpy()


class Scale(v2.Transform):
    """torchvision's v2 has no random factor of both sides."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def make_params(self, flat_inputs):
        factor = torch.empty(()).uniform_(*self.scale).item()
        return {"size": [max(1, round(side * factor)) for side in v2.query_size(flat_inputs)]}

    def transform(self, inpt, params):
        return self._call_kernel(functional.resize, inpt, params["size"], antialias=True)


def steps_of_torchvision(train: Train) -> v2.Compose:
    fill = {tv_tensors.Image: COLOUR, tv_tensors.Mask: 255}
    crop = v2.RandomCrop(train.crop, pad_if_needed=True, fill=fill)
    steps = {
        "none": [crop],
        "scaled_crop": [Scale(train.scale), crop],
        "resized_crop": [v2.RandomResizedCrop(train.crop, scale=train.scale, antialias=True)],
    }[train.augmentation]
    if train.resize:
        steps.insert(0, v2.Resize(train.resize, antialias=True))
    if train.flip:
        steps.append(v2.RandomHorizontalFlip())
    if train.transpose:
        swap = v2.Lambda(lambda inpt: tv_tensors.wrap(inpt.transpose(-1, -2), like=inpt))
        steps += [v2.RandomVerticalFlip(), v2.RandomApply([swap], p=0.5)]
    return v2.Compose(steps)


def applied(view: View, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    colour = torch.tensor(COLOUR, dtype=torch.uint8)
    return view.image(torch.from_numpy(image), colour).numpy(), view.mask(torch.from_numpy(mask)).numpy()


def both(train: Train, image: np.ndarray, mask: np.ndarray, seed: int):
    """Image and mask in a view, and as torchvision's steps give them."""
    view = training_view(*mask.shape, torch.Generator().manual_seed(seed), train)
    torch.manual_seed(seed)
    planes = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
    expected = steps_of_torchvision(train)(planes, tv_tensors.Mask(torch.from_numpy(mask)))
    return applied(view, image, mask), (expected[0].permute(1, 2, 0).numpy(), expected[1].numpy())


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_views_are_those_of_torchvision(name, size):
    """The same draws, the same ids in every pixel, and the same colours where the image is not interpolated twice."""
    train, differences = replace(TRAIN, **AUGMENTATIONS[name]), []
    for seed in range(12):
        image, mask = scene(*size, seed)
        (shown, labels), (expected, expected_labels) = both(train, image, mask, seed)
        assert shown.shape == (40, 40, 3) and (labels == expected_labels).all()
        difference = np.abs(shown.astype(int) - expected)
        assert (difference[labels == 255] == 0).all(), "padding"
        differences.append(difference)
    if name == "scaled_crop after resize":  # twice interpolated, an image is blurred
        assert 0.1 < np.mean(differences) < 5
    else:
        assert not np.any(differences)


def test_the_mask_of_every_size_is_torchs():
    """Nearest neighbours in float32, twice in a row, where the ratio of sides is not exact."""
    for old in (3, 40, 97, 375, 500):
        for new in (1, 7, 41, 80, 512, 683, 1024):
            numbers = torch.arange(old, dtype=torch.float32).view(1, 1, old)
            for length in (new, 341):
                numbers = torch.nn.functional.interpolate(numbers, length, mode="nearest")
            assert (Axis.whole(old).resize(new).resize(341).nearest == numbers.flatten().numpy()).all()


def test_bytes_and_floats_are_resized_alike():
    """GPUs interpolate in float32."""
    image = torch.from_numpy(scene(60, 90)[0])
    for size in ((41, 133), (60, 30), (200, 91)):
        planes = image.permute(2, 0, 1)[None].float()
        expected = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        assert (resize(image, size) - expected).abs().max() < 1.1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_on_a_gpu(name):
    """On fake CUDA tensors, which have a device and no values: nothing can be copied to the host."""
    train = replace(TRAIN, **AUGMENTATIONS[name])
    views = [training_view(57, 90, torch.Generator().manual_seed(seed), train) for seed in range(4)]
    with FakeTensorMode():
        for view in views:
            pixels = torch.empty(57, 90, 3, dtype=torch.uint8, device="cuda")
            shown, labels = view.image(pixels, pixels[0, 0]), view.mask(pixels[..., 0])
            assert (shown.shape, labels.shape) == ((40, 40, 3), (40, 40))
            assert {(t.device.type, t.dtype) for t in (shown, labels)} == {("cuda", torch.uint8)}


def test_a_resized_and_cropped_axis_is_not_resized_again():
    with pytest.raises(ValueError, match="take a view of it"):
        Axis.whole(9).resize(5).crop(1, 3).resize(4)


def test_evaluation_views():
    image, mask = scene(30, 47)
    shown, labels = applied(evaluation_view(30, 47, None), image, mask)
    assert (shown == image).all() and (labels == mask).all()
    steps = v2.Compose([v2.Resize(20, antialias=True), v2.CenterCrop(20)])
    planes = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
    expected, expected_labels = steps(planes, tv_tensors.Mask(torch.from_numpy(mask)))
    shown, labels = applied(evaluation_view(30, 47, 20), image, mask)
    assert (labels == expected_labels.numpy()).all() and (shown == expected.permute(1, 2, 0).numpy()).all()
