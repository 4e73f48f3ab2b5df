"""Notes on the data of a benchmark: what limits or changes the meaning of its scores.

They are printed before training (`ciss plan --check`, `1_data`, the doctor) and stand beside the results.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from ciss import paths
from ciss.config import Benchmark
from ciss.data.index import Index
from ciss.data.loaders import Shuffle
from ciss.data.pictures import DataError
from ciss.data.scan import scan
from ciss.data.sets import DATASETS, data_set
from ciss.data.sets.own import SUFFIXES, find, load
from ciss.data.sets.shapes import TRAIN, VAL

NAMES_SHOWN = 8  # class names in one note
LARGE_REMAINDER = 0.1  # share of a step's images that an epoch leaves out: larger ones are noted
FETCH = {  # data set and split -> how to get the images that the presets expect
    ("voc", "train"): "Run `ciss data fetch sbd`.",
    ("voc", "val"): "Run `ciss data fetch voc`.",
    ("ade20k", "train"): "Run `ciss data fetch ade20k`.",
    ("ade20k", "val"): "Run `ciss data fetch ade20k`.",
    ("cityscapes", "train"): "Run `ciss data fetch cityscapes`.",
    ("cityscapes", "val"): "Run `ciss data fetch cityscapes`.",
}


def data_notes(benchmark: Benchmark, index: Index, names: dict[int, str] | None = None) -> list[str]:
    """Sentences about data that differ from those the preset expects, small steps and missing classes.

    Args:
        benchmark: the settings that the index was made for.
        index: what `ciss.data.prepare` returned or `Index.load` read.
        names: raw class id -> name (default: those of the data set, which own data read from `dataset.yaml`).

    Returns: one sentence or two for each note, none for data as expected.

    Raises: DataError if no validation image contains a class of the benchmark: no score would mean anything.
    """
    names = data_set(benchmark.dataset).classes if names is None else names
    classes = [c for group in index.groups for c in group]
    train, val = (len(index.ids[split]) for split in ("train", "val"))
    notes = count_notes(benchmark, train, val)
    expects = benchmark.expects
    if expects and len(classes) != expects.classes:
        notes.append(
            f"This preset expects {expects.classes} classes; the benchmark has {len(classes)}. "
            "Scores cannot be compared with the published ones."
        )
    notes += _step_notes(benchmark, index)
    if benchmark.setting == "domain":
        notes += _absent("No training image contains", classes, index, "train", index.joint, names)
    else:
        for step, (group, images) in enumerate(zip(index.groups, index.steps, strict=True)):
            notes += _absent(f"No training image of step {step} contains", group, index, "train", images, names)
    if not benchmark.legacy_split:  # which has a note of its own
        notes += _repeated(index)
    if index.holdout:
        end = "The hold-out set has no score for them."
        notes += _absent("No image of the hold-out set contains", classes, index, "train", index.holdout, names, end)
    scored = {c for image in index.validation[-1] for c in index.classes["val"][image]}
    if scored.isdisjoint(classes):
        raise DataError(
            f"{benchmark.dataset}: none of the {len(index.validation[-1])} validation images contains a class of the "
            "benchmark, so no class can be scored. Check the masks of the validation images, or choose other classes."
        )
    end = "Their IoU cannot be measured."
    notes += _absent("No validation image contains", classes, index, "val", index.validation[-1], names, end)
    return notes


def count_notes(benchmark: Benchmark, train: int, val: int) -> list[str]:
    """Sentences about numbers of images other than the preset's. `train`, `val`: images of the data set's lists; in the
    domain setting both are all images, because its steps divide them."""
    expects = benchmark.expects
    if expects is None:
        return []
    if benchmark.limit:
        problem = f"limit is {benchmark.limit}, so only the first images are used"
        return [f"{problem}. Scores cannot be compared with the published ones."]
    counts = {"train": ("training", expects.train, train), "val": ("validation", expects.val, val)}
    if benchmark.setting == "domain":
        counts = {"train": ("training and validation", expects.train + expects.val, train)}
    notes = []
    for split, (kind, expected, found) in counts.items():
        if found != expected:
            note = f"This preset expects {expected:,} {kind} images; {found:,} were found. "
            note += "Scores cannot be compared with the published ones."
            remedy = FETCH.get((benchmark.dataset, split)) if found < expected else None
            notes.append(f"{note} {remedy}" if remedy else note)
    return notes


def list_counts(benchmark: Benchmark) -> dict[str, int]:
    """Images of the data set's lists, `train` and `val`; in the domain setting both are all images, because its steps
    divide them. Nothing is drawn: of drawings that are not there yet, as many as will be drawn.

    Raises: FileNotFoundError and DataError for data that are missing or incomplete, with the remedy.
    """
    dataset = data_set(benchmark.dataset)
    try:
        folder = paths.data_root(dataset.folder[0]).joinpath(*dataset.folder[1:])
        counts = {split: len(dataset.pairs(folder, split)) for split in ("train", "val")}
    except FileNotFoundError:
        if not dataset.draw:
            raise
        counts = {"train": TRAIN, "val": VAL}
    if benchmark.setting == "domain":
        return dict.fromkeys(counts, sum(counts.values()))
    return counts


def list_notes(benchmark: Benchmark) -> tuple[list[str], list[str]]:
    """Errors in the benchmark and notes that the lists of images alone tell. Missing data are a note, because a
    benchmark may be planned before its data are there."""
    try:
        counts = list_counts(benchmark)
    except (FileNotFoundError, DataError) as error:
        remedy = FETCH.get((benchmark.dataset, "val"), "")
        return [], [f"The data of {benchmark.dataset!r} are not complete: {str(error).rstrip('.')}. {remedy}".rstrip()]
    train = counts["train"]
    if benchmark.limit and benchmark.setting != "domain":
        train = min(train, benchmark.limit)
    errors = []
    if benchmark.holdout >= train:
        why = f"limit leaves only {train}" if train < counts["train"] else f"there are only {train}"
        errors.append(f"holdout: {benchmark.holdout}, but {why} training images. Make it smaller.")
    return errors, count_notes(benchmark, **counts) + _unpaired(benchmark.dataset)


def change_notes(benchmark: Benchmark, folder: Path) -> list[str]:
    """Notes on data that changed since they were prepared. DVC sees this only of data of one's own.

    `folder`: where the benchmark's index lies; without one there is nothing to compare.
    """
    try:
        index = Index.load(folder, benchmark)
    except DataError:
        return []  # not prepared, or for other settings: DVC prepares it
    dataset = data_set(benchmark.dataset)
    again = "Run: dvc repro" if dataset.description else f"Run: dvc repro -f -s prepare@{folder.name}; then: dvc repro"
    cache = folder.parents[1] / ".scan" / f"{dataset.folder[0]}.json"  # as in `ciss.data.prepare`
    try:
        for split, digests in index.digests.items():
            pairs = index.pairs(split)
            scanned = scan(pairs, dataset, split, cache) if cache.is_file() else []
            changed = [pair for pair, s, old in zip(pairs, scanned, digests, strict=False) if s["digest"] != old]
            if changed:
                count = f"{len(changed)} of {len(pairs)} {split} images or their masks"
                first = f"first: {changed[0].image}"
                return [f"{count} changed since the data were prepared ({first}). {again}"]
    except (FileNotFoundError, DataError) as error:
        return [f"The data changed since they were prepared: {str(error).partition(' Run: ')[0]} {again}"]
    return []


def _unpaired(dataset: str) -> list[str]:
    """Notes on images without a mask and masks without an image, in a data set of one's own."""
    file = find(dataset)
    if dataset in DATASETS or file is None:
        return []
    described = load(file).described
    splits = ("train",) if described.share else ("train", "val")
    pairs = [pair for split in splits for pair in data_set(dataset).pairs(file.parent, split)]
    if described.share:
        pairs += data_set(dataset).pairs(file.parent, "val")
    used = {pair.mask for pair in pairs}
    masks = set()
    for split in splits:
        for place, _, names in os.walk(file.parent / getattr(described, split).masks, followlinks=True):
            visible = (name for name in names if not name.startswith(".") and Path(place).name[:1] != ".")
            masks.update(Path(place, name) for name in visible if name.lower().endswith(".png"))
    notes = []
    if missing := [pair for pair in pairs if pair.mask not in masks and not pair.mask.is_file()]:
        what = "1 image has" if len(missing) == 1 else f"{len(missing)} images have"
        notes.append(
            f"{what} no mask of the same name (first: {missing[0].image} needs {missing[0].mask}). Rename the masks, "
            "or move the images away."
        )
    if unused := sorted(masks - used):
        what = "1 mask is" if len(unused) == 1 else f"{len(unused)} masks are"
        notes.append(
            f"{what} not used, because no image of the same name is there (first: {unused[0]}). Images have to be "
            f"{', '.join(sorted(SUFFIXES))} files: convert or rename them."
        )
    return notes


