"""From runs to methods: means over seeds and orders of classes, and `reports/metrics.json`."""

import pandas as pd

from ciss.analysis.compare.tables import check_equal, runs_table
from ciss.analysis.rows import add_means

SCORES = ("all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps")
COUNTED = ("all", "old", "new", "harmonic", "mean_over_steps")


def families(ends: dict[str, dict[str, list[dict]]]) -> dict[str, list[str]]:
    """Families of benchmarks, by the first one's name. The benchmarks of a family differ in their order of classes
    only, and are averaged. `ends`: the results by benchmark and end.

    Benchmarks with equal orders are separate families: nothing says that they are the same.
    """
    groups: dict[str, list[str]] = {}
    settings, orders = {}, {}
    for name, by_end in ends.items():
        if not by_end:
            continue  # no run of it leads to a result
        last = next(iter(by_end.values()))[-1]
        settings[name] = {**last["identity"]["parameters"]["benchmark"], "order": None}
        orders[name] = last["classes"].groups
        for first, members in groups.items():
            if settings[first] == settings[name] and orders[name] not in [orders[member] for member in members]:
                members.append(name)
                break
        else:
            groups[name] = [name]
    return groups


def family_tables(ends: dict[str, dict[str, list[dict]]]) -> dict[str, pd.DataFrame]:
    """`runs_table` of every family, with the rows of all its benchmarks. Raises ProvenanceError, see `check_equal`."""
    tables = {}
    for first, members in families(ends).items():
        check_equal(first, {end: results for name in members for end, results in ends[name].items()})
        tables[first] = pd.concat([runs_table(name, ends[name]) for name in members], ignore_index=True)
    return tables


def methods_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over runs for each method of a family, best `all` last.

    Index: method. Columns: seeds, orders (numbers of different ones), runs (that a mean is over); the
    means of all, old, new, harmonic, forgetting, backward_transfer and mean_over_steps of `runs_table`, each with its
    `<score>_std` (sample deviation; NaN for one run).
    """
    grouped = runs.groupby("method")
    table = pd.DataFrame({"seeds": grouped["seed"].nunique(), "orders": grouped["order"].nunique()})
    table["runs"] = grouped.size()
    add_means(table, grouped, SCORES)
    return table.sort_values("all")


def convention_means(counted: pd.DataFrame, members: list[str]) -> pd.DataFrame:
    """Mean and standard deviation of `conventions_table` over the runs of a family's benchmarks (`members`).

    Index: method, convention, in the order of the table. Columns: runs, then all, old, new, harmonic, mean_over_steps,
    each with `<score>_std` (sample deviation; NaN for one run), and the convention's sentence.
    """
    grouped = counted[counted["benchmark"].isin(members)].groupby(["method", "convention"], sort=False)
    table = pd.DataFrame({"runs": grouped.size()})
    add_means(table, grouped, COUNTED)
    table["sentence"] = grouped["sentence"].first()
    return table


def metrics_document(tables: dict[str, pd.DataFrame]) -> dict[str, dict[str, dict]]:
    """The content of `reports/metrics.json`: numbers only, by benchmark, method and score, such as `shapes.mib.all`.

    A family of benchmarks has the name of its first one. Numbers 0 to 1, means over seeds and orders; null where a
    score is undefined. The convention is a column of `convention_means.csv`.

    Args:
        tables: `family_tables`.
    """
    return {name: _scores(methods_table(table)) for name, table in tables.items()}


def _scores(table: pd.DataFrame) -> dict[str, dict]:
    columns = ["all", "old", "new", "forgetting", "mean_over_steps"]
    if table["runs"].max() > 1:
        columns += [f"{name}_std" for name in columns]
    counts = ["seeds", "orders"] if table["orders"].max() > 1 else ["seeds"]
    return {
        method: {
            **{name: None if pd.isna(row[name]) else round(float(row[name]), 4) for name in columns},
            **{name: int(row[name]) for name in counts},
        }
        for method, row in table.iterrows()
    }
