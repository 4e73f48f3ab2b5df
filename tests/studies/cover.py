"""The covering set: which studies together use every preset once and every pair of choices once.

The choices (axes) are the setting, the data set, the decoder, the methods, the hold-out set and joint training. Two
values of different axes are a pair; a study covers all pairs of its own values. The presets come first, then named
cases that pairs cannot express, then studies that a greedy search adds until no pair is left. Nothing is random.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations, product

from ciss import protocol
from ciss.config import Benchmark, Model, Phase, Train
from ciss.methods import METHODS
from ciss.study import presets

SETTINGS = protocol.SETTINGS
DECODERS = ("deeplabv3", "mask_transformer")
METHOD_NAMES = (*(name for name, method in METHODS.items() if not method.sees_all), "plop-released")
JOINT = ("alone", "beside", "absent")
PROTOCOLS = {  # of the studies that the search adds: two steps each
    "shapes": "4-4",
    "voc": "15-5",
    "voc8": "4-4",
    "ade20k": "100-50",
    "cityscapes": "13-6",
    "camvid": "6-5",
    "two": "1-1",
    "lacking": "2-1",
    "single": "2-1",
    "sizes": "2-2",
    "share": "2-2",
    "nobackground": "3-2",
    "domains": "2-2",
}
DOMAINS = {"cityscapes": "11-5", "domains": "2-1"}  # protocols of the domain setting
DATA = tuple(PROTOCOLS)
VARIANTS = [  # all but those that need maps of a detector
    f"{name}-{variant}"
    for name, method in METHODS.items()
    for variant, values in method.presets.items()
    if not method(**values).reads_saliency
]
METHODS_A_STUDY = 4
UNCUT = "voc8-order"  # the preset of many steps that keeps them all
SMALL = (
    "model.pretrained=false model.weights=null model.image_size=null model.width=8 train.base.epochs=1 "
    "train.increment.epochs=1 train.base.lr=0.01 train.increment.lr=0.0001 train.encoder_lr=1 train.crop=32 "
    "train.batch=4 train.threads=1 train.workers=0 evaluation.batch=8 evaluation.samples=2"
).split()
NETWORKS = {  # encoder -> what it needs
    "ciss_tiny": ("model.output_stride=4",),
    "test_vit": ("model.output_stride=16", "model.image_size=32"),
    "test_resnet": ("model.output_stride=16",),
}
HEADS = {
    "deeplabv3": ("model.atrous_rates=[1]",),
    "mask_transformer": ("model.layers=1", "model.heads=1", "model.drop_path=0.0"),
}

Pair = frozenset[tuple[str, str]]
load_preset = cache(presets.load)


@dataclass(frozen=True)
class Case:
    """A benchmark of a study: what `ciss plan` is asked for."""

    data: str
    setting: str = "overlapped"
    decoder: str = "deeplabv3"
    methods: tuple[str, ...] = ()
    holdout: bool = False
    joint: str = "beside"
    preset: str | None = None
    protocol: str | None = None  # None: the preset's
    groups: tuple[tuple[int, ...], ...] | None = None
    encoder: str = "ciss_tiny"
    seeds: tuple[int, ...] = (0,)
    orders: int = 1
    changes: tuple[str, ...] = ()

    def values(self) -> set[tuple[str, str]]:
        """The values of all axes; the methods are several values of one axis."""
        found = {(axis, str(getattr(self, axis))) for axis in ("data", "setting", "decoder", "joint", "holdout")}
        return found | {("method", method) for method in self.methods}

    def pairs(self) -> set[Pair]:
        """The pairs of values that this case covers."""
        return {frozenset(pair) for pair in combinations(sorted(self.values()), 2) if pair[0][0] != pair[1][0]}

    def command(self) -> list[str]:
        """The arguments of `ciss plan`."""
        words = [self.data, *([self.protocol] if self.protocol else []), "--setting", self.setting]
        if self.preset and self.preset != self.data:
            words += ["--preset", self.preset.removeprefix(f"{self.data}-")]
        words += ["--methods", *self.methods, "--seeds", *map(str, self.seeds)]
        words += ["--orders", str(self.orders)] if self.orders > 1 else []
        words += ["--no-joint"] if self.joint == "absent" else []
        return [*words, "--set", *self.settings()]

    def settings(self) -> list[str]:
        """The values for `--set`: everything small."""
        held = (4 if self.data in ("two", "lacking", "single", "sizes", "share", "domains") else 6) * self.holdout
        words = [*SMALL, f"holdout={held}", f"model.encoder={self.encoder}", f"model.decoder={self.decoder}"]
        words += [*NETWORKS[self.encoder], *HEADS[self.decoder]]
        if self.data == "shapes":
            words.append("limit=60")
        if self.groups:
            words.append(f"groups={[list(group) for group in self.groups]}")
        if any(method.startswith("frozen") for method in self.methods):
            words.append("train.increment.norm=frozen")  # the method requires it
        return [*words, *self.changes]

    def increments(self) -> int:
        """Steps after the base step."""
        if self.groups:
            return len(self.groups) - 1
        name = self.protocol or load_preset(self.preset or self.data)["protocol"]
        base, width = map(int, name.split("-"))
        sizes = {"cityscapes": 21, "domains": 3, "manydomains": 6}
        classes = {"two": 2, "lacking": 3, "single": 3, "sizes": 4, "share": 4, "nobackground": 5, "domains": 4}
        total = sizes[self.data] if self.setting == "domain" else classes.get(self.data, 0)
        return ((total or len(protocol.DATASETS[self.data])) - base) // width

    def runs(self) -> int:
        joint = self.joint != "absent"
        bases = len({own_base(method) for method in self.methods} or {None})
        return self.orders * len(self.seeds) * (bases + joint + self.increments() * len(self.methods))


@dataclass(frozen=True)
class Study:
    name: str
    cases: tuple[Case, ...]
    why: str = field(default="pairs", compare=False)

    def pairs(self) -> set[Pair]:
        return set().union(*(case.pairs() for case in self.cases))

    def commands(self) -> list[list[str]]:
        first, *others = [case.command() for case in self.cases]
        return [first, *([*words[:-1], words[-1], "--add"] for words in others)]

    def seconds(self) -> int:
        """A forecast of processor seconds: most of them are the start of a process for each notebook."""
        return 12 + sum(20 * case.orders + 11 * case.runs() for case in self.cases)


def legal(case: Case) -> bool:
    """Whether a study may be planned like this."""
    if case.setting == "domain" and case.data not in DOMAINS and case.data != "manydomains":
        return False
    return bool(case.methods) == (case.joint != "alone")


@cache
def suited(method: str, setting: str, decoder: str) -> bool:
    """Whether a method can be used in a setting and with a decoder at all, whatever its coefficients.

    In the domain setting with its own coefficients: a plan does not change them.
    """
    phase = Phase(epochs=1, lr=0.01, norm="frozen")
    train = Train(crop=32, batch=4, base=phase, increment=phase)
    benchmark = Benchmark(dataset="shapes", protocol="4-2", setting=setting, model=Model(decoder=decoder), train=train)
    code, _, variant = method.partition("-")
    problem = METHODS[code](**METHODS[code].presets.get(variant, {})).unsuited(benchmark)
    return problem is None or (setting != "domain" and problem[0] not in ("model.decoder", "setting"))


@cache
def own_base(method: str) -> str | None:
    """The section under `methods` of a method's own base step; None: it shares that of fine-tuning."""
    code, _, variant = method.partition("-")
    return METHODS[code](**METHODS[code].presets.get(variant, {})).own_base


