"""Downloads real data sets from their official addresses, checks them, and unpacks them whole or not at all.

Addresses and MD5 of VOC and SBD: torchvision.datasets. ADE20K: the challenge's address, SHA-1 as GluonCV states it.
Mirrors of VOC: the site of the challenge, and the copy of the authors of YOLO. The checksum decides which archive is
accepted, whatever its address.

`pooch` is no substitute: it deletes half a download instead of continuing it, and it reports the web page of a firewall
as a wrong checksum.
"""

import gzip
import hashlib
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from itertools import chain
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from tqdm import tqdm

from ciss import documents
from ciss.data import sbd
from ciss.data.pictures import DataError
from ciss.store import files

WAITS = (1, 2, 4, 8)  # seconds after failures in a row; one more failure is the last
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20  # bytes
BUSY = (408, 425, 429)  # statuses below 500 after which a server may answer differently later
BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, KeyError, RuntimeError)


class _Interrupted(Exception):
    """A failure that the next try may not have."""


class _Refused(Exception):
    """A failure that this address will have again: the reason."""


@dataclass(frozen=True)
class Source:
    """One archive, and what is made of it."""

    address: str
    checksum: str  # algorithm:digest of the archive
    inside: str  # folder of the archive
    parts: tuple[str, ...]  # under `inside`: what is unpacked, and has to be there
    folder: str  # under a data root
    makes: tuple[str, ...]  # under `folder`: what is there when all is done
    unpacked: int  # bytes on disk beside the archive, at most
    extras: tuple[str, ...] = ()  # under `inside`: unpacked where they are there
    images: int | None = None  # in the training list, where it is made here
    then: str = ""  # what to do next
    mirrors: tuple[str, ...] = ()  # other addresses of the same archive, tried in this order

    @property
    def file(self) -> str:
        return self.address.rpartition("/")[2]


VOC = ("JPEGImages", "SegmentationClass", "ImageSets")
ADE = ("images/training", "images/validation", "annotations/training", "annotations/validation")
SOURCES = {
    "voc": Source(
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "md5:6cd6e144f989b92b3379bac3b3de84fd",
        inside="VOCdevkit/VOC2012",
        parts=VOC,
        folder="VOCdevkit/VOC2012",
        makes=VOC,
        unpacked=2_000_000_000,
        then="the benchmarks train on SBD's masks too: ciss data fetch sbd",
        mirrors=(
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://pjreddie.com/media/files/VOCtrainval_11-May-2012.tar",
        ),
    ),
    "sbd": Source(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "md5:82b4d87ceb2ed10f6038a1cba92111cb",
        inside="benchmark_RELEASE/dataset",
        parts=("cls", "train.txt", "val.txt"),
        folder="VOCdevkit/VOC2012",
        makes=("SegmentationClassAug", "ImageSets/Segmentation/trainaug.txt"),
        unpacked=400_000_000,
        images=10_582,
    ),
    "ade20k": Source(
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        inside="ADEChallengeData2016",
        parts=ADE,
        folder="ADEChallengeData2016",
        makes=ADE,
        unpacked=1_200_000_000,
        extras=("objectInfo150.txt", "sceneCategories.txt"),
    ),
}
CITYSCAPES = """Only registered users may download Cityscapes:
1. Register at https://www.cityscapes-dataset.com/register/ (free for research; mind the terms of use).
2. Download leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) from its download page.
3. Unpack both into {folder}, so that there are
   {folder}/leftImg8bit/{{train,val}}/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
   {folder}/gtFine/{{train,val}}/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png"""


