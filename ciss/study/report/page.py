"""`reports/report.html`: everything that the analyses found, in one file without a link to anywhere."""

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
from ciss.study.report.markup import details, document, facts, heading, paragraph, picture, prose, table
from ciss.study.report.notes import numbered, steps, why_none_published

SCORES = ["all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps"]
TABLES = ("runs", "curves", "methods", "paired", "convention_means", "beside_published")
# also one named 007 or NA
WORDS = ("benchmark", "benchmarks", "end", "method", "against", "convention", "order", "arithmetic", "undefined")
SECTIONS = {  # of each benchmark: the words of the link and the heading
    "methods": ("methods", "Methods"),
    "paired": ("seed by seed", "Seed by seed"),
    "conventions": ("conventions", "The same predictions, counted as papers count"),
    "published": ("published", "Beside what papers print"),
    "steps": ("over steps", "After every step"),
    "predictions": ("predictions", "Predictions"),
    "cost": ("cost", "Cost"),
    "forgetting": ("forgetting", "Forgetting"),
    "background": ("background", "Background shift"),
    "data": ("data", "Data"),
}
PARTS = ("forgetting", "background", "data")  # the sections of the notebooks
COST = "<!-- cost of benchmark {} -->"  # the place of a section that `with_costs` fills


def page(folder: Path, benchmarks: Mapping[str, Benchmark]) -> str:
    """The page, from the tables and figures in `folder`. The same tables and figures give the same bytes: the sections
    on cost are left to `with_costs`.

    Args:
        folder: `reports/`.
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
    parts = [
        "<h1>Class-incremental segmentation: the methods side by side</h1>",
        paragraph(
            "One data set, protocol, network, schedule and metric for all methods of a benchmark. Scores are mIoU from "
            "0 to 1 after the last step unless it says otherwise; each benchmark says how they are counted."
        ),
        f'<nav aria-label="contents">{"".join(map(_links, families.index))}</nav>',
        numbered(folder, members),
    ]
    if len(families) > 1:
        parts += ["<h2>All benchmarks</h2>", _overview(tables["methods"])]
    for number, (name, own) in enumerate(families.items()):
        parts.append(heading(2, name, name, "next" if number else ""))
        parts.append(_family(folder, name, own, tables, benchmarks[name]).replace(COST, COST.format(number)))
    return document("Class-incremental segmentation: report", "\n".join(parts))


def with_costs(text: str, sections: Iterable[str]) -> str:
    """The page with what the methods of each benchmark take: see `cost.sections`."""
    for number, section in enumerate(sections):
        text = text.replace(COST.format(number), section)
    return text


def read_table(file: Path) -> pd.DataFrame:
    """A table of `reports/compare`. Raises FileNotFoundError."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such table. Run: dvc repro compare")
    try:
        return pd.read_csv(file, dtype=dict.fromkeys(WORDS, str), keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:  # no published result stands beside ours
        return pd.DataFrame()


def _links(name: str) -> str:
    links = {name: name} | {f"{name}-{key}": words for key, (words, _) in SECTIONS.items()}
    return "<ul>" + "".join(f'<li><a href="#{key}">{words}</a></li>' for key, words in links.items()) + "</ul>"


def _overview(methods: pd.DataFrame) -> str:
    """`all` of every method and benchmark."""
    values = zip(methods["all"], methods["all_std"], strict=True)
    texts = methods.assign(text=[cells.score(mean, deviation) for mean, deviation in values])
    names = list(dict.fromkeys(methods["benchmark"]))
    texts = texts.pivot(index="method", columns="benchmark", values="text").fillna("")
    rows = [[method, *texts.loc[method, names]] for method in dict.fromkeys(methods["method"])]
    note = "mIoU of all classes after the last step, each benchmark by its own convention sentence below. "
    note += "Empty: the method was not run on the benchmark, or has no score."
    return table(["method", *names], rows) + paragraph(note, "note")


def _family(folder: Path, name: str, members: list[str], tables: dict[str, pd.DataFrame], benchmark: Benchmark) -> str:
    """The sections of one benchmark; its `members` differ in their order of classes only."""
    runs, curves, beside = (
        table[table["benchmark"].isin(members)] if len(table) else table
        for table in (tables["runs"], tables["curves"], tables["beside_published"])
    )
    methods, means = (
        table[table["benchmark"] == name].set_index("method")
        for table in (tables["methods"], tables["convention_means"])
    )
    means = means.loc[methods.index]
    paired = tables["paired"][tables["paired"]["benchmark"] == name]
    sections = {
        "methods": [_methods(methods, runs), _stability(name, runs)],
        "paired": [_paired(name, runs, paired)],
        "conventions": [_conventions(means)],
        "published": [_published(beside, benchmark)],
        "steps": [_curves(name, curves)],
        "predictions": [_predictions(folder, member) for member in members],
        "cost": [COST],
        **{part: [_analysis(folder, member, part, len(members) > 1) for member in members] for part in PARTS},
    }
    parts = [_what_was_run(members, runs, means, benchmark)]
    parts += [_data_notes(folder, member, len(members) > 1) for member in members]
    for key, (_, title) in SECTIONS.items():
        parts += [heading(3, title, f"{name}-{key}"), *sections[key]]
    return "\n".join(parts)


def _what_was_run(members: list[str], runs: pd.DataFrame, means: pd.DataFrame, benchmark: Benchmark) -> str:
    settings = json.loads(json.dumps(asdict(benchmark)))
    train = settings["train"]
    phases = (f"{train[k]['epochs']} epochs at {train[k]['lr']:g} ({k})" for k in ("base", "increment"))
    orders = runs.groupby("order", sort=False)["benchmark"].first()
    several = len(orders) > 1
    if settings["groups"]:
        settings["protocol"] += " (not used: the benchmark has groups)"
    ran = {
        "data": f"{settings['dataset']}, {steps(benchmark)}, {settings['setting']}",
        "orders of classes" if several else "order of classes": "; ".join(
            f"{order} ({member})" if several else order for order, member in orders.items()
        ),
        "seeds": ", ".join(str(seed) for seed in sorted(runs["seed"].unique())),
        "network": f"{settings['model']['encoder']}, {settings['model']['decoder']}",
        "training": f"{'; '.join(phases)}; crops of {train['crop']} pixels, batches of {train['batch']}",
        "versions": distinct_values(runs["versions"]),
        "arithmetic": distinct_values(runs["arithmetic"]),
        "processes": distinct_values(runs["processes"].astype(str)),
    }
    every = {"; ".join(members): ""} if len(members) > 1 else {}
    every |= {key: str(value) for key, value in _flat(settings).items() if not (key == "order" and several)}
    counted = means[means["convention"] == "ciss"]["sentence"].iloc[0]
    scores = prose(f"**How scores are counted.** {counted}")
    return "\n".join([facts(ran), scores, details("Every setting of the benchmark", facts(every))])


def _data_notes(folder: Path, benchmark: str, named: bool) -> str:
    """What notebook 1 noted on the data: counts that are not the preset's, classes that a list lacks."""
    file = folder / "benchmarks" / benchmark / "data" / "data.md"
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    head = f"**Notes on the data{f' of {benchmark}' if named else ''}.**"
    return prose(f"{head}\n\n{text}") if text else ""


def _methods(methods: pd.DataFrame, runs: pd.DataFrame) -> str:
    counts = [c for c in ("seeds", "orders") if methods["runs"].max() > 1]
    if (methods["runs"] != methods["seeds"] * methods["orders"]).any():
        counts.append("runs")
    columns = [*counts, *(c for c in SCORES if methods[c].notna().any())]
    notes = [f"{cells.sentence(cells.runs_words(methods))} Bold: the best, joint training apart."]
    notes.append(" ".join(cells.sentence(cells.CONVENTION[c]) for c in columns if c in cells.CONVENTION))
    notes += [f"Scores of {words}" for words in cells.undefined_words(runs)]
    bold = {head: cells.best(methods, column) for column, head in cells.HEADS.items() if column in columns}
    scores = score_table(cells.shown(methods, columns), bold)
    return scores + "".join(paragraph(note, "note") for note in notes)


def score_table(texts: pd.DataFrame, bold: Mapping[str, set[str]] = {}) -> str:
    """Methods by row, joint training last and apart. `bold`: of each column the methods that stand out."""
    methods = sorted(texts.index, key=is_joint)
    marked = {
        (row, column)
        for row, method in enumerate(methods)
        for column, head in enumerate(texts.columns, start=1)
        if bold and method in bold.get(head, ())
    }
    apart = {row for row, method in enumerate(methods) if is_joint(method) and row}
    rows = [[method, *texts.loc[method]] for method in methods]
    return table(["method", *texts.columns], rows, bold=marked, apart=apart)


def _stability(name: str, runs: pd.DataFrame) -> str:
    figure, ax = plt.subplots(figsize=(4.8, 4.4))
    figure.subplots_adjust(left=0.13, right=0.86, bottom=0.12, top=0.97)
    stability_scatter(ax, runs)
    caption = (
        "What is kept against what is learnt, after the last step. Grey lines: equal harmonic mean of the two. Large "
        "marks are means over runs, small ones the runs, where there are several; the star is joint training."
    )
    return picture(figure, f"{name}: mIoU of new classes against that of old ones, by method", caption, 32)


def _paired(name: str, runs: pd.DataFrame, pairs: pd.DataFrame) -> str:
    if not pairs["pairs"].max() > 1:
        return paragraph("No two methods share more than one seed and order, so no difference has an interval.")
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 0.9 + 0.3 * runs["method"].nunique()), layout="constrained")
    paired_points(axes, runs, pairs)
    words = (
        "Differences between two methods on the same seed and order of classes: mean, its 95 % interval (Student's t), "
        "and in how many pairs it is above 0. Each interval is for itself: of many, some leave 0 out by chance. Less "
        "forgetting is better."
    )
    parts = [paragraph(words, "note")]
    for against in REFERENCES:
        if against in set(pairs["against"]):
            parts += [f"<h4>Minus {against}</h4>", score_table(cells.differences(pairs, against))]
    caption = "all, against both: a dot a seed (and order), and the 95 % interval of their mean."
    parts.append(picture(figure, f"{name}: paired differences in mIoU by method", caption))
    note = paragraph("Row minus column in all; a star: the 95 % interval is on one side of 0.", "note")
    parts.append(details("Every two methods", score_table(cells.every_difference(pairs)) + note))
    return "\n".join(parts)


