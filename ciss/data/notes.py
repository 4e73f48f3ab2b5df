"""Notes on the data of a benchmark: whatever limits or changes the meaning of its scores.

They are printed before training (`ciss plan --check`, `1_data`, the doctor) and stand beside the results.
"""

from collections.abc import Iterable
from pathlib import Path

from ciss import paths
from ciss.config import Benchmark
from ciss.data.index import Index, scan_file
from ciss.data.loaders import ShuffledBatches
from ciss.data.pictures import DataError
from ciss.data.scan import scan
from ciss.data.sets import data_set
from ciss.data.sets.shapes import TRAIN, VAL
from ciss.data.steps import divides_all
from ciss.documents import counted

NAMES_SHOWN = 8  # class names in one note
LARGE_REMAINDER = 0.1  # share of a step's images that an epoch leaves out: larger ones are noted
INCOMPARABLE = "Scores cannot be compared with the published ones."
SPLITS = ("train", "val")
FETCH = {  # data set and split -> how to get the images that the presets expect
    **{(name, split): f"Run `ciss data fetch {name}`." for name in ("voc", "ade20k", "cityscapes") for split in SPLITS},
    ("voc", "train"): "Run `ciss data fetch sbd`.",
}


def data_notes(benchmark: Benchmark, index: Index) -> list[str]:
    """Notes on images and classes other than the preset's, on small steps, repeated images and missing classes.

    Args:
        benchmark: the settings that the index was made for.
        index: the result of `ciss.data.prepare` or `Index.load`.

    Returns: one or two sentences for each note; an empty list for data as expected.

    Raises: DataError if no validation image contains a class of the benchmark: no score would mean anything.
    """
    names = data_set(benchmark.dataset).classes
    classes = [c for group in index.groups for c in group]
    notes = count_notes(benchmark, len(index.ids["train"]), len(index.ids["val"]))
    expects = benchmark.expects
    if expects and len(classes) != expects.classes:
        problem = f"This preset expects {expects.classes} classes; the benchmark has {len(classes)}"
        notes.append(f"{problem}. {INCOMPARABLE}")
    notes += _step_notes(benchmark, index)

    def note_absent(start: str, wanted: list[int], split: str, images: Iterable[int], end: str = "") -> None:
        """Adds one note on the wanted classes that none of the images contains."""
        present = {c for image in images for c in index.classes[split][image]}
        if absent := [names[c] for c in wanted if c not in present]:
            more = f" and {len(absent) - NAMES_SHOWN} more" if len(absent) > NAMES_SHOWN else ""
            notes.append(f"{start}: {', '.join(absent[:NAMES_SHOWN])}{more}. {end}".rstrip())

    if benchmark.setting == "domain":
        note_absent("No training image contains", classes, "train", index.joint)
    else:
        for step, (group, images) in enumerate(zip(index.groups, index.steps, strict=True)):
            note_absent(f"No training image of step {step} contains", group, "train", images)
    if not benchmark.legacy_split:  # which has a note of its own
        notes += _repeated(index)
    if index.holdout:
        end = "The hold-out set has no score for them."
        note_absent("No image of the hold-out set contains", classes, "train", index.holdout, end)
    scored = {c for image in index.validation[-1] for c in index.classes["val"][image]}
    if scored.isdisjoint(classes):
        raise DataError(
            f"{benchmark.dataset}: none of the {len(index.validation[-1])} validation images contains a class of the "
            "benchmark, so no class can be scored. Check the masks of the validation images, or choose other classes."
        )
    end = "Their IoU cannot be measured."
    note_absent("No validation image contains", classes, "val", index.validation[-1], end)
    return notes


def count_notes(benchmark: Benchmark, train: int, val: int) -> list[str]:
    """Notes on numbers of images other than the preset's.

    `train`, `val`: as `list_counts` has them.
    """
    expects = benchmark.expects
    if expects is None:
        return []
    if benchmark.limit:
        return [f"limit is {benchmark.limit}, so only the first images are used. {INCOMPARABLE}"]
    counts = {"train": ("training", expects.train, train), "val": ("validation", expects.val, val)}
    if benchmark.setting == "domain":
        counts = {"train": ("training and validation", expects.train + expects.val, train)}
    notes = []
    for split, (kind, expected, images) in counts.items():
        if images != expected:
            remedy = FETCH.get((benchmark.dataset, split), "") if images < expected else ""
            problem = f"This preset expects {expected:,} {kind} images; {images:,} were found"
            notes.append(f"{problem}. {INCOMPARABLE} {remedy}".rstrip())
    return notes


def list_counts(benchmark: Benchmark) -> dict[str, int]:
    """Images in the lists of the data set, `train` and `val`. Where the steps divide all images, both are all images.

    Nothing is drawn: for a data set that will be drawn it is the number of drawings.

    Raises: FileNotFoundError and DataError for data that are missing or incomplete, with the remedy.
    """
    dataset = data_set(benchmark.dataset)
    try:
        folder = paths.data_root(dataset.folder[0]).joinpath(*dataset.folder[1:])
        counts = {split: len(dataset.pairs(folder, split)) for split in SPLITS}
    except FileNotFoundError:
        if not dataset.draw:
            raise
        counts = {"train": TRAIN, "val": VAL}
    divided = divides_all(dataset, benchmark.setting, benchmark.legacy_split)
    return dict.fromkeys(counts, sum(counts.values())) if divided else counts


