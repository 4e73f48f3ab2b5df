"""Class groups, image selection and label mapping of class-incremental segmentation.

Two numberings of classes meet here and nowhere else. A *raw id* is what an annotation file stores (0 background,
255 void). A *position* is a channel of the network: 0 background, then the classes in order of arrival. All rules ask
which group a raw id belongs to, never how large it is, so that they hold for every class order.

The settings (MiB, arXiv 2002.00718, names `overlapped` and `disjoint`; SDR, arXiv 2103.06342, `sequential`;
arXiv 2405.09858, `partitioned`; PLOP, arXiv 2011.11390, `domain`) are described at `select_images` and
`Classes.label_table`.
"""

import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

BACKGROUND, VOID = 0, 255

# Raw ids in their usual order of arrival.
DATASETS: dict[str, tuple[int, ...]] = {
    "voc": tuple(range(1, 21)),
    "ade20k": tuple(range(1, 151)),
    "cityscapes": tuple(range(1, 20)),  # train ids 0..18, moved up by one to leave 0 to the background
    "camvid": tuple(range(1, 12)),
    "shapes": tuple(range(1, 9)),
    "voc8": (8, 9, 12, 15, 13, 17, 10, 18),  # cat chair dog person horse sheep cow sofa; the rest of VOC is background
}
ALIASES = {("voc", "15-5s"): "15-1"}  # the name of the first publications
ONE_GROUP = ("joint", "offline")  # protocols that bring all classes at once
SETTINGS = ("overlapped", "disjoint", "sequential", "partitioned", "domain")


@dataclass(frozen=True)
class Classes:
    """The classes of a benchmark by position: the background, then the others in order of arrival.

    Args: groups: raw ids of each step, background left out; names: of each position; colours: (C,3) uint8 of each
    position; background: whether position 0 is a class of its own, and not only the pixels without a label.

    Raises ValueError for ids that a label image of bytes cannot hold beside background and void, for doubles, and for
    a group without classes.
    """

    groups: list[list[int]]
    names: list[str] = field(default_factory=list)
    colours: np.ndarray | None = field(default=None, compare=False)
    background: bool = True

    def __post_init__(self):
        _check_groups(self.groups)

    def __len__(self) -> int:
        """Number of positions C, background included."""
        return 1 + sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Number of classes that each step brings; the background is in none."""
        return [len(group) for group in self.groups]

    @property
    def raw(self) -> np.ndarray:
        """(C,) uint8: the raw id of each position."""
        return np.array([BACKGROUND, *chain.from_iterable(self.groups)], dtype=np.uint8)

    @property
    def steps(self) -> np.ndarray:
        """(C,) int64: the step that introduced each position. The background belongs to step 0."""
        return np.repeat(np.arange(-1, len(self.groups)), [1, *self.sizes]).clip(min=0)

    def known(self, step: int) -> int:
        """Number of channels, background included, after `step`; 1 before step 0, which is step -1.

        Steps beyond the last group (domain) add none. Raises ValueError for smaller steps.
        """
        if step < -1:
            raise ValueError(f"step {step} is below -1. Count steps from 0.")
        return 1 + sum(self.sizes[: step + 1])

    def old(self, step: int) -> range:
        """Positions of all earlier steps' classes, background left out."""
        return range(1, self.known(step - 1))

    def new(self, step: int) -> range:
        """Positions of the classes that `step` brings."""
        return range(self.known(step - 1), self.known(step))

    def label_table(self, step: int, setting: str, *, training: bool) -> np.ndarray:
        """(256,) uint8: raw id -> position, to be indexed with a label image of bytes.

        Training keeps the classes of `step`; old and future ones become background: the cause of background shift.
        `sequential` and `domain` keep the old ones too. Otherwise (validation) every class has its position, future
        ones too: the metric decides about positions without a channel. Void stays void, ids in no group become
        background.

        Raises ValueError for an unknown setting and a step out of range.
        """
        _check_setting(setting)
        if setting != "domain" or step < 0:  # domain steps bring images, not classes: there can be more than groups
            _check_step(step, len(self.groups))
        kept = range(1, len(self))
        if training:
            kept = [*(self.old(step) if setting in ("sequential", "domain") else ()), *self.new(step)]
        table = np.full(256, BACKGROUND, dtype=np.uint8)
        table[VOID] = VOID
        table[self.raw[kept]] = kept
        return table


def _check_groups(groups: Sequence[Sequence[int]]) -> None:
    if empty := [number for number, group in enumerate(groups) if len(group) == 0]:
        raise ValueError(f"groups {_some(empty)} have no classes. Give each group a class, or leave it out.")
    ids = _integers(chain.from_iterable(groups), "class ids")
    # Distinct ids within 1..254 also keep every position within 1..254, clear of the void value.
    if foreign := [raw for raw in ids if not BACKGROUND < raw < VOID]:
        rest = "0 is the background, 255 void. Use the data set's raw ids."
        raise ValueError(f"class ids must be within 1..{VOID - 1}, got {_some(foreign)}; {rest}")
    if double := _doubles(ids):
        raise ValueError(f"classes {_some(double)} are in the groups more than once. Name each once.")


