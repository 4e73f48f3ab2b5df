"""`reports/report.html`: all results of the analyses in one file, which loads nothing from other addresses."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ciss.analysis.compare import cells
from ciss.analysis.compare.figures import REFERENCES, paired_points, score_curves, stability_scatter
from ciss.analysis.figures.style import is_joint, only_note, saved
from ciss.config import Benchmark
from ciss.documents import ConfigError
from ciss.study.report.markup import definitions, details, document, heading, markdown, note, paragraph, picture, table
from ciss.study.report.notes import classes_of_steps, missing_letters, why_none_published

SCORES = ["all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps"]
TABLES = ("runs", "curves", "methods", "paired", "convention_means", "beside_published")
# columns of text, also for names such as 007 and NA
TEXT_COLUMNS = ("benchmark", "benchmarks", "end", "method", "against", "convention", "order", "arithmetic", "undefined")
SECTIONS = {  # of each benchmark: the text of the link and the heading
    "methods": ("methods", "Methods"),
    "paired": ("paired differences", "Paired differences on the same seeds"),
    "conventions": ("conventions", "The same predictions under the counting rules of published papers"),
    "published": ("published", "Published results"),
    "steps": ("over steps", "After every step"),
    "predictions": ("predictions", "Predictions"),
    "cost": ("cost", "Cost"),
    "forgetting": ("forgetting", "Forgetting"),
    "background": ("background", "Background shift"),
    "data": ("data", "Data"),
}
NOTEBOOKS = ("forgetting", "background", "data")  # sections with the findings and figures of a notebook
COST = "<!-- cost of benchmark {} -->"  # `with_costs` puts a section here


def page(folder: Path, benchmarks: Mapping[str, Benchmark]) -> str:
    """The page without the sections on cost, which `with_costs` adds. The same tables and figures give the same bytes.

    Args:
        folder: `reports/`, with tables and figures.
        benchmarks: those that the plan compares, by name.

    Raises: FileNotFoundError naming a table that is missing, ConfigError for tables of other benchmarks.
    """
    tables = {name: read_table(folder / "compare" / f"{name}.csv") for name in TABLES}
    families = tables["methods"].groupby("benchmark", sort=False)["benchmarks"].first().str.split()
    members = families.sum() if len(families) else []
    if set(members) != set(benchmarks):
        tabled, planned = (", ".join(map(repr, names)) or "no benchmark" for names in (members, benchmarks))
        problem = f"reports/compare/*.csv are of {tabled}, params.yaml plans {planned}"
        raise ConfigError(f"{problem}. Run `dvc repro compare` first.")
    blocks = [
        "<h1>Class-incremental segmentation: comparison of the methods</h1>",
        paragraph(
            "All methods of a benchmark share data set, protocol, network, schedule and metric. Scores are mIoU from 0 "
            "to 1 after the last step, if nothing else is stated. Each benchmark states how they are counted."
        ),
        f'<nav aria-label="contents">{"".join(map(_links, families.index))}</nav>',
        missing_letters(folder, members),
    ]
    if len(families) > 1:
        blocks += ["<h2>All benchmarks</h2>", _overview(tables["methods"])]
    for number, (name, names) in enumerate(families.items()):
        blocks.append(heading(2, name, name, "next" if number else ""))
        sections = _benchmark_sections(folder, name, names, tables, benchmarks[name])
        blocks.append(sections.replace(COST, COST.format(number)))
    return document("Class-incremental segmentation: report", "\n".join(blocks))


def with_costs(text: str, sections: Iterable[str]) -> str:
    """The page with the sections on cost, one for each benchmark: see `cost.sections`."""
    for number, section in enumerate(sections):
        text = text.replace(COST.format(number), section)
    return text


def read_table(file: Path) -> pd.DataFrame:
    """A table of `reports/compare`. Raises FileNotFoundError."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such table. Run: dvc repro compare")
    try:
        return pd.read_csv(file, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:  # there is no published result
        return pd.DataFrame()


def _links(name: str) -> str:
    links = {name: name} | {f"{name}-{key}": text for key, (text, _) in SECTIONS.items()}
    return "<ul>" + "".join(f'<li><a href="#{key}">{text}</a></li>' for key, text in links.items()) + "</ul>"


def _overview(methods: pd.DataFrame) -> str:
    """`all` of every method and benchmark."""
    texts = methods.assign(text=cells.formatted(methods, ["all"])["all"])
    texts = texts.pivot(index="method", columns="benchmark", values="text").fillna("")
    texts = texts.loc[methods["method"].unique(), methods["benchmark"].unique()]
    text = "mIoU of all classes after the last step, in the convention that each benchmark states below. "
    text += "Empty: the method was not run on the benchmark, or has no score."
    return table(["method", *texts.columns], [[method, *row] for method, *row in texts.itertuples()]) + note(text)


def _benchmark_sections(
    folder: Path, name: str, members: list[str], tables: dict[str, pd.DataFrame], benchmark: Benchmark
) -> str:
    """The sections of one family of benchmarks. Its `members` differ in their order of classes only."""
    runs, curves, published = (
        table[table["benchmark"].isin(members)] if len(table) else table
        for table in (tables["runs"], tables["curves"], tables["beside_published"])
    )
    methods, means = (
        table[table["benchmark"] == name].set_index("method")
        for table in (tables["methods"], tables["convention_means"])
    )
    means = means.loc[methods.index]
    paired = tables["paired"][tables["paired"]["benchmark"] == name]
    several = len(members) > 1
    sections = {
        "methods": [_methods(methods, runs), _stability(name, runs)],
        "paired": [_paired(name, runs, paired)],
        "conventions": [_conventions(means)],
        "published": [_published(published, benchmark)],
        "steps": [_curves(name, curves)],
        "predictions": [_predictions(folder, member) for member in members],
        "cost": [COST],
        **{key: [_analysis(folder, member, key, several) for member in members] for key in NOTEBOOKS},
    }
    blocks = [_settings(members, runs, means, benchmark)]
    blocks += [_data_notes(folder, member, several) for member in members]
    for key, (_, title) in SECTIONS.items():
        blocks += [heading(3, title, f"{name}-{key}"), *sections[key]]
    return "\n".join(blocks)


def _settings(members: list[str], runs: pd.DataFrame, means: pd.DataFrame, benchmark: Benchmark) -> str:
    train = benchmark.train
    phases = {"base": train.base, "increment": train.increment}
    epochs = "; ".join(f"{phase.epochs} epochs at {phase.lr:g} ({name})" for name, phase in phases.items())
    orders = runs.groupby("order", sort=False)["benchmark"].first()
    several = len(orders) > 1
    summary = {
        "data": f"{benchmark.dataset}, {classes_of_steps(benchmark)}, {benchmark.setting}",
        "orders of classes" if several else "order of classes": "; ".join(
            f"{order} ({member})" if several else order for order, member in orders.items()
        ),
        "seeds": ", ".join(str(seed) for seed in sorted(runs["seed"].unique())),
        "network": f"{benchmark.model.encoder}, {benchmark.model.decoder}",
        "training": f"{epochs}; crops of {train.crop} pixels, batches of {train.batch}",
        **{name: cells.distinct_values(runs[name].astype(str)) for name in ("versions", "arithmetic", "processes")},
    }
    settings = pd.json_normalize(json.loads(json.dumps(asdict(benchmark)))).iloc[0].map(str)
    if benchmark.groups:
        settings["protocol"] += " (not used: the benchmark has groups)"
    if several:
        settings["order"] = "see above"
    convention = means[means["convention"] == "ciss"]["sentence"].iloc[0]
    return "\n".join(
        [
            definitions(summary),
            markdown(f"**How scores are counted.** {convention}"),
            details("All settings of the benchmark", definitions(settings.to_dict())),
        ]
    )


def _data_notes(folder: Path, benchmark: str, several: bool) -> str:
    """The notes of notebook 1 on the data: image counts that differ from the preset's, classes without an image."""
    file = folder / "benchmarks" / benchmark / "data" / "data.md"
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return markdown(f"**Notes on the data{f' of {benchmark}' if several else ''}.**\n\n{text}") if text else ""


def _methods(methods: pd.DataFrame, runs: pd.DataFrame) -> str:
    counts = ["seeds", "orders"] if methods["runs"].max() > 1 else []
    if (methods["runs"] != methods["seeds"] * methods["orders"]).any():
        counts.append("runs")
    scores = [name for name in SCORES if methods[name].notna().any()]
    notes = [
        f"{cells.sentence(cells.describe_runs(methods))} Bold: the best method, without joint training.",
        " ".join(cells.sentence(cells.DEFINITIONS[name]) for name in scores if name in cells.DEFINITIONS),
        *(f"Scores of {text}" for text in cells.undefined_scores(runs)),
    ]
    bold = {cells.heading(name): cells.best_methods(methods, name) for name in scores}
    return score_table(cells.formatted(methods, [*counts, *scores]), bold) + "".join(map(note, notes))


def score_table(texts: pd.DataFrame, bold: Mapping[str, set[str]] = {}) -> str:
    """A table of texts by method, a line above joint training. `bold`: by column the methods in bold."""
    methods = sorted(texts.index, key=is_joint)
    bold_cells = {
        (row, column)
        for row, method in enumerate(methods)
        for column, name in enumerate(texts.columns, start=1)
        if method in bold.get(name, ())
    }
    line_above = {row for row, method in enumerate(methods) if is_joint(method) and row}
    rows = [[method, *texts.loc[method]] for method in methods]
    return table(["method", *texts.columns], rows, bold=bold_cells, line_above=line_above)


def _stability(name: str, runs: pd.DataFrame) -> str:
    figure, ax = plt.subplots(figsize=(4.8, 4.4))
    figure.subplots_adjust(left=0.13, right=0.86, bottom=0.12, top=0.97)
    stability_scatter(ax, runs)
    caption = (
        "Stability (old classes) and plasticity (new classes) after the last step. Grey lines: equal harmonic mean of "
        "the two. Large marks are means over runs, small marks single runs, if there are several. The star is joint "
        "training."
    )
    return picture(figure, f"{name}: mIoU of new classes against that of old ones, by method", caption, 42)


def _paired(name: str, runs: pd.DataFrame, pairs: pd.DataFrame) -> str:
    if not pairs["pairs"].max() > 1:
        return paragraph("No two methods share more than one seed and order, so no difference has an interval.")
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 0.9 + 0.3 * runs["method"].nunique()), layout="constrained")
    paired_points(axes, runs, pairs)
    text = (
        "Differences between two methods on the same seed and order of classes: mean, its 95 % interval (Student's t), "
        "and in how many pairs it is above 0. The intervals are not corrected for multiple comparisons. Less "
        "forgetting is better."
    )
    blocks = [note(text)]
    for against in REFERENCES:
        if against in set(pairs["against"]):
            blocks += [f"<h4>Minus {against}</h4>", score_table(cells.differences(pairs, against))]
    caption = "Differences in all: a dot for each seed (and order), and the 95 % interval of their mean."
    blocks.append(picture(figure, f"{name}: paired differences in mIoU by method", caption))
    text = "Method of the row minus method of the column, in all. A star: the 95 % interval is on one side of 0."
    blocks.append(details("All pairs of methods", score_table(cells.all_differences(pairs)) + note(text)))
    return "\n".join(blocks)