def candidates() -> Iterator[Case]:
    """All legal cases of the search, without methods; `legal` judges the methods."""
    for setting, data, decoder, joint, holdout in product(SETTINGS, DATA, DECODERS, JOINT, (False, True)):
        if setting != "domain" or data in DOMAINS:
            steps = DOMAINS[data] if setting == "domain" else PROTOCOLS[data]
            yield Case(data, setting, decoder, (), holdout, joint, protocol=steps)


def wanted() -> set[Pair]:
    """Every pair of values that some legal case has."""
    found: set[Pair] = set()
    for case in candidates():
        methods = (
            [()]
            if case.joint == "alone"
            else [(method,) for method in METHOD_NAMES if suited(method, case.setting, case.decoder)]
        )
        for names in methods:
            found |= replace(case, methods=names).pairs()
    return found


def preset_case(name: str, missing: set[Pair]) -> Case:
    """A preset with two of its methods and orders. Its steps are cut to the first, second and last where possible."""
    document = load_preset(name)
    runs, data = document.get("runs", {}), document["dataset"]
    if data == "own":
        data = "sizes"
    steps, groups = document["protocol"], document.get("groups")
    orders = min(2, runs.get("orders", 1))
    whole = name == UNCUT or orders > 1 or document["setting"] == "domain"  # an order of classes excludes `groups`
    if data in protocol.DATASETS and groups is None and not whole:
        found = protocol.class_groups(data, steps)
        if len(found) > 3 and document.get("order") is None:
            groups = [found[0], found[1], found[-1]]
    groups = tuple(map(tuple, groups)) if groups else None
    case = Case(
        data,
        document["setting"],
        document["model"]["decoder"],
        (),
        bool(document["holdout"]),
        "beside" if runs.get("joint", True) else "absent",
        preset="own" if document["dataset"] == "own" else name,
        groups=groups,
        encoder=ENCODERS.get(name, "ciss_tiny"),
        orders=orders,
        changes=("train.resize=32",) if "resize" in document["train"] else (),
    )
    methods = tuple(runs.get("methods") or METHOD_NAMES)  # none: a preset for `ciss tune`
    named = tuple(method for method in methods if name.endswith(f"-{method}"))
    return replace(case, methods=named + best_methods(case, missing, methods, 2 - len(named), named))


