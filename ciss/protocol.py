"""Which classes, images and labels each step has.

Classes have two numbers. A *raw id* is what an annotation file stores (0 background, 255 void). A *position* is a
channel of the network: 0 background, then the classes in order of arrival. All rules ask to which group a raw id
belongs, never how large it is. So they hold for every order of classes.

Sources of the settings: `overlapped` and `disjoint`, MiB (arXiv 2002.00718); `sequential`, SDR (arXiv 2103.06342);
`partitioned`, arXiv 2405.09858; `domain`, PLOP (arXiv 2011.11390).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral

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
    """The classes of a benchmark by position. C positions, background included.

    Raises: ValueError for a raw id outside 1..254, a raw id that is named twice and a group without classes.
    """

    groups: list[list[int]]  # raw ids of each step, background left out
    names: list[str] = field(default_factory=list)  # of each position
    colours: np.ndarray | None = field(default=None, compare=False)  # (C,3) uint8: RGB of each position
    background: bool = True  # position 0 is a class; if not, it holds the pixels without a label

    def __post_init__(self):
        _check_groups(self.groups)

    def __len__(self) -> int:
        return 1 + sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each group, background left out."""
        return [len(group) for group in self.groups]

    @property
    def raw(self) -> np.ndarray:
        """(C,) uint8: raw id of each position."""
        return np.array([BACKGROUND, *chain.from_iterable(self.groups)], dtype=np.uint8)

    @property
    def steps(self) -> np.ndarray:
        """(C,) int64: the step that introduced each position. The background belongs to step 0."""
        return np.repeat(np.arange(-1, len(self.groups)), [1, *self.sizes]).clip(min=0)

    def known(self, step: int) -> int:
        """Number of channels after `step`, background included; 1 for step -1, before the base step.

        Steps after the last group (domain setting) add none. Raises ValueError for a step below -1.
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

        Training keeps the classes of `step`. In the `sequential` and the `domain` setting it keeps old classes too. All
        other classes become background, which causes the background shift. Validation keeps all classes: the metric
        decides about positions without a channel. Void stays void. Ids in no group become background.

        Raises ValueError for an unknown setting and a step out of range.
        """
        _check_setting(setting)
        if setting != "domain" or step < 0:  # the domain setting can have more steps than groups
            _check_step(step, len(self.groups))
        labelled_positions = range(1, len(self))
        if training:
            first = 1 if setting in ("sequential", "domain") else self.known(step - 1)
            labelled_positions = range(first, self.known(step))
        table = np.full(256, BACKGROUND, dtype=np.uint8)
        table[VOID] = VOID
        table[self.raw[labelled_positions]] = labelled_positions
        return table


def class_groups(
    dataset: str, protocol: str, *, order: list[int] | None = None, classes: Sequence[int] | None = None
) -> list[list[int]]:
    """Raw ids of every step, in order of arrival, background left out.

    Args: dataset: a name of `DATASETS`, or any name with `classes`; protocol: "A-B" (A base classes, then B a step),
    "joint" or "offline" (one group); order: another order of arrival, a permutation of the data set's raw ids; classes:
    raw ids of a data set that is not in `DATASETS`.

    Raises: ValueError for an unknown data set or protocol, a B that does not divide the rest, and an `order` that is no
    permutation.
    """
    if classes is None and (not isinstance(dataset, str) or dataset not in DATASETS):
        raise ValueError(f"unknown data set {dataset!r}; there are {', '.join(DATASETS)}. Choose one of them.")
    ids = list(DATASETS[dataset] if classes is None else classes)
    if order is not None:
        ids = _permutation(dataset, ids, order)
    if protocol in ONE_GROUP:
        return [ids]
    return _split_into_steps(dataset, ALIASES.get((dataset, protocol), str(protocol)), ids, "classes")


def own_groups(groups: Sequence[Sequence[int]], classes: Sequence[int]) -> list[list[int]]:
    """Checks the groups of a protocol of one's own. Classes in no group become background.

    Raises ValueError for ids that are not among `classes`, for fewer than two groups, and as `Classes` does.
    """
    _check_groups(groups)
    if foreign := [raw for group in groups for raw in group if raw not in classes]:
        known = f"there are {_some(sorted(classes))}"
        raise ValueError(f"the groups' ids {_some(foreign)} are no classes of the data set; {known}. Correct them.")
    if len(groups) < 2:
        raise ValueError("one group leaves no step after the base. Make two, or use the protocol 'joint'.")
    return [list(group) for group in groups]


def domain_groups(dataset: str, protocol: str, domains: Sequence[str]) -> list[list[str]]:
    """Domains of every step: "11-5" is eleven, then five a step. Raises as `class_groups`."""
    return _split_into_steps(dataset, protocol, list(domains), "domains")


def _split_into_steps(dataset: str, protocol: str, items: list, kind: str) -> list[list]:
    """The items of each step of a protocol "A-B". `kind`: what they are, for messages."""
    size = len(items)
    if size < 2 and kind == "domains":
        raise ValueError(f"{dataset} has one domain, but the domain setting needs two or more. Use another setting.")
    if size < 2:
        raise ValueError(f"{dataset} has one class, so no increment is possible. Use the protocol 'joint'.")
    choices = f"{dataset} has 'joint', 'offline' and " if kind == "classes" else f"the domain setting of {dataset} has "
    choices += f"'A-B' with 0 < A < {size} and B a divisor of {size} - A. Use one."
    match = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", protocol)
    if match is None:
        raise ValueError(f"unknown protocol {protocol[:60]!r}; {choices}")
    base, width = int(match[1]), int(match[2])
    if not 0 < base < size:
        raise ValueError(f"{dataset} {protocol}: {base} base {kind} do not leave both a base and a step; {choices}")
    rest = size - base
    if width == 0 or rest % width:
        divisors = ", ".join(f"{base}-{b}" for b in range(1, rest + 1) if rest % b == 0)
        problem = f"the {rest} {kind} after the base do not divide into steps of {width}"
        raise ValueError(f"{dataset} {protocol}: {problem}; with {base} base {kind} there are {divisors}; {choices}")
    return [items[:base]] + [items[start : start + width] for start in range(base, size, width)]