def _conventions(means: pd.DataFrame) -> str:
    tables = dict(list(means.groupby("convention", sort=False)))
    texts = pd.DataFrame({name: cells.formatted(rows, ["all"])["all"] for name, rows in tables.items()})
    bold = {name: cells.best_methods(rows, "all") for name, rows in tables.items()}
    text = "all, after the last step. Scores of papers with different conventions differ in the same way."
    if means["all"].isna().any():
        text += " Empty: no class counts under the convention (mbs drops classes with an IoU of 0)."
    items = "\n".join(f"- **{name}**: {rows['sentence'].iloc[0]}" for name, rows in tables.items())
    return score_table(texts, bold) + note(text) + details("Definitions of the conventions", markdown(items))


def _published(published: pd.DataFrame, benchmark: Benchmark) -> str:
    if published.empty:
        return paragraph(why_none_published(benchmark))
    published = published.dropna(axis="columns", how="all")
    rows = [["" if pd.isna(value) else _one_digit(value) for value in row] for row in published.itertuples(index=False)]
    words = {"backbone", "convention", "resolution", "differs", "source"}
    text = {number for number, column in enumerate(published.columns) if column in words}
    return table([cells.heading(column) for column in published.columns], rows, text=text) + note(
        "In percent. Scores of this study (ours) are shown if the convention is the same and both were scored on "
        "centre crops, of any size, or both on whole images. differs: the other differences."
    )


