"""Predictions of a network: whole images or windows, at several scales, with mirror images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.config import Evaluation
from ciss.models import Network


@torch.no_grad()
def predict(network: Network, images: Tensor, options: Evaluation, window: int) -> Tensor:
    """Normalised images (B,3,H,W) -> positions (B,H,W) int64. The caller sets the network's mode and autocast.

    Source: code of Segmenter (Strudel et al. 2021): means of logits over windows, of probabilities over views.

    Args:
        window: side in pixels, for `options.size: window`.
    """
    mirrors = (False, True) if options.flip else (False,)
    views = [(scale, mirrored) for scale in options.scales for mirrored in mirrors]
    if len(views) == 1:
        return _logits(network, images, options, window, *views[0]).argmax(dim=1)
    # y = argmax_c sum_v softmax_c z_v
    total = _logits(network, images, options, window, *views[0]).softmax(dim=1)
    for view in views[1:]:
        total += _logits(network, images, options, window, *view).softmax(dim=1)
    return total.argmax(dim=1)


def _logits(network: Network, images: Tensor, options: Evaluation, window: int, scale: float, mirrored: bool) -> Tensor:
    """Logits (B,C,H,W) of one view in float32 or wider, mirrored back."""
    size = tuple(images.shape[-2:])
    if scale != 1:
        sides = [max(1, round(side * scale)) for side in size]
        images = F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)
    if mirrored:
        images = images.flip(-1)
    if options.size == "window":
        logits = _windowed(network, images, options, window)
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    else:
        logits = network(images).upsample(size)
    return logits.flip(-1) if mirrored else logits


def _windowed(network: Network, images: Tensor, options: Evaluation, window: int) -> Tensor:
    """Logits (B,C,H,W), mean over the windows that contain a pixel.

    Smaller images are padded to the right and below with zeros, as training crops are; the padding is cut off again.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (0, max(0, window - width), 0, max(0, window - height)))
    rows, columns = (starts(side, window, options.stride) for side in padded.shape[-2:])
    windows = [(slice(top, top + window), slice(left, left + window)) for top in rows for left in columns]
    per_pass = max(1, options.batch // count)  # windows of every image in one forward pass
    total = None
    times = images.new_zeros(padded.shape[-2:], dtype=torch.float32)  # windows that contain a pixel
    for first in range(0, len(windows), per_pass):
        chunk = windows[first : first + per_pass]
        logits = network(torch.cat([padded[:, :, y, x] for y, x in chunk])).upsample((window, window))
        if total is None:
            total = logits.new_zeros(count, logits.shape[1], *padded.shape[-2:])
        for (y, x), values in zip(chunk, logits.split(count), strict=True):
            total[:, :, y, x] += values
            times[y, x] += 1
    # z = sum_w z_w / |{w}|
    return total.div_(times)[..., :height, :width]


def starts(side: int, window: int, stride: float) -> list[int]:
    """First pixels of windows along a side of at least `window` pixels. The last window ends with the side.

    Args:
        stride: distance of windows as a share of `window`, rounded up to pixels.
    """
    step = max(1, math.ceil(window * stride - 1e-9))  # 0.07 * 100 is a little more than 7
    return [*range(0, side - window, step), side - window]
