"""TensorBoard's files of a training, beside its curve file: scalars, and predictions on fixed training images.

They are written if the environment variable CISS_TENSORBOARD is set. `ciss train --tensorboard` sets it.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
from torch.utils.data import default_collate

from ciss.config import ConfigError
from ciss.data.loaders import Loader
from ciss.models import Network
from ciss.runs.run import Run
from ciss.training.evaluation import predict_images

AFFECTS_RESULTS = False  # changes here do not outdate results, see store/code
SWITCH = "CISS_TENSORBOARD"
OFF = ("", "0", "false", "no", "off")
VOID = (224, 224, 192)
GAP = 4  # white pixels between pictures
LONGEST = 512  # pixels of a picture's longer side; larger ones are thinned out


def wanted() -> bool:
    """Whether TensorBoard's files are to be written. Raises ConfigError if tensorboard is not installed."""
    if os.environ.get(SWITCH, "").lower() in OFF:
        return False
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            f"{SWITCH} is set, but the package tensorboard is not installed. Install it: uv sync --extra live. "
            f"Or unset {SWITCH}."
        )
    return True


class Board:
    """Writes TensorBoard's files. All processes of a training call it together; the main one writes.

    Args:
        folder: for the files. Those of an earlier training there are removed.
        loader: training images with the labels that the step gives.
        images: their numbers.
        epoch: finished by an earlier process of this training.
        writes: True in the main process.
    """

    def __init__(self, folder: Path, run: Run, loader: Loader, images: list[int], epoch: int, writes: bool):
        self.run, self.loader, self.images = run, loader, images
        self.writer = None
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

        if not epoch:
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        # Events of epochs that a killed process had begun to write count no more.
        self.writer = SummaryWriter(str(folder), purge_step=epoch + 1 if epoch else None)

    def scalars(self, row: dict) -> None:
        """Losses, learning rate, scores, the method's own numbers and memory of one epoch."""
        if self.writer is None:
            return
        values = {"learning rate": row["lr"], "loss/sum": row["loss"]}
        values |= {key: value for key, value in row.items() if "/" in key}
        values |= {f"score/{name}": value for name, value in (row["score"] or {}).items()}
        values |= {f"memory/{key.removesuffix('_bytes')} (bytes)": row[key] for key in row if key.endswith("_bytes")}
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def pictures(self, student: Network, epoch: int) -> None:
        """Image, given labels and prediction of each fixed image, in one row."""
        predictions = predict_images(self.run, student, self.loader)
        if self.writer is None:
            return
        for number in self.images:
            images, labels, _ = self.loader.dataset.finish(default_collate([self.loader.dataset[0, number]]))
            image = images[0].permute(1, 2, 0).numpy()
            shown = (image, self._colours(labels[0].numpy()), self._colours(predictions[number]))
            name = self.loader.dataset.pairs[number].id
            picture = beside([_thinned(part) for part in shown])
            self.writer.add_image(f"image, given labels, prediction/{name}", picture, epoch, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _colours(self, positions: np.ndarray) -> np.ndarray:
        """Labels (H,W) as RGB, in the colours of the classes."""
        table = np.full((256, 3), VOID, np.uint8)
        table[: len(self.run.classes)] = self.run.classes.colours
        return table[positions]


def beside(pictures: list[np.ndarray]) -> np.ndarray:
    """RGB pictures (H,W,3) of one height in one row, with white between them."""
    gap = np.full((len(pictures[0]), GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def _thinned(picture: np.ndarray) -> np.ndarray:
    stride = -(-max(picture.shape[:2]) // LONGEST)
    return picture[::stride, ::stride]
