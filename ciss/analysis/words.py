"""Helpers for sentences that state findings."""

from collections.abc import Iterable

import pandas as pd

FACTOR_WORDS = {
    "pixel_share": "the pixel share of the class",
    "similarity": "the similarity to the nearest new class",
    "gradient": "the gradient before the step",
}
MAX_NAMES = 3  # methods or classes of equal value that a sentence lists; of more it gives the number


def with_warning(findings: str, empty: dict[str, str]) -> str:
    """Findings, after the warning that they are void and the note on stored images where there are: `empty_reasons`."""
    return "\n\n".join([*(empty[key] for key in ("base", "memory") if empty.get(key)), findings])


def value_range(values: pd.Series, digits: int, several: str = "", one: str = "") -> str:
    """The lowest and highest of sorted values by method, after the word `several`; after `one` if they are equal."""
    low, high = (rounded(values.iloc[end], digits) for end in (0, -1))
    if len(values) == 1:
        return f"{one} {low} ({values.index[0]})".lstrip()
    if low == high:
        return f"{one} {low} in every method".lstrip()
    lowest, highest = (extreme_names(values, end, digits) for end in (0, -1))
    return f"{several} {low} ({lowest}) to {high} ({highest})".lstrip()


def tied_names(values: pd.Series, end: int, digits: int = 3) -> list[str]:
    """The names whose value equals the first (0) or last (-1) one in the printed digits, if there are several."""
    extreme = rounded(values.iloc[end], digits)
    names = [name for name, value in values.items() if rounded(value, digits) == extreme]
    return names if len(names) > 1 else []


def extreme_names(values: pd.Series, end: int, digits: int = 3) -> str:
    """The name of the first (0) or last (-1) of sorted values, with those of equal value in the printed digits."""
    names = tied_names(values, end, digits) or [values.index[end]]
    return join_names(names) if len(names) <= MAX_NAMES else f"{len(names)} of {len(values)}"


def all_equal(values: pd.Series, digits: int = 3) -> bool:
    """Whether several values have the same printed digits."""
    return len(values) > 1 and rounded(values.min(), digits) == rounded(values.max(), digits)


def rounded(value: float, digits: int = 3) -> str:
    """A number with these digits; zero has no sign."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def seeds_text(table: pd.DataFrame) -> str:
    seeds = table["seed"].nunique()
    return "one seed" if seeds == 1 else f"means over {seeds} seeds"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def join_names(names: Iterable[str]) -> str:
    """Names as in: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
