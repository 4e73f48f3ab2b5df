"""Every analysis on every shape of study that is legal: the columns of its tables stay, no figure is blank, no warning.

A public function of `ciss.analysis` joins by itself: a test fails until it stands in TABLES, FIGURES or OTHERS.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure

from ciss.analysis.background.figures import (
    angle_panels,
    belief_map,
    calibration_figure,
    class_rate_maps,
    error_panels,
    flow_bars,
    flow_panels,
    rate_panels,
    reliability,
    rule_points,
)
from ciss.analysis.background.tables import (
    background_belief,
    background_errors,
    background_table,
    calibration_errors,
    calibration_table,
    class_rates,
    label_rules,
    mean_flows,
)
from ciss.analysis.background.words import background_findings
from ciss.analysis.compare.cells import undefined_scores
from ciss.analysis.compare.cost import cost_table, timings_table
from ciss.analysis.compare.figures import convention_slopes, cost_bars, paired_points, score_curves, stability_scatter
from ciss.analysis.compare.paired import paired_table
from ciss.analysis.compare.published import ComparedBenchmark, published_table
from ciss.analysis.compare.summary import convention_means, families, family_tables, methods_table
from ciss.analysis.compare.tables import (
    compared_benchmark,
    conventions_table,
    curves_table,
    runs_table,
    scores_by_convention,
)
from ciss.analysis.forgetting.figures import (
    correlation_forest,
    forgetting_dots,
    gradient_panels,
    group_panels,
    iou_heatmaps,
    pace_panels,
)
from ciss.analysis.forgetting.pace import pace_factors, rank_correlations
from ciss.analysis.forgetting.tables import forgetting_summary, forgetting_table, group_table, pace_table
from ciss.analysis.forgetting.traces import gradient_table, imbalance, token_angles_table
from ciss.analysis.forgetting.words import correlations_by_method, forgetting_findings
from ciss.analysis.reasons import background_reasons, empty_reasons, forgetting_reasons
from ciss.analysis.rows import by_benchmark
from ciss.protocol import Classes
from tests.helpers.modules import analysis_modules
from tests.helpers.results import AFTER_0, result

NAN = np.nan
BINS = 10

# --- studies


def confusion(classes: int, known: int, empty: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """(T,T) of a network that knows the first `known` classes; classes in `empty` have no pixel."""
    rng = np.random.default_rng((seed, known))
    matrix = np.zeros((classes, classes), int)
    matrix[:, :known] = rng.integers(1, 9, (classes, known))
    matrix[list(empty)] = 0
    return matrix


def step_result(
    step: int,
    groups: list,
    *,
    domain: bool = False,
    holdout: bool = True,
    empty: tuple = (),
    void: bool = False,
    **changes,
) -> dict:
    """The result of one run. `void`: no pixel was scored, and no gradient or loss of a group was measured."""
    classes = 1 + sum(map(len, groups))
    joint = changes.get("method", "mib").startswith("joint")
    reached = len(groups) - 1 if joint else step
    known = 1 + sum(len(group) for group in groups[: reached + 1])
    matrix = 0 * confusion(classes, known) if void else confusion(classes, known, empty)
    new = len(groups[step]) if step and step < len(groups) else 0
    points = np.array([0.0, 0.5, 1.0]) if holdout else np.zeros(0)
    numbers = {name: None if void else 0.25 for name in ("all", "old", "new", "harmonic")}
    if known == 1 + len(groups[0]):
        numbers |= {"new": None, "harmonic": None}
    made = result(
        step,
        AFTER_0,
        run=f"{changes.get('method', 'mib')}-{changes.get('seed', 0)}-{step}",
        reached=reached,
        classes=Classes(groups, ["background", *(f"class {c}" for group in groups for c in group)]),
        pixels=[0] * classes if void else list(range(60, 60 + classes)),
        curve_epochs=points,
        curve_confusions=np.array([matrix for _ in points], int).reshape(-1, classes, classes),
        token_epochs=points,
        token_cosines=np.full((len(points), new, known), 0.5, np.float32),
        trace={"gradient/background": np.array([0.1, NAN]), "gradient/step0": np.full(2, NAN if void else 0.2)},
        labels={},
        samples={"image": np.zeros((4, 4), np.uint8)},
        scores=numbers,
        log=[{"epoch": 1, "loss": 1.0}],
        convention="a sentence.",
        **changes,
    )
    made |= {"confusion": matrix, "confusion_all": matrix}
    settings = made["identity"]["parameters"]["benchmark"]
    phases = {phase: {"epochs": 1, "lr": 0.1} for phase in ("base", "increment")}
    settings |= {
        "setting": "domain" if domain else "overlapped",
        "dataset": "shapes",
        "protocol": "4-2",
        "groups": None,
    }
    settings |= {"limit": None, "holdout": 4 * holdout, "model": {"encoder": "ciss_tiny", "decoder": "deeplabv3"}}
    settings["train"] = {**phases, "crop": 64, "batch": 4}
    made["identity"]["parameters"] |= {"groups": groups, "coefficients": {}}
    return made


GROUPS = [[1, 2, 3, 4], [5, 6], [7]]


def path(method: str = "mib", seed: int = 0, steps: int = 3, groups: list = GROUPS, **changes) -> list[dict]:
    made = [step_result(step, groups, method=method, seed=seed, **changes) for step in range(steps)]
    for before, after in pairwise(made):
        after["after"] = before["run"]
    return made


def joint(method: str = "joint", groups: list = GROUPS, seed: int = 0, **changes) -> list[dict]:
    return [{**step_result(0, groups, method=method, seed=seed, **changes), "after": None}]


def order(results: list[dict], order: list[int]) -> list[dict]:
    made = deepcopy(results)
    for each in made:
        each["identity"]["parameters"]["benchmark"]["order"] = order
        groups = [[8 - c for c in group] for group in each["classes"].groups]
        each["classes"] = replace(each["classes"], groups=groups)
        each["identity"]["data"] = "o" * 64
    return made


def two(**changes) -> dict:
    return {"f": path("finetune", **changes), "m": path("mib", **changes)}


DOMAIN = {"groups": [[1, 2, 3]], "domain": True}
MANY = [list(range(1, 126)), list(range(126, 251))]
STUDIES: dict[str, Callable[[], dict[str, dict[str, list[dict]]]]] = {  # benchmark -> end -> results
    "usual": lambda: {"b": {**two(), "j": joint()}},
    "no runs": lambda: {"b": {}},
    "no benchmark": lambda: {},
    "one method": lambda: {"b": {"m": path()}},
    "joint alone": lambda: {"b": {"j": joint()}},
    "variants of joint": lambda: {"b": {"m": path(), "j": joint(), "l": joint("joint-long")}},
    "base only": lambda: {"b": {"m": path(steps=1)}},
    "no hold-out": lambda: {"b": {**two(holdout=False), "j": joint(holdout=False)}},
    "no new class": lambda: {"b": {**two(**DOMAIN, steps=5), "j": joint(**DOMAIN)}},
    "no old class in the images": lambda: {"b": two(empty=(1, 2, 3, 4))},
    "a class without images": lambda: {"b": two(empty=(3,))},
    "no background": lambda: {"b": two(empty=(0,))},
    "two classes": lambda: {"b": two(groups=[[1], [2]], steps=2)},
    "nothing scored": lambda: {"b": {**two(void=True), "j": joint(void=True)}},
    "one method scored": lambda: {"b": {"f": path("finetune"), "m": path(void=True)}},
    "21 steps": lambda: {"b": two(groups=[[step] for step in range(1, 22)], steps=21)},
    "250 classes": lambda: {"b": two(groups=MANY, steps=2)},
    "other letters": lambda: {"b": {"m": renamed(path("mbs-a_b%&$x^2"))}},
    "seeds, orders, benchmarks": lambda: {
        "b": {**two(), "m1": path(seed=1)},
        "b-order1": {"o": order(path(), [7, 6, 5, 4, 3, 2, 1]), "o1": order(path(seed=1), [7, 6, 5, 4, 3, 2, 1])},
        "c": {"x": limited(path(steps=2, groups=[[1], [2]]))},
    },
}  # fmt: skip


def limited(results: list[dict]) -> list[dict]:
    for each in results:
        each["identity"]["parameters"]["benchmark"]["limit"] = 60
    return results


def renamed(results: list[dict]) -> list[dict]:
    names = ["background", "猫", "traffic light & sign", "50 % {a_b} $x^2$", "é", "\\", "a" * 60, "#"]
    return [{**each, "classes": replace(each["classes"], names=names)} for each in results]


def probes_of(ends: dict[str, list[dict]]) -> dict[str, dict[str, np.ndarray]]:
    made = {}
    for results in ends.values():
        for each in results:
            classes, pixels = len(each["classes"]), each["confusion"].sum(axis=1)
            teacher = each["classes"].known(max(0, each["step"] - 1))
            counts = np.zeros((classes, BINS), int)
            counts[:, -1] = pixels
            made[each["run"]] = {
                "background": counts,
                "background_sums": 0.95 * counts,
                "gradients": np.where(pixels > 0, 0.3, NAN),
                "prototypes": np.eye(classes) + 0.5,
                "counts": pixels,
                **{
                    f"labels_{rule}": np.repeat(pixels[:, None], teacher + 1, axis=1)
                    for rule in ("argmax", "plop", "gsc", "mbs")
                },
            }
    return made


class Study:
    """The results of one benchmark and of all, and every table that another one is made from."""

    def __init__(self, benchmarks: dict[str, dict[str, list[dict]]]):
        self.all = benchmarks
        self.name = next(iter(benchmarks), "b")
        self.ends = benchmarks.get(self.name, {})
        self.probes = probes_of(self.ends)
        self.empty = empty_reasons(self.ends)
        self.families = families(benchmarks)
        self.tables = family_tables(benchmarks)
        self.forgotten = forgetting_table(self.ends)
        self.methods = list(dict.fromkeys(self.forgotten["method"]))
        self.step = self.forgotten["step"].max()
        old = self.forgotten["introduced"] < self.step
        self.old = self.forgotten[old & (self.forgotten["step"] == self.step)]
        self.pace = pace_table(self.ends)
        self.factors = pace_factors(self.ends, self.probes)
        self.correlations = rank_correlations(self.factors)
        self.gradients = gradient_table(self.ends)
        self.rates = background_table(self.ends)
        self.errors = background_errors(self.ends)
        self.belief = background_belief(self.ends, self.probes)
        self.calibration = calibration_table(self.ends, self.probes)
        self.rules = label_rules(self.ends, self.probes)
        self.counted = conventions_table(self.name, self.ends)
        self.runs = self.tables.get(self.name, runs_table(self.name, {}))
        self.paired = paired_table(self.tables)
        self.timings = timings_table(self.runs, self.ends)

    def at_end(self, table: pd.DataFrame) -> pd.DataFrame:
        return table[table["step"] == table["step"].max()]


TABLES: dict[str, Callable[[Study], pd.DataFrame]] = {
    "background_belief": lambda s: s.belief,
    "background_errors": lambda s: s.errors,
    "background_table": lambda s: s.rates,
    "by_benchmark": lambda s: by_benchmark({s.name: methods_table(s.runs)}, {s.name: [s.name]}),
    "calibration_errors": lambda s: calibration_errors(s.calibration),
    "calibration_table": lambda s: s.calibration,
    "class_rates": lambda s: class_rates(s.ends),
    "convention_means": lambda s: convention_means(s.counted, [s.name]),
    "conventions_table": lambda s: s.counted,
    "cost_table": lambda s: cost_table(s.timings),
    "curves_table": lambda s: curves_table(s.name, s.ends),
    "forgetting_summary": lambda s: forgetting_summary(s.ends),
    "forgetting_table": lambda s: s.forgotten,
    "gradient_table": lambda s: s.gradients,
    "group_table": lambda s: group_table(s.forgotten),
    "imbalance": lambda s: imbalance(s.gradients)[["ratio"]],  # beside it a column for each group there is
    "label_rules": lambda s: s.rules,
    "methods_table": lambda s: methods_table(s.runs),
    "pace_factors": lambda s: s.factors,
    "pace_table": lambda s: s.pace,
    "paired_table": lambda s: s.paired,
    "rank_correlations": lambda s: s.correlations,
    "runs_table": lambda s: s.runs,
    "timings_table": lambda s: s.timings,
    "token_angles_table": lambda s: token_angles_table(s.ends),
    "published_table": lambda s: published_results(s),
}


def published_results(study: Study) -> pd.DataFrame:
    if not study.ends:
        return published_table([], OURS, {})
    return published_table([], compared_benchmark(study.ends), scores_by_convention(study.counted, study.name))


OURS = ComparedBenchmark("shapes", "4-2", "overlapped", "ciss_tiny", "deeplabv3", "full")


def on_axes(draw: Callable, *arguments, count: int = 1) -> Figure:
    figure, axes = plt.subplots(1, count, figsize=(3.5 * count, 3), squeeze=False, layout="constrained")
    draw(axes[0, 0] if count == 1 else axes[0], *arguments)
    return figure


def rate_maps(study: Study) -> Figure:
    rates = study.at_end(class_rates(study.ends))
    return class_rate_maps(rates[rates["kind"].isin(["old", "new"])], study.empty["steps"])


def forest(study: Study) -> Figure:
    tables = [rank_correlations(study.factors, value) for value in ("pace", "relative_pace")]
    return correlation_forest(pd.concat(tables), study.methods, study.empty["pace"])


FIGURES: dict[str, Callable[[Study], Figure]] = {
    "angle_panels": lambda s: angle_panels(token_angles_table(s.ends), s.methods, s.empty["tokens"]),
    "belief_map": lambda s: on_axes(belief_map, s.at_end(s.belief)),
    "calibration_figure": lambda s: calibration_figure(s.calibration, s.belief, s.methods, s.step, s.empty["steps"]),
    "class_rate_maps": lambda s: rate_maps(s),
    "convention_slopes": lambda s: on_axes(convention_slopes, convention_means(s.counted, [s.name])),
    "correlation_forest": lambda s: forest(s),
    "cost_bars": lambda s: on_axes(cost_bars, cost_table(s.timings), count=3),
    "error_panels": lambda s: error_panels(s.at_end(s.errors), s.empty["steps"]),
    "flow_bars": lambda s: flow_bars(mean_flows(s.ends), s.empty["steps"]),
    "flow_panels": lambda s: flow_panels(mean_flows(s.ends), s.empty["steps"]),
    "forgetting_dots": lambda s: forgetting_dots(s.old, s.empty["steps"]),
    "gradient_panels": lambda s: gradient_panels(s.gradients, s.methods, s.step, s.empty["steps"]),
    "group_panels": lambda s: group_panels(group_table(s.forgotten), s.methods, s.empty["steps"]),
    "iou_heatmaps": lambda s: iou_heatmaps(s.forgotten, s.methods, s.empty["steps"]),
    "pace_panels": lambda s: pace_panels(s.pace[s.pace["step"] == 1], s.methods, s.empty["pace"]),
    "paired_points": lambda s: on_axes(paired_points, s.runs, s.paired[s.paired["benchmark"] == s.name], count=2),
    "rate_panels": lambda s: rate_panels(s.rates, s.empty["steps"]),
    "reliability": lambda s: on_axes(reliability, s.at_end(s.calibration), s.methods),
    "rule_points": lambda s: on_axes(rule_points, s.rules),
    "score_curves": lambda s: on_axes(score_curves, curves_table(s.name, s.ends), count=3),
    "stability_scatter": lambda s: on_axes(stability_scatter, s.runs),
}

# Functions of one image, one network or one array, which have tests of their own; and helpers of the others.
OTHERS = {
    *("flows", "mean_flows", "confusion_rates", "gradient_conflict", "gradients_by_class", "gradients_by_step"),
    *("term_cosines", "drift_table", "nearest_confusions", "projection_table", "relabel_table", "family_tables"),
    *("flow_ribbons", "method_lines", "legend_below", "lowest", "note", "note_in", "only_note", "panels"),
    *("step_ticks", "class_label", "class_labels", "table_labels", "class_patches", "save", "text_in"),
    *("heatmap", "column_ticks", "stacked_bars", "method_panels", "chosen_panels", "class_lines", "diverging_map"),
    *("label_ends", "grey_note", "correlations_by_method"),
    # of exploring: tests/analysis/test_explore_viz.py and test_explore_views.py
    *("cosine_map", "side_by_side", "method_pictures", "pixel_gradients", "class_gradients", "layer_conflicts"),
    *("loss_cosines", "plane", "drift", "nearest_classes", "distances", "background_labels", "label_shares"),
    *("formatted", "differences", "all_differences", "evidence", "table", "with_classes"),
    *("class_legend", "overlay", "show", "strips", "step_strips", "iou_bars", "loss_curve", "token_angles"),
    *("log_table", "pseudo_label_table", "draw_picture", "titled_columns"),
    *("conflict_bars", "conflict_figure", "confusion_bars", "drift_heatmap", "gradient_bars"),
    *("trace_panels", "picture_row", "projection", "relabel_bars"),
    *("tuning_table", "best_so_far", "importance_bars", "slice_panels"),  # of trials
}  # fmt: skip


def public(kinds: tuple[str, ...], parameters: bool) -> Iterator[str]:
    """Functions of the analyses whose result is of these kinds, or with `parameters` one of their parameters too."""
    for module in analysis_modules():
        for name, member in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(member) or member.__module__ != module.__name__:
                continue
            signature = inspect.signature(member)
            annotations = [str(signature.return_annotation)]
            if parameters:
                annotations += [str(parameter.annotation) for parameter in signature.parameters.values()]
            if any(kind in annotation for kind in kinds for annotation in annotations):
                yield name


@pytest.mark.parametrize(
    ("kinds", "parameters", "known"),
    [(("DataFrame",), False, TABLES), (("Figure", "Axes"), True, FIGURES)],
    ids=["tables", "figures"],
)
def test_every_public_function_is_covered(kinds, parameters, known):
    missing = [name for name in public(kinds, parameters) if name not in {*known, *OTHERS}]
    assert not missing, f"add {missing} to TABLES, FIGURES or OTHERS"


@cache
def build(name: str) -> Study:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Study(STUDIES[name]())


def kind(dtype) -> str:
    return "number" if pd.api.types.is_numeric_dtype(dtype) else "other"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("study", STUDIES)
def test_tables_keep_their_columns(study):
    for name, make in TABLES.items():
        usual, table = make(build("usual")), make(build(study))
        assert list(table.columns) == list(usual.columns), name
        assert list(table.index.names) == list(usual.index.names), name
        assert table.dtypes.map(kind).to_dict() == usual.dtypes.map(kind).to_dict(), name


def shows_data(ax: Axes) -> bool:
    """Whether a number is drawn: what is NaN alone, and a line across the panel that has no name, is none."""
    named = [line for line in ax.lines if line.get_transform() == ax.transData or line.get_label()[0] != "_"]
    lines = [line.get_ydata() for line in named]
    points = [points.get_offsets() for points in ax.collections if isinstance(points, PathCollection)]
    cells = [cells.get_array() for cells in ax.collections if isinstance(cells, QuadMesh)]
    drawn = any(np.isfinite(np.ma.filled(np.ma.asarray(each, float), NAN)).any() for each in [*lines, *points, *cells])
    return drawn or bool(ax.patches or ax.images)


FAST = ("no runs", "joint alone", "base only", "nothing scored", "no new class")


@pytest.mark.parametrize("study", [pytest.param(s, marks=() if s in FAST else pytest.mark.slow) for s in STUDIES])
def test_no_figure_is_blank(study):
    for name, make in FIGURES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # as `viz.style` does
            figure = make(build(study))
            figure.canvas.draw()
        for ax in figure.axes:
            if ax.axison:
                assert shows_data(ax) or ax.texts, f"{name}: an empty panel"
            elif ax.get_title() or ax is figure.axes[0]:
                assert ax.texts or ax.patches, f"{name}: nothing says why the panel is empty"
        assert max(figure.get_size_inches()) * 160 < 2**16, f"{name}: too large to be saved"
        plt.close(figure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("study", STUDIES)
def test_findings_have_no_nan(study):
    s = build(study)
    assert correlations_by_method(s.correlations).size == len(s.correlations)
    unequal = imbalance(s.gradients)
    summary = forgetting_summary(s.ends)
    off = calibration_errors(s.calibration)
    at_end = [s.at_end(table) for table in (s.rates, s.errors, s.belief, off)]
    texts = [
        forgetting_findings(s.name, s.old, summary, s.correlations, unequal, s.empty),
        background_findings(s.name, *at_end, s.rules, s.empty),
        *forgetting_reasons(s.ends, s.correlations),
        *background_reasons(s.ends, s.rules),
        *undefined_scores(s.runs),
    ]
    for text in texts:
        assert "nan" not in text.lower().split() and text.strip(), text
    if summary.empty:
        assert s.empty["steps"] in texts[0]
    elif s.pace.empty:
        assert s.empty["pace"] in texts[0] or "no old class" in texts[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("study", STUDIES)
def test_undefined_scores_have_a_reason(study):
    runs = build(study).runs
    scores = runs[["all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps"]]
    unexplained = runs[scores.isna().any(axis=1) & (runs["undefined"] == "")]
    assert unexplained.empty, unexplained["end"].tolist()


@pytest.mark.parametrize(
    ("study", "end", "words"),
    [
        ("usual", "j", "Joint training has no steps: no forgetting"),
        ("base only", "m", "The base step alone: no forgetting"),
        ("no new class", "m", "No class counts as new"),
        ("no old class in the images", "m", "No pixel of the validation set is a class that counts as old."),
        ("nothing scored", "m", "No pixel of the validation set is a class that counts as new."),
        ("a class without images", "m", "Not in the scored part of the validation set: class 3."),
        ("nothing scored", "j", "Not in the scored part of the validation set: class 1, class 2, class 3"),
    ],
)
def test_the_reason_is_the_right_one(study, end, words):
    assert words in build(study).runs.set_index("end").loc[end, "undefined"]


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("usual", "Joint training has no steps, so it is left out."),
        ("no background", "No pixel that is scored is background"),
        ("a class without images", "Not in the scored part of the validation set: class 3."),
        ("no new class", "No step brings a new class, so nothing can be confused with one."),
        ("two classes", "A step with a single new class has no angle between new class tokens."),
        ("no old class in the images", "Recall needs a pixel of an old class"),
        ("nothing scored", "Precision needs a pixel that a rule labels as an old class."),
        ("no hold-out", "No hold-out set: the forgetting rate within a step and what it correlates with are not"),
        ("two classes", "A rank correlation needs a step with at least three old classes"),
        ("usual", "A class has no forgetting in the step that brings it"),
        ("usual", "A method with one run has no standard deviation."),
    ],
)
def test_the_tables_of_an_analysis_have_the_right_reason(study, words):
    s = build(study)
    sentences = [*forgetting_reasons(s.ends, s.correlations), *background_reasons(s.ends, s.rules)]
    assert words in sentences or any(sentence.startswith(words) for sentence in sentences)


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("no runs", "No run of this benchmark leads to a result."),
        ("joint alone", "Joint training only: it has no incremental step."),
        ("base only", "No incremental step follows the base step."),
    ],
)
def test_findings_of_nothing_say_why(study, words):
    s = build(study)
    off = calibration_errors(s.calibration)
    text = background_findings(s.name, s.rates, s.errors, s.belief, off, s.rules, s.empty)
    assert text == f"**{s.name}**: there is no background shift. {words}"
