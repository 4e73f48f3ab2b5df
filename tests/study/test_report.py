"""Tables for a paper and the page: numbers as text, nothing fetched, everything escaped."""

import base64
import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from ciss import cli, config, paths
from ciss.analysis.compare import latex as compare_latex
from ciss.analysis.compare.cells import best_methods, describe_runs, formatted, number
from ciss.analysis.compare.cost import timings_table
from ciss.analysis.compare.figures import stability_scatter
from ciss.analysis.compare.latex import escape
from ciss.analysis.compare.paired import paired_table
from ciss.analysis.compare.published import COLUMNS
from ciss.analysis.compare.summary import convention_means, families, family_tables, methods_table
from ciss.analysis.compare.tables import conventions_table, curves_table, runs_table
from ciss.analysis.figures.masks import class_legend
from ciss.analysis.figures.style import note, note_in, style
from ciss.analysis.figures.style import save as style_save
from ciss.analysis.reasons import empty_reasons
from ciss.analysis.rows import by_benchmark
from ciss.analysis.words import with_warning
from ciss.data.stored import BREAKS_PROTOCOL
from ciss.protocol import Classes
from ciss.study.report import markup as report_markup
from ciss.study.report import page as report_page
from ciss.study.report.cost import NOT_MEASURED, cost_table, sections
from ciss.study.report.markup import markdown, picture
from tests.helpers.results import OTHER, path, scored

mpl.use("Agg")
import matplotlib.pyplot as plt

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def _close():
    style()
    yield
    plt.close("all")


