"""Reads every image and mask of a list once: what is in them, and what is wrong, before hours of training.

The results are kept in a file, so that the next benchmark on the same files starts at once.
"""

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
    pairs: Sequence[Pair], dataset: DataSet, progress: str | bool = False, cache: Path | None = None
) -> list[dict]:
    """The contents of each pair: `pixels` (raw id -> count), `size`, `digest` of both files, `turned` by an EXIF tag.

    Args:
        progress: a name for the progress bar; False: no bar.
        cache: a file that keeps the results for files of the same name, size and time.

    Raises: DataError listing the pairs that cannot be used.
    """
    known = _load(cache)
    keys = [_key(pair) for pair in pairs]
    results: list = [known.get(key) for key in keys]
    missing = [number for number, result in enumerate(results) if result is None]
    with ThreadPoolExecutor() as pool:
        read = pool.map(_read, [pairs[number] for number in missing])
        disable = None if progress else True  # None: no bar where the output is no terminal
        bar = tqdm(read, total=len(missing), desc=f"reading {progress}", unit="img", disable=disable)
        for number, result in zip(missing, bar, strict=True):
            results[number] = result
    if cache and missing:
        readable = {key: result for key, result in zip(keys, results, strict=True) if isinstance(result, dict)}
        readable.pop(None, None)
        document = {"rules": _rules(), "pairs": {**known, **readable}}
        write_text(cache, json.dumps(document, separators=(",", ":")))
    results = [_checked(pair, result, dataset) for pair, result in zip(pairs, results, strict=True)]
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        rest = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listed = "\n".join(problems[:SHOWN])
        raise DataError(f"{len(problems)} of {len(pairs)} images cannot be used:\n{listed}{rest}")
    return results


def _read(pair: Pair) -> dict | str:
    """The contents of a pair, or a message about what is wrong."""
    try:
        _, mask, digest, turned = read_pair(pair)
    except DataError as error:
        return str(error)
    counts = np.bincount(mask.ravel(), minlength=256)
    pixels = {str(i): int(counts[i]) for i in counts.nonzero()[0]}
    return {"pixels": pixels, "size": list(mask.shape), "digest": digest, "turned": turned}


def _checked(pair: Pair, result: dict | str, dataset: DataSet) -> dict | str:
    """The contents with raw ids as integers, or a message about ids that are no class of the data set."""
    if isinstance(result, str):
        return result
    pixels = {int(raw): count for raw, count in result["pixels"].items()}
    known = {*dataset.classes, dataset.void}
    if foreign := sorted(set(pixels) - known):
        return pictures.foreign_ids(pair, foreign, sorted(known))
    return {**result, "pixels": pixels}


def _key(pair: Pair) -> str | None:
    """Changes with the files; None where one is missing."""
    try:
        stats = [os.stat(file) for file in (pair.image, pair.mask)]
    except (OSError, ValueError):
        return None
    ids = pair.raw_id_table and hashlib.sha256(pair.raw_id_table).hexdigest()[:12]
    return f"{pair.image}|{pair.mask}|{ids}|" + "|".join(f"{s.st_size}.{s.st_mtime_ns}.{s.st_ctime_ns}" for s in stats)


@functools.cache
def _rules() -> str:
    """A digest of the code that reads. Results of other code are not used."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in (pictures.__file__, __file__))).hexdigest()


def _load(cache: Path | None) -> dict[str | None, dict]:
    """The kept results; none for a file that is missing, damaged or of other code."""
    if cache is None:
        return {}
    try:
        document = json.loads(cache.read_text(encoding="utf-8"))
        return document["pairs"] if document["rules"] == _rules() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