def epoch_images(benchmark: Benchmark, images: int) -> int:
    """Images that one epoch uses of a step's, which drops those that do not fill the last update."""
    train = benchmark.train
    return Shuffle(list(range(images)), train.batch, train.accumulate * train.processes, 0).used


def _step_notes(benchmark: Benchmark, index: Index) -> list[str]:
    """Steps with fewer images than an update, or whose epochs leave many out."""
    train, notes = benchmark.train, []
    update = train.batch * train.accumulate * train.processes
    for step, images in enumerate(map(len, index.steps)):
        if images < update:
            noun = "image" if images == 1 else "images"
            notes.append(
                f"Step {step} has {images} training {noun}, fewer than the {update} of an update "
                "(train.batch x accumulate x processes). Each of its epochs is one update."
            )
            phase = "increment" if step else "base"
            if images == 1 and benchmark.model.decoder == "deeplabv3" and getattr(train, phase).norm != "frozen":
                notes[-1] += f" One image has no batch statistics: set train.{phase}.norm to frozen."
            continue
        used = epoch_images(benchmark, images)
        if images - used > LARGE_REMAINDER * images:
            notes.append(
                f"An epoch of step {step} uses {used} of its {images} training images: the others do not fill an "
                f"update of {update}. Each epoch leaves out other ones."
            )
    return notes


