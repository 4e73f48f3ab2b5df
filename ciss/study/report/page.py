"""`reports/report.html`: everything that the analyses found, in one file without a link to anywhere."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ciss.analysis.compare.cells import (
    CONVENTION,
    HEADS,
    best,
    differences,
    every_difference,
    runs_words,
    score,
    sentence,
    shown,
    undefined_words,
)
from ciss.analysis.compare.figures import REFERENCES, cost_bars, paired_points, score_curves, stability_scatter
from ciss.analysis.figures import style as figures_style
from ciss.analysis.figures.style import is_joint, only_note, saved
from ciss.config import Benchmark
from ciss.documents import ConfigError
from ciss.study.report import markup as report_markup
from ciss.study.report import notes as report_notes
from ciss.study.report.markup import document, paragraph, picture, prose
from ciss.study.report.notes import numbered, steps, why_none_published

SCORES = ["all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps"]
TABLES = ("runs", "curves", "methods", "paired", "convention_means", "beside_published", "cost")
# also one named 007 or NA
WORDS = ("benchmark", "benchmarks", "end", "method", "against", "convention", "order", "arithmetic", "undefined")
TITLES = {"forgetting": "Forgetting", "background": "Background shift", "data": "Data"}


def page(folder: Path, benchmarks: Mapping[str, Benchmark]) -> str:
    """The page, from the tables and figures of the analyses.

    Args:
        folder: the project's `reports/`.
        benchmarks: those that the plan compares.

    Raises FileNotFoundError naming a table that is missing, ConfigError for tables of other benchmarks.
    """
    tables = {name: _read(folder / "compare" / f"{name}.csv") for name in TABLES}
    families = dict(tables["methods"].groupby("benchmark", sort=False)["benchmarks"].first())
    _check_plan([name for members in families.values() for name in members.split()], benchmarks)
    links = "".join(_links(name) for name in families)
    parts = [
        "<h1>Class-incremental segmentation: the methods side by side</h1>",
        report_markup.paragraph(
            "One data set, protocol, network, schedule and metric for all methods of a benchmark. Scores are mIoU from "
            "0 to 1 after the last step unless it says otherwise; each benchmark says how they are counted."
        ),
        f'<nav aria-label="contents">{links}</nav>',
        numbered(folder, [name for members in families.values() for name in members.split()]),
    ]
    if len(families) > 1:
        parts += ["<h2>All benchmarks</h2>", _overview(tables["methods"])]
    for number, (name, members) in enumerate(families.items()):
        parts.append(f'<h2 id="{escape(name)}"{report_markup.named(number > 0, "next")}>{escape(name)}</h2>')
        parts.append(_family(folder, name, members.split(), tables, benchmarks))
    return document("Class-incremental segmentation: report", "\n".join(parts))


def _check_plan(tabled: list[str], planned: Iterable[str]) -> None:
    """Raises ConfigError for tables of other benchmarks than the plan's."""
    if set(tabled) != set(planned):
        tables, plan = (", ".join(map(repr, names)) or "no benchmark" for names in (tabled, planned))
        problem = f"reports/compare/*.csv are of {tables}, params.yaml plans {plan}"
        raise ConfigError(f"{problem}. Run `dvc repro compare` first.")


