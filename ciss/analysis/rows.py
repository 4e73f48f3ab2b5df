"""Helpers for tables: columns of the run, results with rows, and tables without rows."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

WHOSE = {"end": str, "method": str, "seed": int}
WHOSE_STEP = {**WHOSE, "step": int}


def table(rows: Iterable[dict], columns: dict[str, type]) -> pd.DataFrame:
    """A table with these columns, in this order and of these types, also where there are no rows."""
    return pd.DataFrame(list(rows), columns=list(columns)).astype(columns)


def with_classes(rows: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The same table with the class names by position in its `attrs`, for figures (`style.table_labels`)."""
    rows.attrs["classes"] = list(names)
    return rows


def class_names(ends: dict[str, list[dict]]) -> list[str]:
    """Class names by position; none without an end."""
    return next((results[-1]["classes"].names for results in ends.values()), [])


def increments(ends: dict[str, list[dict]]) -> Iterator[tuple[str, dict]]:
    """Every end's incremental steps, with the end's name; base and joint runs are left out."""
    for end, results in ends.items():
        yield from ((end, result) for result in results if result["after"] is not None and not result["joint"])


def whose(end: str, result: dict) -> dict:
    return {"end": end, "method": result["title"], "seed": result["seed"]}


def whose_step(end: str, result: dict) -> dict:
    return {**whose(end, result), "step": result["step"]}


def by_benchmark(tables: dict[str, pd.DataFrame], members: dict[str, list[str]]) -> pd.DataFrame:
    """Tables of several families as one, to be saved: columns benchmark (the family's first) and benchmarks (all of
    them, with spaces between) before the tables' own, their indices among these."""
    parts = []
    for first, table in tables.items():
        part = table.reset_index()
        part.insert(0, "benchmark", first)
        part.insert(1, "benchmarks", " ".join(members[first]))
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["benchmark", "benchmarks"])


def add_means(table: pd.DataFrame, grouped: Any, names: tuple[str, ...]) -> None:
    """Adds the mean and the sample deviation (`<name>_std`) of some columns of grouped rows."""
    for name in names:
        table[name] = grouped[name].mean()
        table[f"{name}_std"] = grouped[name].std()