def _repeated(index: Index) -> list[str]:
    """Notes on images that are scored and, with the same content, trained on."""
    digests, notes = index.digests, []
    trained = {digests["train"][i]: index.ids["train"][i] for images in index.steps for i in images}
    for kind, split, images in (
        ("validation", "val", sorted({i for step in index.validation for i in step})),
        ("hold-out", "train", index.holdout),
    ):
        ids = index.ids[split]
        same = [i for i in images if trained.get(digests[split][i], ids[i]) != ids[i]]
        if same:
            first, partner = ids[same[0]], trained[digests[split][same[0]]]
            notes.append(
                f"{len(same)} of the {len(images)} {kind} images are trained on too: image and mask have the same "
                f"content (first: {first}, as {partner}). Scores are too high. Remove these images from one of the two."
            )
    return notes


def _absent(
    start: str,
    classes: Iterable[int],
    index: Index,
    split: str,
    images: Iterable[int],
    names: dict[int, str],
    end: str = "",
) -> list[str]:
    """One note on the classes that none of the images contains; none where all occur."""
    present = {c for image in images for c in index.classes[split][image]}
    absent = [names[c] for c in classes if c not in present]
    if not absent:
        return []
    listed = ", ".join(absent[:NAMES_SHOWN])
    if len(absent) > NAMES_SHOWN:
        listed += f" and {len(absent) - NAMES_SHOWN} more"
    return [f"{start}: {listed}. {end}".rstrip()]
