"""Means over seeds and class orders, cost, and which pictures are shown: by hand."""

import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ciss import paths
from ciss.analysis.compare.cost import cost_table, timings_table, was_busy
from ciss.analysis.compare.figures import convention_slopes, cost_bars, score_curves, stability_scatter, step_strips
from ciss.analysis.compare.paired import paired_table
from ciss.analysis.compare.published import COLUMNS
from ciss.analysis.compare.samples import Pictures, mask_future, most_steps, sample_pictures, shown_steps
from ciss.analysis.compare.summary import convention_means, families, family_tables, methods_table, metrics_document
from ciss.analysis.compare.tables import ProvenanceError, conventions_table, curves_table, runs_table
from ciss.analysis.figures.masks import painted, titled_columns
from ciss.analysis.rows import by_benchmark
from tests.helpers.figures import draw, strings
from tests.helpers.results import AFTER_0, AFTER_2, CLASSES, OTHER, path, result, scored

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def orders() -> dict:
    """Two orders of two seeds of mib; one run of plop in the first."""
    first = {"a0": scored(0.2), "a1": scored(0.4, seed=1), "p": scored(0.3, method="plop")}
    return {"b": first, "b-order1": {"o0": scored(0.6, order=OTHER), "o1": scored(0.8, seed=1, order=OTHER)}}


def test_benchmarks_that_differ_in_order_alone_are_a_family(orders):
    assert families(orders) == {"b": ["b", "b-order1"]}
    other = path(order=[[2], [3], [1]])
    for changed in other:
        changed["identity"]["parameters"]["benchmark"]["train"] = {"crop": 32}
    assert families({**orders, "c": {"x": other}}) == {"b": ["b", "b-order1"], "c": ["c"]}
    assert families({**orders, "twin": {"x": path()}})["twin"] == ["twin"], "the same order under another name"


def test_means_over_seeds_and_orders(orders):
    tables = family_tables(orders)
    assert list(tables) == ["b"] and len(tables["b"]) == 5
    table = methods_table(tables["b"])
    assert table.loc["mib", ["seeds", "orders", "runs"]].tolist() == [2, 2, 4]
    assert table.loc["plop", ["seeds", "orders", "runs"]].tolist() == [1, 1, 1]
    assert table.loc["mib", "all"] == pytest.approx(0.5)
    # deviations -0.3, -0.1, 0.1, 0.3: 0.2 / 3
    assert table.loc["mib", "all_std"] == pytest.approx((0.2 / 3) ** 0.5)
    assert np.isnan(table.loc["plop", "all_std"])
    saved = by_benchmark({"b": table}, families(orders))
    assert saved[["benchmark", "benchmarks"]].drop_duplicates().to_numpy().tolist() == [["b", "b b-order1"]]
    document = metrics_document(tables)
    assert document["b"]["mib"]["orders"] == 2 and document["b"]["mib"]["all_std"] == 0.2582
    assert "orders" not in metrics_document({"b": tables["b"][:2]})["b"]["mib"]


def test_a_seed_counts_once_in_an_order(orders):
    orders["b-order1"]["again"] = scored(0.1, order=OTHER)
    with pytest.raises(ProvenanceError, match="o0 and again are both mib with seed 0. Remove one end"):
        family_tables(orders)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("data", "b: o0, r-0 and o1, r-0 cannot share a table: data"),  # within an order
        ("training", "b: a0, r-0 and o1, r-0 cannot share a table: code"),  # across orders
        ("method", "b: a0 and o1 are both mib, but cannot be averaged: 0.code.method"),
    ],
)
def test_runs_of_two_orders_that_cannot_be_averaged(orders, key, words):
    for changed in orders["b-order1"]["o1"]:
        identity = changed["identity"]
        (identity if key == "data" else identity["code"])[key] = "e" * 64
    with pytest.raises(ProvenanceError, match=words):
        family_tables(orders)


def test_undefined_scores_of_pseudo_labels_have_a_reason():
    """A small hold-out set may hold no old class, or labels without one."""
    results = path()
    scores = {"precision": float("nan"), "recall": None, "relabelled": 0.0, "ignored": 1.0}
    results[-1] = {**results[-1], "pseudo_labels": {"method": scores}}
    (row,) = runs_table("b", {"end": results}).to_dict("records")
    assert "labelled background in the hold-out set, so recall is undefined." in row["undefined"]
    assert "takes an old class, so precision is undefined." in row["undefined"]


