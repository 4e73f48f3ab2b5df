"""Reads every image and mask of a list once: what is in them, and what is wrong, before hours of training. What was
read is kept, so that the next benchmark of the same files starts at once."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ciss.data import pictures
from ciss.data.pictures import DataError, Pair, read_pair
from ciss.data.sets import DataSet
from ciss.store.files import write_text

SHOWN = 5  # problems listed in one message


def scan(
    found: Sequence[Pair], dataset: DataSet, progress: str | bool = False, cache: Path | None = None
) -> list[dict]:
    """What is in each pair: raw ids with their pixel counts, size, digest of both files, EXIF's turn.

    progress: a name for the bar; cache: a file that keeps what was read of files of this name, size and time. Raises
    DataError listing what cannot be used.
    """
    known = _load(cache)
    keys = [_key(pair) for pair in found]
    results: list = [known.get(key) for key in keys]
    missing = [number for number, result in enumerate(results) if result is None]
    with ThreadPoolExecutor() as pool:
        read = pool.map(_read, [found[number] for number in missing])
        shown = {"total": len(missing), "desc": f"reading {progress}", "unit": "img"}
        for number, result in zip(missing, tqdm(read, **shown, disable=None if progress else True), strict=True):
            results[number] = result
    if cache and missing:
        sound = {key: result for key, result in zip(keys, results, strict=True) if isinstance(result, dict)}
        _store(cache, {**known, **sound})
    results = [_judge(pair, result, dataset) for pair, result in zip(found, results, strict=True)]
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        rest = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"{len(problems)} of {len(found)} images cannot be used:\n" + "\n".join(problems[:SHOWN]) + rest
        )
    return results


def _read(pair: Pair) -> dict | str:
    """What is in a pair, or a sentence about what is wrong with it."""
    try:
        _, mask, digest, turned = read_pair(pair)
    except DataError as error:
        return str(error)
    counts = np.bincount(mask.ravel(), minlength=256)
    pixels = {str(i): int(counts[i]) for i in counts.nonzero()[0]}
    return {"pixels": pixels, "size": list(mask.shape), "digest": digest, "turned": turned}


def _judge(pair: Pair, result: dict | str, dataset: DataSet) -> dict | str:
    if isinstance(result, str):
        return result
    pixels = {int(i): count for i, count in result["pixels"].items()}
    foreign = [i for i in pixels if i not in dataset.classes and i != dataset.void]
    if foreign:
        known = sorted({*dataset.classes, dataset.void})
        return pictures.foreign_ids(pair, sorted(foreign), known)
    return {**result, "pixels": pixels}


def _key(pair: Pair) -> str | None:
    """Changes with the files; None where one is missing."""
    try:
        stats = [os.stat(file) for file in (pair.image, pair.mask)]
    except (OSError, ValueError):
        return None
    ids = pair.ids and hashlib.sha256(pair.ids).hexdigest()[:12]
    return f"{pair.image}|{pair.mask}|{ids}|" + "|".join(f"{s.st_size}.{s.st_mtime_ns}.{s.st_ctime_ns}" for s in stats)


@functools.cache
def _rules() -> str:
    """Of the code that reads: what was read by other rules is read again."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in (pictures.__file__, __file__))).hexdigest()


def _load(cache: Path | None) -> dict[str | None, dict]:
    if cache is None:
        return {}
    try:
        document = json.loads(cache.read_text(encoding="utf-8"))
        return document["pairs"] if document["rules"] == _rules() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _store(cache: Path, pairs: dict) -> None:
    pairs.pop(None, None)
    write_text(cache, json.dumps({"rules": _rules(), "pairs": pairs}, separators=(",", ":")))
