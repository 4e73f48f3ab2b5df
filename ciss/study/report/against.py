"""Compares the scores in the working tree with those of a git revision: `ciss report --against REVISION`.

Another kind of processor gives other last digits. The comparison says in which scores, and by how much.
"""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ciss import config, paths
from ciss.documents import ConfigError

FILES = ("reports/metrics.json", "reports/compare/runs.csv")
SCORES = (
    "all", "old", "new", "harmonic", "forgetting", "backward_transfer", "mean_over_steps", "holdout_all", "holdout_old",
    "holdout_new", "relabelled", "ignored", "precision", "recall", "token_cosine", "patch_weight",
)  # fmt: skip
PROVENANCE = ("order", "configuration", "code", "data", "versions", "arithmetic", "processes")


class ComparisonError(Exception):
    """A side of the comparison cannot be read; the message says what to do."""


def main(config_file: str, revision: str) -> int:
    """Prints which scores differ and by how much. Exits with a message, and 2, where they cannot be compared.

    Args:
        config_file: the parameter file of the study.
        revision: of git, such as HEAD or a tag.

    Returns: 0 where all scores are equal, else 1.
    """
    try:
        root = (paths.project() / config.load(config_file).output).resolve()
        sides = {name: (read_here(root, name), read_committed(root, name, revision)) for name in FILES}
    except (ConfigError, ComparisonError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    different = False
    for name, (here, committed) in sides.items():
        lines = differences(here, committed, revision)
        different |= bool(lines)
        print("\n  ".join([f"{name}: {'differs from' if lines else 'equal to'} {revision}", *lines]))
        if columns := changed_provenance(here, committed):
            print(f"  {revision} was made with other values of: {', '.join(columns)}")
    return int(different)


def read_here(root: Path, name: str) -> pd.DataFrame:
    """A file of the working tree as a table, see `parse`. Raises ComparisonError."""
    try:
        return parse(name, (root / name).read_text(encoding="utf-8"), name)
    except FileNotFoundError:
        raise ComparisonError(f"{root / name}: there is no such file. Run: dvc repro compare") from None


def read_committed(root: Path, name: str, revision: str) -> pd.DataFrame:
    """A file of a revision as a table, see `parse`. Raises ComparisonError."""
    source = f"{revision}:./{name}"
    try:
        done = subprocess.run(["git", "show", source], cwd=root, capture_output=True, text=True, encoding="utf-8")
    except FileNotFoundError:
        raise ComparisonError("--against needs git, which is not installed. Install it.") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("fatal: ")
        raise ComparisonError(f"git show {source}: {reason}. Name a revision that has this file, such as HEAD.")
    return parse(name, done.stdout, source)


def parse(name: str, text: str, source: str) -> pd.DataFrame:
    """A table with a row for each end of `runs.csv`, or each benchmark and method of `metrics.json`.

    `source` is for the message. Raises ComparisonError.
    """
    try:
        if name.endswith(".csv"):
            table = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(("end", *PROVENANCE), str), na_values=[""])
            return table.set_index("end")
        rows = {
            f"{benchmark}, {method}": scores
            for benchmark, methods in json.loads(text).items()
            for method, scores in methods.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ComparisonError(f"{source} cannot be read as a table of scores: {error!r}") from None


def differences(here: pd.DataFrame, committed: pd.DataFrame, revision: str) -> list[str]:
    """What differs, a line each: rows that one side lacks, then by row and by score the largest absolute difference."""
    lines = [f"{row}: only here" for row in here.index.difference(committed.index, sort=False)]
    lines += [f"{row}: only in {revision}" for row in committed.index.difference(here.index, sort=False)]
    rows = here.index.intersection(committed.index, sort=False)
    names = [name for name in here.columns.intersection(committed.columns, sort=False) if _is_score(name)]
    ours, theirs = (side.loc[rows, names].astype(float) for side in (here, committed))
    apart = (ours - theirs).abs()
    apart = apart.mask(ours.isna() != theirs.isna(), np.inf).fillna(0.0)  # undefined on one side, on both
    for row in apart.index[apart.gt(0).any(axis=1)]:
        count = int(apart.loc[row].gt(0).sum())
        lines.append(f"{row}: {count} of {len(names)} scores, by at most {_largest(apart.loc[row])}")
    lines += [f"{name}, largest: {_largest(apart[name])}" for name in names if apart[name].gt(0).any()]
    return lines


def changed_provenance(here: pd.DataFrame, committed: pd.DataFrame) -> list[str]:
    """Columns of provenance that differ in rows of both sides."""
    rows = here.index.intersection(committed.index)
    names = [name for name in PROVENANCE if name in here and name in committed]
    return [name for name in names if (here.loc[rows, name].fillna("") != committed.loc[rows, name].fillna("")).any()]


def _is_score(name: str) -> bool:
    return name.removesuffix("_std") in SCORES


def _largest(values: pd.Series) -> str:
    """The largest of absolute differences, with its label."""
    value = values.max()
    return f"{'undefined on one side' if np.isinf(value) else f'{value:.6f}'} ({values.idxmax()})"
