"""What the tables of all analyses share: columns that name a run, results that have rows, tables without rows."""

from collections.abc import Iterable, Iterator

import pandas as pd
from pandas.api.typing import DataFrameGroupBy

END_COLUMNS = {"end": str, "method": str, "seed": int}
STEP_COLUMNS = {**END_COLUMNS, "step": int}


def table(rows: Iterable[dict], columns: dict[str, type]) -> pd.DataFrame:
    """A table with these columns, in this order and of these types, even without rows."""
    return pd.DataFrame(list(rows), columns=list(columns)).astype(columns)


def with_classes(rows: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The same table. Its `attrs` have the class names by position, for figures (`class_labels`)."""
    rows.attrs["classes"] = list(names)
    return rows


def class_names(ends: dict[str, list[dict]]) -> list[str]:
    """Class names by position; none without an end."""
    return next((results[-1]["classes"].names for results in ends.values()), [])


def increments(ends: dict[str, list[dict]]) -> Iterator[tuple[str, dict]]:
    """The incremental steps of every end, with the end's name. Base and joint runs are left out."""
    for end, results in ends.items():
        yield from ((end, result) for result in results if result["after"] is not None and not result["joint"])


def end_values(end: str, result: dict) -> dict:
    """The values of END_COLUMNS."""
    return {"end": end, "method": result["title"], "seed": result["seed"]}


def step_values(end: str, result: dict) -> dict:
    """The values of STEP_COLUMNS."""
    return {**end_values(end, result), "step": result["step"]}


def by_benchmark(tables: dict[str, pd.DataFrame], members: dict[str, list[str]]) -> pd.DataFrame:
    """The tables of several families as one, to be saved. New first columns: benchmark (the family's first one) and
    benchmarks (all of them, separated by spaces). Indices become columns."""
    labelled = []
    for first, rows in tables.items():
        rows = rows.reset_index()
        rows.insert(0, "benchmark", first)
        rows.insert(1, "benchmarks", " ".join(members[first]))
        labelled.append(rows)
    return pd.concat(labelled, ignore_index=True) if labelled else pd.DataFrame(columns=["benchmark", "benchmarks"])


def add_means(means: pd.DataFrame, grouped: DataFrameGroupBy, names: tuple[str, ...]) -> None:
    """Adds the mean and the sample deviation (`<name>_std`) of some columns of grouped rows."""
    for name in names:
        means[name] = grouped[name].mean()
        means[f"{name}_std"] = grouped[name].std()