def class_groups(
    dataset: str, protocol: str, *, order: list[int] | None = None, classes: Sequence[int] | None = None
) -> list[list[int]]:
    """Raw ids of every step, in order of arrival, background left out.

    `protocol` is "A-B" (A base classes, then B a step until the classes are used up), or "joint" / "offline" (one
    group; also what the domain setting wants, whose steps bring images and no classes). `order` replaces the order of
    arrival and must be a permutation of the data set's raw ids. `classes`: these, for a data set that is not one of
    `DATASETS`.

    Raises ValueError for an unknown data set or protocol, for a remainder that B does not divide, and for an `order`
    that is no permutation; the message names what is wrong and what exists.
    """
    if classes is None and (not isinstance(dataset, str) or dataset not in DATASETS):
        raise ValueError(f"unknown data set {dataset!r}; there are {', '.join(DATASETS)}. Choose one of them.")
    ids = list(DATASETS[dataset] if classes is None else classes)
    if order is not None:
        ids = _permutation(dataset, ids, order)
    if protocol in ONE_GROUP:
        return [ids]

    return _cut(dataset, ALIASES.get((dataset, protocol), str(protocol)), ids, "classes")


def own_groups(groups: Sequence[Sequence[int]], classes: Sequence[int]) -> list[list[int]]:
    """Groups of one's own, checked: raw ids that are among `classes`, each at most once. Classes in no group become
    background. Raises ValueError that names what is wrong."""
    _check_groups(groups)
    if foreign := [raw for group in groups for raw in group if raw not in classes]:
        known = f"there are {_some(sorted(classes))}"
        raise ValueError(f"the groups' ids {_some(foreign)} are no classes of the data set; {known}. Correct them.")
    if len(groups) < 2:
        raise ValueError("one group leaves no step after the base. Make two, or use the protocol 'joint'.")
    return [list(group) for group in groups]


def domain_groups(dataset: str, protocol: str, domains: Sequence[str]) -> list[list[str]]:
    """Domains of every step: "11-5" is eleven, then five a step. Errors as `class_groups`."""
    return _cut(dataset, protocol, list(domains), "domains")


def _cut(dataset: str, protocol: str, ids: list, what: str) -> list[list]:
    size = len(ids)
    if size < 2:
        if what == "domains":
            raise ValueError(
                f"{dataset} has one domain, but the domain setting needs two or more. Use another setting."
            )
        raise ValueError(f"{dataset} has one class, so no increment is possible. Use the protocol 'joint'.")
    exist = f"{dataset} has 'joint', 'offline' and " if what == "classes" else f"the domain setting of {dataset} has "
    exist += f"'A-B' with 0 < A < {size} and B a divisor of {size} - A. Use one."
    match = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", protocol)
    if match is None:
        raise ValueError(f"unknown protocol {protocol[:60]!r}; {exist}")
    base, width = int(match[1]), int(match[2])
    if not 0 < base < size:
        raise ValueError(f"{dataset} {protocol}: {base} base {what} do not leave both a base and a step; {exist}")
    rest = size - base
    if width == 0 or rest % width:
        divisors = ", ".join(f"{base}-{b}" for b in range(1, rest + 1) if rest % b == 0)
        problem = f"the {rest} {what} after the base do not divide into steps of {width}"
        raise ValueError(f"{dataset} {protocol}: {problem}; with {base} base {what} there are {divisors}; {exist}")
    return [ids[:base]] + [ids[start : start + width] for start in range(base, size, width)]


