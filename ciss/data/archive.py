"""An archive of a data set: where it comes from, and how it is unpacked."""

import gzip
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ciss import documents

BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, KeyError, RuntimeError)


class FetchError(Exception):
    """A data set that cannot be had; the message names address or file, and the remedy."""


@dataclass(frozen=True)
class Source:
    """One archive, and what becomes of it."""

    address: str
    checksum: str  # algorithm:digest of the archive
    inside: str  # folder of the archive
    parts: tuple[str, ...]  # under `inside`: what is unpacked, and has to be there
    folder: str  # under a data root
    makes: tuple[str, ...]  # under `folder`: what is there when all is done
    unpacked: int  # bytes on disk beside the archive, at most
    extras: tuple[str, ...] = ()  # under `inside`: unpacked where they are there
    images: int | None = None  # for training, where the list is made here
    then: str = ""  # what to do next
    mirrors: tuple[str, ...] = ()  # other addresses of the same archive, tried in this order

    @property
    def file(self) -> str:
        return self.address.rpartition("/")[2]


def missing(folder: Path, parts: tuple[str, ...]) -> list[str]:
    return [part for part in parts if not (folder / part).exists()]


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder beside another, gone afterwards; one that a kill left is removed by the next call."""
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unpack(source: Source, archive: Path, into: Path) -> None:
    """The parts and extras of an archive. Raises FetchError when it is broken, lacks a part, or one of them has a
    name or link that leads out of the folder."""
    remedy = "Delete it, and run the same command again."
    wanted = [PurePosixPath(source.inside, part) for part in source.parts + source.extras]

    def needed(name: str) -> bool:
        return any(PurePosixPath(name).is_relative_to(part) for part in wanted)

    options = {"desc": f"unpacking {archive.name}", "unit": "file", "disable": None}
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                for member in tqdm(opened.infolist(), **options):
                    if not needed(member.filename):
                        continue
                    if ".." in re.split(r"[/\\]", member.filename):
                        raise FetchError(f"{archive}: {member.filename!r} leads out of the folder. {remedy}")
                    opened.extract(member, into)
        else:
            with tarfile.open(archive) as opened:
                for member in tqdm(opened, **options):
                    if needed(member.name):
                        opened.extract(member, into, filter="data")
    except BROKEN as error:
        why = documents.plain(str(error).partition("\n")[0].rstrip(":"))
        raise FetchError(f"{archive}: cannot be unpacked ({why}). {remedy}") from None
    if lacking := missing(into / source.inside, source.parts):
        raise FetchError(f"{archive}: holds no {source.inside}/{lacking[0]}. {remedy}")
