"""`reports/report.html`: all results of the analyses in one file. Its texts are in `templates/page.html`."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from ciss.analysis.compare import cells
from ciss.analysis.compare.figures import (
    REFERENCES,
    convention_slopes,
    paired_points,
    score_curves,
    stability_scatter,
)
from ciss.analysis.figures.style import only_note, saved
from ciss.analysis.reasons import NOT_LEARNT
from ciss.config import Benchmark
from ciss.documents import ConfigError, counted
from ciss.study.report.markup import render
from ciss.study.report.notes import classes_of_steps, coefficients, descriptions, why_none_published, without_letters

NAMED_CLASSES = 30  # the most classes that are named in an order of classes
SCORES = ["all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps"]
TABLES = ("runs", "curves", "methods", "paired", "convention_means", "beside_published")
# columns of text, also for names such as 007 and NA
TEXT_COLUMNS = (
    "benchmark",
    "benchmarks",
    "end",
    "method",
    "against",
    "convention",
    "order",
    "class_order",
    "arithmetic",
    "undefined",
    "over",
)
COST = "<!-- cost of benchmark {} -->"  # in the template; `with_costs` puts a section here


def page(folder: Path, benchmarks: Mapping[str, Benchmark], sections: Mapping[str, Mapping]) -> str:
    """The page without the sections on cost, which `with_costs` adds. The same tables and figures give the same bytes.

    Args:
        folder: `reports/`, with tables and figures.
        benchmarks: those that the plan compares, by name.
        sections: by benchmark, the sections of the parameter file for the methods that the plan trains on it.

    Raises: FileNotFoundError naming a table that is missing, ConfigError for tables of other benchmarks.
    """
    tables = {name: read_table(folder / "compare" / f"{name}.csv") for name in TABLES}
    methods = tables["methods"]
    families = methods.groupby("benchmark", sort=False)["benchmarks"].first().str.split()
    members = families.sum() if len(families) else []
    if set(members) != set(benchmarks):
        tabled, planned = (", ".join(map(repr, names)) or "no benchmark" for names in (members, benchmarks))
        problem = f"reports/compare/*.csv are of {tabled}, params.yaml plans {planned}"
        raise ConfigError(f"{problem}. Run `dvc repro compare` first.")
    overview = methods.assign(text=cells.formatted(methods, ["all"])["all"])
    overview = overview.pivot(index="method", columns="benchmark", values="text").fillna("")
    return render(
        "page.html",
        names=list(families.index),
        analyses=_analyses(folder, members),
        without_letters=without_letters(folder, members),
        memory_note=" ".join(cells.memory_note(methods["method"])),
        overview=overview.loc[methods["method"].unique(), list(families.index)],
        # a generator: only the figures of one benchmark are open at a time
        benchmarks=(
            _benchmark(folder, name, names, tables, benchmarks[name])
            | {
                "coefficients": coefficients(
                    {key: value for member in names for key, value in sections[member].items()}
                )
            }
            for name, names in families.items()
        ),
    )


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


def _benchmark(
    folder: Path, name: str, members: list[str], tables: dict[str, pd.DataFrame], benchmark: Benchmark
) -> dict[str, Any]:
    """What the template shows of one family of benchmarks. Its `members` differ in their order of classes only."""
    runs, curves, published = (
        table[table["benchmark"].isin(members)] if len(table) else table
        for table in (tables["runs"], tables["curves"], tables["beside_published"])
    )
    methods, means = (
        table[table["benchmark"] == name].set_index("method")
        for table in (tables["methods"], tables["convention_means"])
    )
    pairs = tables["paired"][tables["paired"]["benchmark"] == name]
    conventions = dict(list(means.loc[methods.index].groupby("convention", sort=False)))
    predictions = folder / "compare" / "predictions"
    return {
        "name": name,
        "summary": _summary(benchmark, runs),
        "settings": _settings(benchmark, runs),
        "data_notes": [note for member in members if (note := _data_note(folder, member, len(members) > 1))],
        "warning": NOT_LEARNT if _nothing_learnt(curves) else None,
        **_methods(methods, runs),
        "stability": _stability(runs),
        "paired": _paired(runs, pairs) if pairs["pairs"].max() > 1 else None,
        "conventions": pd.DataFrame({key: cells.formatted(rows, ["all"])["all"] for key, rows in conventions.items()}),
        "best_by_convention": {key: cells.best_methods(rows, "all") for key, rows in conventions.items()},
        "slopes": _slopes(means),
        "sentences": {key: cells.in_percent(rows["sentence"].iloc[0]) for key, rows in conventions.items()},
        "without_class": means["all"].isna().any(),
        "published": published.dropna(axis="columns", how="all").map(_one_digit).rename(columns=cells.heading),
        "why_none_published": why_none_published(benchmark),
        "curves": _curves(curves),
        "predictions": [(m, predictions / f"{m}.png", predictions / f"{m}.steps.png") for m in members],
        "analyses": {key: [_analysis(folder, member, key) for member in members] for key in _analyses(folder, members)},
    }


def _nothing_learnt(curves: pd.DataFrame) -> bool:
    """Whether no base step of a family has learnt any of its classes."""
    scores = curves.loc[curves["step"] == 0, "old"].dropna()
    return len(scores) > 0 and not scores.any()


def _analyses(folder: Path, benchmarks: Iterable[str]) -> list[str]:
    """Names of the analyses: those of this project in the order of the page, then every other folder of results."""
    folders = {
        path.name for name in benchmarks for path in (folder / "benchmarks" / name).glob("[!.]*") if path.is_dir()
    }
    return list(dict.fromkeys(("forgetting", "background", *sorted(folders - {"data"}), "data")))


def _summary(benchmark: Benchmark, runs: pd.DataFrame) -> dict[str, str]:
    train = benchmark.train
    phases = {"base": train.base, "increment": train.increment}
    epochs = "; ".join(f"{counted(phase.epochs, 'epoch')} at {phase.lr:g} ({name})" for name, phase in phases.items())
    orders = runs.groupby("order", sort=False).first()
    texts = orders["class_order"]
    if len(orders.index[0].split()) > NAMED_CLASSES:
        texts = "raw ids " + orders.index.to_series()
    texts = [f"{text} ({orders['benchmark'][order]})" if len(orders) > 1 else text for order, text in texts.items()]
    return {
        "data": f"{benchmark.dataset}, {classes_of_steps(benchmark)}, {benchmark.setting}",
        "orders of classes" if len(orders) > 1 else "order of classes": "; ".join(texts),
        "seeds": ", ".join(str(seed) for seed in sorted(runs["seed"].unique())),
        "network": f"{benchmark.model.encoder}, {benchmark.model.decoder}",
        "training": f"{epochs}; crops of {train.crop} pixels, batches of {train.batch}",
        **{name: cells.distinct_values(runs[name].astype(str)) for name in ("versions", "arithmetic", "processes")},
    }


def _settings(benchmark: Benchmark, runs: pd.DataFrame) -> dict[str, str]:
    settings = pd.json_normalize(json.loads(json.dumps(asdict(benchmark)))).iloc[0].map(str).to_dict()
    if benchmark.groups:
        settings["protocol"] += " (not used: the benchmark has groups)"
    if runs["order"].nunique() > 1:
        settings["order"] = "see above"
    return settings


def _data_note(folder: Path, benchmark: str, several: bool) -> str:
    """The notes of notebook 1 on the data: image counts that differ from the preset's, classes without an image."""
    file = folder / "benchmarks" / benchmark / "data" / "data.md"
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    noted = text not in ("", "Nothing to note.")
    return f"**Notes on the data{f' of {benchmark}' if several else ''}.**\n\n{text}" if noted else ""