def test_conventions_over_runs(orders):
    counted = pd.concat(conventions_table(name, results) for name, results in orders.items())
    counted["all"] = np.where(counted["end"] == "a0", 0.1, 0.5)
    table = convention_means(counted, ["b", "b-order1"])
    assert table.loc[("mib", "ciss"), ["runs", "all", "all_std"]].tolist() == pytest.approx([4, 0.4, 0.2])
    assert convention_means(counted, ["b"]).loc[("mib", "plop"), "all"] == pytest.approx(0.3)
    assert "scored as background" in table.loc[("plop", "plop"), "sentence"]


def took(ends: dict[str, list[dict]]) -> pd.DataFrame:
    """`timings_table` of results that have their times among them."""
    return timings_table(runs_table("b", ends), ends)


def test_cost_relative_to_finetune():
    gib = 2**30
    ends = {
        "f": path(method="finetune", training_seconds=5.0, preparation_seconds=0.0, peak_memory_bytes=gib),
        "m0": path(
            training_seconds=10.0,
            preparation_seconds=1.0,
            processor_seconds=9.0,
            peak_memory_bytes=2 * gib,
            parameters=21,
        ),
        "m1": path(
            training_seconds=14.0,
            preparation_seconds=3.0,
            processor_seconds=11.0,
            peak_memory_bytes=2 * gib,
            parameters=21,
            seed=1,
        ),
        "j": [result(0, AFTER_2, method="joint", reached=2, training_seconds=40.0)],
    }
    table = cost_table(took(ends))
    assert list(table.index) == ["finetune", "mib", "joint"]
    mib = table.loc["mib"]
    assert (mib["training_seconds"], mib["preparation_seconds"], mib["base_seconds"]) == (24, 4, 12)  # 2 own steps
    assert mib["processor_seconds"] == 20 and np.isnan(table.loc["joint", "processor_seconds"])  # not measured
    assert mib["training_seconds_std"] == pytest.approx(8 / 2**0.5)
    assert (mib["peak_memory_mib"], mib["runs"], mib["measured"], mib["devices"]) == (2048, 2, 2, 1)
    assert (mib["relative_time"], mib["relative_memory"], mib["relative_parameters"]) == (2.4, 2, 3)
    assert table.loc["joint", "base_seconds"] == 0 and table.loc["joint", "relative_time"] == 4
    without = cost_table(took({"m0": ends["m0"]}))
    assert without[["relative_time", "relative_memory"]].isna().all(axis=None)


def test_only_a_base_step_is_its_own_cost():
    (row,) = took({"e": [result(0, AFTER_0)]}).to_dict("records")
    assert (row["training_seconds"], row["base_seconds"]) == (2, 0)


def test_an_end_with_a_run_that_was_trained_elsewhere_has_no_seconds():
    """Of two seeds the other one is the mean; a base step from elsewhere leaves the method's own steps."""
    ends = {"m0": path(), "m1": path(seed=1, training_seconds=3.0), "p": path(method="plop")}
    timings = {"m0": [*ends["m0"][:2], None], "m1": [None, *ends["m1"][1:]]}
    table = timings_table(runs_table("b", ends), timings).set_index("end")
    assert table.loc["m0", ["preparation_seconds", "training_seconds", "peak_memory_mib"]].isna().all()
    assert (table.loc["m0", "base_seconds"], table.loc["m1", "training_seconds"]) == (2, 6)
    assert np.isnan(table.loc["m1", "base_seconds"]) and table.loc["p"].isna().sum() == 8
    assert table["device"].tolist() == ["a processor, 2 threads"] * 2 + [""]
    costs = cost_table(table.reset_index())
    assert costs.loc["mib", ["runs", "measured", "devices", "training_seconds"]].tolist() == [2, 1, 1, 6]
    assert costs.loc["plop", ["runs", "measured", "devices", "parameters"]].tolist() == [1, 0, 0, 7]


def test_memory_that_the_system_does_not_report_is_no_number():
    table = took({"m": path(peak_memory_bytes=None)})
    assert table["peak_memory_mib"].isna().all() and table["training_seconds"].tolist() == [4]


