"""The index of a benchmark: which images there are, what is in them, which step sees which. Made once, by reading
everything: a broken file is found before hours of training, not after."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ciss import paths
from ciss.config import Benchmark
from ciss.data.pictures import DataError, Pair
from ciss.data.scan import scan
from ciss.data.sets import DataSet, data_set
from ciss.data.steps import choose_images, classes_of, every_pair
from ciss.store import code as store_code
from ciss.store.files import write_text

# keys of a benchmark that decide on images
SELECTION = ("dataset", "protocol", "setting", "order", "groups", "legacy_split", "holdout", "limit")


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
    validation: list[list[int]]  # step -> validation images scored after it
    description: str  # of a data set of one's own: sha256 of the values in its `dataset.yaml`

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
        dataset = data_set(self.dataset)
        if dataset.description != self.description:
            raise DataError(f"{dataset.root()}: dataset.yaml changed. Run: dvc repro -f prepare")
        found = _pairs(dataset, self.selection["setting"], split, self.selection["limit"])
        if [pair.id for pair in found] != self.ids[split]:
            raise DataError(f"{dataset.root()}: the list of {split} images changed. Run: dvc repro -f prepare")
        return found

    def leaked(self) -> list[int]:
        """Images scored after the last step that some step was trained on; none unless `legacy_split` is set."""
        if self.selection["setting"] != "domain":
            return []
        return sorted(set(self.validation[-1]) & set().union(*self.steps))


def prepare(benchmark: Benchmark, folder: Path, progress: bool = True) -> Index:
    """Scans the data set, selects the images of every step, draws the hold-out and saves the index in `folder`. What
    was read is kept in `.scan` beside the indices' folder.

    Raises: DataError listing broken files, or for a step left without images; FileNotFoundError for an absent data
    set; ConfigError for a data set, protocol or order that do not fit each other.
    """
    groups, dataset = classes_of(benchmark).groups, data_set(benchmark.dataset)
    root = dataset.root()
    found, scans = _scanned(benchmark, folder, progress)
    for split in ("train", "val"):
        turned = [pair.image for pair, s in zip(found[split], scans[split], strict=True) if s["turned"]]
        if turned:
            note = f"{len(turned)} of {len(found[split])} {split} images have an EXIF tag that turns them"
            print(f"note: {note}, first {turned[0]}. Pixels count as stored: check that the masks were drawn on those.")
    ids = {split: [pair.id for pair in found[split]] for split in found}
    classes = {split: [sorted(c for c in s["pixels"] if c != dataset.void) for s in scans[split]] for split in scans}
    domains = [pair.domain for pair in found["train"]]
    try:
        chosen = choose_images(benchmark, groups, ids["train"], classes["train"], len(ids["val"]), domains)
    except ValueError as error:
        problem = str(error).partition(". ")[0]
        raise DataError(
            f"{root}: {problem}. Change the benchmark's setting, protocol, order, groups, holdout or limit."
        ) from None
    learnt = sorted({number for images in chosen["steps"] for number in images})
    counted = learnt if benchmark.setting == "domain" else np.setdiff1d(np.arange(len(ids["train"])), chosen["holdout"])
    totals: dict[str, int] = {}
    for i in counted:
        for c, count in scans["train"][i]["pixels"].items():
            totals[str(c)] = totals.get(str(c), 0) + count
    digests = {split: [s["digest"] for s in scans[split]] for split in scans}
    choices = [groups, chosen["steps"], chosen["holdout"], chosen["validation"], ids, list(digests.values())]
    index = Index(
        dataset=benchmark.dataset,
        selection=_selection(benchmark),
        groups=groups,
        fingerprint=hashlib.sha256(json.dumps([*choices, dataset.description]).encode()).hexdigest(),
        ids=ids,
        classes=classes,
        sizes={split: [s["size"] for s in scans[split]] for split in scans},
        digests=digests,
        pixels=totals,
        **chosen,
        description=dataset.description,
    )
    index.save(folder)
    # Of the data set alone: what depends on this folder depends on it, and on no other data set's code.
    code = store_code.dataset_code(store_code.read(paths.project()), benchmark.dataset)
    write_text(folder / "code.txt", code.listing())
    return index


def content_hash(benchmark: Benchmark, folder: Path) -> str:
    """sha256 over everything that the images, masks and `dataset.yaml` of a benchmark give to its index.

    `folder`: where the index will lie. Raises what `prepare` raises for missing and broken files.
    """
    found, scans = _scanned(benchmark, folder, progress=True)
    pairs = {split: [pair.id for pair in found[split]] for split in found}
    digests = {split: [s["digest"] for s in scans[split]] for split in scans}
    description = data_set(benchmark.dataset).description
    return hashlib.sha256(json.dumps([pairs, digests, description]).encode()).hexdigest()


def _scanned(
    benchmark: Benchmark, folder: Path, progress: bool
) -> tuple[dict[str, Sequence[Pair]], dict[str, list[dict]]]:
    """The pairs of both splits, and what is in them (see `scan`)."""
    dataset = data_set(benchmark.dataset)
    cache = folder.parents[1] / ".scan" / f"{dataset.folder[0]}.json"
    found, scans = {}, {}
    for split in ("train", "val"):
        found[split] = _pairs(dataset, benchmark.setting, split, benchmark.limit)
        if len({pair.id for pair in found[split]}) < len(found[split]):
            raise DataError(
                f"{dataset.root()}: the list of {split} images names an image twice. Remove the repetition."
            )
        scans[split] = scan(found[split], dataset, progress and split, cache)
    return found, scans


def _pairs(dataset: DataSet, setting: str, split: str, limit: int) -> Sequence[Pair]:
    """A split's pairs; in the domain setting all, for both. `limit`: only the first of a list or domain."""
    if setting != "domain":
        return dataset.pairs(dataset.root(), split)[: limit or None]
    found, counts = [], {}
    for pair in every_pair(dataset):
        counts[pair.domain] = counts.get(pair.domain, 0) + 1
        if not limit or counts[pair.domain] <= limit:
            found.append(pair)
    return found


def _selection(benchmark: Benchmark) -> dict:
    return json.loads(json.dumps({key: getattr(benchmark, key) for key in SELECTION}))