def _conventions(means: pd.DataFrame) -> str:
    tables = dict(list(means.groupby("convention", sort=False)))
    texts = pd.DataFrame({name: cells.shown(counted, ["all"])["all"] for name, counted in tables.items()})
    bold = {name: cells.best(counted, "all") for name, counted in tables.items()}
    note = "all, after the last step. What differs between columns differs between papers too."
    if means["all"].isna().any():
        note += " Empty: no class counts under the convention (mbs drops classes with an IoU of 0)."
    items = "\n".join(f"- **{name}**: {counted['sentence'].iloc[0]}" for name, counted in tables.items())
    return score_table(texts, bold) + paragraph(note, "note") + details("What each convention counts", prose(items))


def _published(beside: pd.DataFrame, benchmark: Benchmark) -> str:
    if beside.empty:
        return paragraph(why_none_published(benchmark))
    beside = beside.dropna(axis="columns", how="all")
    words = {"backbone", "convention", "resolution", "differs", "source"}
    rows = [["" if pd.isna(value) else _short(value) for value in row] for row in beside.itertuples(index=False)]
    text = {number for number, column in enumerate(beside.columns) if column in words}
    heads = [column.replace("_", " ") for column in beside.columns]
    note = (
        "In percent. Ours stand there only where the convention is the same and both were scored on centre crops, of "
        "any size, or both on whole images; differs: what is not the same."
    )
    return table(heads, rows, text=text) + paragraph(note, "note")