def save(folder: Path, ends: dict, beside: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    """What notebook 6 saves, of these ends by benchmark."""
    tables, members = family_tables(ends), families(ends)
    counted = pd.concat(conventions_table(name, results) for name, results in ends.items())
    made = {
        "runs": pd.concat(tables.values()),
        "curves": pd.concat(curves_table(name, results) for name, results in ends.items()),
        "methods": {name: methods_table(table) for name, table in tables.items()},
        "convention_means": {name: convention_means(counted, names) for name, names in members.items()},
        "paired": paired_table(tables),
        "beside_published": pd.DataFrame(columns=[*COLUMNS, "benchmark"]) if beside is None else beside,
    }
    made = {k: by_benchmark(v, members) if isinstance(v, dict) else v for k, v in made.items()}
    (folder / "compare" / "predictions").mkdir(parents=True, exist_ok=True)
    for name, table in made.items():
        table.to_csv(folder / "compare" / f"{name}.csv", index=False)
    for part in ("data", "forgetting", "background"):
        (folder / "benchmarks" / "b" / part).mkdir(parents=True, exist_ok=True)
    return made


def benchmarks(*names: str) -> dict:
    phase = config.Phase(epochs=2, lr=0.1)
    train = config.Train(base=phase, increment=phase, crop=64, batch=8)
    return {name: config.Benchmark(dataset="shapes", protocol="4-2", train=train) for name in names}


def page_of(folder: Path, planned: dict, sections: dict | None = None) -> str:
    return report_page.page(folder, planned, dict.fromkeys(planned, sections or {}))


def render(folder: Path, *names: str) -> str:
    """The page of these benchmarks, by default of `b`."""
    return page_of(folder, benchmarks(*names or "b"))


@pytest.fixture
def ends() -> dict:
    joint = {"all": 0.9, "old": 0.9, "new": 0.8, "harmonic": 0.85}
    return {
        "b": {
            "f": scored(0.1, method="finetune"),
            "m": scored(0.5),
            "p": scored(0.4, method="plop"),
            "j": [{**path(scores=joint, method="joint")[2], "after": None}],
        }
    }


@pytest.fixture
def saved(tmp_path, ends) -> Path:
    """The reports that notebook 6 leaves."""
    save(tmp_path, ends)
    return tmp_path


# --- numbers as text


def test_scores_as_text():
    assert number(50) == "50.0"
    assert number(50, 1.26) == "50.0 ± 1.3"
    assert number(float("nan"), 0.1) == "" and number(50, float("nan")) == "50.0"
    assert number(-0.01) == "0.0" and number(-2) == "-2.0" and number(1055.94, digits=0) == "1056"


def test_a_table_as_text():
    table = pd.DataFrame(
        {"seeds": [1, 3], "all": [0.1, 0.2], "all_std": [np.nan, 0.05], "mean_over_steps": [np.nan, 0.3]}
    )
    text = formatted(table, ["seeds", "all", "mean_over_steps"])
    assert formatted(table, ["all"], 2, unit=1)["all"].tolist() == ["0.10", "0.20 ± 0.05"]
    assert text.to_dict("list") == {
        "seeds": ["1", "3"], "all": ["10.0", "20.0 ± 5.0"], "mean over steps": ["", "30.0"],
    }  # fmt: skip


def test_the_best_of_a_column():
    table = pd.DataFrame({"all": [0.5, 0.50004, 0.9, 0.4], "forgetting": [0.1, 0.2, np.nan, np.nan]})
    table.index, table["runs"] = ["a", "b", "joint", "c"], [2, 1, 1, 1]
    assert best_methods(table, "all") == {"a", "b"}, "as printed"
    assert best_methods(table, "forgetting") == {"a"}, "the lowest"
    assert not best_methods(table.loc[["joint"]], "all") and not best_methods(table.loc[["a", "joint"]], "all")
    assert best_methods(table.assign(all=0.5), "all") == set(), "nobody stands out"
    assert best_methods(table.assign(runs=1), "all") == set(), "one run may be chance"


def test_what_a_mean_is_over():
    def words(*rows: tuple[int, int, int]) -> str:
        return describe_runs(pd.DataFrame(rows, columns=["runs", "seeds", "orders"]))

    assert words((1, 1, 1)).startswith("one run each (one seed, one order of classes): small")
    assert words((6, 3, 2), (6, 3, 2)).endswith("over 6 runs (3 seeds, 2 orders of classes)")
    assert words((3, 3, 1)).endswith("over 3 runs (3 seeds, 1 order of classes)")
    assert words((3, 3, 1), (1, 1, 1)).endswith("over the runs that each row counts")


# --- LaTeX


def latex_tables(made: dict[str, pd.DataFrame]) -> str:
    sentences = dict.fromkeys(made["methods"]["benchmark"], "mIoU in 0..1; `all` & nothing_else: 100 %")
    return compare_latex.tables(made["methods"], made["paired"], made["convention_means"], sentences)


def test_tables_for_a_paper(tmp_path, ends):
    text = latex_tables(save(tmp_path, ends))
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    first = text.split(r"\end{table}")[0]
    assert r"mIoU in percent; all \& nothing\_else: 100 \% One run each" in first
    rows = [line.split(" & ")[0] for line in first.splitlines() if " & " in line]
    assert rows == ["method", "finetune", "plop", "mib", "joint"], "best last, joint apart"
    lines = first.splitlines()
    assert lines[lines.index(next(line for line in lines if line.startswith("joint"))) - 1] == r"\midrule"
    assert "mib & $50.0$" in first and "joint & $90.0$" in first and "mathbf" not in text, "one seed: nothing is bold"
    assert r"-- & -- \\" in first, "no forgetting of joint training"
    for line in text.splitlines():
        if line.endswith(r"\\"):
            columns = next(part for part in reversed(text[: text.index(line)].splitlines()) if "tabular}{" in part)
            assert line.count(" & ") == columns.count("r", columns.index("{l"))


def test_tables_of_several_runs(tmp_path):
    orders = {"b_1": {"a": scored(0.2), "c": scored(0.4, seed=1)}, "b-2": {"o": scored(0.6, order=OTHER)}}
    text = latex_tables(save(tmp_path, orders))
    assert r"$40.0_{\pm 20.0}$" in text and r"\caption{b\_1: methods" in text and r"\label{tab:b-1-methods}" in text
    assert "over 3 runs (2 seeds, 2 orders of classes)" in text


@pytest.fixture
def seeds(ends) -> dict:
    """A second seed of two of the methods: mib is above finetune by 0.4 and 0.5."""
    second = {"f1": scored(0.2, method="finetune", seed=1), "m1": scored(0.7, seed=1)}
    return {"b": {**ends["b"], **second}}


def test_differences_of_several_seeds_in_a_paper(tmp_path, seeds):
    text = latex_tables(save(tmp_path, seeds))
    assert text.count(r"\begin{table}") == 3
    (part,) = (table for table in text.split(r"\end{table}") if r"\label{tab:b-paired}" in table)
    rows = [line.split(" & ") for line in part.splitlines() if " & " in line]
    assert [row[0] for row in rows] == ["method", "finetune", "plop", "mib", "joint"]
    assert rows[0][1:] == ["minus finetune", r"minus mib \\"]
    # 0.45 +- 12.7062 * 0.05
    assert rows[3][1:] == [r"$+45.0\ [-18.5,\ +108.5]\ 2/2$", r"-- \\"] and rows[2][1] == "$+30.0$"
    assert "mathbf{60.0}" in text and "joint & $\\mathbf" not in text, "the best mean"
    plain = {"m": scored(0.1, method="gsc"), "m1": scored(0.2, method="gsc", seed=1)}
    plain |= {"p": scored(0.1, method="plop"), "p1": scored(0.2, method="plop", seed=1)}
    assert "tab:b-paired" not in latex_tables(save(tmp_path, {"b": plain})), "neither reference is there"


def test_special_characters_are_escaped():
    assert escape(r"a_b & 5% $x$ #1 {y} ~ ^ \cmd") == (
        r"a\_b \& 5\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}cmd"
    )
    assert compare_latex.escape("é\n\t`code` ± \x07") == r"? code $\pm$ ?"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs LaTeX")
def test_tables_compile(tmp_path, seeds):
    seeds["b-2"] = {"x_y": scored(0.3, order=OTHER, seed=1)}
    (tmp_path / "tables.tex").write_text(latex_tables(save(tmp_path, seeds)))
    (tmp_path / "main.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables}\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


# --- the page


class Page(HTMLParser):
    """Tags that are left open, addresses, pictures without words."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.targets, self.sources, self.wordless, self.tags = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.targets.append(attributes["href"])
        if tag == "img":
            self.sources.append(attributes["src"])
            if not attributes.get("alt"):
                self.wordless.append(attributes["src"][:40])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text: str) -> Page:
    page = Page(text)
    assert not page.open and not page.wordless
    assert all(source.startswith("data:image/") for source in page.sources)
    assert {target.removeprefix("#") for target in page.targets} <= set(page.ids), "links lead somewhere"
    assert len(page.ids) == len(set(page.ids))
    words = re.sub("base64,[A-Za-z0-9+/=]*", "", text)  # whose letters mean nothing
    assert not re.search(r"https?:|//[a-z]|url\(|<script|<link|@import", words)
    return page


@pytest.mark.filterwarnings("error")
def test_figures_stand_in_the_order_of_their_notebooks(saved):
    """With their captions; what no notebook saved comes last in its analysis."""
    order = {
        "forgetting": ["forgetting", "pace", "gradients"],
        "background": ["calibration", "angles"],
        "data": ["data"],
    }
    for part, names in order.items():
        figures = {name: (plt.figure(figsize=(1, 1)), f"{part}: <{name}>.") for name in names}
        style_save(saved / "benchmarks" / "b" / part, figures)
    (saved / "benchmarks" / "b" / "forgetting" / "another_one.png").write_bytes(PIXEL)
    text = render(saved)
    captions = [f"{part}: &lt;{name}&gt;.</figcaption>" for part, names in order.items() for name in names]
    captions.insert(3, ">another one.</figcaption>")
    places = [text.index(caption) for caption in captions]
    assert places == sorted(places)
    assert places[3] < text.index("Background shift</h3>") < places[4] < places[5] < text.index("Data</h3>") < places[6]


def test_an_analysis_is_on_the_page_because_its_folder_is_there(saved):
    folder = saved / "benchmarks" / "b" / "learning"
    folder.mkdir(parents=True)
    (folder / "learning.md").write_text("**What is learnt.** All of it.")
    text = render(saved)
    assert '<h3 id="b-learning">Learning</h3>' in text and 'href="#b-learning"' in text and "All of it." in text


@pytest.mark.filterwarnings("error")
def test_the_page_holds_everything(saved):
    for name in ("b.png", "b.steps.png"):
        (saved / "compare" / "predictions" / name).write_bytes(PIXEL)
    folder = saved / "benchmarks" / "b"
    for name in ("forgetting/forgetting.png", "background/background.png", "data/data.png"):
        (folder / name).write_bytes(PIXEL)
    (folder / "forgetting/more.png").write_bytes(PIXEL + b"more")
    (folder / "forgetting/forgetting.md").write_text("**plain disc** fades & [why](https://example.org) <i>x</i> `y`\n")
    text = render(saved)
    page = parsed(text)
    assert len(page.sources) == 6 + 3, "files, and the figures drawn from the tables"
    assert "<strong>plain disc</strong> fades &amp; why &lt;i&gt;x&lt;/i&gt; <code>y</code>" in text
    assert text.index(base64.b64encode(PIXEL + b"more").decode()) < text.index("Background shift"), "with forgetting"
    assert "<td>50.0</td>" in text and "<strong>50.0" not in text, "one seed: nothing is bold"
    assert "mIoU in percent from one confusion matrix" in text and "0..1" not in text
    assert "future classes&#39; pixels ignored" in text or "future classes' pixels ignored" in text
    for words in ("<dd>a | b | c</dd>", "torch 2.15.0", "One run each", "train.batch", "float32"):
        assert words in text, words
    assert "All benchmarks" not in text
    assert text == render(saved), "the same bytes each time"


@pytest.mark.filterwarnings("error")
def test_differences_of_several_seeds_on_the_page(tmp_path, seeds):
    save(tmp_path, seeds)
    text = render(tmp_path)
    page = parsed(text)
    assert len(page.sources) == 4, "one figure more"
    assert "<td>mib</td><td>+45.0 [-18.5, +108.5] 2/2</td>" in text and "<td>plop</td><td>+30.0</td>" in text
    assert "<strong>60.0 ± 14.1</strong>" in text and "<strong>90.0</strong>" not in text
    assert "<h4>Minus finetune</h4>" in text and "<h4>Minus mib</h4>" in text
    every = text[text.index("<summary>All pairs of methods") :]
    assert '<th scope="col">method</th><th scope="col">finetune</th><th scope="col">mib</th>' in every
    assert "<td>mib</td><td>+45.0</td><td></td>" in every, "no star: 0 is inside"
    assert text == render(tmp_path), "the same bytes each time"


def test_one_seed_is_said_in_a_line_and_no_figure_stays_open(saved):
    before = plt.get_fignums()
    text = render(saved)
    assert plt.get_fignums() == before
    assert "so no difference has an interval" in text and "Minus finetune" not in text


def test_the_page_of_orders_and_benchmarks(tmp_path, ends):
    ends["b-2"] = {"o": scored(0.7, order=OTHER)}
    other = path(seed=7)
    for result in other:
        result["identity"]["parameters"]["benchmark"]["setting"] = "disjoint"
    ends["c"] = {"m": other}
    save(tmp_path, ends)
    text = render(tmp_path, "b", "b-2", "c")
    page = parsed(text)
    assert {"b", "c", "b-methods", "c-methods"} <= set(page.ids) and "b-2" not in page.ids
    assert "60.0 ± 14.1" in text and "a | b | c (b); c | a | b (b-2)" in text
    assert "<dt>seeds</dt><dd>0</dd>" in text and "<dt>seeds</dt><dd>7</dd>" in text, "each its own runs"
    assert "All benchmarks" in text and "This part is missing, because its stage has not run yet." in text


def test_results_beside_published_ones(tmp_path, ends):
    row = {"method": "mib", "convention": "mib", "published_all": 48.0, "ours_all": 50.04, "benchmark": "b"}
    beside = pd.DataFrame([{**row, "source": "MiB <2020> & more"}], columns=[*COLUMNS, "benchmark"])
    save(tmp_path, ends, beside)
    text = render(tmp_path)
    parsed(text)
    assert "<td>48.0</td>" in text and "<td>50.0</td>" in text and "MiB &lt;2020&gt; &amp; more" in text
    assert "published old" not in text, "nothing stands there"


def test_groups_of_classes_are_no_published_protocol(saved):
    planned = {"b": dataclasses.replace(benchmarks("b")["b"], protocol="15-1", groups=((1, 2), (5,)))}
    text = page_of(saved, planned)
    assert "shapes, groups [1 2 | 5] (not a published protocol), overlapped" in text and "protocol 15-1" not in text
    assert "15-1 (not used: the benchmark has groups)" in text, "among every setting"
    assert "No published result has this benchmark&#39;s groups of classes (groups), so none is shown." in text


def test_coefficients_of_methods(saved):
    """Those that differ from the defaults come first; a method without any has no row."""
    sections = {"finetune": {}, "mib": {"distillation": 5.0, "alpha": 1.0}, "gsc-clamped": {"clamp": [0.5, 2.0]}}
    text = page_of(saved, benchmarks("b"), sections)
    head, _, table = text.partition("<summary>Coefficients of the methods</summary>")
    rows = table.partition("</table>")[0]
    assert head and "finetune" not in rows
    assert '<td>mib</td><td class="text">distillation 5.0 (default 10.0)</td>' in rows
    assert "distillation 5.0, alpha 1.0</td>" in rows and "clamp [0.5, 2.0] (default null)" in rows
    assert "Coefficients of the methods" not in render(saved), "no method has one"


def test_a_part_of_the_images_stands_beside_no_published_result(saved):
    text = page_of(saved, {"b": dataclasses.replace(benchmarks("b")["b"], limit=50)})
    assert "only the first 50 images of each list (limit). Published results use all images" in text
    assert "No published result has this data set" in render(saved)


def test_figures_without_a_plot_become_a_sentence(saved):
    folder = saved / "benchmarks" / "b"
    empty = [note("No hold-out set: nothing is measured.") for _ in range(2)]
    style_save(folder / "forgetting", {"pace": (empty[0], "How fast."), "pace_factors": (empty[1], "And why.")})
    _, (empty, drawn) = plt.subplots(1, 2)
    note_in(empty, "One half is empty.")
    drawn.plot([0, 1])
    style_save(folder / "background", {"calibration": (drawn.figure, "Whether it can be believed.")})
    text = render(saved)
    assert "How fast" not in text and "And why" not in text and "Whether it can be believed." in text
    assert text.count("No hold-out set: nothing is measured. Not shown for this reason: pace, pace factors.") == 1
    assert len(Page(text).sources) == 1 + 3, "the half-empty figure, and those drawn from the tables"


def test_a_drawn_figure_without_a_plot_becomes_a_sentence():
    assert picture(note("No <b>."), "a", "caption") == '<p class="note">No &lt;b&gt;.</p>'
    assert not plt.get_fignums()


def test_the_page_says_once_which_classes_are_numbered(tmp_path, ends, monkeypatch):
    monkeypatch.setitem(plt.rcParams, "font.sans-serif", ["DejaVu Sans"])
    save(tmp_path, ends)
    for folder, name in (("benchmarks/b/data", "data"), ("benchmarks/b/data", "more"), ("compare/predictions", "b")):
        figure = plt.figure(figsize=(1, 1))
        class_legend(figure, Classes([[1, 2]], ["background", "\u732b", "cat"], np.zeros((3, 3), np.uint8)))
        figure.savefig(tmp_path / folder / f"{name}.png")
    text = render(tmp_path)
    sentence = (
        "No installed font has the letters of \u732b (class 1): figures name these classes by number. Install for"
    )
    assert text.count(sentence) == 1 and text.count("No installed font") == 1
    assert text.index(sentence) < text.index('id="b-methods"')


def test_nothing_from_a_file_is_markup(tmp_path, ends):
    evil = "<script>alert('x')</script>"
    for results in ends["b"].values():
        for result in results:
            result["device"] = evil
            result["title"] += evil
    save(tmp_path, ends)
    text = report_page.with_costs(render(tmp_path), cost_sections(ends["b"]))
    assert "script" not in parsed(text).tags and "&lt;script&gt;" in text


def test_names_that_look_like_something_else(tmp_path, ends):
    """Numbers and missing values, to who reads a CSV."""
    other = path()
    for result in other:
        result["identity"]["parameters"]["benchmark"]["setting"] = "disjoint"
        result["title"] = "NA"
    save(tmp_path, {"007": ends["b"], "NA": {"1e3": other}})
    page = parsed(render(tmp_path, "007", "NA"))
    assert {"007-cost", "NA-cost"} <= set(page.ids)
    numbers = {f"{title}-{seed}": path(seed=seed) for title in ("007", "1e3") for seed in (0, 1)}
    for end, results in numbers.items():
        for result in results:
            result |= {"title": end[:3], "method": end[:3]}
    save(tmp_path, {"b": numbers})
    assert '<th scope="col">007</th><th scope="col">1e3</th>' in render(tmp_path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"runs.csv: there is no such table. Run: dvc repro compare"):
        render(tmp_path)


def test_notes_on_the_data_stand_before_the_scores(saved):
    (saved / "benchmarks" / "b" / "data" / "data.md").write_text(
        "10,582 training images are expected; 1,464 were found.\n"
    )
    text = render(saved)
    assert text.count("1,464 were found") == 1
    assert text.index("1,464 were found") < text.index('id="b-methods"')


@pytest.mark.parametrize(("old", "warned"), [(0.0, True), (0.1, False), (np.nan, False)])
def test_a_base_step_that_learnt_nothing_is_said_before_the_scores(saved, old, warned):
    curves = pd.read_csv(saved / "compare" / "curves.csv")
    curves.loc[curves["step"] == 0, "old"] = old
    curves.to_csv(saved / "compare" / "curves.csv", index=False)
    before, _, after = render(saved).partition("<table")
    methods = after.partition('id="b-methods"')[2].partition("<table")[0]
    assert ("No class was learnt in the base step" in before + methods) == warned


@pytest.mark.parametrize(
    ("planned", "words"),
    [(["voc"], "of 'b', params.yaml plans 'voc'"), (["b", "c"], "plans 'b', 'c'"), ([], "plans no benchmark")],
)
def test_tables_of_another_plan_are_refused(saved, planned, words):
    with pytest.raises(config.ConfigError, match=f"{words}. Run `dvc repro compare` first"):
        page_of(saved, benchmarks(*planned))


def test_scores_that_are_undefined_have_a_reason_on_the_page(tmp_path, ends):
    save(tmp_path, {"b": {"j": ends["b"]["j"]}})
    text = render(tmp_path)
    assert "Scores of joint: Joint training has no steps: no forgetting, backward transfer" in text
    assert not re.search(r">\s*nan\s*<", text, re.IGNORECASE)


def test_variants_of_joint_training_stand_apart(tmp_path, ends):
    ends["b"]["l"] = [{**ends["b"]["j"][0], "method": "joint-long", "title": "joint-long"}]
    made = save(tmp_path, ends)
    table = made["methods"].set_index("method")
    assert not best_methods(table, "all") & {"joint", "joint-long"}
    rows = [line.split(" &")[0] for line in latex_tables(made).partition("bottomrule")[0].splitlines()]
    assert rows[rows.index(r"\midrule", rows.index("finetune")) + 1 :][:2] == ["joint", "joint-long"]
    _, ax = plt.subplots()
    stability_scatter(ax, made["runs"])
    assert "joint-long (all classes at once)" in [text.get_text() for text in ax.get_legend().get_texts()]
    text = render(tmp_path)
    assert text.count('<tr class="line-above"') >= 2


def test_rows_with_stored_images_stand_apart(tmp_path, ends):
    """In a block above joint training, none bold, and the broken protocol is stated."""
    titled = {"method": "mib-memory", "title": "mib-M (100 stored images)"}
    ends["b"]["s"] = [{**result, "memory": {}} for result in scored(0.8, **titled)]
    made = save(tmp_path, ends)
    assert best_methods(made["methods"].set_index("method").assign(runs=2), "all") == {"mib"}
    text = latex_tables(made)
    rows = [line.split(" &")[0] for line in text.partition(r"\bottomrule")[0].splitlines()]
    start = rows.index("finetune")
    assert rows[start:] == [
        "finetune", "plop", "mib", r"\midrule", "mib-M (100 stored images)", r"\midrule", r"joint",
    ]  # fmt: skip
    assert text.count(BREAKS_PROTOCOL) == text.count(r"\caption")
    (tmp_path / "page.html").write_text(page := render(tmp_path))
    assert page.count(BREAKS_PROTOCOL) == 2, "above everything, and below the scores"
    assert re.search(r'class="line-above"><td>mib-M \(100 stored images\)</td>', page)
    assert re.search(r'class="line-above"><td>joint</td>', page)
    assert empty_reasons(ends["b"])["memory"] == f"{BREAKS_PROTOCOL}."
    assert with_warning("Findings.", empty_reasons(ends["b"])) == f"{BREAKS_PROTOCOL}.\n\nFindings."


def test_findings_are_plain():
    text = markdown("One\nparagraph, **bold *x* y**.\n\n- a\n- b <c>\n\n![p](q.png)\n\n\n")
    assert "<li>a</li>\n<li>b &lt;c&gt;</li>" in text
    assert "<p>One\nparagraph" in text and "<p>p</p>" in text and "q.png" not in text
    assert markdown("  \n") == ""


def test_wide_pictures_can_be_scrolled(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(PIXEL[:16] + (4000).to_bytes(4, "big") + PIXEL[20:])
    assert 'class="scroll" style="width: 124rem"' in report_markup.picture(file, "a", "b")
    file.write_bytes(PIXEL)
    assert "scroll" not in report_markup.picture(file, "a", 'b "c" <d>') and "<d>" not in report_markup.picture(
        file, "<d>", "<d>"
    )


# --- cost, which differs each time


def cost_sections(ends: dict[str, list[dict]], timings: dict | None = None) -> list[str]:
    """The page's section on what the methods of one benchmark take; by default all results have their times."""
    return sections({"b": timings_table(runs_table("b", ends), ends if timings is None else timings)})


@pytest.mark.filterwarnings("error")
def test_what_methods_take_is_a_section_of_its_own(tmp_path, ends):
    save(tmp_path, ends)
    text = render(tmp_path)
    assert "a processor" not in text and "seconds" not in text.lower(), "they would change its hash"
    (section,) = cost_sections(ends["b"])
    assert "Measured on: a processor, 2 threads." in section
    assert "<td>mib</td><td></td><td></td><td>4.0</td><td>1.0</td>" in section, "no curve has the updates"
    assert "not measured" not in section.lower()
    whole = report_page.with_costs(text, [section])
    page = parsed(whole)
    assert len(page.sources) == len(Page(text).sources) + 1 and section in whole
    assert whole.index('id="b-cost"') < whole.index(section) < whole.index('id="b-forgetting"')
    assert cost_sections(ends["b"]) == [section], "the same bytes of the same times"


def test_energy_is_estimated_from_processor_time():
    (section,) = cost_sections({"mib": path(processor_seconds=1.5 * 3600)})
    assert "energy, Wh" in section and "<td>30.0</td>" in section, "2 x 1.5 h x 10 W"
    assert "without base steps: 0.03 kWh" in section
    (section,) = cost_sections({"mib": path(device="a GPU")})
    assert "nergy" not in section, "that of a GPU is not known from processor time"


def test_an_update_has_a_median_and_a_busy_machine_is_said():
    def section(*seconds: float) -> str:
        results = {"b": path(update_seconds=list(seconds))}
        return cost_sections(results)[0]

    assert "<td>mib</td><td>20</td><td>17 to 23</td>" in section(0.016, 0.02, 0.024)
    assert "The machine was busy" not in section(0.016, 0.02, 0.024)
    assert "The machine was busy" in section(0.01, 0.02, 0.09)


@pytest.mark.filterwarnings("error")
def test_what_was_not_measured_here_is_said(ends):
    (section,) = cost_sections(ends["b"], {})
    assert NOT_MEASURED in section and "<td>7</td>" in section, "parameters are known"
    assert "nan" not in re.sub("base64,[A-Za-z0-9+/=]*", "", section)
    (section,) = cost_sections(ends["b"], {**ends["b"], "m": [*ends["b"]["m"][:2], None]})
    assert "Not measured here: 1 of 4 runs, which were trained elsewhere." in section
    (section,) = cost_sections({"m": path(peak_memory_bytes=None)})
    assert "Peak memory was not measured: the system does not report it." in section
    assert "finetune, which was not run here" in section


def test_cost_for_a_paper(ends):
    table = timings_table(runs_table("b", ends["b"]), ends["b"])
    text = compare_latex.cost_tables({"b_1": cost_table(table)})
    assert text.count(r"\begin{table}") == 1 and r"\label{tab:b-1-cost}" in text and "$\\times$ update" in text
    assert r"mib & -- & $4.0$ & $1.0$ & $1024$ & 7 & -- & $1.00$ \\" in text
    missing = compare_latex.cost_tables({"b": cost_table(timings_table(runs_table("b", ends["b"]), {}))})
    assert "mib & -- & -- & -- & -- & 7 & -- & -- " in missing and "nan" not in missing


# --- the command


@pytest.fixture
def project(tmp_path, monkeypatch, ends):
    """A folder with the smoke configuration of a benchmark `b`, and its tables."""
    text = (paths.project() / "tests" / "smoke.yaml").read_text(encoding="utf-8")
    text = (
        text.replace("output: .smoke\n", "").replace("benchmark: smoke", "benchmark: b").replace("  smoke:\n", "  b:\n")
    )
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "reports", ends)
    return tmp_path


def call(monkeypatch, *arguments: str) -> None:
    cli.main(["report", *arguments])


def test_the_command_writes_the_page(project, monkeypatch, capsys):
    call(monkeypatch)
    assert capsys.readouterr().out.startswith("reports/report.html: 0.")
    text = (project / "reports" / "report.html").read_text(encoding="utf-8")
    parsed(text)
    assert text.count("not measured here") == 1
    assert not list((project / "reports").glob(".*"))
    assert sorted(file.name for file in (project / "timings").iterdir()) == [
        "cost.csv", "cost.png", "cost.tex", "ends.csv",
    ]  # fmt: skip


def test_what_the_pipeline_hashes_of_the_page_has_no_times(project, monkeypatch):
    """`.reported` changes with a score, not with seconds, which count where they are of the results."""
    call(monkeypatch)
    stamp = (project / ".reported").read_text()
    settings = config.load("params.yaml")
    end = next(iter(settings.ends))
    file = project / "reports" / "compare" / "runs.csv"
    rows = pd.read_csv(file)
    rows.loc[0, "end"] = end
    rows.to_csv(file, index=False)
    timing = {"training_seconds": 123.4, "preparation_seconds": 0.0, "peak_memory_bytes": 2**20, "device": "abacus"}
    for run in settings.path(end):
        for folder, document in (("results", {"weights": "w"}), ("timings", {"weights": "w", **timing})):
            place = project / folder / "b" / (f"{run}/result.json" if folder == "results" else f"{run}.json")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(document))
    call(monkeypatch)
    text = (project / "reports" / "report.html").read_text(encoding="utf-8")
    assert "Measured on: abacus." in text and f"{123.4 * (len(settings.path(end)) - 1):.1f}" in text
    assert (project / ".reported").read_text() == stamp
    place.write_text(json.dumps({"weights": "of another training", **timing}))
    call(monkeypatch)
    assert (project / "reports" / "report.html").read_text(encoding="utf-8").count("not measured here") == 1
    rows.assign(old=0.123).to_csv(file, index=False)
    call(monkeypatch)
    assert (project / ".reported").read_text() != stamp


def test_a_page_of_another_plan_is_one_line(project, monkeypatch):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("benchmark: b", "benchmark: c").replace("  b:\n", "  c:\n"))
    with pytest.raises(
        SystemExit, match=r"^error: reports/compare/\*.csv are of 'b', params.yaml plans 'c'. Run `dvc repro"
    ):
        call(monkeypatch)


@pytest.mark.parametrize("arguments", [("--config", "nowhere.yaml"), ()])
def test_errors_are_one_line(project, monkeypatch, arguments):
    (project / "reports" / "compare" / "curves.csv").unlink()
    with pytest.raises(SystemExit, match=r"^error: .*(nowhere.yaml|curves.csv: there is no such table)") as caught:
        call(monkeypatch, *arguments)
    assert "\n" not in str(caught.value)