def test_columns_are_those_that_are_documented(orders):
    """`reports/README.md` and the docstrings of the functions that make the tables."""
    tables, members = family_tables(orders), families(orders)
    counted = pd.concat(conventions_table(name, results) for name, results in orders.items())
    methods = {name: methods_table(table) for name, table in tables.items()}
    means = {name: convention_means(counted, names) for name, names in members.items()}
    costs = {name: cost_table(timings_table(table, {})) for name, table in tables.items()}
    made = {
        "runs": (tables["b"], [runs_table]),
        "curves": (curves_table("b", orders["b"]), [curves_table]),
        "methods": (by_benchmark(methods, members), [methods_table, by_benchmark]),
        "paired": (paired_table(tables), [paired_table]),
        "conventions": (counted, [conventions_table]),
        "convention_means": (
            by_benchmark(means, members), [convention_means, by_benchmark]
        ),
        "beside_published": (pd.DataFrame(columns=[*COLUMNS, "benchmark"]), []),
        "ends": (timings_table(tables["b"], {}), [timings_table]),
        "cost": (by_benchmark(costs, members), [cost_table, by_benchmark]),
    }  # fmt: skip
    text = (paths.project() / "reports" / "README.md").read_text(encoding="utf-8")
    blocks = [text.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0] for name in ("columns", "timings")]
    rows = [row for block in blocks for row in block.strip().splitlines()[2:]]
    assert len(rows) == len(made)
    for row in rows:
        name, _, columns = (cell.strip() for cell in row.strip("|").split("|"))
        table, functions = made[name.strip("`").removesuffix(".csv")]
        assert re.findall(r"`(\w+)`", columns) == list(table.columns), name
        words = re.findall(r"\w+", " ".join(function.__doc__ for function in functions))
        for column in table.columns if functions else ():
            assert column in words or column.removesuffix("_std") in words, f"{name}: {column} has no explanation"


# --- pictures


def labels(*counts: int) -> np.ndarray:
    """A map of the first positions, so many pixels each."""
    return np.repeat(np.arange(len(counts)), counts).astype(np.uint8)[None]


def test_images_with_classes_of_most_steps_come_first():
    found = {
        "one step": labels(2, 20),
        "two steps": labels(1, 10, 10),
        "all, one pixel": labels(1, 10, 10, 1),
        "all": labels(1, 5, 4, 3),
        "nothing": labels(9),
        "void": np.full((1, 9), 255, np.uint8),
    }
    order = ["all", "all, one pixel", "two steps", "one step"]
    assert most_steps(found, CLASSES, 4) == order
    assert most_steps(found, CLASSES, 1) == ["all"]
    assert len(most_steps(found, CLASSES, 9)) == 6


def test_truth_is_void_where_classes_come_later_and_few_steps_are_shown():
    truth = np.array([[0, 1, 2, 3, 255]], np.uint8)
    assert mask_future(truth, CLASSES, 0).tolist() == [[0, 1, 255, 255, 255]]
    assert mask_future(truth, CLASSES, 2).tolist() == truth.tolist()
    assert shown_steps(0) == [0]
    assert shown_steps(2) == [0, 1, 2]
    assert shown_steps(10, 3) == [0, 5, 10]
    assert len(shown_steps(100)) == 8


def test_pictures_of_every_step():
    ends = {"e": path(), "f": path(seed=1), "j": [result(0, AFTER_2, method="joint", reached=2)]}
    for results in ends.values():
        for changed in results:
            changed["samples"] = {"i": np.full((2, 3), changed["reached"], np.uint8)}
    image = np.zeros((2, 3, 3), np.uint8)
    paths_ = {"mib": ends["e"], "joint": ends["j"]}
    classes = CLASSES
    shown = Pictures(classes, paths_, {"i": (image, np.full((2, 3), 3, np.uint8))})
    assert (shown.last_step, shown.steps) == (2, [0, 1, 2])
    mask = {k: np.full((2, 3), k, np.uint8) for k in (0, 1, 2, 3, 255)}
    rows = dict(shown.after_last())
    assert list(rows) == ["image", "ground truth", "mib", "joint"] and rows["image"] == [image]
    np.testing.assert_array_equal(rows["ground truth"][0], painted(mask[3], classes, image))
    np.testing.assert_array_equal(rows["mib"][0], painted(mask[2], classes, image, mask[3]), "wrong, so outlined")
    (block,) = shown.after_steps()
    assert {name: list(row) for name, row in block["rows"].items()} == {
        "ground truth": [0, 1, 2], "mib": [0, 1, 2], "joint": [2],
    }  # fmt: skip
    np.testing.assert_array_equal(block["rows"]["ground truth"][1], painted(mask[255], classes, image))
    np.testing.assert_array_equal(block["rows"]["mib"][1], painted(mask[1], classes, image), "nothing is scored yet")