def split_domains(steps: Sequence[int], *, legacy: bool = False) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and test images of the domain setting, sorted int64, for every step.

    A step trains on the first 80 % of its images, shuffled by `RandomState(1)`. The others are its test images. Scored
    after step t are the test images of all steps so far.

    Args: steps: the step that brings each image, of the training list and then the validation list; legacy: score as
    PLOP's code does, on the last 20 % of the images of all steps so far, shuffled anew. Most of these were trained on
    (71 % of Cityscapes' 11-5). Use it only to compare with PLOP's tables.

    Raises: ValueError for a step without an image to train on or one to test on.
    """
    step_of = np.array(_integers(steps, "steps"), dtype=np.int64)

    def split(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shuffled = images.copy()
        np.random.RandomState(1).shuffle(shuffled)
        cut = int(0.8 * len(shuffled))
        return np.sort(shuffled[:cut]), np.sort(shuffled[cut:])

    training, own, tests = [], [], []
    for step in range(int(step_of.max(initial=-1)) + 1):
        train, test = split(np.flatnonzero(step_of == step))
        if not len(train) or not len(test):
            empty = f"step {step} is left without images to {'test' if len(train) else 'train'} on"
            raise ValueError(f"{empty} in the domain setting. Give it images, or change the protocol.")
        training.append(train)
        own.append(test)
        tests.append(split(np.flatnonzero(step_of <= step))[1] if legacy else np.sort(np.concatenate(own)))
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

    * overlapped: images with at least one class of the step.
    * disjoint, sequential: of these, images without a class of a later step.
    * partitioned: every image with a class belongs to one of the steps whose classes it holds. Each of these steps is
      equally likely. The draw depends on `seed` alone, so the parts of all steps are exclusive and complete.
    * domain: images of the step's domains, whatever their classes. There may be more steps than groups.

    Args: image_classes: raw ids (0..255) in each image; background, void and classes in no group do not count; groups:
    raw ids of each step; domains: the step that brings each image, in the domain setting.

    Raises: ValueError for an unknown setting, a step out of range, ids that are no bytes, and a step without images.
    """
    _check_groups(groups)
    _check_setting(setting)
    if setting == "domain":
        if domains is None or len(domains) != len(image_classes):
            images = len(image_classes)
            problem = f"the domain setting needs one domain for each image, {images} in all"
            raise ValueError(f"{problem}. Pass them as `domains`.")
        step_of = np.array(_integers(domains, "domains"), dtype=np.int64)
        _check_step(step, int(step_of.max(initial=-1)) + 1)
        chosen = step_of == step
    else:
        _check_step(step, len(groups))
        holds = _steps_held(image_classes, groups)
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


def _check_groups(groups: Sequence[Sequence[int]]) -> None:
    if empty := [step for step, group in enumerate(groups) if len(group) == 0]:
        raise ValueError(f"groups {_some(empty)} have no classes. Give each group a class, or leave it out.")
    ids = _integers(chain.from_iterable(groups), "class ids")
    # Distinct ids within 1..254 keep every position within 1..254 too, so none is the void value.
    if foreign := [raw for raw in ids if not BACKGROUND < raw < VOID]:
        reserved = "0 is the background, 255 void. Use the data set's raw ids."
        raise ValueError(f"class ids must be within 1..{VOID - 1}, got {_some(foreign)}; {reserved}")
    if double := _doubles(ids):
        raise ValueError(f"classes {_some(double)} are in the groups more than once. Name each once.")


def _permutation(dataset: str, ids: list[int], order: list[int]) -> list[int]:
    """`order` as integers. Raises ValueError if it is no permutation of `ids`."""
    order = _integers(order, "the order's ids")
    wrong = {"missing": set(ids) - set(order), "foreign": set(order) - set(ids), "double": set(_doubles(order))}
    if any(wrong.values()):
        details = "; ".join(f"{problem} {_some(sorted(which))}" for problem, which in wrong.items() if which)
        message = f"the order is no permutation of the {len(ids)} classes of {dataset}: {details}"
        raise ValueError(f"{message}. Name each class once.")
    return order


def _integers(values: Iterable, kind: str) -> list[int]:
    """The values as integers. Raises ValueError for truth values, fractions and texts, which `int` would take."""
    values = list(values)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{kind} must be whole numbers, got {value!r}. Correct it.")
    return [int(value) for value in values]


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


def _steps_held(image_classes: Sequence[Iterable[int]], groups: Sequence[Sequence[int]]) -> np.ndarray:
    """(N,T) bool: whether image i shows a class of step t."""
    step_of = {raw: step for step, group in enumerate(groups) for raw in group}
    held = np.zeros((len(image_classes), len(groups)), dtype=bool)
    for row, classes in zip(held, image_classes, strict=True):
        ids = _integers(classes, "raw ids")
        if foreign := [raw for raw in ids if not 0 <= raw <= VOID]:
            raise ValueError(f"raw ids must be within 0..{VOID}, got {_some(foreign)}. Correct the masks.")
        row[[step_of[raw] for raw in ids if raw in step_of]] = True
    return held
