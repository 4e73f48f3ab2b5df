"""What the page says of a benchmark's classes and methods, and of published results."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ciss.analysis.figures.style import numbered_classes
from ciss.config import Benchmark
from ciss.documents import counted
from ciss.methods import METHODS, code_of, method_class


def classes_of_steps(benchmark: Benchmark) -> str:
    """Which classes each step brings: the protocol, or the benchmark's own groups of raw class ids."""
    if not benchmark.groups:
        return f"protocol {benchmark.protocol}"
    groups = " | ".join(" ".join(map(str, group)) for group in benchmark.groups)
    return f"groups [{groups}] (not a published protocol)"


def descriptions(titles: Iterable[str]) -> dict[str, str]:
    """What each method is, by its name: the first paragraph of its file.

    Args:
        titles: methods and variants as tables name them: "mbs (adapted)", "gsc-source", "mib-M (100 stored images)".
    """
    names = dict.fromkeys(code_of(title.partition(" ")[0]) for title in titles)
    files = {name: sys.modules[METHODS[name].__module__].__doc__ or "" for name in names if name in METHODS}
    return {name: " ".join(text.partition("\n\n")[0].split()) for name, text in files.items() if text}


def coefficients(sections: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The coefficients of methods, a row for each that has some: those that differ from the method's defaults, and all.

    `sections`: as under `methods` in the parameter file.
    """
    rows = []
    for name, values in sections.items():
        kind = method_class(name)
        own, default = asdict(kind(**values)), asdict(kind())
        changed = {
            key: f"{_text(own[key])} (default {_text(default[key])})" for key in values if own[key] != default[key]
        }
        rows.append({"method": name, "not the default": _listed(changed) or "none", "all": _listed(values)})
    return pd.DataFrame([row for row in rows if row["all"]], columns=["method", "not the default", "all"])


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value if isinstance(value, str) else _text(value)}" for key, value in values.items())


def _text(value: Any) -> str:  # as in params.yaml
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, (list, tuple)) else str(value)


def why_none_published(benchmark: Benchmark) -> str:
    """Why there is no published result to compare with; for a benchmark without one."""
    if benchmark.groups:
        return "No published result has this benchmark's groups of classes (groups), so none is shown."
    if benchmark.limit:
        return (
            f"The benchmark uses only the first {counted(benchmark.limit, 'image')} of each list (limit). "
            "Published results use all images, so none is shown."
        )
    return "No published result has this data set, protocol and setting."


def without_letters(folder: Path, benchmarks: list[str]) -> list[str]:
    """The classes that figures show by number, because no font has the letters of their name."""
    names: dict[str, None] = {}
    for benchmark in benchmarks:
        files = sorted((folder / "benchmarks" / benchmark).glob("*/*.png"))
        files.append(folder / "compare" / "predictions" / f"{benchmark}.png")
        for file in filter(Path.is_file, files):
            for label, name in numbered_classes(file).items():
                names[f"{name} ({f'{benchmark}, ' if len(benchmarks) > 1 else ''}{label})"] = None
    return list(names)