def test_an_overview_of_few_methods():
    paths_ = {"finetune": path(), "mib": path(), "mbs (adapted)": path()}
    for results in paths_.values():
        results[-1]["samples"] = {"i": np.array([[0, 1, 3]], np.uint8)}
    image, truth = np.zeros((1, 3, 3), np.uint8), np.array([[0, 2, 3]], np.uint8)
    columns = dict(Pictures(CLASSES, paths_, {"i": (image, truth)}).overview("overlapped"))
    assert list(columns) == ["image", "labels of step 2", "ground truth", "finetune", "mbs (adapted)"]
    new = np.array([[0, 0, 3]], np.uint8)  # the classes of the last step alone
    np.testing.assert_array_equal(columns["labels of step 2"][0], painted(new, CLASSES, image))
    predicted = painted(np.array([[0, 1, 3]], np.uint8), CLASSES, image, truth)
    np.testing.assert_array_equal(columns["finetune"][0], predicted)
    figure = titled_columns(list(columns.items()))
    figure.canvas.draw()
    assert [ax.get_title() for ax in figure.axes] == list(columns)


def test_pictures_are_of_the_first_seed(monkeypatch):
    ends = {"e": path(), "f": path(seed=1)}
    index = SimpleNamespace(ids={"val": ["h", "i"]})
    job = SimpleNamespace(classes=CLASSES, settings=None, index=lambda: index, label_table=lambda training: None)
    monkeypatch.setattr("ciss.analysis.compare.samples.picture", lambda s, i, split, number, t: (split, number))
    shown = sample_pictures(job, ends)
    assert shown.results["mib"][0]["seed"] == 0 and shown.images == {"i": ("val", 1)}


# --- figures


def scatter(runs: pd.DataFrame) -> plt.Axes:
    figure, ax = plt.subplots(figsize=(4.8, 4.4))
    stability_scatter(ax, runs)
    figure.canvas.draw()
    return ax


def names(ax: plt.Axes) -> list[str]:
    return strings(ax.get_legend().get_texts()) if ax.get_legend() else []


def test_scatter_shows_means_and_runs():
    runs = pd.DataFrame({"method": ["a", "a", "joint"], "old": [0.2, 0.4, 0.8], "new": [0.1, 0.3, 0.7]})
    ax = scatter(runs)
    marks = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines if line.get_ls() == "None"]
    assert marks == [([20, 40], [10, 30]), ([pytest.approx(30)], [pytest.approx(20)]), ([80], [70])]
    assert names(ax) == ["a", "joint (all classes at once)"]
    line = next(line for line in ax.lines if line.get_ls() == "--")  # of harmonic mean 0.1
    old, new = line.get_data()
    np.testing.assert_allclose(2 * old * new / (old + new), 10)


@pytest.mark.parametrize(
    "runs",
    [
        pd.DataFrame({"method": ["a"], "old": [0.0], "new": [0.0]}),
        pd.DataFrame({"method": ["a"], "old": [1.0], "new": [1.0]}),
        pd.DataFrame({"method": ["a", "b"], "old": [0.5, np.nan], "new": [0.2, 0.3]}),
        pd.DataFrame({"method": ["a"], "old": [0.04], "new": [np.nan]}),
        pd.DataFrame({"method": [], "old": [], "new": []}, dtype=float),
    ],
)
def test_scatter_of_little(runs):
    ax = scatter(runs)
    whole = runs.dropna()
    assert names(ax) == list(whole["method"])
    assert ("No method has a score of old and one of new classes." in strings(ax.texts)) == whole.empty


def test_curves_of_one_step_and_absent_scores():
    figure, axes = plt.subplots(1, 3)
    table = pd.DataFrame(
        {"method": ["a", "joint"], "step": [0, 0], "all": [0.3, 0.5], "old": [0.3, 0.4], "new": np.nan}
    )
    score_curves(axes, table, "b")
    figure.canvas.draw()
    assert [line.get_ydata()[0] for line in axes[0].lines if line.get_ls() == "--"] == [50]
    assert not [line for line in axes[2].lines if line.get_ls() == "--"]
    assert axes[0].get_ylim() == (0, pytest.approx(60)), "the next ten with room"
    assert [text for text in strings(axes[0].texts) if text] == ["a", "joint"], "named at the ends of the lines"


def test_curves_of_many_steps_and_runs():
    figure, axes = plt.subplots(1, 3)
    table = pd.DataFrame({"method": "a", "step": [*range(20)] * 2, "all": 0.5, "old": [0.4, 0.6] * 20, "new": 0.1})
    table.loc[20:, "all"] = 0.7
    score_curves(axes, table)
    figure.canvas.draw()
    assert axes[0].containers[0].lines[0].get_ydata() == pytest.approx([60] * 20)
    assert len(axes[0].get_xticks()) <= 8
    assert strings(axes[2].texts) == ["a"]


