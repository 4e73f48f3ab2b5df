"""Labels from a network: in one forward pass, in windows, at several scales, with the mirror image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.config import Evaluation
from ciss.models import Network


@torch.no_grad()
def predict(network: Network, images: Tensor, options: Evaluation, window: int) -> Tensor:
    """images (B,3,H,W), normalised -> positions (B,H,W) int64. The network's mode, and autocast, are the caller's.

    `window`: side in pixels, for `options.size: window` alone. Averaging as Segmenter's code has it (Strudel et al.
    2021): logits over windows, probabilities over scales and mirror images.
    """
    mirrors = (False, True) if options.flip else (False,)
    views = [(scale, mirrored) for scale in options.scales for mirrored in mirrors]
    if len(views) == 1:
        return _logits(network, images, options, window, *views[0]).argmax(dim=1)
    # y = argmax_c 1/V sum_v softmax_c z_v; the division changes no argmax
    total = _logits(network, images, options, window, *views[0]).softmax(dim=1)
    for view in views[1:]:
        total += _logits(network, images, options, window, *view).softmax(dim=1)
    return total.argmax(dim=1)


def _logits(network: Network, images: Tensor, options: Evaluation, window: int, scale: float, mirrored: bool) -> Tensor:
    """What the network says of one view, (B,C,H,W) in float32 or wider, as the images lie."""
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
    """Logits (B,C,H,W): the mean over the windows in which a pixel lies.

    Each window has the side that the network is trained at: a shorter image is filled up to the right and below with
    zeros, the mean colour of the input statistics, as its training crop is; what is said of the filling is cut off.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (0, max(0, window - width), 0, max(0, window - height)))
    rows, columns = (starts(side, window, options.stride) for side in padded.shape[-2:])
    places = [(slice(top, top + window), slice(left, left + window)) for top in rows for left in columns]
    at_once = max(1, options.batch // count)  # windows of every image in a forward pass
    total, seen = None, images.new_zeros(padded.shape[-2:], dtype=torch.float32)
    for first in range(0, len(places), at_once):
        chunk = places[first : first + at_once]
        logits = network(torch.cat([padded[:, :, y, x] for y, x in chunk])).upsample((window, window))
        if total is None:
            total = logits.new_zeros(count, logits.shape[1], *padded.shape[-2:])
        for (y, x), part in zip(chunk, logits.split(count), strict=True):
            total[:, :, y, x] += part
            seen[y, x] += 1
    # z = sum_w z_w / |{w}|
    return total.div_(seen)[..., :height, :width]


def starts(side: int, window: int, stride: float) -> list[int]:
    """Where windows start along a side of at least `window` pixels, a step of `stride` windows apart, rounded up; the
    last one ends with the side."""
    step = max(1, math.ceil(window * stride - 1e-9))  # of 0.07 x 100 too, which is a little more than 7
    return [*range(0, side - window, step), side - window]
