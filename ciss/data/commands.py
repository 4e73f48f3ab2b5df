"""The commands of `ciss data`: draw the embedded data set, download a real one, describe your own."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ciss import config, paths
from ciss.data.describe import describe
from ciss.data.fetch import CITYSCAPES, SOURCES, fetch
from ciss.data.index import content_hash
from ciss.data.pictures import DataError
from ciss.data.sets.shapes import write
from ciss.store.files import CheckpointError, write_text

DOWNLOADS = (*SOURCES, "cityscapes")


def draw() -> None:
    """Draws the embedded data set into `data/shapes`."""
    with _explained():
        write(paths.project() / "data" / "shapes")


def download(dataset: str, to: Path | None, keep: bool, address: str | None) -> None:
    """Downloads one of `DOWNLOADS`, or says how registered users get it.

    Args:
        dataset: one of `DOWNLOADS`.
        to: the folder; default: $CISS_DATA, or data/ of the project.
        keep: keep the archive, in `downloads` of the folder.
        address: of the archive; default: the official ones.
    """
    with _explained():
        root = Path(to or os.environ.get("CISS_DATA") or paths.project() / "data").expanduser().absolute()
        if dataset == "cityscapes":
            sys.exit(CITYSCAPES.format(folder=root / "cityscapes"))
        fetch(dataset, root, keep, address)


def content(benchmark: str) -> None:
    """Writes the content hash of a benchmark's own images and masks for the pipeline, which depends on it."""
    with _explained():
        settings = config.load()
        if benchmark not in settings.benchmarks:
            sys.exit(f"error: no benchmark {benchmark!r}. {config.choose(benchmark, settings.benchmarks)}")
        index_folder = (paths.project() / settings.output).resolve() / "data" / "index" / benchmark
        text = content_hash(settings.benchmarks[benchmark], index_folder)
        write_text(paths.project() / paths.content_file(benchmark), f"{text}\n")


def init(folder: Path) -> None:
    """Writes `dataset.yaml` into a folder of images and masks."""
    with _explained():
        print(describe(folder))


@contextmanager
def _explained() -> Iterator[None]:
    """Exits with a message where a command fails."""
    try:
        yield
    except (OSError, CheckpointError, DataError, config.ConfigError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
