"""What a finished study must satisfy: `failures(project, status, log)` returns a sentence for each violation.

The tables' columns are those that `reports/README.md` documents. A value may be NaN only under a condition of
`MAY_BE_NAN`, and a table may be empty only where `may_be_empty` says so and a sentence beside it says why.
"""

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
from PIL import Image
from ruamel.yaml import YAML

from ciss import protocol
from ciss.analysis.compare.figures import REFERENCES
from ciss.config import Phase
from ciss.data import data_set
from ciss.methods import METHODS, Method, code_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = "undefined benchmark benchmarks end method against convention order class teacher worst".split()
SCORES = ["all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps"]
WARNING = re.compile(r"\b[A-Za-z]*Warning\b|\bWARNING\b|Traceback|^ERROR\b")
EXPECTED_WARNINGS = (  # lines that a sound study prints
    # DVC, of the folder of a benchmark without an increment: there is nothing to look into
    re.compile(r"WARNING: 'probes/[\w-]+' is empty\."),
)
PHASE = Phase(epochs=1, lr=1.0)  # asked of methods: do they train at all?
# A sentence that says why something is empty or not measured.
REASON = re.compile(
    r"\b(no|without an?|one|too few)\b[^.]{0,40}\b(hold-out|increment\w*|step|old class\w*|new class\w*|method\w*|"
    r"published result|pixels?|pairs?|domains?|classes|prototypes?|seed)\b|not measured|"
    r"not in the (validation set|images)",
    re.IGNORECASE,
)


# --- what was planned


@dataclass(frozen=True)
class Facts:
    """A benchmark of the study, from its parameters and its index."""

    name: str
    dataset: str
    setting: str
    holdout: bool
    background: bool  # whether the data set has a background class
    steps: int
    sizes: list[int]  # classes of each step; of domains one group
    scored_after: list[set[str]]  # step -> names of the classes in the images that are scored after it
    held: set[str]  # names of the classes that hold-out images show
    introduced: dict[str, int]  # class -> the step that brings it
    ends: dict[str, str]  # end -> method as the tables call it
    gradients: set[str]  # ends whose trainings log the gradient magnitudes of a softmax
    trained: set[str]  # ends whose increments have epochs
    coefficients: dict[str, dict]

    @property
    def scored(self) -> set[str]:
        """Names of the classes in the images that are scored at the end."""
        return self.scored_after[-1]

    @property
    def domain(self) -> bool:
        return self.setting == "domain"

    @property
    def increments(self) -> dict[str, str]:
        """The ends of incremental methods."""
        return {end: method for end, method in self.ends.items() if method != "joint"}

    @property
    def looked_at(self) -> set[str]:
        """Classes in the images of `ciss probe`: the hold-out, or validation images where there is none."""
        return self.held if self.holdout else self.scored


def read_facts(project: Path) -> dict[str, Facts]:
    """The planned benchmarks by name; the data root is the folder `data` beside the project, or inside it."""
    plan = YAML(typ="safe").load(project / "params.yaml")
    runs, found = {**plan["bases"], **plan["joints"], **plan["chain"]}, {}
    for name, benchmark in plan["benchmarks"].items():
        index = json.loads((project / "data" / "index" / name / "index.json").read_text())
        names = class_names(project, benchmark["dataset"])
        groups = index["groups"]
        ends = {end: value["run"] for end, value in plan["ends"].items() if value["benchmark"] == name}
        decoder = benchmark.get("model", {}).get("decoder", "deeplabv3")
        methods = {end: method_of(runs[run]["method"], plan["methods"]) for end, run in ends.items()}
        trained = {end for end, (_, method) in methods.items() if method.epochs(PHASE)}
        found[name] = Facts(
            name=name,
            dataset=benchmark["dataset"],
            setting=benchmark["setting"],
            holdout=bool(index["holdout"]),
            background=names[1],
            steps=len(index["steps"]),
            sizes=[len(group) for group in groups],
            scored_after=[
                shown(index, names[0], "val", images, benchmark["setting"]) for images in index["validation"]
            ],
            held=shown(index, names[0], "train", index["holdout"], benchmark["setting"]),
            introduced={names[0][raw]: step for step, group in enumerate(groups) for raw in group},
            ends={end: title(method, decoder) for end, method in methods.items()},
            gradients={end for end in trained if methods[end][1].softmax},
            trained=trained,
            coefficients=plan["methods"],
        )
    return found


