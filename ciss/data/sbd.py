"""The augmented training set of VOC 2012: its own masks, and those of the Semantic Boundaries Dataset elsewhere.

Source: Hariharan et al. 2011. Images are VOC's; SBD adds masks of 11,355 of them, some in VOC's validation set.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ciss.data.pictures import DataError
from ciss.data.sets.voc import CLASSES, palette, read_list
from ciss.store import files

COLOURS = palette().tobytes()


def build(archive: Path, given: Path, folder: Path, images: int) -> None:
    """Makes `SegmentationClassAug` (training and validation), then `trainaug.txt`, in VOC's folder.

    The list is written last: it says that the masks are complete.

    Args:
        archive: SBD's, for messages.
        given: its unpacked files; new masks are written beside them first.
        folder: VOC's.
        images: the number of images in the training list.

    Raises: DataError where lists, images or masks are not those of the data set.
    """
    masks = folder / "SegmentationClassAug"
    lists = folder / "ImageSets" / "Segmentation"
    validation = set(read_list(lists / "val.txt"))
    training = {*read_list(given / "train.txt"), *read_list(given / "val.txt"), *read_list(lists / "train.txt")}
    training = sorted(training - validation)
    names = [*training, *sorted(validation)]
    again = f"Move {folder} away, and fetch voc again."
    if len(training) != images:
        problem = f"{lists}: {len(training)} training images with SBD's, not {images}"
        raise DataError(f"{problem}: train.txt or val.txt is not VOC's. {again}")
    _require(folder / "JPEGImages", names, ".jpg", "images", again)
    listed = lists / "trainaug.txt"
    if listed.exists() and set(read_list(listed)) != set(training):
        raise DataError(f"{listed}: not the list made of VOC's and SBD's. Move it away, and run this again.")
    if masks.is_dir() and any(masks.iterdir()):
        _require(masks, names, ".png", "masks", "Move it away, and run this again.")
    else:
        partial = given.with_name("masks")
        partial.mkdir()
        with ThreadPoolExecutor() as pool:
            written = pool.map(lambda name: _write(name, archive, given, folder, partial), names)
            try:
                list(tqdm(written, total=len(names), desc="masks", unit="img", disable=None))
            finally:
                pool.shutdown(cancel_futures=True)  # else a failure, or Ctrl-C, would wait for all the others
        partial.rename(masks)
    files.write_text(listed, "".join(f"{name}\n" for name in training))


def check_list(folder: Path, images: int) -> None:
    """Raises DataError where the training list in VOC's folder has another number of images."""
    file = folder / "ImageSets" / "Segmentation" / "trainaug.txt"
    if (listed := len(read_list(file))) != images:
        problem = f"{file}: lists {listed:,} training images, not SBD's {images:,}"
        raise DataError(f"{problem}. Move it and SegmentationClassAug away, and run this again.")


def _require(folder: Path, names: list[str], ending: str, kind: str, remedy: str) -> None:
    """Raises DataError where files are missing."""
    present = {file.name for file in folder.iterdir()}
    if missing := [name for name in names if f"{name}{ending}" not in present]:
        raise DataError(f"{folder}: lacks {len(missing)} {kind}, {missing[0]}{ending} first. {remedy}")


def _write(name: str, archive: Path, given: Path, folder: Path, masks: Path) -> None:
    """One mask as a palette PNG. VOC's own where it has one: it marks the borders of objects as void, SBD does not."""
    own = folder / "SegmentationClass" / f"{name}.png"
    if own.is_file():
        shutil.copyfile(own, masks / own.name)
        return
    from scipy.io import loadmat  # here, because nothing else needs scipy

    try:
        ids = loadmat(given / "cls" / f"{name}.mat", variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        if ids.ndim != 2 or not np.isin(ids, list(CLASSES)).all():
            raise ValueError("its ids are no classes of VOC")
    except Exception as error:  # scipy raises many kinds; each means that it cannot be read
        remedy = "Delete the archive, and run the same command again."
        raise DataError(f"{archive}: the mask of {name} cannot be used ({error}). {remedy}") from None
    labels = Image.fromarray(ids.astype(np.uint8))
    labels.putpalette(COLOURS)
    labels.save(masks / own.name)
