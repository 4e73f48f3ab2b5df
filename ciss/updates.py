"""How the images of an update are shared among the processes of a training. Imports no torch.

`train.batch` counts the images of a forward pass in all processes together. Files without `version: 2` may be older:
there it counted those of one process.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ciss.documents import ConfigError, counted

if TYPE_CHECKING:
    from ruamel.yaml.comments import CommentedMap

VERSION = 2  # of parameter files in which `train.batch` counts the images of all processes
ABOUT = "train.batch counts the images of all processes (train.processes) together"


def mark(document: "CommentedMap") -> None:
    """Adds the version to a parameter document."""
    if "version" not in document:
        document.yaml_set_comment_before_after_key("version", before=f"\n{ABOUT}")
    document["version"] = VERSION


def undivided(batch: int, processes: int) -> str | None:
    """What is wrong with a batch that does not divide among processes, and what to write; None if it divides.

    Args:
        batch: images of a forward pass in all processes together.
    """
    if batch % processes == 0:
        return None
    lower = batch - batch % processes
    sizes = " or ".join(str(size) for size in (lower, lower + processes) if size)
    divisors = [number for number in range(1, batch + 1) if batch % number == 0]
    fewer = max(number for number in divisors if number < processes)
    more = min((number for number in divisors if number > processes), default=None)
    verb = "does" if batch == 1 else "do"
    counts = f"{fewer} or {more}" if more else f"{fewer}"
    return (
        f"{counted(batch, 'image')} {verb} not divide among {processes} processes. Write {sizes}, or use {counts} "
        f"{'process' if counts == '1' else 'processes'}."
    )


def require_divided(batch: int, processes: int, place: str) -> None:
    """Raises ConfigError, with numbers that divide, if a batch does not divide among processes.

    Args:
        place: the file and the benchmark: "params.yaml: benchmarks.voc".
    """
    if problem := undivided(batch, processes):
        raise ConfigError(f"{place}.train.batch: {problem}")


def problems(benchmarks: Mapping[str, Any], version: int | None) -> Iterator[str]:
    """Benchmarks whose batch does not divide, or may count the images of one process.

    Args:
        benchmarks, version: those of a parameter file.
    """
    for name, benchmark in benchmarks.items():
        batch, processes = benchmark.train.batch, benchmark.train.processes
        if processes == 1:
            continue
        key = f"benchmarks.{name}.train.batch"
        if version is None:
            yield (
                f"{key}: {counted(batch, 'image')} with {processes} processes, in a file without `version: {VERSION}`. "
                "Older files count the images of one process, but now this key counts those of all. "
                f"If this file is older, write batch: {batch * processes}. "
                f"Then add the line `version: {VERSION}` at the end of the file."
            )
        elif problem := undivided(batch, processes):
            yield f"{key}: {problem}"
