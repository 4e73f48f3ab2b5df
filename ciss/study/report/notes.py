"""What the page says of a benchmark's classes, and of published results."""

from pathlib import Path

from ciss.analysis.figures.style import numbered_classes
from ciss.config import Benchmark
from ciss.documents import counted


def classes_of_steps(benchmark: Benchmark) -> str:
    """Which classes each step brings: the protocol, or the benchmark's own groups of raw class ids."""
    if not benchmark.groups:
        return f"protocol {benchmark.protocol}"
    groups = " | ".join(" ".join(map(str, group)) for group in benchmark.groups)
    return f"groups [{groups}] (not a published protocol)"


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
