"""The tables for a paper: `\\input{tables.tex}` after `\\usepackage{booktabs}`."""

import math

import pandas as pd

from ciss.analysis.compare.cells import CONVENTION, HEADS, best, differences, runs_words, score, sentence
from ciss.analysis.compare.figures import REFERENCES
from ciss.analysis.figures.style import is_joint

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "`": "", '"': "''",
}  # fmt: skip
SCORES = ("all", "old", "new", "harmonic", "forgetting", "mean_over_steps")
NEEDS = "% Needs \\usepackage{booktabs}."


def escape(text: str) -> str:
    """Text as LaTeX prints it; characters that a plain LaTeX font may lack become question marks."""
    words = " ".join(text.split())
    return "".join(SPECIAL.get(c, c if c.isascii() and c.isprintable() else "?") for c in words)


def tables(
    methods: pd.DataFrame,
    paired: pd.DataFrame,
    conventions: pd.DataFrame,
    sentences: dict[str, str],
) -> str:
    """Tables for each benchmark: methods, differences to finetune and mib where there are several pairs, conventions.
    The best incremental method of a column is bold; joint training stands apart. `sentences`: the convention in words,
    by benchmark.

    `paired`: `analysis.paired_table`. The others as `analysis.by_benchmark` gives `methods_table` and
    `convention_means`.
    """
    parts = [f"{NEEDS} Written by notebooks/6_compare.ipynb."]
    for name, mine in methods.groupby("benchmark", sort=False):
        mine, every = mine.set_index("method"), f"{escape(name)}: "
        explained = [sentence(CONVENTION[c]) for c in SCORES if c in CONVENTION]
        words = escape(" ".join([sentences[name], sentence(runs_words(mine)), *explained]))
        parts.append(_methods(name, mine, f"{every}methods after the last step. {words}"))
        pairs = paired[(paired["benchmark"] == name) & paired["against"].isin(REFERENCES)]
        if pairs["pairs"].max() > 1:
            parts.append(_paired(name, pairs, list(mine.index), every))
        caption = f"{every}\\emph{{all}} of the same predictions, after the last step, as different papers count it."
        parts.append(_conventions(name, _like(conventions, name, mine.index), caption))
    return "\n\n".join(parts) + "\n"


def cost_tables(costs: dict[str, pd.DataFrame]) -> str:
    """A table for each benchmark of what its methods take. `costs`: `cost_table` by benchmark."""
    parts = [_cost(name, table, f"{escape(name)}: ") for name, table in costs.items()]
    return "\n\n".join([f"{NEEDS} Written by: ciss report.", *parts]) + "\n"


def _like(table: pd.DataFrame, name: str, methods: pd.Index) -> pd.DataFrame:
    """A benchmark's rows, their methods in this order."""
    mine = table[table["benchmark"] == name]
    return mine.sort_values("method", key=lambda column: column.map(methods.get_loc), kind="stable")


def _methods(name: str, table: pd.DataFrame, caption: str) -> str:
    counts = [c for c in ("seeds", "orders") if table[c].nunique() > 1]  # else the caption says it
    bold = {column: best(table, column) for column in SCORES}
    head = ["method", *counts, *("over steps" if c == "mean_over_steps" else HEADS[c] for c in SCORES)]
    rows = {
        method: [
            *(str(int(row[c])) for c in counts),
            *(_number(row[c], row[f"{c}_std"], 3, method in bold[c]) for c in SCORES),
        ]
        for method, row in table.iterrows()
    }
    return _table(f"{name}-methods", caption, head, rows)


def _paired(name: str, pairs: pd.DataFrame, methods: list[str], every: str) -> str:
    caption = (
        f"{every}differences in \\emph{{all}} on the same seed and order of classes: mean, its 95\\,\\% interval by "
        "Student's t, and pairs above zero. Each interval is for itself."
    )
    found = {against: differences(pairs, against)["all"] for against in REFERENCES if against in set(pairs["against"])}
    rows = {method: [_math(column.get(method, "")) for column in found.values()] for method in methods}
    return _table(f"{name}-paired", caption, ["method", *(f"minus {against}" for against in found)], rows)


def _math(text: str) -> str:
    """A difference: its minus signs are no hyphens."""
    return "$" + text.replace(" ", r"\ ") + "$" if text else "--"


def _conventions(name: str, counted: pd.DataFrame, caption: str) -> str:
    names = list(dict.fromkeys(counted["convention"]))
    table = counted.set_index(["method", "convention"])
    rows: dict[str, list[str]] = {}
    for convention in names:
        column = table.xs(convention, level="convention")
        top = best(column, "all")
        for method, row in column.iterrows():
            rows.setdefault(method, []).append(_number(row["all"], row["all_std"], 3, method in top))
    return _table(f"{name}-conventions", caption, ["method", *names], rows)


def _cost(name: str, table: pd.DataFrame, every: str) -> str:
    caption = (
        f"{every}cost. Training: seconds of the method's own steps, without the base step; preparation: of passes "
        "over the data before the steps, part of them; peak memory in MiB; parameters after the last step; "
        "$\\times$: as a multiple of fine-tuning."
    )
    head = ["method", "training", "preparation", "memory", "parameters", "× time", "× memory"]
    rows = {
        method: [
            _number(row["training_seconds"], row["training_seconds_std"], 1),
            _number(row["preparation_seconds"], row["preparation_seconds_std"], 1),
            _number(row["peak_memory_mib"], row["peak_memory_mib_std"], 0),
            f"{row['parameters']:,.0f}".replace(",", r"\,"),
            *(_number(row[f"relative_{c}"], math.nan, 2) for c in ("time", "memory")),
        ]
        for method, row in table.iterrows()
    }
    return _table(f"{name}-cost", caption, head, rows)


def _number(mean: float, deviation: float, digits: int, bold: bool = False) -> str:
    value, _, spread = score(mean, deviation, digits).partition(" ± ")
    if not value:
        return "--"
    value = f"\\mathbf{{{value}}}" if bold else value
    return f"${value}_{{\\pm {spread}}}$" if spread else f"${value}$"


def _table(label: str, caption: str, head: list[str], rows: dict[str, list[str]]) -> str:
    ordered = sorted(rows, key=is_joint)
    cells = [[escape(method), *rows[method]] for method in ordered]
    table = pd.DataFrame(cells, columns=[escape(name) for name in head])
    layout = {"column_format": f"l{'r' * (len(head) - 1)}", "label": f"tab:{label.replace('_', '-')}"}
    lines = table.to_latex(index=False, escape=False, caption=caption, **layout).splitlines()
    lines.insert(2, r"\medskip")
    lines.insert(1, r"\centering\footnotesize\setlength{\tabcolsep}{4pt}")
    if 0 < (joint := sum(map(is_joint, rows))) < len(rows):
        lines.insert(-3 - joint, r"\midrule")  # before the three lines of the end
    return "\n".join(lines)
