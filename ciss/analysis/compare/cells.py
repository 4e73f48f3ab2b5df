"""Numbers as text."""

import math

import pandas as pd

from ciss.analysis.figures.style import is_joint

HEADS = {
    "all": "all",
    "old": "old",
    "new": "new",
    "harmonic": "harmonic",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "mean_over_steps": "mean over steps",
}
LOWER_IS_BETTER = {"forgetting"}
CONVENTION = {  # what tables say of their columns, beside the convention's own sentence
    "harmonic": "harmonic: 2 old new / (old + new)",
    "forgetting": "forgetting: best earlier IoU minus the last, mean over old classes without the background",
    "backward_transfer": "backward transfer: last IoU minus that after the step that brought the class, the same mean",
    "mean_over_steps": "mean over steps: mean of 'all' after every step, the base step too",
}


def score(mean: float, deviation: float = math.nan, digits: int = 3) -> str:
    """A mean and, where there are several runs, its standard deviation; nothing for what does not exist."""
    if not math.isfinite(mean):
        return ""
    text = f"{mean + 0.0:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return f"{text} ± {deviation:.{digits}f}" if math.isfinite(deviation) else text


def shown(table: pd.DataFrame, columns: list[str], digits: int = 3) -> pd.DataFrame:
    """Some columns of a table as text, each mean with the deviation beside it (`<column>_std`, where there is one);
    whole numbers stay."""
    found = {}
    for name in columns:
        if pd.api.types.is_integer_dtype(table[name]):
            found[name] = table[name].astype(str)
        else:
            spread = table.get(f"{name}_std", pd.Series(math.nan, index=table.index))
            found[name] = [score(mean, std, digits) for mean, std in zip(table[name], spread, strict=True)]
    return pd.DataFrame(found, index=table.index).rename(columns=HEADS)


def best(table: pd.DataFrame, column: str) -> set[str]:
    """Methods with the best printed mean of a column, joint training apart: it is no competitor."""
    values = table.loc[[not is_joint(method) for method in table.index], column].dropna().round(3)
    if values.nunique() < 2:
        return set()  # nobody stands out
    top = values.min() if column in LOWER_IS_BETTER else values.max()
    return set(values.index[values == top])


def difference(row: pd.Series) -> str:
    """A row of `paired_table` as text: the mean difference and, of several pairs, its 95 % interval and how many are
    above 0."""
    if row["pairs"] < 2:
        return signed(row["mean"])
    return f"{signed(row['mean'])} [{signed(row['low'])}, {signed(row['high'])}] {row['above']}/{row['pairs']}"


def differences(pairs: pd.DataFrame, against: str) -> pd.DataFrame:
    """Of a benchmark's rows of `paired_table` those against one method, as text: methods by row, metrics by column."""
    mine = pairs[pairs["against"] == against]
    return _by(mine, "metric", [difference(row) for _, row in mine.iterrows()]).rename(columns=HEADS)


def every_difference(pairs: pd.DataFrame, metric: str = "all") -> pd.DataFrame:
    """Of a benchmark's rows of `paired_table` the mean differences in one metric, as text: the method of the row minus
    that of the column; a star where the 95 % interval is on one side of 0."""
    mine = pairs[pairs["metric"] == metric]
    texts = [signed(row["mean"]) + "*" * (row["low"] > 0 or row["high"] < 0) for _, row in mine.iterrows()]
    table = _by(mine, "against", texts)
    return table[table.index]


def signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"


def _by(rows: pd.DataFrame, column: str, texts: list[str]) -> pd.DataFrame:
    """Texts of rows by method and another column, in the order of the rows; empty where there is none."""
    orders = [dict.fromkeys(rows[name]) for name in ("method", column)]
    table = rows.assign(text=texts).pivot(index="method", columns=column, values="text")
    return table.loc[list(orders[0]), list(orders[1])].fillna("")


def runs_words(table: pd.DataFrame) -> str:
    """How many runs a row stands for: "mean ± standard deviation over 6 runs (3 seeds, 2 orders of classes)"."""
    kinds = table[["runs", "seeds", "orders"]].drop_duplicates()
    if len(kinds) > 1:
        return "mean ± sample standard deviation over the runs that each row counts"
    runs, seeds, orders = (int(n) for n in kinds.iloc[0])
    if runs == 1:
        return "one run each (one seed, one order of classes)"
    return (
        f"mean ± sample standard deviation over {runs} runs ({_count(seeds, 'seed')}, "
        f"{_count(orders, 'order', 'orders')} of classes)"
    )


def undefined_words(runs: pd.DataFrame) -> list[str]:
    """Why scores of `runs_table` are undefined: a line for each reason, with the methods that it is about."""
    with_reason = runs[runs["undefined"].fillna("") != ""]
    methods = with_reason.groupby("undefined", sort=False)["method"].unique()
    return [f"{', '.join(names)}: {text}" for text, names in methods.items()]


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
