"""Exported networks: a folder, on this machine or on a hub, whose network labels pictures. See `ciss.load`."""

import hashlib
import json
import re
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from huggingface_hub import constants, snapshot_download
from PIL import Image, ImageOps
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors

from ciss.config import Evaluation, Model, Pixels, Text, section, validate
from ciss.data.normalisation import Statistics, normalise
from ciss.data.pictures import read_image
from ciss.models import Extra, create_network
from ciss.models.prediction import Rule
from ciss.store.files import CheckpointError
from ciss.training.inference import predict

CONFIG, WEIGHTS, GRAPH = "config.json", "model.safetensors", "model.onnx"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name of a hub
Byte = Annotated[int, Field(ge=0, le=255)]
Colours = tuple[float, float, float]  # a value each for red, green and blue


@section
class Input:
    """Statistics of pixels from 0 to 1."""

    mean: Colours
    deviation: Colours


@section
class ClassRow:
    """A class: its number in masks, its name and its colour (RGB)."""

    id: Byte
    name: Text
    colour: tuple[Byte, Byte, Byte]


@section
class StageRowsShape:
    """Rows of all classes over stages of the encoder, see `ciss.models.Extra`."""

    rows: Annotated[int, Field(ge=1)]
    stages: Annotated[int, Field(ge=1)]
    context: Annotated[int, Field(ge=1)]


@section
class Settings:
    """The content of config.json."""

    format: Literal[1]
    model: Model
    groups: tuple[int, ...]  # channels of each step, the background's in the first
    extras: dict[str, int]  # rows that are no classes, by name
    prediction: Rule
    input: Input
    channels_last: bool
    evaluation: Evaluation
    window: Pixels  # side of the windows for `evaluation.size: window`
    classes: tuple[ClassRow, ...]  # of each channel
    sha256: Text  # of model.safetensors
    origin: dict[str, Any]  # run, method, hashes of code, versions
    stage_rows: dict[str, StageRowsShape] = field(default_factory=dict)  # rows of classes over stages, by name


class ExportedNetwork:
    """A trained network that labels pictures, in float32.

    Attributes:
        settings: the content of config.json.
        network: on its device, in evaluation mode.
        classes: names by raw class id.
    """

    def __init__(self, settings: Settings, tensors: dict[str, torch.Tensor], device: str | torch.device = "cpu"):
        """Raises RuntimeError for tensors of another network."""
        self.settings = settings
        self.classes = {row.id: row.name for row in settings.classes}
        extras = {name: Extra(rows=rows) for name, rows in settings.extras.items()}
        extras |= {name: Extra(**asdict(shape)) for name, shape in settings.stage_rows.items()}
        self.network = create_network(settings.model, list(settings.groups), extras=extras)
        self.network.prediction = settings.prediction
        self.network.load_state_dict(tensors)
        self.network.to(device).eval().requires_grad_(False)
        if settings.channels_last:
            self.network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, picture: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """Raw class ids (H,W) uint8 of a picture: a file, an image of Pillow, or an array (H,W,3) uint8, red first.

        Files and images are first rotated by their EXIF tag. Raises ValueError for another array, DataError for a file
        that is no picture.
        """
        settings, device = self.settings, next(self.network.parameters()).device
        images = torch.from_numpy(_pixels(picture)).permute(2, 0, 1)[None]
        statistics = Statistics(settings.input.mean, settings.input.deviation)
        images = normalise(images, device, settings.channels_last, statistics)
        positions = predict(self.network, images, settings.evaluation, settings.window)[0].cpu()
        return np.array([row.id for row in settings.classes], np.uint8)[positions.numpy()]


def _pixels(picture: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """(H,W,3) uint8. Raises DataError, ValueError."""
    if isinstance(picture, str | Path):
        return read_image(Path(picture))[0]
    if isinstance(picture, Image.Image):
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    array = np.ascontiguousarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"the picture has shape {array.shape} and type {array.dtype}. Give (height, width, 3), uint8.")
    return array


def load(source: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None) -> ExportedNetwork:
    """Opens a folder that `ciss export` wrote; see `ciss.load`."""
    folder = Path(source)
    if not folder.is_dir():
        if not REPOSITORY.fullmatch(str(source)):
            raise CheckpointError(f"{source}: there is no such folder. Write one: ciss export RUN --out {source}")
        folder = _download(str(source), revision)
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        data = (folder / WEIGHTS).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no exported network ({error}). Write it again: ciss export RUN") from None
    settings = validate(Settings, values, str(folder / CONFIG), "")
    if hashlib.sha256(data).hexdigest() != settings.sha256:
        raise CheckpointError(f"{folder / WEIGHTS}: not the weights of {CONFIG}. Copy both files of one export.")
    try:
        return ExportedNetwork(settings, read_tensors(data), device)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{folder / WEIGHTS}: does not fit {CONFIG} ({reason}). Write it again.") from None


def _download(name: str, revision: str | None) -> Path:
    """The folder of a repository of the hub, in the cache of huggingface_hub. Raises CheckpointError."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # of the hub, its HTTP client or the system
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{name}: neither a folder here, nor could it be fetched from {constants.ENDPOINT} ({reason}). Correct the "
            "name, or copy the folder to this machine."
        ) from None
