"""The index of a benchmark: its images, their contents, and the images of each step.

It is made once, by reading every file. A broken file is found before hours of training.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ciss import paths
from ciss.config import Benchmark
from ciss.data.pictures import DataError, Pair
from ciss.data.scan import scan
from ciss.data.sets import DataSet, data_set
from ciss.data.steps import choose_images, classes_of, divides_all, split_pairs
from ciss.store import code as store_code
from ciss.store.files import write_text

# keys of a benchmark that decide which images are used
SELECTION = ("dataset", "protocol", "setting", "order", "groups", "legacy_split", "holdout", "limit")


@dataclass(frozen=True)
class Index:
    """The result of `prepare`. Images are numbered in the order of the data set's lists."""

    dataset: str
    selection: dict  # the values of SELECTION it was made for
    groups: list[list[int]]  # raw class ids of each step
    fingerprint: str  # sha256 over every image, mask and choice below
    ids: dict[str, list[str]]  # split -> image ids
    classes: dict[str, list[list[int]]]  # split -> raw ids present in each image
    sizes: dict[str, list[list[int]]]  # split -> [height, width]
    digests: dict[str, list[str]]  # split -> digest of each image and mask, which the loaders compare
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
                problem = f"{file}: made for {key} {index.selection[key]}, not {value}"
                raise DataError(f"{problem}. Delete it, and run: dvc repro prepare@{folder.name}")
        return index

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a split. Raises DataError for a data set that changed since."""
        dataset = data_set(self.dataset)
        if dataset.description != self.description:
            raise DataError(f"{dataset.root()}: dataset.yaml changed. Run: dvc repro -f prepare")
        pairs = _pairs(dataset, self.selection, split)
        if [pair.id for pair in pairs] != self.ids[split]:
            raise DataError(f"{dataset.root()}: the list of {split} images changed. Run: dvc repro -f prepare")
        return pairs

    def leaked(self) -> list[int]:
        """Images scored after the last step that some step was trained on; none unless `legacy_split` is set."""
        if self.ids["train"] != self.ids["val"]:
            return []
        return sorted(set(self.validation[-1]) & set().union(*self.steps))


def prepare(benchmark: Benchmark, folder: Path, progress: bool = True) -> Index:
    """Scans the data set, selects the images of every step and draws the hold-out set.

    It saves the index in `folder`, and the results of the scan in `.scan` beside the folder of all indices.

    Raises: DataError listing broken files, or for a step without images; FileNotFoundError for a missing data set;
        ConfigError for a data set, protocol or order that do not fit each other.
    """
    groups, dataset = classes_of(benchmark).groups, data_set(benchmark.dataset)
    pairs, scans = _scanned(benchmark, folder, progress)
    divided = divides_all(dataset, benchmark.setting, benchmark.legacy_split)  # then both splits have all images
    for split in ("train",) if divided else ("train", "val"):
        turned = [pair.image for pair, s in zip(pairs[split], scans[split], strict=True) if s["turned"]]
        if turned:
            note = f"{len(turned)} of {len(pairs[split])} {split} images have an EXIF tag that turns them"
            print(f"note: {note}, first {turned[0]}. Pixels count as stored: check that the masks were drawn on those.")
    ids = {split: [pair.id for pair in pairs[split]] for split in pairs}
    classes = {split: [sorted(set(s["pixels"]) - {dataset.void}) for s in scans[split]] for split in scans}
    domains = {split: [pair.domain for pair in pairs[split]] for split in pairs}
    try:
        chosen = choose_images(benchmark, groups, ids["train"], classes["train"], len(ids["val"]), domains)
    except ValueError as error:
        problem = f"{dataset.root()}: {str(error).partition('. ')[0]}"
        remedy = "Change the benchmark's setting, protocol, order, groups, holdout or limit."
        raise DataError(f"{problem}. {remedy}") from None
    counted = set(range(len(ids["train"]))) - set(chosen["holdout"])
    if benchmark.setting == "domain":  # some images are tested on only
        counted = set().union(*chosen["steps"])
    pixels: Counter[str] = Counter()
    for image in sorted(counted):
        pixels.update({str(raw): count for raw, count in scans["train"][image]["pixels"].items()})
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
        pixels=dict(pixels),
        **chosen,
        description=dataset.description,
    )
    index.save(folder)
    # The code of this data set alone. The stages that use the index depend on it, and not on other data sets.
    code = store_code.dataset_code(store_code.read(paths.project()), benchmark.dataset)
    write_text(folder / "code.txt", code.listing())
    return index


def content_hash(benchmark: Benchmark, folder: Path) -> str:
    """sha256 over all that an index takes from the images, masks and `dataset.yaml` of a benchmark.

    `folder`: the folder of the index. Raises as `prepare` for missing and broken files.
    """
    pairs, scans = _scanned(benchmark, folder, progress=True)
    ids = {split: [pair.id for pair in pairs[split]] for split in pairs}
    digests = {split: [s["digest"] for s in scans[split]] for split in scans}
    description = data_set(benchmark.dataset).description
    return hashlib.sha256(json.dumps([ids, digests, description]).encode()).hexdigest()


def scan_file(dataset: DataSet, folder: Path) -> Path:
    """The file with the results of the scan of a data set. `folder`: the folder of an index."""
    return folder.parents[1] / ".scan" / f"{dataset.folder[0]}.json"


def _scanned(
    benchmark: Benchmark, folder: Path, progress: bool
) -> tuple[dict[str, Sequence[Pair]], dict[str, list[dict]]]:
    """The pairs of both splits, and their contents (see `scan`)."""
    dataset = data_set(benchmark.dataset)
    pairs, scans = {}, {}
    for split in ("train", "val"):
        pairs[split] = _pairs(dataset, _selection(benchmark), split)
        if len({pair.id for pair in pairs[split]}) < len(pairs[split]):
            problem = f"{dataset.root()}: the list of {split} images names an image twice"
            raise DataError(f"{problem}. Remove the repetition.")
        scans[split] = scan(pairs[split], dataset, progress and split, scan_file(dataset, folder))
    return pairs, scans


def _pairs(dataset: DataSet, selection: dict, split: str) -> list[Pair]:
    """The pairs of a split, or all pairs where the steps divide them; with a `limit` the first of a list or domain."""
    setting, limit = selection["setting"], selection["limit"]
    pairs = split_pairs(dataset, split, setting, selection["legacy_split"])
    if setting != "domain":
        return pairs[: limit or None]
    chosen, counts = [], Counter()
    for pair in pairs:
        counts[pair.domain] += 1
        if not limit or counts[pair.domain] <= limit:
            chosen.append(pair)
    return chosen


def _selection(benchmark: Benchmark) -> dict:
    return json.loads(json.dumps({key: getattr(benchmark, key) for key in SELECTION}))
