"""The augmented training set of VOC 2012: its own masks, and those of the Semantic Boundaries Dataset elsewhere.

Source: Hariharan et al. 2011. Images are VOC's; SBD adds masks of 11,355 of them, some in VOC's validation set.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from ciss.data.archive import FetchError, Source, beside, unpack
from ciss.data.sets.voc import CLASSES, palette, read_list
from ciss.store import files

COLOURS = palette().tobytes()


def build(source: Source, archive: Path, folder: Path) -> None:
    """Makes `SegmentationClassAug` (training and validation) and `trainaug.txt` in VOC's folder, in this order: the
    list says that the masks are there. Raises FetchError, DataError."""
    masks, lists = folder / "SegmentationClassAug", folder / "ImageSets" / "Segmentation"
    with beside(masks) as partial:
        unpack(source, archive, partial)
        given = partial / source.inside
        validation = set(read_list(lists / "val.txt"))
        training = sorted(
            {*read_list(given / "train.txt"), *read_list(given / "val.txt"), *read_list(lists / "train.txt")}
            - validation
        )
        names = [*training, *sorted(validation)]
        _check(source, folder, training, names)
        if masks.is_dir() and any(masks.iterdir()):
            _check_masks(masks, names)
        else:
            made = partial / masks.name
            made.mkdir()
            with ThreadPoolExecutor() as pool:
                written = pool.map(lambda name: _write(name, archive, given, folder, made), names)
                try:
                    for _ in tqdm(written, total=len(names), desc="masks", unit="img", disable=None):
                        pass
                finally:
                    pool.shutdown(cancel_futures=True)  # else a failure, or Ctrl-C, would wait for all the others
            made.rename(masks)
    files.write_text(lists / "trainaug.txt", "".join(f"{name}\n" for name in training))


def _check(source: Source, folder: Path, training: list[str], names: list[str]) -> None:
    """Raises FetchError when the lists and images are not those of the data set."""
    lists = folder / "ImageSets" / "Segmentation"
    if source.images is not None and len(training) != source.images:
        raise FetchError(
            f"{lists}: {len(training)} training images with SBD's, not {source.images}: train.txt or val.txt is not "
            f"VOC's. Move {folder} away, and fetch voc again."
        )
    there = {file.stem for file in (folder / "JPEGImages").iterdir()}
    if lacking := [name for name in names if name not in there]:
        raise FetchError(
            f"{folder / 'JPEGImages'}: lacks {len(lacking)} images, {lacking[0]}.jpg first. Move {folder} away, and "
            "fetch voc again."
        )
    listed = lists / "trainaug.txt"
    if listed.exists() and set(read_list(listed)) != set(training):
        raise FetchError(f"{listed}: not the list made of VOC's and SBD's. Move it away, and run this again.")


def _check_masks(masks: Path, names: list[str]) -> None:
    """Raises FetchError when masks that were there before are not all."""
    there = {file.name for file in masks.iterdir()}
    if lacking := [name for name in names if f"{name}.png" not in there]:
        raise FetchError(
            f"{masks}: lacks {len(lacking)} masks, {lacking[0]}.png first. Move it away, and run this again."
        )


def _write(name: str, archive: Path, given: Path, folder: Path, made: Path) -> None:
    """One mask as a palette PNG. VOC's own where it has one: it marks the borders of objects as void, SBD does not."""
    own = folder / "SegmentationClass" / f"{name}.png"
    if own.is_file():
        shutil.copyfile(own, made / own.name)
        return
    wrong = f"{archive}: the mask of {name} cannot be used"
    try:
        ids = loadmat(given / "cls" / f"{name}.mat", variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises many kinds; each means that it cannot be read
        raise FetchError(f"{wrong} ({error}). Delete the archive, and run the same command again.") from None
    if ids.ndim != 2 or not np.isin(ids, list(CLASSES)).all():
        raise FetchError(
            f"{wrong} (its ids are no classes of VOC). Delete the archive, and run the same command again."
        )
    labels = Image.fromarray(ids.astype(np.uint8))
    labels.putpalette(COLOURS)
    labels.save(made / own.name)