def test_curves_of_ten_methods_name_eight():
    figure, axes = plt.subplots(1, 3)
    rows = [{"method": f"gsc-{k}", "step": step, "all": 0.05 * k} for k in range(10) for step in (0, 1)]
    score_curves(axes, pd.DataFrame(rows).assign(old=0.1, new=0.2))
    draw(figure)
    assert len(strings(axes[1].texts)) == 8 and "Grey: 2 other methods." in strings(axes[0].texts)


def test_updates_of_seconds_are_whole_milliseconds():
    """Not 1.5e+03, as three significant digits are written."""
    _, axes = plt.subplots(1, 3)
    cost_bars(axes, cost_table(took({"f": path(method="finetune", update_seconds=[1.4951])})))
    assert strings(axes[0].texts) == ["1,495  (×1.00)"]


def test_slopes_between_conventions():
    index = pd.MultiIndex.from_product([["a", "joint"], ["ciss", "mbs"]], names=["method", "convention"])
    means = pd.DataFrame({"all": [0.2, 0.4, 0.8, np.nan]}, index=index)
    figure, ax = plt.subplots()
    convention_slopes(ax, means, "b")
    draw(figure)
    assert ax.lines[0].get_ydata().tolist() == [20, 40]
    assert strings(ax.get_xticklabels()) == ["ciss", "mbs"]
    assert [text for text in strings(ax.texts) if text] == ["a", "joint"]
    _, empty = plt.subplots()
    convention_slopes(empty, means * np.nan)
    assert strings(empty.texts) == ["No score is defined."]


def test_cost_bars():
    ends = {"f": path(method="finetune", update_seconds=[0.01]), "m": path(update_seconds=[0.02, 0.01, 0.02, 0.04])}
    table = took(ends)
    figure, axes = plt.subplots(1, 3)
    cost_bars(axes, cost_table(table), "b")
    figure.canvas.draw()
    assert [patch.get_width() for patch in axes[0].patches[:2]] == pytest.approx([10, 20]), "the median, ms"
    assert strings(axes[0].texts) == ["10  (×1.00)", "20  (×2.00)"]
    assert [ax.get_title(loc="left") for ax in axes] == ["b", "", ""]
    quartiles = [segment[:, 0].tolist() for segment in axes[0].collections[0].get_segments()]
    assert quartiles == [pytest.approx([10, 10]), pytest.approx([17.5, 25])]
    assert strings(axes[2].texts)[0].replace("\n", " ") == "All methods have 7e-06 million parameters."
    assert not was_busy(table)
    assert was_busy(table.assign(update_high=2 * table["update_low"])), "the machine did other work"


def test_cost_bars_without_finetune_or_numbers():
    table = cost_table(took({"m": path()}))
    table.loc["mib", ["update_seconds", "parameters"]] = [np.nan, 0]
    figure, axes = plt.subplots(1, 3)
    cost_bars(axes, table)
    figure.canvas.draw()
    assert [len(ax.texts) for ax in axes] == [1, 1, 1] and axes[1].texts[0].get_text() == "1"
    assert axes[0].texts[0].get_text().replace("\n", " ") == "No update was measured here."
    assert not axes[0].axison, "a sentence takes the place of empty axes"
    assert strings(axes[1].get_yticklabels()) == ["mib"], "the first axes with bars name the methods"


@pytest.mark.parametrize("shape", [(4, 4), (4, 9), (9, 4)])
def test_step_strips_leave_gaps(shape):
    picture = np.zeros((*shape, 3), np.uint8)
    one = {"image": picture, "rows": {"truth": {0: picture, 1: picture}, "joint": {1: picture + 8}}}
    figure = step_strips([one, {"image": picture, "rows": {"truth": {0: picture}}}], [0, 1])
    figure.canvas.draw()
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 6
    boxes = [ax.get_position() for ax in shown]
    assert not any(box.overlaps(other) for k, box in enumerate(boxes) for other in boxes[:k])
    (joint,) = (ax for ax in shown if ax.images[0].get_array().max() == 8)
    truth = [ax.get_position().x0 for ax in shown if ax.get_title() == "after step 1"]
    assert joint.get_position().x0 == pytest.approx(truth[0])
    alone = step_strips([{"image": picture, "rows": {"truth": {0: picture}}}], [0])
    alone.canvas.draw()
    assert sum(bool(ax.images) for ax in alone.axes) == 2, "an image and its truth"
