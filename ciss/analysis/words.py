"""Parts of sentences that state findings."""

import pandas as pd

WORDS = {
    "pixel_share": "the class's share of the pixels",
    "similarity": "its likeness to the nearest new class",
    "gradient": "its gradient before the step",
}


NAMED = 3  # methods or classes with the same value that a sentence names; of more it says how many


def _warned(findings: str, empty: dict[str, str]) -> str:
    """Findings, after what makes them void: see `empty_reasons`."""
    return f"{empty['base']}\n\n{findings}" if empty.get("base") else findings


def _range(values: pd.Series, digits: int, several: str = "", one: str = "") -> str:
    """The lowest and the highest of sorted values by method, after the word `several`; after `one` if equal."""
    low, high = (_printed(value, digits) for value in (values.iloc[0], values.iloc[-1]))
    first, last = _names(values, 0, digits), _names(values, -1, digits)
    if len(values) == 1:
        return f"{one} {low} ({values.index[0]})".lstrip()
    if low == high:
        return f"{one} {low} in every method".lstrip()
    return f"{several} {low} ({first}) to {high} ({last})".lstrip()


def _tied(values: pd.Series, end: int, digits: int = 3) -> list[str]:
    """The names whose value has the printed digits of the first (0) or last (-1) one, if there are several."""
    names = [name for name, value in values.items() if _printed(value, digits) == _printed(values.iloc[end], digits)]
    return names if len(names) > 1 else []


def _names(values: pd.Series, end: int, digits: int = 3) -> str:
    """The name of the first (0) or last (-1) of sorted values, with those tied with it to the printed digits."""
    tied = _tied(values, end, digits) or [values.index[end]]
    return _join(tied) if len(tied) <= NAMED else f"{len(tied)} of {len(values)}"


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