def _read(file: Path) -> pd.DataFrame:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such table. Run: dvc repro compare")
    try:
        return pd.read_csv(file, dtype=dict.fromkeys(WORDS, str), keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:  # no published result stands beside ours
        return pd.DataFrame()


def _links(name: str) -> str:
    kinds = {"": name, "-methods": "methods", "-paired": "seed by seed", "-conventions": "conventions"}
    kinds |= {"-published": "published", "-steps": "over steps", "-predictions": "predictions", "-cost": "cost"}
    kinds |= {"-forgetting": "forgetting", "-background": "background", "-data": "data"}
    return "<ul>" + "".join(f'<li><a href="#{name}{key}">{word}</a></li>' for key, word in kinds.items()) + "</ul>"


def _overview(methods: pd.DataFrame) -> str:
    """`all` of every method and benchmark."""
    names = list(dict.fromkeys(methods["benchmark"]))
    rows = {method: [""] * len(names) for method in dict.fromkeys(methods["method"])}
    for _, row in methods.iterrows():
        rows[row["method"]][names.index(row["benchmark"])] = score(row["all"], row["all_std"])
    note = "mIoU of all classes after the last step, each benchmark by its own convention sentence below. "
    note += "Empty: the method was not run on the benchmark, or has no score."
    return report_markup.table(
        ["method", *names], [[m, *cells] for m, cells in rows.items()]
    ) + report_markup.paragraph(note, "note")


def _family(
    folder: Path,
    name: str,
    members: list[str],
    tables: dict[str, pd.DataFrame],
    benchmarks: Mapping[str, Benchmark],
) -> str:
    runs, curves, beside = (
        table[table["benchmark"].isin(members)] if len(table) else table
        for table in (tables["runs"], tables["curves"], tables["beside_published"])
    )
    methods, means, cost = (
        table[table["benchmark"] == name].set_index("method")
        for table in (tables["methods"], tables["convention_means"], tables["cost"])
    )
    paired = tables["paired"][tables["paired"]["benchmark"] == name]
    means, cost = (table.loc[methods.index] for table in (means, cost))
    parts = [
        _what_was_run(name, members, runs, means, benchmarks),
        *(_data_notes(folder, member, len(members) > 1) for member in members),
        f'<h3 id="{escape(name)}-methods">Methods</h3>',
        _methods(methods, runs),
        _stability(name, runs),
        f'<h3 id="{escape(name)}-paired">Seed by seed</h3>',
        _paired(name, runs, paired),
        f'<h3 id="{escape(name)}-conventions">The same predictions, counted as papers count</h3>',
        _conventions(means),
        f'<h3 id="{escape(name)}-published">Beside what papers print</h3>',
        _published(beside, benchmarks[name]),
        f'<h3 id="{escape(name)}-steps">After every step</h3>',
        _curves(name, curves),
        f'<h3 id="{escape(name)}-predictions">Predictions</h3>',
        *(_predictions(folder, member) for member in members),
        f'<h3 id="{escape(name)}-cost">Cost</h3>',
        _cost(cost, list(dict.fromkeys(runs["method"]))),
    ]
    for part, title in TITLES.items():
        parts.append(f'<h3 id="{escape(name)}-{part}">{title}</h3>')
        parts += [_analysis(folder, member, part, len(members) > 1) for member in members]
    return "\n".join(parts)


def _what_was_run(
    name: str, members: list[str], runs: pd.DataFrame, means: pd.DataFrame, benchmarks: Mapping[str, Benchmark]
) -> str:
    settings = json.loads(json.dumps(asdict(benchmarks[name])))
    train = settings["train"]
    phases = (f"{train[k]['epochs']} epochs at {train[k]['lr']:g} ({k})" for k in ("base", "increment"))
    orders = runs.groupby("order", sort=False)["benchmark"].first()
    if settings["groups"]:
        settings["protocol"] += " (not used: the benchmark has groups)"
    facts = {
        "data": f"{settings['dataset']}, {steps(benchmarks[name])}, {settings['setting']}",
        "order of classes" if len(orders) == 1 else "orders of classes": "; ".join(
            f"{order}{f' ({benchmark})' if len(orders) > 1 else ''}" for order, benchmark in orders.items()
        ),
        "seeds": ", ".join(str(seed) for seed in sorted(runs["seed"].unique())),
        "network": f"{settings['model']['encoder']}, {settings['model']['decoder']}",
        "training": f"{'; '.join(phases)}; crops of {train['crop']} pixels, batches of {train['batch']}",
        "versions": _counted(runs["versions"]),
        "device": _counted(runs["device"]),
        "arithmetic": f"{_counted(runs['arithmetic'])}; processes: {_counted(runs['processes'].astype(str))}",
    }
    every = {"; ".join(members): ""} if len(members) > 1 else {}
    every |= {key: str(value) for key, value in _flat(settings).items() if not (key == "order" and len(orders) > 1)}
    counted = means[means["convention"] == "ciss"]["sentence"].iloc[0]
    return "\n".join(
        [
            report_markup.facts(facts),
            report_markup.prose(f"**How scores are counted.** {counted}"),
            f"<details><summary>Every setting of the benchmark</summary>{report_markup.facts(every)}</details>",
        ]
    )


def _data_notes(folder: Path, benchmark: str, named: bool) -> str:
    """What notebook 1 noted on the data: counts that are not the preset's, classes that a list lacks."""
    file = folder / "benchmarks" / benchmark / "data" / "data.md"
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    head = f"**Notes on the data{f' of {benchmark}' if named else ''}.**"
    return prose(f"{head}\n\n{text}") if text else ""


def _methods(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    counts = [c for c in ("seeds", "orders") if table["runs"].max() > 1]
    if (table["runs"] != table["seeds"] * table["orders"]).any():
        counts.append("runs")
    columns = [*counts, *(c for c in SCORES if table[c].notna().any())]
    return _score_table(shown(table, columns), {HEADS[c]: best(table, c) for c in columns if c in HEADS}) + "".join(
        [
            report_markup.paragraph(f"{sentence(runs_words(table))} Bold: the best, joint training apart.", "note"),
            report_markup.paragraph(" ".join(sentence(CONVENTION[c]) for c in columns if c in CONVENTION), "note"),
            *(report_markup.paragraph(f"Scores of {words}", "note") for words in undefined_words(runs)),
        ]
    )


def _score_table(texts: pd.DataFrame, bold: dict[str, set[str]]) -> str:
    """Methods by row, joint training last and apart."""
    methods = sorted(texts.index, key=is_joint)
    rows = [[method, *texts.loc[method]] for method in methods]
    marked = {
        (k, c)
        for k, method in enumerate(methods)
        for c, column in enumerate(texts.columns, start=1)
        if method in bold.get(column, ())
    }
    apart = {k for k, method in enumerate(methods) if figures_style.is_joint(method) and k}
    return report_markup.table(["method", *texts.columns], rows, bold=marked, apart=apart)


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
        return report_markup.paragraph(
            "No two methods share more than one seed and order, so no difference has an interval."
        )
    methods = runs["method"].nunique()
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 0.9 + 0.3 * methods), layout="constrained")
    paired_points(axes, runs, pairs)
    words = (
        "Differences between two methods on the same seed and order of classes: mean, its 95 % interval (Student's t), "
        "and in how many pairs it is above 0. Each interval is for itself: of many, some leave 0 out by chance. Less "
        "forgetting is better."
    )
    parts = [report_markup.paragraph(words, "note")]
    for against in REFERENCES:
        if against in set(pairs["against"]):
            parts += [f"<h4>Minus {against}</h4>", _score_table(differences(pairs, against), {})]
    caption = "all, against both: a dot a seed (and order), and the 95 % interval of their mean."
    parts.append(report_markup.picture(figure, f"{name}: paired differences in mIoU by method", caption))
    every = _score_table(every_difference(pairs), {})
    note = paragraph("Row minus column in all; a star: the 95 % interval is on one side of 0.", "note")
    return "\n".join([*parts, f"<details><summary>Every two methods</summary>{every}{note}</details>"])


