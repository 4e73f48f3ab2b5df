"""The index of a benchmark: which images there are, what is in them, which step sees which. Made once, by reading
everything: a broken file is found before hours of training, not after."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ciss import protocol
from ciss.checkpoint import write_text
from ciss.config import Benchmark
from ciss.data.pictures import DataError, read_pair
from ciss.data.sets import DATASETS, DataSet
from ciss.data.voc import Pair

SHOWN = 5  # problems listed in one message
SELECTION = ("dataset", "protocol", "setting", "order", "holdout", "limit")  # keys of a benchmark that decide on images


@dataclass(frozen=True)
class Index:
    """What `prepare` found. Images are numbered in the order of the data set's lists."""

    dataset: str
    selection: dict  # the benchmark's keys that it was made for
    groups: list[list[int]]  # raw class ids of each step
    fingerprint: str  # sha256 over every image, mask and choice below
    ids: dict[str, list[str]]  # split -> image ids
    classes: dict[str, list[list[int]]]  # split -> raw ids present in each image
    sizes: dict[str, list[list[int]]]  # split -> [height, width]
    digests: dict[str, list[str]]  # split -> of image and mask, which the loaders compare
    pixels: dict[str, int]  # raw id -> training pixels
    steps: list[list[int]]  # step -> training images
    joint: list[int]  # training images of any class
    holdout: list[int]

    def save(self, folder: Path) -> None:
        write_text(folder / "index.json", json.dumps(asdict(self), separators=(",", ":"), sort_keys=True))

    @classmethod
    def load(cls, folder: Path, benchmark: Benchmark | None = None) -> "Index":
        """Raises DataError when the index is missing, damaged, or not made for the benchmark."""
        file = folder / "index.json"
        try:
            index = cls(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"{file}: the data are not prepared. Run: dvc repro prepare@{folder.name}") from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{file}: damaged ({error}). Run: dvc repro -f -s prepare@{folder.name}") from None
        for key, value in (_selection(benchmark) if benchmark else {}).items():
            if index.selection[key] != value:
                made = f"made for {key} {index.selection[key]}, not {value}"
                raise DataError(f"{file}: {made}. Delete it, and run: dvc repro prepare@{folder.name}")
        return index

    def pairs(self, split: str) -> list[Pair]:
        dataset = DATASETS[self.dataset]
        found = dataset.pairs(dataset.root(), split)[: len(self.ids[split])]
        if [pair.id for pair in found] != self.ids[split]:
            raise DataError(f"{dataset.root()}: the list of {split} images changed. Run: dvc repro -f prepare")
        return found


def prepare(benchmark: Benchmark, folder: Path, progress: bool = True) -> Index:
    """Scans the data set, selects the images of every step, draws the hold-out and saves the index in `folder`.

    Raises: DataError listing broken files, or for a step left without images; FileNotFoundError for an absent data
    set; ValueError for a protocol or order that does not fit it.
    """
    dataset = DATASETS[benchmark.dataset]
    selection = _selection(benchmark)
    groups = protocol.class_groups(benchmark.dataset, benchmark.protocol, order=selection["order"])
    root, scans, ids = dataset.root(), {}, {}
    for split in ("train", "val"):
        found = dataset.pairs(root, split)[: benchmark.limit or None]
        ids[split] = [pair.id for pair in found]
        if len(set(ids[split])) < len(found):
            raise DataError(f"{root}: the list of {split} images names an image twice. Remove the repetition.")
        scans[split] = scan(found, dataset, progress and split)
        turned = [pair.image for pair, result in zip(found, scans[split], strict=True) if result["turned"]]
        if turned:
            note = f"{len(turned)} of {len(found)} {split} images have an EXIF tag that turns them, first {turned[0]}"
            print(f"note: {note}. Pixels count as stored: check that the masks were drawn on those.")
    classes = {split: [sorted(c for c in s["pixels"] if c != dataset.void) for s in scans[split]] for split in scans}
    holdout = draw_holdout(ids["train"], benchmark.holdout)
    kept = np.setdiff1d(np.arange(len(ids["train"])), holdout)
    train = [classes["train"][i] for i in kept]
    everything = [[c for group in groups for c in group]]
    try:
        chosen = [protocol.select_images(train, groups, step, benchmark.setting) for step in range(len(groups))]
        joint = protocol.select_images(train, everything, 0, "overlapped")
    except ValueError as error:
        problem = str(error).partition(". ")[0]
        raise DataError(
            f"{root}: {problem}. Change the benchmark's setting, protocol, order, holdout or limit."
        ) from None
    totals: dict[str, int] = {}
    for i in kept:
        for c, count in scans["train"][i]["pixels"].items():
            totals[str(c)] = totals.get(str(c), 0) + count
    steps = [kept[images].tolist() for images in chosen]
    digests = {split: [s["digest"] for s in scans[split]] for split in scans}
    choices = [groups, steps, holdout.tolist(), ids, list(digests.values())]
    index = Index(
        dataset=benchmark.dataset,
        selection=selection,
        groups=groups,
        fingerprint=hashlib.sha256(json.dumps(choices).encode()).hexdigest(),
        ids=ids,
        classes=classes,
        sizes={split: [s["size"] for s in scans[split]] for split in scans},
        digests=digests,
        pixels=totals,
        steps=steps,
        joint=kept[joint].tolist(),
        holdout=holdout.tolist(),
    )
    index.save(folder)
    return index


def draw_holdout(ids: list[str], images: int) -> np.ndarray:
    """Positions of the hold-out, sorted: drawn by image id, so that it is the same for every step, method and seed."""
    if images >= len(ids):
        raise DataError(f"holdout is {images}, but there are only {len(ids)} training images. Make it smaller.")
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).hexdigest())
    return np.sort(np.array(order[:images], dtype=np.int64))


def scan(found: list[Pair], dataset: DataSet, progress: str | bool = False) -> list[dict]:
    """Reads every pair: raw ids with their pixel counts, size, digest of both files. Raises DataError."""
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda pair: _scan_pair(pair, dataset), found)
        results = list(
            tqdm(results, total=len(found), desc=f"reading {progress}", unit="img", disable=None if progress else True)
        )
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        rest = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"{len(problems)} of {len(found)} images cannot be used:\n" + "\n".join(problems[:SHOWN]) + rest
        )
    return results


def _scan_pair(pair: Pair, dataset: DataSet) -> dict | str:
    """What is in a pair, or a sentence about what is wrong with it."""
    try:
        _, mask, digest, turned = read_pair(pair.id, pair.image, pair.mask)
    except DataError as error:
        return str(error)
    ids, counts = np.unique(mask, return_counts=True)
    foreign = [int(i) for i in ids if int(i) not in dataset.classes and int(i) != dataset.void]
    if foreign:
        known = f"0 to {max(dataset.classes)}, or {dataset.void}"
        return f"{pair.mask}: id {foreign[0]} is no class of the data set ({known}). Correct the mask."
    pixels = {int(i): int(n) for i, n in zip(ids, counts, strict=True)}
    return {"pixels": pixels, "size": list(mask.shape), "digest": digest, "turned": turned}


def _selection(benchmark: Benchmark) -> dict:
    values = {key: getattr(benchmark, key) for key in SELECTION}
    return {**values, "order": None if benchmark.order is None else list(benchmark.order)}