def fetch(name: str, root: Path, keep: bool = False, address: str | None = None) -> None:
    """Downloads a data set of SOURCES into a data root, unless it is there.

    Args:
        name: the data set.
        root: the data root.
        keep: whether to keep an archive that this call downloads.
        address: where to download it instead of the known addresses.

    Raises: DataError and CheckpointError, which name the file or address and the remedy.
    """
    source = SOURCES[name]
    folder = root / source.folder
    if not missing(folder, source.makes):
        if source.images:
            sbd.check_list(folder, source.images)
        print(f"{folder}: already there")
        return
    try:
        if source.images:
            if lacking := missing(folder, VOC):
                raise DataError(f"{folder}: no {lacking[0]}. Get VOC first: ciss data fetch voc")
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            lacking = " and ".join(missing(folder, source.makes))
            raise DataError(f"{folder}: lacks {lacking}. Complete it, or move it away and run this again.")
        downloads = root / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        (downloads / ".gitignore").write_text("*\n", encoding="utf-8")
        with FileLock(downloads / f".{source.file}.lock", timeout=0):
            archive, new = _obtain(source, downloads, folder, address)
            files.require_space(folder.parent, source.unpacked)
            with _partial_folder(folder) as unpacked:
                _unpack(source, archive, unpacked)
                if source.images:
                    sbd.build(archive, unpacked / source.inside, folder, source.images)
                else:
                    (unpacked / source.inside).rename(folder)
            print(f"{folder}: complete" + (f"; {source.then}" if source.then else ""))
            if new and not keep:
                archive.unlink()
            else:
                print(f"{archive}: kept; nothing needs it any more")
    except Timeout:
        raise DataError(f"{downloads / source.file}: another process fetches it. Wait for it, or stop it.") from None
    except OSError as error:
        path, reason = error.filename or root, error.strerror or error
        if error.errno in files.FULL:
            raise DataError(f"{path}: no room left ({reason}). Make room, and run the same command again.") from None
        remedy = "Give yourself the right to, or name another folder with --to."
        raise DataError(f"{path}: cannot be read or written ({reason}). {remedy}") from None


def missing(folder: Path, parts: tuple[str, ...]) -> list[str]:
    return [part for part in parts if not (folder / part).exists()]


def _obtain(source: Source, downloads: Path, folder: Path, address: str | None) -> tuple[Path, bool]:
    """The archive with the right checksum, and whether this call downloaded it. One put there by hand is used.

    Raises: DataError, DiskFull.
    """
    file = downloads / source.file
    if file.exists():
        if problem := _checksum_problem(source, file):
            raise DataError(f"{file}: {problem}. Delete it, and run the same command again to download it.")
        print(f"{file}: is there, its checksum is right")
        return file, False
    failures = []
    for url in [address] if address else [source.address, *source.mirrors]:
        print(f"{url} -> {file}")
        try:
            part = file.with_name(f"{file.name}.part")
            _download(url, source, part)
            os.replace(part, file)
            return file, True
        except _Refused as refused:
            failures.append(f"{url}: {refused}")
    raise DataError(
        f"{'; '.join(failures)}. Try again later, or download it by hand to {file} and run the same command again "
        f"(--from ADDRESS: from elsewhere); a copy you have belongs into {folder}, with "
        f"{', '.join(source.makes)} in it."
    )


def _checksum_problem(source: Source, file: Path) -> str:
    """What is wrong with an archive; empty where its checksum is right."""
    algorithm, _, expected = source.checksum.partition(":")
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, algorithm).hexdigest()
    size = documents.size(file.stat().st_size)
    return "" if digest == expected else f"wrong checksum ({algorithm} {digest}, not {expected}; {size})"


def _download(url: str, source: Source, part: Path) -> None:
    """Completes `part` from one address, in several tries where the connection fails, and checks it.

    Raises: _Refused where no try gets further or the archive is another one; DiskFull.
    """
    continued = part.exists()
    longest = _size(part)
    failures = 0
    while True:
        try:
            _continue(url, source, part)
            if not (problem := _checksum_problem(source, part)):
                return
            part.unlink()
            if not continued:
                raise _Refused(f"{problem}; removed")
            print(f"{part}: {problem}; starting afresh")
            continued = False
            longest = failures = 0
        except _Interrupted as interruption:
            size = _size(part)
            failures = 1 if size > longest else failures + 1
            longest = max(longest, size)
            if failures > len(WAITS):
                kept = f"; {documents.size(size)} are kept, and the next try goes on there" if size else ""
                raise _Refused(f"cannot be downloaded ({interruption}{kept})") from None
            time.sleep(WAITS[failures - 1])