def class_names(project: Path, dataset: str) -> tuple[dict[int, str], bool]:
    """Raw id -> name of a data set's classes, and whether it has a background."""
    if dataset in protocol.DATASETS:
        known = data_set(dataset)
        return known.classes, known.background
    for place in (project / "data", project.parent / "data"):
        if (file := place / dataset / "dataset.yaml").is_file():
            document = YAML(typ="safe").load(file)
            shift = 1 if 0 in document["classes"] else 0
            listed = {
                number + shift: value if isinstance(value, str) else value["name"]
                for number, value in document["classes"].items()
            }
            return {0: "background", **listed}, not shift and document.get("void", 255) != 0
    raise FileNotFoundError(f"no data set {dataset} beside {project}")


def shown(index: dict, names: dict[int, str], split: str, images: list[int], setting: str) -> set[str]:
    """Names of the classes in some images. In the domain setting training and validation images are one list."""
    present = index["classes"][split if setting != "domain" else "train"]
    return {names[raw] for number in images for raw in present[number] if raw in names}


def method_of(name: str, coefficients: dict[str, dict]) -> tuple[str, Method]:
    """The name of a method or variant, and the method with its coefficients."""
    return name, METHODS[code_of(name)](**coefficients.get(name) or {})


def title(named: tuple[str, Method], decoder: str) -> str:
    """A method as tables call it, remarks in brackets: "mbs (adapted)" on another network than it was published on."""
    name, method = named
    remarks = ["adapted"] * (method.decoder not in (None, decoder)) + ["own base"] * (method.own_base is not None)
    remarks += method.remarks
    return f"{name} ({', '.join(remarks)})" if remarks else name


def code_in(title: str) -> str:
    """The method's code from its name in tables: "mbs" from "mbs-off (adapted)"."""
    return code_of(title.partition(" (")[0])


# --- tables


