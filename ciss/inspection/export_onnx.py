"""A network with all that `ciss predict` does around it, as one ONNX graph for pictures of any size."""

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.inspection.exported import ExportedNetwork
from ciss.models.prediction import fold

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 20
CLOSE = 1e-4  # difference of the two best scores, below which another order of sums may give another class
SHARE = 1e-3  # of pixels that may differ


class ExportError(Exception):
    """A network that has no ONNX graph here; the message says why and what to do."""


class PictureLabels(nn.Module):
    """Normalisation, network, upsampling, prediction rule and raw ids, in a form that torch can export.

    Raises ExportError for several scales, and for windows of a plain vision transformer.
    """

    def __init__(self, exported: ExportedNetwork):
        super().__init__()
        settings = exported.settings
        if settings.evaluation.scales != (1.0,):
            raise ExportError(
                f"evaluation.scales is {list(settings.evaluation.scales)}. The ONNX file has one scale: set "
                "evaluation.scales to [1.0], or use --no-onnx."
            )
        if settings.evaluation.size == "window" and exported.network.encoder.patch > 1:
            raise ExportError(
                f"evaluation.size is window, and {settings.model.encoder} is a plain vision transformer: the number of "
                "windows would be fixed in the ONNX file. Set evaluation.size to full, or use --no-onnx."
            )
        self.network, self.evaluation, self.window = exported.network, settings.evaluation, settings.window
        self.stride = settings.model.output_stride
        self.register_buffer("raw", torch.tensor([row.id for row in settings.classes], dtype=torch.uint8))
        self.register_buffer("mean", torch.tensor(settings.input.mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(settings.input.deviation).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """A picture (H,W,3) uint8, red first -> raw class ids (H,W) uint8."""
        return self.raw[self.scores(image).argmax(dim=1)[0]]

    def scores(self, image: Tensor) -> Tensor:
        """(1,C,H,W) float32 whose argmax is the prediction: logits, or with mirror images log-probabilities."""
        pixels = image.permute(2, 0, 1)[None].float() / 255
        images = (pixels - self.mean) / self.deviation
        logits = self._logits(images)
        if not self.evaluation.flip:
            return logits
        mirrored = self._logits(images.flip(-1)).flip(-1)
        return (logits.softmax(dim=1) + mirrored.softmax(dim=1)).log()

    def _logits(self, images: Tensor) -> Tensor:
        """Logits (1,C,H,W) of normalised images (1,3,H,W)."""
        return self._windowed(images) if self.evaluation.size == "window" else self._whole(images)

    def _whole(self, images: Tensor) -> Tensor:
        """As `Output.upsample`, whose cache takes no sizes that are unknown yet. Patches are filled up first."""
        height, width = images.shape[-2:]
        patch = self.network.encoder.patch
        images = F.pad(images, (0, -width % patch, 0, -height % patch))
        output = self.network(images)
        full = output.enlarge(output.rows, tuple(images.shape[-2:]))
        logits = fold(output.prediction, full, sum(part.shape[1] for part in output.extras.values()))
        return logits[..., :height, :width]

    def _windowed(self, images: Tensor) -> Tensor:
        """As `training.inference`, all windows in one batch."""
        side, (height, width) = self.window, images.shape[-2:]
        below, right = (torch.sym_max(length, side) - length for length in (height, width))
        padded = F.pad(images, (0, right, 0, below))[0]
        tops, lefts = (self._starts(length) for length in padded.shape[-2:])
        offsets = torch.arange(side)
        y = ((tops[:, None] + 0 * lefts).flatten()[:, None] + offsets)[:, :, None]
        x = ((0 * tops[:, None] + lefts).flatten()[:, None] + offsets)[:, None, :]
        logits = self._whole(padded.permute(1, 2, 0)[y, x].permute(0, 3, 1, 2))
        total = padded.new_zeros(*padded.shape[-2:], self.network.channels)
        total = total.index_put((y, x), logits.permute(0, 2, 3, 1), accumulate=True)
        times = self._coverage(tops, padded.shape[-2])[:, None] * self._coverage(lefts, padded.shape[-1])
        return (total / times[..., None])[:height, :width].permute(2, 0, 1)[None]

    def _starts(self, length: int) -> Tensor:
        """`inference.starts` as a tensor."""
        step = max(1, math.ceil(self.window * self.evaluation.stride - 1e-9))
        last = length - self.window
        return (torch.arange((last + step - 1) // step + 1) * step).clamp(max=last)

    def _coverage(self, starts: Tensor, length: int) -> Tensor:
        """Number of windows (length,) float32 that contain a row or column of pixels."""
        inside = torch.arange(length)[:, None] - starts
        return ((inside >= 0) & (inside < self.window)).sum(dim=1).float()


@torch.no_grad()
def onnx_graph(labels: PictureLabels) -> bytes:
    """The ONNX file. Input `image` (height,width,3) uint8, output `labels` (height,width) uint8, for any size.

    Raises ExportError with the reason for a network that torch cannot export.
    """
    side = max(
        labels.window, 4 * labels.stride
    )  # more than one pixel or window anywhere: torch makes constants of ones
    example = torch.zeros(2 * side + 3, 3 * side + 1, 3, dtype=torch.uint8)
    sizes = {"image": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    names = {"input_names": ["image"], "output_names": ["labels"]}
    try:
        with _quiet():
            program = torch.export.export(labels, (example,), dynamic_shapes=sizes, strict=False)
            graph = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)
            return graph.model_proto.SerializeToString()
    except Exception as error:  # torch's exporter raises many kinds, protobuf its own for more than 2 GB
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"torch cannot export this network to ONNX ({reason}). Use --no-onnx.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress and the warnings of torch's exporter."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@dataclass
class Comparison:
    """Pixels of some pictures: all, those with another label in onnxruntime, and of these those with close scores."""

    pixels: int = 0
    different: int = 0
    close: int = 0

    @property
    def equal(self) -> bool:
        """Whether pixels differ only where scores are close, and these are few."""
        return self.different == self.close and self.different < SHARE * self.pixels

    def __str__(self) -> str:
        share = f"{100 * self.different / self.pixels:.4f} % of {self.pixels} pixels have another label"
        return f"{share} ({self.different}; of these, {self.close} with two best scores closer than {CLOSE})"


@torch.no_grad()
def compare(exported: ExportedNetwork, graph: bytes, pictures: list[np.ndarray]) -> Comparison:
    """Labels of an ONNX graph in onnxruntime, on the CPU, against those of the network. Pictures (H,W,3) uint8.

    Raises ExportError for a picture that onnxruntime cannot label.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    scores = PictureLabels(exported).eval().scores
    result = Comparison()
    for picture in pictures:
        different = _run(session, picture) != exported(picture)
        result.pixels += different.size
        if different.any():
            best, second = scores(torch.from_numpy(picture))[0].topk(2, dim=0).values
            result.different += int(different.sum())
            result.close += int((different & (best - second < CLOSE).numpy()).sum())
    return result


def _run(session: "InferenceSession", picture: np.ndarray) -> np.ndarray:
    """Labels (H,W) uint8 of a picture. Raises ExportError."""
    try:
        return session.run(None, {"image": picture})[0]
    except Exception as error:  # of onnxruntime, which raises a kind for each of its states
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise ExportError(f"onnxruntime cannot label a picture of {size} pixels ({error}). Use --no-onnx.") from error


def drawn_pictures(window: int) -> list[np.ndarray]:
    """Drawn pictures (H,W,3) uint8 of several sizes: smaller and larger than a window, odd, narrow, one pixel."""
    sizes = [(1, 1), (33, 7), (window // 2 + 1, window), (window + 5, window // 2), (window * 3 // 2, window * 5 // 4)]
    random = torch.Generator().manual_seed(0)
    pictures = []
    for size in sizes:
        colours = F.interpolate(torch.rand(1, 3, 5, 7, generator=random), size, mode="bicubic").clamp(0, 1)
        pixels = colours + 0.05 * torch.randn(1, 3, *size, generator=random)
        pictures.append((255 * pixels.clamp(0, 1))[0].permute(1, 2, 0).byte().numpy())
    return pictures