def list_notes(benchmark: Benchmark) -> tuple[list[str], list[str]]:
    """Errors and notes that need the lists of images alone.

    Missing data are a note, because a benchmark may be planned before its data are there.
    """
    try:
        counts = list_counts(benchmark)
    except (FileNotFoundError, DataError) as error:
        remedy = FETCH.get((benchmark.dataset, "val"), "")
        return [], [f"The data of {benchmark.dataset!r} are not complete: {str(error).rstrip('.')}. {remedy}".rstrip()]
    train, errors = counts["train"], []
    if benchmark.limit and benchmark.setting != "domain":
        train = min(train, benchmark.limit)
    if benchmark.holdout >= train:
        why = "limit leaves" if train < counts["train"] else "the data set has"
        available = counted(train, "training image")
        errors.append(f"holdout: {benchmark.holdout}, but {why} only {available}. Make it smaller.")
    notes = count_notes(benchmark, **counts)
    if own := data_set(benchmark.dataset).own:
        if own.described.share and benchmark.setting == "domain" and benchmark.legacy_split:
            notes.append(f"{own.file}: `share` is not used with legacy_split, which scores 20 % of the images.")
        notes += own.unpaired(own.file.parent)
    return errors, notes


def change_notes(benchmark: Benchmark, folder: Path) -> list[str]:
    """Notes on data that changed since they were prepared. DVC sees this only of data of one's own.

    `folder`: the folder of the benchmark's index. Without an index there is nothing to compare.
    """
    try:
        index = Index.load(folder, benchmark)
    except DataError:
        return []  # not prepared, or for other settings: DVC prepares it
    dataset = data_set(benchmark.dataset)
    remedy = "Run: dvc repro" if dataset.description else f"Run: dvc repro -f -s prepare@{folder.name}; then: dvc repro"
    cache = scan_file(dataset, folder)
    try:
        for split, digests in index.digests.items():
            pairs = index.pairs(split)
            scans = scan(pairs, dataset, split, cache) if cache.is_file() else []
            changed = [pair for pair, s, old in zip(pairs, scans, digests, strict=False) if s["digest"] != old]
            if changed:
                problem = f"{len(changed)} of {len(pairs)} {split} images or their masks changed since the data were"
                return [f"{problem} prepared (first: {changed[0].image}). {remedy}"]
    except (FileNotFoundError, DataError) as error:
        return [f"The data changed since they were prepared: {str(error).partition(' Run: ')[0]} {remedy}"]
    return []


def epoch_images(benchmark: Benchmark, images: int) -> int:
    """Images of a step that one epoch uses. An epoch drops those that do not fill the last update."""
    train = benchmark.train
    return ShuffledBatches(list(range(images)), train.batch, train.accumulate, 0).images_per_epoch


def _step_notes(benchmark: Benchmark, index: Index) -> list[str]:
    """Notes on steps with fewer images than an update, and on steps whose epochs leave many images out."""
    train, notes = benchmark.train, []
    update = train.batch * train.accumulate
    for step, images in enumerate(map(len, index.steps)):
        used = epoch_images(benchmark, images) if images >= update else images
        if images < update:
            note = f"Step {step} has {images} training image{'s' if images > 1 else ''}, fewer than the {update} of an "
            note += "update (train.batch x accumulate). Each of its epochs is one update."
            phase = "increment" if step else "base"
            if images == 1 and benchmark.model.decoder == "deeplabv3" and getattr(train, phase).norm != "frozen":
                note += f" One image has no batch statistics: set train.{phase}.norm to frozen."
            notes.append(note)
        elif images - used > LARGE_REMAINDER * images:
            notes.append(
                f"An epoch of step {step} uses {used} of its {images} training images: the others do not fill an "
                f"update of {update}. Each epoch leaves out other ones."
            )
    return notes


def _repeated(index: Index) -> list[str]:
    """Notes on images that are scored and, with the same content, trained on."""
    digests, notes = index.digests, []
    trained = {digests["train"][i]: index.ids["train"][i] for images in index.steps for i in images}
    validation = sorted({i for images in index.validation for i in images})
    for kind, split, images in (("validation", "val", validation), ("hold-out", "train", index.holdout)):
        ids = index.ids[split]
        repeated = [i for i in images if trained.get(digests[split][i], ids[i]) != ids[i]]
        if repeated:
            first, partner = ids[repeated[0]], trained[digests[split][repeated[0]]]
            notes.append(
                f"{len(repeated)} of the {len(images)} {kind} images are trained on too: image and mask have the same "
                f"content (first: {first}, as {partner}). Scores are too high. Remove these images from one of the two."
            )
    return notes