def _one_digit(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _curves(name: str, curves: pd.DataFrame) -> str:
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 2.7), sharey=True)
    figure.subplots_adjust(left=0.07, right=0.83, bottom=0.2, top=0.9, wspace=0.15)
    score_curves(axes, curves)
    caption = (
        "mIoU after every step, means over runs. Whiskers: one standard deviation, if there are several runs. all "
        "counts the background, if the data set has one."
    )
    return picture(figure, f"{name}: mIoU of all, old and new classes after every step, by method", caption)


def _predictions(folder: Path, benchmark: str) -> str:
    files = {
        f"{benchmark}.png": "predictions of each method after the last step, for the same images",
        f"{benchmark}.steps.png": "predictions after every step, for the same images. Classes of later steps are void "
        "in the truth, because they are not scored yet",
    }
    pictures = {folder / "compare" / "predictions" / name: f"{benchmark}: {text}" for name, text in files.items()}
    return "\n".join(picture(file, text, f"{text}. One seed.") for file, text in pictures.items() if file.is_file())


def _analysis(folder: Path, benchmark: str, key: str, several: bool) -> str:
    """Findings and figures of one notebook."""
    results = folder / "benchmarks" / benchmark / key
    blocks = [f"<h4>{escape(benchmark)}</h4>"] if several else []
    if key != "data" and (file := results / f"{key}.md").is_file():  # `_data_notes` shows that of the data
        blocks.append(markdown(file.read_text(encoding="utf-8")))
    left_out: dict[str, list[str]] = {}
    for file, caption in saved(results).items():
        if sentences := only_note(file):
            left_out.setdefault(sentences, []).append(cells.heading(file.stem))
        else:
            blocks.append(picture(file, f"{benchmark}: {caption}", caption))
    for sentences, titles in left_out.items():
        figures = f"figure{'s' if len(titles) > 1 else ''} {', '.join(titles)}"
        blocks.append(note(f"{sentences} Left out: the {figures}."))
    return "\n".join(blocks) or note("Not here: its stage has not run.")