def split_domains(steps: Sequence[int], *, legacy: bool = False) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and test images of the domain setting, sorted int64 for every step.

    `steps[i]`: the step that brings image i, in the order of the training list, then the validation list. Of a step's
    images, shuffled by `RandomState(1)`, the first 80 % are trained on. Scored after step t are the test images of all
    steps so far; with `legacy`, as PLOP's code does it, the last 20 % of the images of all steps so far *shuffled
    anew*, most of which some step was trained on (71 % of Cityscapes' 11-5). Use that only to compare with its tables.

    Raises ValueError for a step without an image to train on or one to test on.
    """
    where = np.array(_integers(steps, "steps"), dtype=np.int64)

    def parts(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shuffled = images.copy()
        np.random.RandomState(1).shuffle(shuffled)
        cut = int(0.8 * len(shuffled))
        return np.sort(shuffled[:cut]), np.sort(shuffled[cut:])

    training, own, tests = [], [], []
    for step in range(int(where.max(initial=-1)) + 1):
        train, test = parts(np.flatnonzero(where == step))
        if not len(train) or not len(test):
            empty = f"step {step} is left without images to {'test' if len(train) else 'train'} on"
            raise ValueError(f"{empty} in the domain setting. Give it images, or change the protocol.")
        training.append(train)
        own.append(test)
        tests.append(parts(np.flatnonzero(where <= step))[1] if legacy else np.sort(np.concatenate(own)))
    return training, tests


def select_images(
    image_classes: Sequence[Iterable[int]],
    groups: Sequence[Sequence[int]],
    step: int,
    setting: str,
    *,
    seed: int = 0,
    domains: Sequence[int] | None = None,
) -> np.ndarray:
    """Indices of the images that `step` trains on, sorted int64.

    `image_classes[i]` holds the raw ids (0..255) present in image i. Background, void and classes that belong to no
    group do not count.

    * overlapped: at least one class of the step.
    * disjoint, sequential: additionally no class of a later step.
    * partitioned: every image with a class goes to one of the steps whose classes it holds, all equally likely, drawn
      with `seed` alone: the parts of all steps are exclusive and together complete, whichever is asked for first.
    * domain: `domains[i] == step`, whatever the classes; there may be more steps than groups.

    Raises ValueError for an unknown setting, a step out of range, ids that are no bytes, and a step without images.
    """
    _check_groups(groups)
    _check_setting(setting)
    if setting == "domain":
        if domains is None or len(domains) != len(image_classes):
            images = len(image_classes)
            raise ValueError(f"the domain setting needs a domain for each of the {images} images. Name them.")
        where = np.array(_integers(domains, "domains"), dtype=np.int64)
        _check_step(step, int(where.max(initial=-1)) + 1)
        chosen = where == step
    else:
        _check_step(step, len(groups))
        presence = _presence(image_classes)
        # holds[i, t]: image i shows a class of step t
        holds = np.stack([presence[:, list(group)].any(axis=1) for group in groups], axis=1)
        chosen = holds[:, step]
        if setting in ("disjoint", "sequential"):
            chosen = chosen & ~holds[:, step + 1 :].any(axis=1)
        elif setting == "partitioned":
            # The largest of independent draws is uniform among the steps of an image; -1 is below every draw.
            draws = np.where(holds, np.random.default_rng(seed).random(holds.shape), -1.0)
            chosen = chosen & (draws.argmax(axis=1) == step)
    if not chosen.any():
        classes = list(groups[step]) if step < len(groups) else []
        empty = f"step {step} (classes {_some(classes)}) is left without images in the {setting} setting"
        raise ValueError(f"{empty}. Give it images, or change protocol, order or setting.")
    return np.flatnonzero(chosen).astype(np.int64)


def _permutation(dataset: str, ids: list[int], order: list[int]) -> list[int]:
    """`order` as integers, or a ValueError that says why it is no permutation of `ids`."""
    order = _integers(order, "the order's ids")
    wrong = {"missing": set(ids) - set(order), "foreign": set(order) - set(ids), "double": set(_doubles(order))}
    if any(wrong.values()):
        found = "; ".join(f"{what} {_some(sorted(which))}" for what, which in wrong.items() if which)
        problem = f"the order is no permutation of the {len(ids)} classes of {dataset}: {found}"
        raise ValueError(f"{problem}. Name each class once.")
    return order


def _integers(values: Iterable, what: str) -> list[int]:
    """Whole numbers, numpy's too; not the truth values and fractions that `int` would take for some."""
    found = []
    for value in values:
        try:
            if isinstance(value, bool | np.bool_):
                raise TypeError
            found.append(operator.index(value))
        except TypeError:
            raise ValueError(f"{what} must be whole numbers, got {value!r}. Correct it.") from None
    return found


def _doubles(ids: list[int]) -> list[int]:
    return sorted(raw for raw, count in Counter(ids).items() if count > 1)


def _some(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 20 else f"[{', '.join(map(str, ids[:20]))}, ...]"


def _check_setting(setting: str) -> None:
    if setting not in SETTINGS:
        raise ValueError(f"unknown setting {setting!r}; there are {', '.join(SETTINGS)}. Choose one of them.")


def _check_step(step: int, steps: int) -> None:
    if not 0 <= _integers([step], "steps")[0] < steps:
        raise ValueError(f"step {step} is out of range; there are {_some(list(range(steps)))}. Choose one of them.")


def _presence(image_classes: Sequence[Iterable[int]]) -> np.ndarray:
    """(N, 256) bool: which raw ids each image holds."""
    held = [_integers(classes, "raw ids") for classes in image_classes]
    ids = list(chain.from_iterable(held))
    if ids and not (min(ids) >= 0 and max(ids) <= VOID):
        raise ValueError(f"raw ids must be within 0..{VOID}, got {min(ids)}..{max(ids)}. Correct the masks.")
    presence = np.zeros((len(held), VOID + 1), dtype=bool)
    presence[np.repeat(np.arange(len(held)), [len(classes) for classes in held]), ids] = True
    return presence
