"""Parts of sentences that state findings."""

import pandas as pd

WORDS = {
    "pixel_share": "the class's share of the pixels",
    "similarity": "its likeness to the nearest new class",
    "gradient": "its gradient before the step",
}


def _warned(findings: str, empty: dict[str, str]) -> str:
    """Findings, after what makes them void: see `empty_reasons`."""
    return f"{empty['base']}\n\n{findings}" if empty.get("base") else findings


def _range(values: pd.Series, digits: int, several: str = "", one: str = "") -> str:
    """The lowest and the highest of sorted values by method, after the word `several`; after `one` if equal."""
    low, high = (_printed(value, digits) for value in (values.iloc[0], values.iloc[-1]))
    if len(values) == 1:
        return f"{one} {low} ({values.index[0]})".lstrip()
    if low == high:
        return f"{one} {low} in every method".lstrip()
    return f"{several} {low} ({values.index[0]}) to {high} ({values.index[-1]})".lstrip()


def _equal(values: pd.Series, digits: int = 3) -> bool:
    """Whether several values have the same printed digits."""
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
