"""The steps of a benchmark: their classes or domains, and the images for training and scoring."""

from collections.abc import Sequence
from hashlib import sha256
from itertools import chain

import numpy as np

from ciss import protocol
from ciss.config import Benchmark
from ciss.data.pictures import DataError, Pair
from ciss.data.sets import DataSet, data_set
from ciss.documents import ConfigError, counted
from ciss.protocol import Classes


class ChoiceError(ConfigError):
    """A benchmark whose data set, order, groups or protocol do not fit each other; `key` is the one to correct."""

    def __init__(self, key: str, problem: object):
        super().__init__(str(problem))
        self.key = key


def classes_of(benchmark: Benchmark) -> Classes:
    """The classes of a benchmark; one group in the domain setting, whose steps bring none. Raises ChoiceError."""
    dataset = _data_set(benchmark)
    groups = _class_groups(benchmark, dataset)
    raw = [0, *chain.from_iterable(groups)]
    return Classes(groups, [dataset.classes[c] for c in raw], dataset.palette[raw], dataset.background)


def _class_groups(benchmark: Benchmark, dataset: DataSet) -> list[list[int]]:
    known = protocol.DATASETS.get(benchmark.dataset) or dataset.order()
    if benchmark.groups is not None:
        if benchmark.order is not None or benchmark.setting == "domain":
            other = "order" if benchmark.order is not None else "domain setting"
            raise ChoiceError("groups", f"groups say which class comes when, and so does the {other}. Remove one.")
        try:
            return protocol.own_groups(benchmark.groups, [c for c in dataset.classes if c])
        except ValueError as error:
            raise ChoiceError("groups", error) from None
    order = None if benchmark.order is None else list(benchmark.order)
    names = (("order", "joint"), ("protocol", "joint" if benchmark.setting == "domain" else benchmark.protocol))
    for key, name in names:
        try:
            groups = protocol.class_groups(benchmark.dataset, name, order=order, classes=known)
        except ValueError as error:
            raise ChoiceError(key, error) from None
    return groups


def domain_groups(benchmark: Benchmark) -> list[list[str]]:
    """Domains of every step of the domain setting.

    Raises: ChoiceError; where the domains are folders, also FileNotFoundError and DataError.
    """
    dataset = _data_set(benchmark)
    domains = dataset.domains
    if not domains:
        pairs = split_pairs(dataset, "train", benchmark.setting, benchmark.legacy_split)
        first_images = {pair.domain: pair.image for pair in reversed(pairs)}
        domains = sorted(first_images)
        if len(domains) > 1 and "" in domains:
            problem = f"{first_images['']}: the image lies beside the folders of domains, and has no domain"
            raise DataError(f"{problem}. Move such images into one of the folders, or into a new one.")
    try:
        return protocol.domain_groups(benchmark.dataset, benchmark.protocol, domains)
    except ValueError as error:
        raise ChoiceError("protocol", error) from None


def step_count(benchmark: Benchmark) -> int:
    """Steps, the base step included. Raises as `classes_of` and `domain_groups`."""
    groups = classes_of(benchmark).groups
    return len(domain_groups(benchmark) if benchmark.setting == "domain" else groups)


def divides_all(dataset: DataSet, setting: str, legacy_split: bool) -> bool:
    """Whether the steps divide all images, training and validation, into parts to train on and parts to test on.

    The published code does this for the domain setting. Data of one's own keep their validation images, except with
    `legacy_split`.
    """
    return setting == "domain" and (legacy_split or not dataset.own)


def split_pairs(dataset: DataSet, split: str, setting: str, legacy_split: bool) -> list[Pair]:
    """The pairs of a split; where the steps divide all images, the training pairs and then the validation pairs."""
    splits = ("train", "val") if divides_all(dataset, setting, legacy_split) else (split,)
    return [pair for name in splits for pair in dataset.pairs(dataset.root(), name)]


def choose_images(
    benchmark: Benchmark,
    groups: list[list[int]],
    ids: Sequence[str],
    classes: Sequence[Sequence[int]],
    validation: int,
    domains: dict[str, Sequence[str]],
) -> dict[str, list]:
    """The images of every step, by number and sorted.

    Args:
        groups: raw class ids of each step.
        ids, classes: of each training image; of all images where they are divided here (see `divides_all`).
        validation: number of validation images.
        domains: of each image of "train" and "val".

    Returns: the fields `steps`, `joint`, `holdout` and `validation` of `ciss.data.Index`.

    Raises: DataError for a hold-out that leaves no image; ValueError for a step without images.
    """
    if benchmark.setting == "domain":
        training, tests = _split_domains(benchmark, domains)
        trained = np.sort(np.concatenate(training))
        held = trained[draw_holdout([ids[i] for i in trained], benchmark.holdout)]
        joint = np.setdiff1d(trained, held)
        steps = [np.setdiff1d(images, held) for images in training]
    else:
        held = draw_holdout(ids, benchmark.holdout)
        kept = np.setdiff1d(np.arange(len(ids)), held)
        present = [classes[i] for i in kept]
        steps = [kept[protocol.select_images(present, groups, step, benchmark.setting)] for step in range(len(groups))]
        joint = kept[protocol.select_images(present, [list(chain.from_iterable(groups))], 0, "overlapped")]
        tests = [np.arange(validation)] * len(groups)
    return {
        "steps": [images.tolist() for images in steps],
        "joint": joint.tolist(),
        "holdout": held.tolist(),
        "validation": [images.tolist() for images in tests],
    }


def _split_domains(
    benchmark: Benchmark, domains: dict[str, Sequence[str]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The images that each step trains on, and those that are scored after it."""
    domain_steps = domain_groups(benchmark)
    step_of = {domain: step for step, members in enumerate(domain_steps) for domain in members}
    if unknown := sorted({*domains["train"], *domains["val"]} - set(step_of)):
        kind = "validation " if unknown[0] not in domains["train"] else ""
        problem = f"the {kind}images of domain {unknown[0]!r} belong to no step: the domains are {', '.join(step_of)}"
        raise DataError(f"{benchmark.dataset}: {problem}. Rename or remove their folder.")
    steps = {split: np.array([step_of[domain] for domain in domains[split]]) for split in domains}
    if divides_all(_data_set(benchmark), benchmark.setting, benchmark.legacy_split):
        training, tests = protocol.split_domains(steps["train"], legacy=benchmark.legacy_split)
    else:
        training = [np.flatnonzero(steps["train"] == step) for step in range(len(domain_steps))]
        tests = [np.flatnonzero(steps["val"] <= step) for step in range(len(domain_steps))]
    if len(training) < len(domain_steps):
        raise ValueError(f"step {len(training)} is left without images in the domain setting. Give it images.")
    if not tests[0].size:
        raise ValueError(f"no validation image is of a domain of step 0 ({', '.join(domain_steps[0])}). Add some.")
    return training, tests


def draw_holdout(ids: Sequence[str], images: int) -> np.ndarray:
    """Positions of the hold-out images, sorted. The draw depends on the image ids alone, not on step or seed."""
    if images >= len(ids):
        available = counted(len(ids), "training image")
        raise DataError(f"holdout is {images}, but the data set has only {available}. Make it smaller.")
    order = sorted(range(len(ids)), key=lambda i: sha256(ids[i].encode()).hexdigest())
    return np.sort(np.array(order[:images], dtype=np.int64))


def _data_set(benchmark: Benchmark) -> DataSet:
    try:
        return data_set(benchmark.dataset)
    except ConfigError as error:
        raise ChoiceError("dataset", error) from None
