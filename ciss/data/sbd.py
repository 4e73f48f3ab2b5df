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
    """Makes `SegmentationClassAug` (training and validation) and `trainaug.txt` in VOC's folder, in this order: the
    list says that the masks are there.

    Args:
        archive: SBD's, for messages.
        given: what was unpacked of it; new masks are written beside it first.
        folder: VOC's.
        images: of the training list.

    Raises: DataError.
    """
    masks = folder / "SegmentationClassAug"
    lists = folder / "ImageSets" / "Segmentation"
    validation = set(read_list(lists / "val.txt"))
    training = {*read_list(given / "train.txt"), *read_list(given / "val.txt"), *read_list(lists / "train.txt")}
    training = sorted(training - validation)
    names = [*training, *sorted(validation)]
    _check(folder, training, names, images)
    if masks.is_dir() and any(masks.iterdir()):
        _check_there(masks, names, ".png", "masks", "Move it away, and run this again.")
    else:
        partial = given.with_name("masks")
        partial.mkdir()
        with ThreadPoolExecutor() as pool:
            written = pool.map(lambda name: _write(name, archive, given, folder, partial), names)
            try:
                for _ in tqdm(written, total=len(names), desc="masks", unit="img", disable=None):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)  # else a failure, or Ctrl-C, would wait for all the others
        partial.rename(masks)
    files.write_text(lists / "trainaug.txt", "".join(f"{name}\n" for name in training))


def check_list(folder: Path, images: int) -> None:
    """Raises DataError where the training list in VOC's folder has another number of images."""
    file = folder / "ImageSets" / "Segmentation" / "trainaug.txt"
    if (listed := len(read_list(file))) != images:
        problem = f"{file}: lists {listed:,} training images, not SBD's {images:,}"
        raise DataError(f"{problem}. Move it and SegmentationClassAug away, and run this again.")


def _check(folder: Path, training: list[str], names: list[str], images: int) -> None:
    """Raises DataError where the lists and images are not those of the data set."""
    lists = folder / "ImageSets" / "Segmentation"
    again = f"Move {folder} away, and fetch voc again."
    if len(training) != images:
        problem = f"{lists}: {len(training)} training images with SBD's, not {images}"
        raise DataError(f"{problem}: train.txt or val.txt is not VOC's. {again}")
    _check_there(folder / "JPEGImages", names, ".jpg", "images", again)
    listed = lists / "trainaug.txt"
    if listed.exists() and set(read_list(listed)) != set(training):
        raise DataError(f"{listed}: not the list made of VOC's and SBD's. Move it away, and run this again.")


def _check_there(folder: Path, names: list[str], ending: str, what: str, remedy: str) -> None:
    """Raises DataError where files are missing."""
    there = {file.name for file in folder.iterdir()}
    if lacking := [name for name in names if f"{name}{ending}" not in there]:
        raise DataError(f"{folder}: lacks {len(lacking)} {what}, {lacking[0]}{ending} first. {remedy}")


def _write(name: str, archive: Path, given: Path, folder: Path, made: Path) -> None:
    """One mask as a palette PNG. VOC's own where it has one: it marks the borders of objects as void, SBD does not."""
    own = folder / "SegmentationClass" / f"{name}.png"
    if own.is_file():
        shutil.copyfile(own, made / own.name)
        return
    from scipy.io import loadmat  # here, because nothing else needs scipy

    problem = "its ids are no classes of VOC"
    try:
        ids = loadmat(given / "cls" / f"{name}.mat", variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        valid = ids.ndim == 2 and np.isin(ids, list(CLASSES)).all()
    except Exception as error:  # scipy raises many kinds; each means that it cannot be read
        valid = False
        problem = error
    if not valid:
        remedy = "Delete the archive, and run the same command again."
        raise DataError(f"{archive}: the mask of {name} cannot be used ({problem}). {remedy}")
    labels = Image.fromarray(ids.astype(np.uint8))
    labels.putpalette(COLOURS)
    labels.save(made / own.name)