@cache
def columns(section: str) -> dict[str, list[str]]:
    """File -> columns of the tables that `reports/README.md` documents: `columns` or `benchmark`."""
    text = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    rows = text.split(f"<!-- {section} -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {row[0].strip(" `"): re.findall(r"`(\w+)`", row[-1]) for row in cells}


def read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])


Row = pd.Series
Condition = Callable[[Row, Facts], object]


def _joint(row: Row, facts: Facts) -> bool:
    return row["method"] == "joint"


def _one_run(row: Row, facts: Facts) -> bool:
    return row["runs"] == 1 or _joint(row, facts)


def _no_new(row: Row, facts: Facts) -> bool:
    """No score of new classes: a domain brings none, and none is known before the first increment."""
    return facts.domain or row.get("step", 1) == 0 or not _new(facts) & facts.scored


def _new(facts: Facts) -> set[str]:
    return {name for name, step in facts.introduced.items() if step > 0}


def _old(facts: Facts) -> set[str]:
    return {name for name, step in facts.introduced.items() if step == 0}


def _class_not_scored(row: Row, facts: Facts) -> bool:
    return row["class"] not in facts.scored_after[int(row["step"])]


def _class_never_scored_before(row: Row, facts: Facts) -> bool:
    return not any(row["class"] in scored for scored in facts.scored_after[: int(row["step"])])


def _nothing_is_background(row: Row, facts: Facts) -> bool:
    """Whether labels may hold no background: the data set has none and all known classes are labelled."""
    return not facts.background and facts.setting in ("sequential", "domain")


def _class_not_held(row: Row, facts: Facts) -> bool:
    return row["class"] not in facts.held


def _kind_not_seen(row: Row, facts: Facts, kind: str) -> bool:
    """No image that the analyses look at shows a class of this kind at the row's step."""
    names = {
        "background": {"background"} if facts.background else set(),
        "old": {name for name, step in facts.introduced.items() if step < row["step"]},
        "new": {name for name, step in facts.introduced.items() if step == row["step"]},
        "future": {name for name, step in facts.introduced.items() if step > row["step"]},
    }[kind]
    return not names & facts.looked_at


def _flow_has_no_pixels(row: Row, facts: Facts, column: str) -> bool:
    """`old_to_new`: no pixel of an old class, or no new class that they could be called."""
    true, called = column.split("_to_")
    empty = {
        "background": not facts.background,
        "old": not {name for name, step in facts.introduced.items() if step < row["step"]} & facts.scored,
        "new": facts.domain or not {n for n, step in facts.introduced.items() if step == row["step"]} & facts.scored,
    }
    return empty[true] or (called == "new" and facts.domain)


def _labels_not_made(row: Row, facts: Facts) -> bool:
    code = code_in(row["method"])
    makes = METHODS[code].labels is not METHODS["finetune"].labels
    return not facts.holdout or not makes or row.get("relabelled", math.nan) == 0


def _not_trained(row: Row, facts: Facts) -> bool:
    """The increments of the method have no epochs, so there is no memory or curve of a training."""
    return METHODS[code_in(row["method"])]().epochs(PHASE) == 0


def _logs_not(code: str) -> Condition:
    return lambda row, facts: code_in(row["method"]) not in (code, f"gsc_{code}")


NAN_ALWAYS = lambda row, facts: True  # noqa: E731
ONE = _one_run
MAY_BE_NAN: list[tuple[str, str, Condition, str]] = [  # table, column, condition, reason
    ("methods|convention_means|cost", r"\w+_std", ONE, "one run has no deviation"),
    ("runs|methods", "forgetting|backward_transfer|mean_over_steps", _joint, "joint training has one step"),
    ("methods", "(forgetting|backward_transfer|mean_over_steps)_std", _joint, "joint training has one step"),
    ("conventions|convention_means", "mean_over_steps(_std)?", _joint, "joint training has one step"),
    ("runs|curves|methods|conventions|convention_means", "(new|harmonic)(_std)?", _no_new, "no class is new"),
    (  # its mean is over classes with an IoU above 0
        "conventions|convention_means", r"(all|mean_over_steps)(_std)?",
        lambda row, facts: row["convention"] == "mbs", "every class has an IoU of 0",
    ),
    ("runs", "undefined", NAN_ALWAYS, "a text: why scores are undefined"),
    ("runs", "holdout_all", lambda row, facts: not facts.holdout, "no hold-out"),
    (
        "runs", "holdout_(old|new)",
        lambda row, facts: not facts.holdout or facts.domain or not _old(facts) & facts.held
        or not _new(facts) & facts.held,
        "no hold-out image with such a class",
    ),
    ("runs", "relabelled|ignored|precision|recall", _labels_not_made, "the method makes no labels, or no hold-out"),
    (
        "runs", "precision|recall", lambda row, facts: "is undefined." in str(row["undefined"]),
        "no pixel that the score is about; the row says so",
    ),
    ("runs", "token_cosine|patch_weight", _logs_not("mbs"), "a value of MBS"),
    ("runs", "token_cosine", lambda row, facts: facts.domain, "no token is new"),
    ("runs", "patch_weight", NAN_ALWAYS, "a value of MBS with its patch term"),
    ("paired", "deviation|low|high", lambda row, facts: row["pairs"] == 1, "one pair has no interval"),
    (
        "paired", "(boot|together)_(low|high)|p|p_holm|visible",
        lambda row, facts: row["pairs"] == 1 or row["over"] == "seeds", "nothing is told from one order",
    ),
    (
        "cost", "relative_(update|time|memory|parameters)",
        lambda row, facts: "finetune" not in facts.ends.values(), "a multiple of finetune, which is absent",
    ),
    ("ends|cost", "(peak|relative)_memory(_mib)?(_std)?|(relative_)?update.*", _not_trained, "no epoch was trained"),
    ("beside_published", r"published_\w+|ours_\w+|spread|differs|resolution|backbone|source", NAN_ALWAYS, "as printed"),
    ("forgetting", "iou|forgetting", _class_not_scored, "no validation image shows the class"),
    ("forgetting", "forgetting|relative", _class_never_scored_before, "no earlier validation image shows the class"),
    ("forgetting", "iou", lambda row, facts: row["class"] == "background" and not facts.background, "no background"),
    ("forgetting", "relative", lambda row, facts: row["forgetting"] == -row["iou"], "the best earlier IoU is 0"),
    (
        "forgetting", "forgetting|relative",
        lambda row, facts: row["step"] <= row["introduced"] or row["class"] == "background", "not an old class yet",
    ),
    ("pace", "iou", _class_not_held, "no hold-out image shows the class"),
    ("pace_factors", "before|after|pace|first_epoch|gradient|similarity|nearest", _class_not_held, "not in hold-out"),
    (
        "pace_factors", "similarity|nearest",
        lambda row, facts: facts.domain or _kind_not_seen(row, facts, "new"), "no new class with features",
    ),
    ("pace_factors", "relative_pace", lambda row, facts: not row["before"] > 0, "the class had no IoU before"),
    ("pace_factors", "gradient", lambda row, facts: row["end"] not in facts.gradients, "no softmax"),
    ("pace_correlations", "correlation", lambda row, facts: row["classes"] == 0, "fewer than three old classes"),
    ("pace_correlations", "low|high", lambda row, facts: row["ends"] < 2, "one run has no interval"),
    ("gradients", "value", NAN_ALWAYS, "a group without pixels in a stretch; `whole_steps` checks the rest"),
    ("background_belief", "probability", lambda row, facts: _kind_not_seen(row, facts, row["kind"]), "no such pixels"),
    ("calibration", "probability|background|old|new|future", lambda row, facts: row["pixels"] == 0, "an empty bin"),
    ("background_errors", "share|future", NAN_ALWAYS, "no error of the background; `whole_steps` checks the rest"),
    ("label_rules", "method", NAN_ALWAYS, "a teacher that methods share"),
    (
        "label_rules", "precision|recall|relabelled|ignored", _nothing_is_background,
        "no pixel is told as background",
    ),
    ("label_rules", "precision", lambda row, facts: row["relabelled"] == 0, "nothing was re-labelled"),
    ("label_rules", "recall", lambda row, facts: _kind_not_seen(row, facts, "old"), "no old pixels"),
    (
        "runs|label_rules", "recall", lambda row, facts: facts.setting in ("sequential", "domain"),
        "old classes keep their labels: none is told as background",
    ),
    ("token_angles", "angle", lambda row, facts: row["pair"] == "new" and _one_new(row, facts), "a single new class"),
    ("token_angles", "angle", lambda row, facts: row["pair"] == "old" and facts.sizes[0] == 0, "no old class"),
]  # fmt: skip


def _one_new(row: Row, facts: Facts) -> bool:
    return not facts.domain and facts.sizes[int(row["step"])] == 1


HELD = ("pace", "pace_factors", "pace_correlations")  # tables that only a hold-out fills
PER_END = (  # tables of a benchmark with rows of every incremental end
    "forgetting", "forgetting_methods", "pace", "pace_factors", "pace_correlations", "gradients", "background",
    "background_classes", "background_errors", "background_belief", "calibration", "calibration_errors",
    "token_angles",
)  # fmt: skip


def may_be_empty(name: str, facts: Facts) -> str:
    """Why a table of a benchmark may have no rows; empty where it may not."""
    if not facts.increments:
        return "no incremental method"
    if name in HELD and not facts.holdout:
        return "no hold-out set"
    if name in HELD and not facts.trained & set(facts.increments):
        return "no method with epochs"
    if name == "gradients" and not facts.gradients & set(facts.increments):
        return "no method with a softmax"
    if name == "token_angles" and facts.domain:
        return "no class is new"
    if name in ("pace_factors", "pace_correlations") and not _old(facts) & facts.held:
        return "no hold-out image shows an old class"
    return ""


def tables(project: Path, facts: dict[str, Facts]) -> Iterator[str]:
    """Violations of columns, rows and NaN, in `reports/compare`, `timings` and the folders of each benchmark."""
    reports = project / "reports"
    ends = {end: method for each in facts.values() for end, method in each.ends.items()}
    methods = set(ends.values())
    page = text_of(reports / "report.html")
    files = {reports / "compare" / file: names for file, names in columns("columns").items()}
    files |= {project / "timings" / file: names for file, names in columns("timings").items()}
    for path, names in files.items():
        file = path.name
        table, problems = open_table(path, names)
        yield from problems
        if table is None:
            continue
        stem = file.removesuffix(".csv")
        if table.empty:
            allowed = stem == "beside_published" or (stem == "paired" and len(methods) < 2)
            if not allowed:
                yield f"{file}: no rows"
            elif not REASON.search(text_of(reports / "6_compare.ipynb") + page):
                yield f"{file}: no rows, and neither 6_compare nor the page says why"
            continue
        if "end" in table and (lacking := set(ends) - set(table["end"])):
            yield f"{file}: no row for the ends {sorted(lacking)}"
        by_method = "method" in table and "end" not in table and stem not in ("beside_published", "paired")
        if by_method and (lacking := methods - set(table["method"])):
            yield f"{file}: no row for the methods {sorted(lacking)}"
        if "method" in table and stem != "beside_published" and (strange := set(table["method"]) - methods):
            yield f"{file}: rows of methods that were not planned: {sorted(strange)}"
        yield from unexplained(file, table, lambda row: facts[row["benchmark"]])
        if (
            "undefined" in table
            and (silent := table[table[SCORES].isna().any(axis=1) & table["undefined"].isna()]).size
        ):
            yield f"{file}: scores of {list(silent['end'])} are NaN, and the column undefined does not say why"
    for each in facts.values():
        yield from benchmark_tables(reports, each)


def benchmark_tables(reports: Path, facts: Facts) -> Iterator[str]:
    """The same for the tables that 4_forgetting and 5_background leave."""
    folder, texts = reports / "benchmarks" / facts.name, {}
    for notebook in ("4_forgetting", "5_background"):
        analysis = notebook[2:]
        executed = text_of(reports / facts.name / f"{notebook}.ipynb")
        texts[analysis] = executed + text_of(folder / analysis / f"{analysis}.md")
    for path, names in columns("benchmark").items():
        analysis, file = path.split("/")
        stem, place = file.removesuffix(".csv"), f"{facts.name}/{file}"
        table, problems = open_table(folder / path, names)
        yield from (f"{facts.name}/{problem}" for problem in problems)
        if table is None:
            continue
        if table.empty:
            why = may_be_empty(stem, facts)
            if not why:
                yield f"{place}: no rows"
            elif not REASON.search(texts[analysis]):
                yield f"{place}: no rows ({why}), and the notebook does not say why"
            continue
        if stem in PER_END:
            having = {"gradients": facts.gradients, "pace_factors": facts.trained, "pace_correlations": facts.trained}
            ends = {end: name for end, name in facts.increments.items() if end in having.get(stem, facts.ends)}
            owners, known = ("end", ends) if "end" in table else ("method", ends.values())
            if lacking := set(known) - set(table[owners]):
                yield f"{place}: no row for {sorted(lacking)}"
        if stem == "label_rules" and (rest := set(range(1, facts.steps)) - set(table["step"])):
            yield f"{place}: no row for the steps {sorted(rest)}"
        yield from unexplained(place, table, lambda row: facts)
        yield from whole_steps(place, table)
        if table.drop(columns="method").isna().any(axis=None) and not REASON.search(texts[analysis]):
            yield f"{place}: has NaN, and the notebook does not say why"


def whole_steps(place: str, table: pd.DataFrame) -> Iterator[str]:
    """Steps in which every value of a column is NaN, in tables where single values may be."""
    stem = Path(place).stem
    if stem == "gradients":
        for (end, step), rows in table.groupby(["end", "step"]):
            if rows["value"].isna().all():
                yield f"{place}: no gradient of {end}, step {step}"
    if stem == "background_errors":
        for (end, step), rows in table.groupby(["end", "step"]):
            if rows["share"].isna().any() and rows["pixels"].sum():
                yield f"{place}: a share of {end}, step {step} is NaN although there are errors"


def open_table(file: Path, names: list[str]) -> tuple[pd.DataFrame | None, list[str]]:
    """A table, or None, and what is wrong with its file and columns."""
    if not file.is_file():
        return None, [f"{file.name}: missing"]
    try:
        table = read(file)
    except pd.errors.EmptyDataError:
        return None, [f"{file.name}: has no columns"]
    if list(table.columns) != names:
        return None, [f"{file.name}: has the columns {list(table.columns)}, documented are {names}"]
    return table, []


def unexplained(place: str, table: pd.DataFrame, facts_of: Callable[[Row], Facts]) -> Iterator[str]:
    """Columns with NaN (or infinite values) that no condition allows, with the first such row."""
    stem = Path(place).stem
    for column in table:
        bad = table[column].isna()
        if pd.api.types.is_numeric_dtype(table[column]):
            bad |= np.isinf(table[column].astype(float))
        rows = [row for _, row in table[bad].iterrows() if not explained(stem, column, row, facts_of(row))]
        if rows:
            keys = ("end", "method", "step", "class", "kind", "pair", "rule", "metric", "convention")
            example = ", ".join(f"{key} {rows[0][key]}" for key in keys if key in rows[0])
            yield f"{place}: {column} is empty in {len(rows)} rows without a known reason, first: {example}"


def explained(stem: str, column: str, row: Row, facts: Facts) -> bool:
    if stem == "background" and "_to_" in column:
        return _flow_has_no_pixels(row, facts, column)
    return any(
        re.fullmatch(tables, stem) and re.fullmatch(names, column) and condition(row, facts)
        for tables, names, condition, _ in MAY_BE_NAN
    )


# --- figures


DRAWN = {  # figure of a benchmark -> table and the columns that it draws
    "forgetting": ("forgetting", ["iou"]),
    "forgetting_groups": ("forgetting", ["iou"]),
    "forgetting_classes": ("forgetting", ["forgetting"]),
    "pace": ("pace", ["iou"]),
    "pace_factors": ("pace_correlations", ["correlation"]),
    "gradients": ("gradients", ["value"]),
    "background": ("background", []),
    "background_shares": ("background_classes", ["right"]),
    "background_rates": ("background", []),
    "background_classes": ("background_classes", ["right"]),
    "background_errors": ("background_errors", ["share"]),
    "calibration": ("calibration", ["probability"]),
    "label_rules": ("label_rules", ["precision", "recall"]),
    "token_angles": ("token_angles", ["angle"]),
}


def figures(project: Path, facts: dict[str, Facts]) -> Iterator[str]:
    """Pictures without data. Where a table has nothing to draw a sentence takes the place of the axes, or, in the
    figures of several benchmarks, stands in them."""
    reports = project / "reports"
    methods = {method for each in facts.values() for method in each.ends.values()}
    grey = (
        {"cost.png", "curves.png", "stability.png", "conventions.png"} if methods == {"joint"} else set()
    )  # joint training is grey
    grey |= set() if methods & set(REFERENCES) and len(methods) > 1 else {"paired.png"}
    grey |= {"stability.png"} if has_nothing(reports / "compare" / "methods.csv", ["old", "new"]) else set()
    grey |= {"conventions.png"} if has_nothing(reports / "compare" / "convention_means.csv", ["all"]) else set()
    empty = set()
    for each in facts.values():
        for figure, (table, drawn) in DRAWN.items():
            (file,) = (path for path in columns("benchmark") if path.endswith(f"/{table}.csv"))
            folder = reports / "benchmarks" / each.name
            if has_nothing(folder / file, drawn):
                empty.add(str((folder / file).with_name(f"{figure}.png").relative_to(reports)))
    for file in [*sorted(reports.rglob("*.png")), project / "timings" / "cost.png"]:
        name = file.relative_to(reports).as_posix() if file.is_relative_to(reports) else file.name
        try:
            pixels = decode(file.read_bytes())
        except OSError as error:
            yield f"{name}: cannot be decoded ({error})"
            continue
        if not varied(pixels):
            yield f"{name}: is blank, of one colour"
        elif coloured(pixels) or file.name in grey:
            continue
        elif has_axes(pixels):
            yield f"{name}: shows axes and no data"
        elif name not in empty:
            yield f"{name}: shows a sentence although there are data"


def has_nothing(file: Path, drawn: list[str]) -> bool:
    """Whether a table has no row with a value in each of these columns. The figure of the rate of forgetting shows the
    old classes of the first incremental step."""
    if not file.is_file() or not file.read_text().strip():  # `tables` reports it
        return False
    table = read(file)
    if file.stem == "pace":
        old = (table["class"] != "background") & (table["introduced"] < table["step"])
        table = table[old & (table["step"] == table["step"].min())]
    return not table[drawn].notna().all(axis=1).any()


def decode(data: bytes) -> np.ndarray:
    """(H,W,3) uint8, on white."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def varied(pixels: np.ndarray) -> bool:
    return bool((pixels != pixels[0, 0]).any())


def coloured(pixels: np.ndarray) -> bool:
    """Whether there are pixels in colour: axes, ticks and text are grey, data never are."""
    spread = pixels.max(axis=2).astype(int) - pixels.min(axis=2)
    return bool((spread > 24).sum() > 8)


def has_axes(pixels: np.ndarray) -> bool:
    """Whether there is a straight line over a fifth of a side: text has none."""
    dark = (pixels < 240).all(axis=2)
    for lines in (dark, dark.T):
        length = max(8, lines.shape[1] // 5)
        sums = np.cumsum(np.pad(lines, ((0, 0), (1, 0))), axis=1)
        if (sums[:, length:] - sums[:, :-length] == length).any():
            return True
    return False


# --- notebooks and what the commands print


def text_of(file: Path) -> str:
    """What a reader of a notebook, page or text sees: markdown and outputs; "" where there is no such file."""
    if not file.is_file():
        return ""
    if file.suffix == ".html":
        return re.sub(r"<[^>]*>", " ", re.sub(r"data:[^\"']*", "", file.read_text(encoding="utf-8")))
    if file.suffix != ".ipynb":
        return file.read_text(encoding="utf-8")
    found = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        found += ["".join(cell["source"])] if cell["cell_type"] == "markdown" else []
        for output in cell.get("outputs", ()):
            found += ["".join(output.get("text", ""))]
            data = output.get("data", {})
            found += ["".join(data.get(kind, "")) for kind in ("text/plain", "text/markdown")]
    return "\n".join(found)


def notebooks(project: Path) -> Iterator[str]:
    """Errors and warnings in executed notebooks."""
    reports = project / "reports"
    for file in sorted(reports.rglob("*.ipynb")):
        for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
            for output in cell.get("outputs", ()):
                place = f"{file.relative_to(reports)}, cell {number}"
                if output["output_type"] == "error":
                    yield f"{place}: {output['ename']}: {output['evalue']}"
                elif output.get("name") == "stderr":
                    yield from (f"{place}: {words}" for words in warnings("".join(output["text"])))


def warnings(text: str) -> list[str]:
    """Lines that warn, each once, but for the expected ones."""
    lines = dict.fromkeys(line.strip() for line in text.splitlines() if WARNING.search(line))
    return [line[:300] for line in lines if not any(known.search(line) for known in EXPECTED_WARNINGS)]


# --- LaTeX


def latex(name: str, text: str, methods: set[str]) -> Iterator[str]:
    """Violations of what LaTeX needs: balanced braces and environments, rows as wide as the table, labels once."""
    plain = re.sub(r"(?<!\\)%.*", "", text)
    bare = re.sub(r"\\[\\{}&%$#_]", "", plain)
    if bare.count("{") != bare.count("}"):
        yield f"{name}: {bare.count('{')} opening and {bare.count('}')} closing braces"
    if bare.count("$") % 2:
        yield f"{name}: a $ is not closed"
    stack = []
    for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", plain):
        if kind == "begin":
            stack.append(environment)
        elif not stack or stack.pop() != environment:
            yield f"{name}: \\end{{{environment}}} closes nothing"
    if stack:
        yield f"{name}: {stack} are not closed"
    labels = Counter(re.findall(r"\\label\{([^}]*)\}", plain))
    yield from (f"{name}: the label {label} stands {count} times" for label, count in labels.items() if count > 1)
    for spec, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", plain, re.DOTALL):
        rows = re.sub(r"\\(toprule|midrule|bottomrule)", "", body).split(r"\\")
        for row in (row.strip() for row in rows):
            cells = len(re.findall(r"(?<!\\)&", row)) + 1
            if row and cells != len(spec):
                yield f"{name}: {cells} cells in a table of {len(spec)} columns: {row[:80]}"
    outside = re.sub(r"\$[^$]*\$|\\label\{[^}]*\}|\\setlength\{[^}]*\}", "", re.sub(r"\\[\\{}&%$#_]", "", plain))
    if "_" in outside or "#" in outside or "nan" in re.findall(r"[a-z]+", outside):
        yield f"{name}: _, # or nan outside of mathematics"
    rows = {line.split(" & ")[0].strip() for line in plain.splitlines() if " & " in line}
    escaped = {method.replace("_", r"\_") for method in methods}
    if lacking := escaped - rows:
        yield f"{name}: no row for {sorted(lacking)}"


# --- the page


class Links(HTMLParser):
    """Targets, anchors and embedded pictures of a page."""

    def __init__(self):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.doubles: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if key in ("href", "src") and value is not None:
                self.targets.append(value)
            if key == "id" or (tag == "a" and key == "name"):
                self.doubles += [value] if value in self.anchors else []
                self.anchors.add(value or "")


def page(file: Path, methods: set[str]) -> Iterator[str]:
    """Dead links, blank pictures and missing methods of `report.html`."""
    text = file.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    yield from (f"report.html: the anchor #{name} stands twice" for name in links.doubles)
    for target in dict.fromkeys(links.targets):
        if target.startswith("data:image/png;base64,"):
            if not varied(decode(base64.b64decode(target.partition(",")[2]))):
                yield "report.html: an embedded picture is blank"
        elif target.startswith("data:"):
            continue
        elif target.startswith("#"):
            if unquote(target[1:]) not in links.anchors:
                yield f"report.html: the link {target} leads nowhere"
        elif urlsplit(target).scheme or not (file.parent / unquote(urlsplit(target).path)).exists():
            yield f"report.html: the link {target[:80]} leads out of the page or nowhere"
    words = text_of(file)
    if lacking := sorted(method for method in methods if method not in words):
        yield f"report.html: does not name {lacking}"
    if re.search(r"<td[^>]*>\s*nan\s*<", text, re.IGNORECASE):
        yield "report.html: a table shows NaN"


# --- everything


def failures(project: Path, status: int, log: str) -> list[str]:
    """Everything that is wrong with a finished study. `status` and `log`: of `dvc repro`."""
    found = [f"dvc repro: exit status {status}"] if status else []
    found += [f"dvc repro: {line}" for line in warnings(log)]
    found += notebooks(project)
    reports = project / "reports"
    if not (reports / "report.html").is_file():
        return [*found, "report.html: missing"]
    facts = read_facts(project)
    methods = {method for each in facts.values() for method in each.ends.values()}
    found += tables(project, facts)
    found += figures(project, facts)
    for file in (reports / "compare" / "tables.tex", project / "timings" / "cost.tex"):
        found += latex(file.name, file.read_text(encoding="utf-8"), methods)
    found += page(reports / "report.html", methods)
    document = json.loads((reports / "metrics.json").read_text())
    scores = {name for benchmark in document.values() for name in benchmark}
    if lacking := methods - scores:
        found.append(f"metrics.json: no scores of {sorted(lacking)}")
    return found
