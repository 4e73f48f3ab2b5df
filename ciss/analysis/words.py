"""Parts of sentences about results."""

import pandas as pd

FACTOR_WORDS = {
    "pixel_share": "the class's share of the pixels",
    "similarity": "its similarity to the nearest new class",
    "gradient": "its gradient before the step",
}
MAX_NAMES = 3  # methods or classes with the same value that a sentence names; of more it gives the number


def _warned(findings: str, empty: dict[str, str]) -> str:
    """Findings, after a warning if the base step learnt nothing (`empty_reasons`)."""
    return f"{empty['base']}\n\n{findings}" if empty.get("base") else findings


def _range(values: pd.Series, digits: int, several: str = "", one: str = "") -> str:
    """The lowest and highest of sorted values by method, after the word `several`; after `one` if they are equal."""
    low, high = (_printed(values.iloc[end], digits) for end in (0, -1))
    if len(values) == 1:
        return f"{one} {low} ({values.index[0]})".lstrip()
    if low == high:
        return f"{one} {low} in every method".lstrip()
    return f"{several} {low} ({_names(values, 0, digits)}) to {high} ({_names(values, -1, digits)})".lstrip()


def _tied(values: pd.Series, end: int, digits: int = 3) -> list[str]:
    """The names with the same printed value as the first (0) or last (-1), if there are several."""
    names = [name for name, value in values.items() if _printed(value, digits) == _printed(values.iloc[end], digits)]
    return names if len(names) > 1 else []


def _names(values: pd.Series, end: int, digits: int = 3) -> str:
    """The name of the first (0) or last (-1) of sorted values, with all names of the same printed value."""
    tied = _tied(values, end, digits) or [values.index[end]]
    return _join(tied) if len(tied) <= MAX_NAMES else f"{len(tied)} of {len(values)}"


def _equal(values: pd.Series, digits: int = 3) -> bool:
    """Whether several values are equal in print."""
    return len(values) > 1 and _printed(values.min(), digits) == _printed(values.max(), digits)


def _printed(value: float, digits: int = 3) -> str:
    """A number with these digits, without the sign of a zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def _seeds(table: pd.DataFrame) -> str:
    seeds = table["seed"].nunique()
    return "one seed" if seeds == 1 else f"means over {seeds} seeds"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _join(parts) -> str:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