def _continue(url: str, source: Source, part: Path) -> None:
    """One connection: the rest of `part`, or all of it where the server sends no ranges.

    A web page and an answer shorter than `part` leave it as it is. Raises: _Interrupted, _Refused, DiskFull.
    """
    present = _size(part)
    kept = f"; the {documents.size(present)} that are here are kept" if present else ""
    headers = {"User-Agent": "ciss"} | ({"Range": f"bytes={present}-"} if present else {})
    try:  # an opener of its own: the shared one would keep the first proxies it saw
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and present:  # nothing is left to send: the checksum decides
            return
        answer = f"the server answers {error.code} {error.reason}"
        if error.code >= 500 or error.code in BUSY:
            raise _Interrupted(answer) from None
        raise _Refused(f"cannot be downloaded ({answer})") from None
    except (OSError, HTTPException) as error:
        raise _Interrupted(_reason(error)) from None
    except ValueError as error:  # of --from
        raise _Refused(f"is no address ({error})") from None
    with response:
        start = present if response.status == 206 else 0
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise _Interrupted("the server gives another part than it was asked for")
        total = None if response.length is None else start + response.length
        blocks = _blocks(response)
        first = next(blocks, b"")
        if page := _web_page(response.headers.get_content_type(), b"" if start else first):
            raise _Refused(f"the server sent a web page ({page}), not the archive{kept}")
        if start == 0 and total is not None and total < present:
            raise _Refused(f"the server sent {documents.size(total)}, less than is here already{kept}")
        files.require_space(part.parent, (total or start) - present + source.unpacked)
        bar = tqdm(total=total, initial=start, desc=source.file, unit="B", unit_scale=True, disable=None)
        with open(part, "ab" if start else "wb") as stream, bar:
            for block in chain([first], blocks):
                stream.write(block)
                bar.update(len(block))
    if total is not None and _size(part) != total:
        raise _Interrupted("the connection was cut")


def _blocks(response) -> Iterator[bytes]:
    try:
        while block := response.read(BLOCK):
            yield block
    except (OSError, HTTPException) as error:
        raise _Interrupted(_reason(error)) from None


def _web_page(kind: str, block: bytes) -> str:
    """The first words of a web page, by an answer's content type and first bytes; empty for other content."""
    if kind != "text/html" and not re.match(rb"\s*(<!doctype html|<html)", block, re.IGNORECASE):
        return ""
    text = re.sub(rb"(?is)<(script|style)\b.*?</\1>|<[^>]*>", b" ", block[:10_000]).decode("utf-8", "replace")
    words = documents.plain(" ".join(text.split())[:60])
    return f"first words: {words}" if words else "without words"


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return str(getattr(cause, "strerror", None) or cause) or type(error).__name__


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside another, removed afterwards. One that a killed process left is removed first."""
    inside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir(parents=True)
    try:
        yield inside
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _unpack(source: Source, archive: Path, folder: Path) -> None:
    """Unpacks the parts and extras of an archive into a folder.

    Raises: DataError where it is broken, lacks a part, or has a part whose name or link leads out of the folder.
    """
    remedy = "Delete it, and run the same command again."
    wanted = [PurePosixPath(source.inside, part) for part in source.parts + source.extras]

    def needed(name: str) -> bool:
        return any(PurePosixPath(name).is_relative_to(part) for part in wanted)

    progress = partial(tqdm, desc=f"unpacking {archive.name}", unit="file", disable=None)
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                for name in progress(list(filter(needed, opened.namelist()))):
                    if ".." in re.split(r"[/\\]", name):
                        raise DataError(f"{archive}: {name!r} leads out of the folder. {remedy}")
                    opened.extract(name, folder)
        else:
            with tarfile.open(archive) as opened:
                for member in progress(opened):
                    if needed(member.name):
                        opened.extract(member, folder, filter="data")
    except BROKEN as error:
        why = documents.plain(str(error).partition("\n")[0].rstrip(":"))
        raise DataError(f"{archive}: cannot be unpacked ({why}). {remedy}") from None
    if lacking := missing(folder / source.inside, source.parts):
        raise DataError(f"{archive}: holds no {source.inside}/{lacking[0]}. {remedy}")
