"""Numbers of tables as text."""

import math
from collections.abc import Iterable

import pandas as pd

from ciss.analysis.figures.families import block, has_memory
from ciss.analysis.words import rounded
from ciss.data.stored import BREAKS_PROTOCOL

PERCENT = 0.01  # tables hold scores from 0 to 1
LOWER_IS_BETTER = {"forgetting"}
DEFINITIONS = {  # of columns, in addition to the sentence on the convention
    "harmonic": "harmonic: 2 old new / (old + new)",
    "forgetting": "forgetting: best earlier IoU minus the last, mean over old classes without the background",
    "backward_transfer": "backward transfer: last IoU minus that after the step that brought the class, the same mean",
    "mean_over_steps": "mean over steps: mean of 'all' after every step, the base step too",
}


def heading(column: str) -> str:
    """The printed name of a column."""
    return column.replace("_", " ")


def in_percent(convention: str) -> str:
    """The sentence of a convention, for scores that are shown in percent."""
    return convention.replace("in 0..1", "in percent")


def number(mean: float, deviation: float = math.nan, digits: int = 1) -> str:
    """A mean and, of several runs, its standard deviation; empty for a mean that is undefined."""
    if not math.isfinite(mean):
        return ""
    text = rounded(mean, digits)
    return f"{text} ± {rounded(deviation, digits)}" if math.isfinite(deviation) else text


def formatted(table: pd.DataFrame, columns: list[str], digits: int = 1, unit: float = PERCENT) -> pd.DataFrame:
    """Some columns of a table as text, in a unit. A mean has its deviation (column `<name>_std`, if there is one).
    Whole numbers stay."""
    texts = {}
    for name in columns:
        deviations = table.get(f"{name}_std", pd.Series(math.nan, index=table.index))
        if pd.api.types.is_integer_dtype(table[name]):
            texts[name] = table[name].astype(str)
        else:
            pairs = zip(table[name] / unit, deviations / unit, strict=True)
            texts[name] = [number(*pair, digits) for pair in pairs]
    return pd.DataFrame(texts, index=table.index).rename(columns=heading)


def best_methods(table: pd.DataFrame, column: str) -> set[str]:
    """Methods with the best printed mean of a column over several runs; none if all are equal, and none from one run,
    where small differences may be chance. Joint training and methods with stored images do not count."""
    if table["runs"].max() < 2:
        return set()
    values = table.loc[[block(method) == 0 for method in table.index], column].dropna().round(3)
    if values.nunique() < 2:
        return set()
    best = values.min() if column in LOWER_IS_BETTER else values.max()
    return set(values.index[values == best])


def difference(row: pd.Series) -> str:
    """A row of `paired_table` as text: the mean difference. Of several pairs also its 95 % interval and how many pairs
    are above 0."""
    if row["pairs"] < 2:
        return signed(row["mean"])
    return f"{signed(row['mean'])} [{signed(row['low'])}, {signed(row['high'])}] {row['above']}/{row['pairs']}"


def differences(pairs: pd.DataFrame, against: str) -> pd.DataFrame:
    """A benchmark's differences to one method as text: methods by row, metrics by column. `pairs`: `paired_table`."""
    pairs = pairs[pairs["against"] == against]
    return _pivot(pairs, "metric", [difference(row) for _, row in pairs.iterrows()])


def all_differences(pairs: pd.DataFrame, metric: str = "all") -> pd.DataFrame:
    """A benchmark's mean differences in one metric as text: the method of the row minus that of the column. A star:
    the p-value of all pairs together (`p_holm`) is below 0.05. `pairs`: `paired_table`."""
    pairs = pairs[pairs["metric"] == metric]
    texts = [signed(row["mean"]) + "*" * (row["p_holm"] < 0.05) for _, row in pairs.iterrows()]
    table = _pivot(pairs, "against", texts)
    return table[table.index]


def evidence(pairs: pd.DataFrame, against: str, metric: str = "all") -> pd.DataFrame:
    """What several orders of classes say of a benchmark's differences to one method, as text: a row for each method,
    in percentage points. `pairs`: `paired_table`. No rows without a pair of two orders."""
    rows = pairs[(pairs["against"] == against) & (pairs["metric"] == metric) & pairs["p"].notna()].set_index("method")
    intervals = {"95 % by t": "", "by bootstrap": "boot_", "of all pairs together": "together_"}
    texts = {"orders": rows["pairs"].astype(str), "difference": rows["mean"].map(signed)}
    for head, name in intervals.items():
        bounds = zip(rows[f"{name}low"], rows[f"{name}high"], strict=True)
        texts[head] = [f"[{signed(low)}, {signed(high)}]" for low, high in bounds]
    texts["p (Holm)"] = ["<0.001" if p < 0.001 else f"{p:.3f}" for p in rows["p_holm"]]
    texts["smallest visible"] = [f"{value / PERCENT:.1f}" for value in rows["visible"]]
    return pd.DataFrame(texts, index=rows.index)


def about_pairs(pairs: pd.DataFrame) -> str:
    """What the differences of a benchmark are over, in a sentence or two. `pairs`: `paired_table`."""
    if (pairs["over"] == "orders").any():
        return "A pair is an order of classes: seeds of an order are averaged."
    return "A pair is a seed. All are of one order of classes, so nothing is said of other orders: no p-value, no star."


def signed(value: float) -> str:
    """A difference of scores in percentage points."""
    return f"{round(value / PERCENT, 1) + 0.0:+.1f}"


def _pivot(rows: pd.DataFrame, column: str, texts: list[str]) -> pd.DataFrame:
    """Texts of rows by method and another column, in the order of the rows. Cells without a row are empty."""
    table = rows.assign(text=texts).pivot(index="method", columns=column, values="text")
    return table.loc[rows["method"].unique(), rows[column].unique()].fillna("")


def describe_runs(table: pd.DataFrame) -> str:
    """What the rows of `methods_table` are: "mean ± sample standard deviation over 6 runs (3 seeds, ...)"."""
    counts = table[["runs", "seeds", "orders"]].drop_duplicates()
    if len(counts) > 1:
        return "mean ± sample standard deviation over the runs that each row counts"
    runs, seeds, orders = (int(number) for number in counts.iloc[0])
    if runs == 1:
        return "one run each (one seed, one order of classes): small differences may be chance"
    several = f"{seeds} seed{'s' * (seeds > 1)}, {orders} order{'s' * (orders > 1)} of classes"
    return f"mean ± sample standard deviation over {runs} runs ({several})"


def memory_note(methods: Iterable[str]) -> list[str]:
    """What rows with stored images are; nothing without such rows."""
    if not any(map(has_memory, methods)):
        return []
    return [f"{BREAKS_PROTOCOL}: compare them with each other. They are in a block of their own, and none is bold."]


def undefined_scores(runs: pd.DataFrame) -> list[str]:
    """Why scores of `runs_table` are undefined: a line for each reason, with its methods."""
    with_reason = runs[runs["undefined"].fillna("") != ""]
    methods = with_reason.groupby("undefined", sort=False)["method"].unique()
    return [f"{', '.join(names)}: {text}" for text, names in methods.items()]


def distinct_values(column: pd.Series) -> str:
    """The values of a column; if there are several, each with the number of its rows."""
    counts = column.value_counts(sort=False)
    if len(counts) == 1:
        return str(counts.index[0])
    return "; ".join(f"{value} ({count} of {len(column)} runs)" for value, count in counts.items())


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