def _conventions(means: pd.DataFrame) -> str:
    names, columns, bold = list(dict.fromkeys(means["convention"])), {}, {}
    for name in names:
        column = means[means["convention"] == name]
        columns[name] = shown(column, ["all"])["all"]
        bold[name] = best(column, "all")
    note = "all, after the last step. What differs between columns differs between papers too."
    if means["all"].isna().any():
        note += " Empty: no class counts under the convention (mbs drops classes with an IoU of 0)."
    items = [f"- **{name}**: {means[means['convention'] == name]['sentence'].iloc[0]}" for name in names]
    return (
        _score_table(pd.DataFrame(columns), bold)
        + report_markup.paragraph(note, "note")
        + f"<details><summary>What each convention counts</summary>{report_markup.prose(chr(10).join(items))}</details>"
    )


def _published(beside: pd.DataFrame, benchmark: Benchmark) -> str:
    if beside.empty:
        return report_markup.paragraph(why_none_published(benchmark))
    columns = [c for c in beside.columns if beside[c].notna().any()]
    words = {"backbone", "convention", "resolution", "differs", "source"}
    rows = [["" if pd.isna(row[c]) else _short(row[c]) for c in columns] for _, row in beside.iterrows()]
    note = "In percent. Ours stand there only where convention and resolution are the same; differs: what else is not."
    heads = [c.replace("_", " ") for c in columns]
    text = {k for k, c in enumerate(columns) if c in words}
    return report_markup.table(heads, rows, text=text) + report_markup.paragraph(note, "note")