def _methods(methods: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Any]:
    counts = ["seeds", "orders"] if methods["runs"].max() > 1 else []
    if (methods["runs"] != methods["seeds"] * methods["orders"]).any():
        counts.append("runs")
    scores = [name for name in SCORES if methods[name].notna().any()]
    bold = " Bold: the best mean, without joint training." if methods["runs"].max() > 1 else ""
    notes = [
        f"In percent. {cells.sentence(cells.describe_runs(methods))}{bold}",
        " ".join(cells.sentence(cells.DEFINITIONS[name]) for name in scores if name in cells.DEFINITIONS),
        *cells.memory_note(methods.index),
        *(["Adapted: on another decoder than the published one."] * any("adapted" in name for name in methods.index)),
        *(f"Scores of {text}" for text in cells.undefined_scores(runs)),
    ]
    return {
        "methods": cells.formatted(methods, [*counts, *scores]),
        "best": {cells.heading(name): cells.best_methods(methods, name) for name in scores},
        "descriptions": descriptions(methods.index),
        "method_notes": notes,
    }


def _stability(runs: pd.DataFrame) -> plt.Figure:
    figure, ax = plt.subplots(figsize=(4.8, 4.4))
    figure.subplots_adjust(left=0.13, right=0.86, bottom=0.12, top=0.97)
    stability_scatter(ax, runs)
    return figure


def _paired(runs: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 0.9 + 0.3 * runs["method"].nunique()), layout="constrained")
    paired_points(axes, runs, pairs)
    present = [against for against in REFERENCES if against in set(pairs["against"])]
    return {
        "figure": figure,
        "about": cells.about_pairs(pairs),
        "to_references": {against: cells.differences(pairs, against) for against in present},
        "evidence": {against: cells.evidence(pairs, against) for against in present if pairs["p"].notna().any()},
        "all_pairs": cells.all_differences(pairs),
    }


def _one_digit(value: object) -> str:
    return "" if pd.isna(value) else f"{value:.1f}" if isinstance(value, float) else str(value)


def _curves(curves: pd.DataFrame) -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(9.4, 2.9), sharey=True)
    figure.subplots_adjust(left=0.07, right=0.9, bottom=0.2, top=0.9, wspace=0.55)
    score_curves(axes, curves)
    return figure


def _slopes(means: pd.DataFrame) -> plt.Figure:
    figure, ax = plt.subplots(figsize=(6, 3.2))
    figure.subplots_adjust(left=0.1, right=0.8, bottom=0.16, top=0.97)
    convention_slopes(ax, means.set_index("convention", append=True))
    return figure


def _analysis(folder: Path, benchmark: str, key: str) -> dict[str, Any]:
    """Findings and figures of one notebook. Figures that hold only sentences are left out: their titles by sentence."""
    results = folder / "benchmarks" / benchmark / key
    findings = results / f"{key}.md"
    figures, left_out = {}, {}
    for file, caption in saved(results).items():
        if sentences := only_note(file):
            left_out.setdefault(sentences, []).append(cells.heading(file.stem))
        else:
            figures[file] = caption
    shown = key != "data" and findings.is_file()  # the notes on the data are above the scores
    text = findings.read_text(encoding="utf-8") if shown else ""
    empty = not (figures or left_out or findings.is_file())
    return {"benchmark": benchmark, "findings": text, "figures": figures, "left_out": left_out, "empty": empty}
