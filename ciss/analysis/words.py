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


def value_range(values: pd.Series, digits: int, unit: str = "", of: str = "method") -> str:
    """The lowest and highest of sorted values by method: "from 4.8 % (plop) to 9.9 % (mib)", "4.8 % in every method".

    `unit`: after each number. `of`: what the values are of.
    """
    low, high = (f"{rounded(values.iloc[end], digits)}{unit}" for end in (0, -1))
    if len(values) == 1:
        return f"{low} ({values.index[0]})"
    if low == high:
        return f"{low} in every {of}"
    lowest, highest = (extreme_names(values, end, digits) for end in (0, -1))
    return f"from {low} ({lowest}) to {high} ({highest})"


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
    """A share or score in percent, such as "57.4 %"; zero has no sign."""
    return f"{rounded(100 * share, 1)} %"


def join_names(names: Iterable[str]) -> str:
    """Names as in: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