def _curves(name: str, curves: pd.DataFrame) -> str:
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 2.7), sharey=True)
    figure.subplots_adjust(left=0.07, right=0.83, bottom=0.2, top=0.9, wspace=0.15)
    score_curves(axes, curves)
    caption = (
        "mIoU after every step, means over runs; whiskers: one standard deviation, where there are several runs. "
        "all counts the background, where the data set has one."
    )
    return picture(figure, f"{name}: mIoU of all, old and new classes after every step, by method", caption)


def _predictions(folder: Path, benchmark: str) -> str:
    files = {
        f"{benchmark}.png": "what each method says of the same images after the last step",
        f"{benchmark}.steps.png": "the same images after every step; classes that come later, which are not scored "
        "yet, are void in the row of the truth",
    }
    existing = {folder / "compare" / "predictions" / name: f"{benchmark}: {words}" for name, words in files.items()}
    return "\n".join(picture(file, words, f"{words}. One seed.") for file, words in existing.items() if file.is_file())


def _analysis(folder: Path, benchmark: str, part: str, named: bool) -> str:
    """Findings and figures of one notebook."""
    results = folder / "benchmarks" / benchmark / part
    parts = [f"<h4>{escape(benchmark)}</h4>"] if named else []
    if part != "data" and (text := results / f"{part}.md").is_file():  # notes on data stand at the top
        parts.append(prose(text.read_text(encoding="utf-8")))
    left_out: dict[str, list[str]] = {}
    for file, caption in saved(results).items():
        if sentences := only_note(file):
            left_out.setdefault(sentences, []).append(file.stem.replace("_", " "))
            continue
        parts.append(picture(file, f"{benchmark}: {caption}", caption))
    for sentences, titles in left_out.items():
        figures = f"figure{'s' if len(titles) > 1 else ''} {', '.join(titles)}"
        parts.append(paragraph(f"{sentences} Left out: the {figures}.", "note"))
    return "\n".join(parts) or paragraph("Not here: its stage has not run.", "note")


def _flat(settings: dict, place: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": value}
    return found


def distinct_values(column: pd.Series) -> str:
    """The values of a column, with how many rows have each where they are not all the same."""
    counts = column.value_counts(sort=False)
    if len(counts) == 1:
        return str(counts.index[0])
    return "; ".join(f"{value} ({count} of {len(column)} runs)" for value, count in counts.items())


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