ENCODERS = {"voc-gsc": "test_vit", "camvid": "test_resnet"}
ENCODERS |= {f"{data}-{method}": "test_vit" for data in ("voc", "ade20k") for method in ("mbs", "select")}


def best_methods(
    case: Case, missing: set[Pair], methods: Iterable[str], count: int, chosen: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The methods that add most missing pairs to a case; of equal ones the first."""
    usable = [method for method in methods if method not in chosen and suited(method, case.setting, case.decoder)]
    gains = {method: len(replace(case, methods=(method,)).pairs() & missing) for method in usable}
    return tuple(sorted(gains, key=lambda method: -gains[method])[:count])


def named_studies() -> list[Study]:
    """Studies that the pairs do not ask for."""
    two = Case("two", protocol="1-1", methods=("finetune",), joint="absent")
    cities = Case("cityscapes", "domain", preset="cityscapes-domain", protocol="1-1", joint="absent")
    places = Case("manydomains", "domain", protocol="1-1", methods=("plop", "mbs"), joint="absent")
    shapes = Case("shapes", protocol="4-4", methods=("mib",), holdout=True)
    studies = [
        Study("cityscapes-domain-1-1", (replace(cities, methods=("gsc",)),), "20 domains one by one, 19 classes"),
        Study("more-domains-than-classes", (places,), "six domains, two classes"),
        Study("seeds", (replace(shapes, methods=("finetune", "mbs"), seeds=(0, 1)),), "two seeds"),
        Study("orders", (replace(shapes, seeds=(0, 1), orders=2, joint="absent"),), "two seeds and two orders"),
        Study("two-benchmarks", (replace(shapes, methods=("gsc", "finetune")), two), "two benchmarks, --add"),
        Study("groups", (Case("voc8", groups=((8, 9), (12,)), methods=("gsc", "mib")),), "classes that are in no step"),
        Study("one-method", (replace(two, methods=("gsc",)),), "one method, no joint training"),
        Study("only-joint", (replace(two, methods=(), joint="alone"),), "no incremental method"),
    ]
    variants = list(VARIANTS)
    share = -(-len(variants) // 3)
    for number in range(3):
        mine = tuple(variants[number * share : (number + 1) * share])
        case = replace(shapes, methods=mine, joint="absent")
        studies.append(Study(f"variants-{number + 1}", (case,), "a third of all variants of methods"))
    return studies


@cache
def studies() -> tuple[Study, ...]:
    """All studies, each with a name of its own: presets, named cases, and what the greedy search adds."""
    missing, found = wanted(), []
    for study in named_studies():
        found.append(study)
        missing -= study.pairs()
    for name in presets.presets():
        found.append(Study(f"preset-{name}", (preset_case(name, missing),), "preset"))
        missing -= found[-1].pairs()
    open_cases = list(candidates())
    while missing:
        best, gain = None, 0.0
        for case in open_cases:
            if case.joint != "alone":
                case = replace(case, methods=best_methods(case, missing, METHOD_NAMES, METHODS_A_STUDY))
            covered = len(case.pairs() & missing) / (3 + case.runs())  # per second, by the forecast
            if covered > gain:
                best, gain = case, covered
        if best is None:
            raise AssertionError(f"no case covers {sorted(map(sorted, missing))}")
        useful = tuple(m for m in best.methods if replace(best, methods=(m,)).pairs() & missing)
        best = replace(best, methods=useful or best.methods[:1]) if best.methods else best
        found.append(Study(search_name(best), (best,)))
        missing -= best.pairs()
    names = [study.name for study in found]
    if len(set(names)) < len(names):
        raise AssertionError(f"studies of one name: {sorted(name for name in names if names.count(name) > 1)}")
    return tuple(found)


def search_name(case: Case) -> str:
    """Data, setting, decoder, hold-out, joint training and the methods, in short."""
    words = [case.data, case.setting, "transformer" if case.decoder == "mask_transformer" else "deeplab"]
    words += ["held"] * case.holdout + ([] if case.joint == "beside" else [f"joint_{case.joint}"])
    return "-".join([*words, *(method.replace("plop-released", "released") for method in case.methods)])


def describe() -> str:
    """The covering set as text: one line a study, then the totals."""
    lines = []
    for study in studies():
        for number, case in enumerate(study.cases):
            title = study.name if number == 0 else f"{study.name} (added)"
            words = [case.data, case.protocol or "preset's protocol", case.setting, case.decoder, case.encoder]
            words += [f"hold-out {'yes' if case.holdout else 'no'}", f"joint {case.joint}"]
            lines.append(f"{title:60s} {case.runs():3d} runs  {', '.join(words)}; {' '.join(case.methods)}")
    total = sum(study.seconds() for study in studies())
    pairs = f"{len(wanted())} pairs of choices and {len(presets.presets())} presets in {len(studies())} studies"
    return "\n".join([*lines, f"{pairs}; forecast {total / 60:.0f} processor minutes"])
