"""The tables for a paper: `\\input{tables.tex}` after `\\usepackage{booktabs}`."""

import math

import pandas as pd

from ciss.analysis.compare.cells import (
    DEFINITIONS,
    PERCENT,
    about_pairs,
    best_methods,
    describe_runs,
    differences,
    heading,
    in_percent,
    memory_note,
    number,
    sentence,
)
from ciss.analysis.compare.figures import REFERENCES
from ciss.analysis.figures.families import block

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "`": "", '"': "''",
}  # fmt: skip
SCORES = ("all", "old", "new", "harmonic", "forgetting", "mean_over_steps")
NEEDS = "% Needs \\usepackage{booktabs}."
PAIRED = (
    "differences in \\emph{all} on the same seed and order of classes, in percentage points: mean, its 95\\,\\% "
    "interval by Student's t, and pairs above zero. Each interval is for itself. "
)
CONVENTIONS = (
    "\\emph{all} in percent, of the same predictions after the last step, under the counting rules of published papers."
)
COST = (
    "cost. Update: median milliseconds of one update over the epochs. Training: seconds of the method's own steps, "
    "without the base step; preparation: of passes over the data before the steps, part of them; peak memory in MiB; "
    "parameters after the last step; $\\times$: as a multiple of fine-tuning."
)


def escape(text: str) -> str:
    """Text as LaTeX prints it. Characters that a plain LaTeX font may lack become question marks."""
    words = " ".join(text.split())
    return "".join(SPECIAL.get(c, c if c.isascii() and c.isprintable() else "?") for c in words)


def tables(methods: pd.DataFrame, paired: pd.DataFrame, conventions: pd.DataFrame, sentences: dict[str, str]) -> str:
    """Tables for each benchmark, in percent: methods, differences to REFERENCES (of several pairs), conventions.

    Of several runs, the best incremental method of a column is bold. Stored images and joint training are blocks of
    their own.

    Args:
        methods: `methods_table` of all benchmarks, see `by_benchmark`.
        paired: `paired_table`.
        conventions: `convention_means` of all benchmarks, see `by_benchmark`.
        sentences: the convention as a sentence, by benchmark.
    """
    blocks = [f"{NEEDS} Written by notebooks/6_compare.ipynb."]
    for name, rows in methods.groupby("benchmark", sort=False):
        rows = rows.set_index("method")
        explained = [sentence(text) for column, text in DEFINITIONS.items() if column in SCORES]
        caption = escape(" ".join([in_percent(sentences[name]), sentence(describe_runs(rows)), *explained]))
        blocks.append(_table(name, "methods", f"methods after the last step. {caption}", _methods(rows)))
        pairs = paired[(paired["benchmark"] == name) & paired["against"].isin(REFERENCES)]
        if pairs["pairs"].max() > 1:
            blocks.append(_table(name, "paired", PAIRED + about_pairs(pairs), _paired(pairs, rows.index)))
        scores = conventions[conventions["benchmark"] == name].groupby("convention", sort=False)
        columns = {convention: _scores(group.set_index("method"), "all") for convention, group in scores}
        blocks.append(_table(name, "conventions", CONVENTIONS, pd.DataFrame(columns).loc[rows.index]))
    return "\n\n".join(blocks) + "\n"


def cost_tables(costs: dict[str, pd.DataFrame]) -> str:
    """A table of cost for each benchmark. `costs`: `cost_table` by benchmark."""
    blocks = [_table(name, "cost", COST, _cost(table)) for name, table in costs.items()]
    return "\n\n".join([f"{NEEDS} Written by: ciss report.", *blocks]) + "\n"


def _methods(rows: pd.DataFrame) -> pd.DataFrame:
    counts = [name for name in ("seeds", "orders") if rows[name].nunique() > 1]  # else the caption has them
    texts = rows[counts].astype(str)
    for name in SCORES:
        texts["over steps" if name == "mean_over_steps" else heading(name)] = _scores(rows, name)
    return texts


def _paired(pairs: pd.DataFrame, methods: pd.Index) -> pd.DataFrame:
    present = [against for against in REFERENCES if against in set(pairs["against"])]
    columns = {f"minus {against}": differences(pairs, against)["all"].map(_math) for against in present}
    return pd.DataFrame(columns).reindex(methods).fillna("--")


def _math(text: str) -> str:
    """A difference in mathematics, so that its minus signs are no hyphens."""
    return "$" + text.replace(" ", r"\ ") + "$" if text else "--"


def _cost(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "update": _numbers(rows, "update_seconds", 0, 1e-3),
            "training": _numbers(rows, "training_seconds", 1),
            "preparation": _numbers(rows, "preparation_seconds", 1),
            "memory": _numbers(rows, "peak_memory_mib", 0),
            "parameters": [f"{count:,.0f}".replace(",", r"\,") for count in rows["parameters"]],
            "× update": _numbers(rows, "relative_update", 2),
            "× memory": _numbers(rows, "relative_memory", 2),
        }
    )


def _scores(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column of scores as text, the best methods in bold."""
    best = best_methods(rows, column)
    texts = _numbers(rows, column, 1, PERCENT)
    bold = texts.str.replace(r"^\$([^_$]*)", r"$\\mathbf{\1}", regex=True)
    return texts.where([method not in best for method in rows.index], bold)


def _numbers(rows: pd.DataFrame, column: str, digits: int, unit: float = 1) -> pd.Series:
    """A column of means as text in a unit, with the deviations if there are any."""
    deviations = rows.get(f"{column}_std", pd.Series(math.nan, index=rows.index))
    texts = []
    for mean, deviation in zip(rows[column], deviations, strict=True):
        value, _, spread = number(mean / unit, deviation / unit, digits).partition(" ± ")
        texts.append(f"${value}_{{\\pm {spread}}}$" if spread else f"${value}$" if value else "--")
    return pd.Series(texts, index=rows.index)


def _table(benchmark: str, kind: str, caption: str, texts: pd.DataFrame) -> str:
    """A table of texts by method. Methods with stored images and joint training are blocks with a line above them."""
    texts = texts.loc[sorted(texts.index, key=block)]
    blocks = [block(method) for method in texts.index]
    caption = " ".join([caption, *memory_note(texts.index)])
    texts = texts.rename(index=escape, columns=escape).rename_axis("method").reset_index()
    layout = {
        "column_format": f"l{'r' * (len(texts.columns) - 1)}",
        "label": f"tab:{benchmark}-{kind}".replace("_", "-"),
    }
    caption = f"{escape(benchmark)}: {caption}"
    lines = texts.to_latex(index=False, escape=False, caption=caption, **layout).splitlines()
    lines.insert(2, r"\medskip")
    lines.insert(1, r"\centering\footnotesize\setlength{\tabcolsep}{4pt}")
    first = len(lines) - 3 - len(blocks)  # three lines of the end
    for row in range(len(blocks) - 1, 0, -1):
        if blocks[row] != blocks[row - 1]:
            lines.insert(first + row, r"\midrule")
    return "\n".join(lines)