def _curves(name: str, curves: pd.DataFrame) -> str:
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 2.7), sharey=True)
    figure.subplots_adjust(left=0.07, right=0.83, bottom=0.2, top=0.9, wspace=0.15)
    score_curves(axes, curves)
    caption = (
        "mIoU after every step, means over runs; whiskers: one standard deviation, where there are several runs. "
        "all counts the background, where the data set has one."
    )
    return report_markup.picture(
        figure, f"{name}: mIoU of all, old and new classes after every step, by method", caption
    )


def _predictions(folder: Path, benchmark: str) -> str:
    place = folder / "compare" / "predictions"
    places = {
        place / f"{benchmark}.png": "what each method says of the same images after the last step",
        place / f"{benchmark}.steps.png": "the same images after every step; classes that come later, which are not "
        "scored yet, are void in the row of the truth",
    }
    return "\n".join(
        report_markup.picture(file, f"{benchmark}: {words}", f"{benchmark}: {words}. One seed.")
        for file, words in places.items()
        if file.is_file()
    )


def _cost(table: pd.DataFrame, order: list[str]) -> str:
    """`order`: of the methods in other figures, which gives each its colour."""
    texts = pd.DataFrame(
        {
            "training, s": shown(table, ["training_seconds"], 1)["training_seconds"],
            "preparation, s": shown(table, ["preparation_seconds"], 1)["preparation_seconds"],
            "base, s": shown(table, ["base_seconds"], 1)["base_seconds"],
            "memory, MiB": shown(table, ["peak_memory_mib"], 0)["peak_memory_mib"],
            "parameters": [f"{count:,.0f}" for count in table["parameters"]],
            **{
                column: [f"{value:.2f}" if value == value else "" for value in table[f"relative_{short}"]]
                for column, short in {"× time": "time", "× memory": "memory", "× param.": "parameters"}.items()
            },
        }
    )
    figure, axes = plt.subplots(1, 3, figsize=(9, 0.7 + 0.32 * len(table)))
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.62 / (0.7 + 0.32 * len(table)), top=0.98, wspace=0.2)
    cost_bars(axes, table.loc[order])
    note = (
        "Training: seconds of the method's own steps, preparation (what passes over the data before them) among them, "
        "without the base step that they share (base). Memory: the peak, of the GPU, or of the process on a CPU. ×: as "
        f"a multiple of finetune{'' if 'finetune' in order else ', which was not run here'}. Seconds of different "
        f"devices cannot be compared; here: {table['devices'].max()} device(s) a method."
    )
    return (
        _score_table(texts, {})
        + report_markup.paragraph(note, "note")
        + report_markup.picture(figure, "training seconds, peak memory and parameters by method", "The same as bars.")
    )


def _analysis(folder: Path, benchmark: str, part: str, named: bool) -> str:
    """Findings and figures of one notebook."""
    place = folder / "benchmarks" / benchmark / part
    parts = [f"<h4>{escape(benchmark)}</h4>"] if named else []
    if part != "data" and (text := place / f"{part}.md").is_file():  # notes on data stand at the top
        parts.append(report_markup.prose(text.read_text(encoding="utf-8")))
    left_out: dict[str, list[str]] = {}
    for file, caption in saved(place).items():
        if sentences := only_note(file):
            left_out.setdefault(sentences, []).append(file.stem.replace("_", " "))
            continue
        parts.append(report_markup.picture(file, f"{benchmark}: {caption}", caption))
    for sentences, figures in left_out.items():
        parts.append(report_markup.paragraph(f"{sentences} Left out: {report_notes.figures(figures)}.", "note"))
    return "\n".join(parts) or report_markup.paragraph("Not here: its stage has not run.", "note")


def _flat(settings: dict, place: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": value}
    return found


def _counted(column: pd.Series) -> str:
    counts = column.value_counts(sort=False)
    if len(counts) == 1:
        return str(counts.index[0])
    return "; ".join(f"{value} ({count} of {len(column)} runs)" for value, count in counts.items())


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
