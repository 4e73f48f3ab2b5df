"""Predictions of a trained run on any pictures: `ciss predict`."""

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ciss import config, distributed
from ciss.analysis.figures import masks as figures_masks
from ciss.analysis.figures.masks import percent
from ciss.config import ConfigError
from ciss.data import DataError, DataSet, data_set
from ciss.data.pictures import read_image
from ciss.models import Network
from ciss.runs import run as runs_run
from ciss.runs.run import Run, resolve
from ciss.store.files import CheckpointError, write_bytes
from ciss.training.evaluation import autocast, precision_of
from ciss.training.inference import predict

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".jp2"}  # in folders


class PictureTooLarge(Exception):
    """A picture is too large for the device."""


def load_network(run: Run, device: torch.device) -> Network:
    """The trained network in the memory format of the training."""
    network = runs_run.load_network(run, device)
    if run.settings.train.channels_last:
        network.to(memory_format=torch.channels_last)
    return network


@torch.inference_mode()
def label(run: Run, network: Network, picture: np.ndarray) -> np.ndarray:
    """Raw class ids (H,W) uint8 of a picture (H,W,3) uint8, at full resolution. Raises PictureTooLarge."""
    options, train, device = run.settings.evaluation, run.settings.train, next(network.parameters()).device
    if options.size == "crop":
        options = replace(options, size="full")
    precision = precision_of(train, device)
    try:
        images = torch.from_numpy(picture).permute(2, 0, 1)[None]
        with autocast(device, precision):
            images = run.normalise(images, device)
            labels = predict(network, images, options, train.crop)
        positions = labels[0].to(torch.uint8).cpu().numpy()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        raise PictureTooLarge(
            f"{picture.shape[1]}x{picture.shape[0]} pixels are too many for the memory of this {device.type}. Make the "
            "picture smaller, or set evaluation.size to window and evaluation.batch to 1."
        ) from None
    return run.classes.raw[positions]


def pictures(given: Iterable[str]) -> Iterator[Path]:
    """The files, and the pictures in the folders.

    Raises DataError for a name that is neither a file nor a folder with pictures.
    """
    for name in given:
        path = Path(name)
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
            if not inside:
                raise DataError(
                    f"{path}: no pictures in this folder. Sub-folders are not searched: name them on the command line."
                )
            if folders := sum(f.is_dir() and not f.name.startswith(".") for f in path.iterdir()):
                noun = "folder" if folders == 1 else "folders"
                print(_one_line(f"{path}: {folders} {noun} in it not searched"), file=sys.stderr, flush=True)
            yield from inside
        elif os.path.lexists(path):
            yield path
        else:
            raise DataError(f"{path}: there is no such picture. Name a file, or a folder of pictures.")


def names(files: list[Path], folder: Path) -> list[str]:
    """A name for the results of each picture: its stem, with a number if the results would overwrite a file."""
    taken = {file.name.casefold() for file in files if file.parent.resolve() == folder.resolve()}
    chosen = []
    for file in files:
        for number in count(1):
            name = file.stem if number == 1 else f"{file.stem}-{number}"
            results = {f"{name}{end}".casefold() for end in (".png", "_overlay.png")}
            if not taken & results:
                break
        taken |= results
        chosen.append(name)
    return chosen


def write(picture: np.ndarray, ids: np.ndarray, data: DataSet, folder: Path, name: str) -> Path:
    """Writes mask and overlay, each atomically. Returns the file of the mask. Raises CheckpointError, DiskFull."""
    mask = Image.fromarray(ids)
    mask.putpalette(data.palette.tobytes())  # changes the mode to P
    canvas = FigureCanvasAgg(figures_masks.overlay(picture, ids, data.classes, data.palette))
    canvas.draw()
    overlay = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    for image, end in ((overlay, "_overlay.png"), (mask, ".png")):
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=3)  # higher levels hardly make photographs smaller
        write_bytes(folder / f"{name}{end}", stream.getvalue())
    return folder / f"{name}.png"


def _predict(name: str, images: list[str], config_file: str, out: str | None, device_name: str) -> bool:
    """Returns whether all pictures were labelled. Prints a message for the others. See `main`."""
    run = resolve(config.load(config_file), name)
    data = data_set(run.settings.dataset)
    folder = Path(out) if out else run.root / "predictions" / run.name
    device = distributed.device() if device_name == "auto" else torch.device(device_name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: there is no CUDA device. Use cpu or auto.")
    files, complete = _files(images)
    if not files:
        return False
    torch.set_num_threads(run.settings.train.threads)
    network = load_network(run, device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: cannot make the folder {folder}: {error.strerror}. Name another.") from None
    if run.settings.evaluation.size == "crop":
        print(f"evaluation.size of {run.benchmark} is crop: pictures are labelled at full resolution all the same.")
    for file, name in zip(files, names(files, folder), strict=True):
        try:
            picture, turn = read_image(file)
            ids = label(run, network, picture)
        except DataError as error:
            complete = _complain(str(error))
        except PictureTooLarge as error:
            complete = _complain(f"{file}: {error}")
        else:
            written = write(picture, ids, data, folder, name)
            if turn > 1:
                size = f"{picture.shape[1]}x{picture.shape[0]} pixels"
                print(_one_line(f"{file}: turned as its EXIF tag says; the mask has {size}"), flush=True)
            shares = np.bincount(ids.ravel(), minlength=256) / ids.size
            order = [int(c) for c in np.argsort(-shares, kind="stable") if shares[c]]
            classes = ", ".join(f"{data.classes[c]} {percent(shares[c])}" for c in order)
            print(_one_line(f"{os.path.relpath(written)}: {classes}"), flush=True)
    return complete


def _files(given: list[str]) -> tuple[list[Path], bool]:
    """Pictures without duplicates, and whether every name led to one."""
    files, complete = {}, True
    for name in given:
        try:
            for file in pictures([name]):
                files.setdefault(file.resolve(), file)
        except (DataError, OSError) as error:
            complete = _complain(str(error))
    return list(files.values()), complete


def _complain(message: str) -> bool:
    print(_one_line(f"error: {message}"), file=sys.stderr, flush=True)
    return False


def _one_line(text: str) -> str:
    """Text with escaped line breaks and control characters, which names of files may have."""
    return text if text.isprintable() else repr(text)[1:-1]


def main(run: str, images: list[str], config_file: str, out: str | None, device: str) -> None:
    """Writes a mask and an overlay for every picture. Exits with 1 if a picture is not labelled.

    Args:
        run: name of a trained run.
        images: pictures, or folders of pictures.
        config_file: the parameter file.
        out: folder for the files; None: predictions/RUN of the project.
        device: auto (a GPU if there is one), cpu or cuda.
    """
    try:
        complete = _predict(run, images, config_file, out, device)
    except (ConfigError, DataError, CheckpointError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nStopped. The files written so far are complete.", file=sys.stderr)
        sys.exit(130)
    if not complete:
        sys.exit(1)
