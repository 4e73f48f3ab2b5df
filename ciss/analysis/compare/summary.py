"""From single runs to methods: means over seeds and class orders, and what is written down."""

from typing import Any

import pandas as pd

from ciss.analysis.compare.tables import check_equal, runs_table
from ciss.analysis.rows import add_means

SCORES = ("all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps")
COUNTED = ("all", "old", "new", "harmonic", "mean_over_steps")


def families(ends: dict[str, dict[str, list[dict]]]) -> dict[str, list[str]]:
    """Benchmarks that are averaged together: those that differ in the order of their classes alone, in the order given,
    by the first one's name. `ends`: of each benchmark the results by end.

    Two benchmarks that are equal, their order too, are kept apart: nothing says that they are one.
    """
    found: dict[str, list[str]] = {}
    settings, orders = {}, {}
    for name, mine in ends.items():
        if not mine:
            continue  # no run of it leads to a result
        last = next(iter(mine.values()))[-1]
        settings[name] = {**last["identity"]["parameters"]["benchmark"], "order": None}
        orders[name] = last["classes"].groups
        for first, members in found.items():
            if settings[first] == settings[name] and all(orders[other] != orders[name] for other in members):
                members.append(name)
                break
        else:
            found[name] = [name]
    return found


def family_tables(ends: dict[str, dict[str, list[dict]]]) -> dict[str, pd.DataFrame]:
    """`runs_table` of every family: all its benchmarks' rows. Raises ProvenanceError, as `runs_table` does, also for
    results of two benchmarks of a family that cannot be averaged."""
    tables = {}
    for first, members in families(ends).items():
        check_equal(first, {end: results for name in members for end, results in ends[name].items()})
        tables[first] = pd.concat([runs_table(name, ends[name]) for name in members], ignore_index=True)
    return tables


def methods_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over runs for each method of a family, best `all` last.

    Index: method. Columns: seeds, orders (different ones), runs (that a mean is over, whatever seed and order); the
    means of all, old, new, harmonic, forgetting, backward_transfer and mean_over_steps of `runs_table`, each with its
    `<score>_std` (sample deviation; NaN for one run).
    """
    grouped = runs.groupby("method")
    table = pd.DataFrame({"seeds": grouped["seed"].nunique(), "orders": grouped["order"].nunique()})
    table["runs"] = grouped.size()
    add_means(table, grouped, SCORES)
    return table.sort_values("all")


def convention_means(counted: pd.DataFrame, members: list[str]) -> pd.DataFrame:
    """Of `conventions_table`, mean and standard deviation over the runs of a family's benchmarks (`members`).

    Index: method, convention, in the order of the table. Columns: runs, then all, old, new, harmonic, mean_over_steps,
    each with `<score>_std` (sample deviation; NaN for one run), and the convention's sentence.
    """
    mine = counted[counted["benchmark"].isin(members)]
    grouped = mine.groupby(["method", "convention"], sort=False)
    table = pd.DataFrame({"runs": grouped.size()})
    add_means(table, grouped, COUNTED)
    table["sentence"] = grouped["sentence"].first()
    return table


def metrics_document(tables: dict[str, pd.DataFrame], conventions: dict[str, str]) -> dict[str, Any]:
    """What `reports/metrics.json` holds: convention and methods of the first benchmark; every one by name when there
    are several. Benchmarks that differ in class order alone are one, see `families`. Numbers 0 to 1, means over seeds
    and orders; null where a score does not exist. `conventions`: a sentence for each benchmark."""
    found = {name: _scores(methods_table(table)) for name, table in tables.items()}
    first = next(iter(found))
    document = {"convention": conventions[first], "benchmark": first, "methods": found[first]}
    if len(tables) == 1:
        return document
    return {**document, "benchmarks": found, "conventions": conventions}


def _scores(table: pd.DataFrame) -> dict[str, dict]:
    columns = ["all", "old", "new", "forgetting", "mean_over_steps"]
    if table["runs"].max() > 1:
        columns += [f"{name}_std" for name in columns]
    counts = ["seeds", "orders"] if table["orders"].max() > 1 else ["seeds"]
    return {
        method: {
            **{c: None if pd.isna(row[c]) else round(float(row[c]), 4) for c in columns},
            **{c: int(row[c]) for c in counts},
        }
        for method, row in table.iterrows()
    }
