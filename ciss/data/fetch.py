"""Real data sets from their official addresses: downloaded, checked, and unpacked whole or not at all.

Addresses and MD5 of VOC and SBD: torchvision.datasets. ADE20K: the challenge's address, SHA-1 as GluonCV states it.
Mirrors of VOC: the site of the challenge, and the copy that the authors of YOLO keep. The checksum decides which
archive is accepted, whatever its address.
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
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from tqdm import tqdm

from ciss import documents, paths
from ciss.data import sbd
from ciss.data.pictures import DataError
from ciss.store import files

WAITS = (1, 2, 4, 8)  # seconds after failures in a row; one more failure is the last
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20  # bytes
BUSY = (408, 425, 429)  # statuses after which a server may answer differently later, as after all from 500 on
BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, KeyError, RuntimeError)


class FetchError(DataError):
    """A data set that cannot be fetched; the message names the address or file, and the remedy."""


class _Cut(Exception):
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
    images: int | None = None  # for training, where the list is made here
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
CITYSCAPES = """Cityscapes is given to registered users only, so nobody can fetch it for you:
1. Register at https://www.cityscapes-dataset.com/register/ (free for research; mind the terms of use).
2. Download leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) from its download page.
3. Unpack both into {folder}, so that there are
   {folder}/leftImg8bit/{{train,val}}/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
   {folder}/gtFine/{{train,val}}/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png"""


def default_root() -> Path:
    """The folder that data sets are put into: `$CISS_DATA`, else `data/` of the project."""
    root = os.environ.get("CISS_DATA")
    return Path(root).expanduser().absolute() if root else paths.project() / "data"


def fetch(name: str, root: Path, keep: bool = False, address: str | None = None) -> None:
    """Downloads a data set of SOURCES into a data root, unless it is there.

    Args:
        name: the data set.
        root: the data root.
        keep: whether to keep an archive that this call downloads.
        address: where to download it instead of the known addresses.

    Raises: FetchError, CheckpointError and DataError, which name the file or address and the remedy.
    """
    source = SOURCES[name]
    folder = root / source.folder
    if not missing(folder, source.makes):
        if source.images:
            sbd.check_list(folder, source.images)
        print(f"{folder}: already there")
        return
    try:
        _check_folder(source, folder)
        downloads = root / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        (downloads / ".gitignore").write_text("*\n", encoding="utf-8")
        with FileLock(downloads / f".{source.file}.lock", timeout=0):
            archive, new = obtain(source, downloads, folder, address)
            files.require_space(folder.parent, source.unpacked)
            with beside(folder) as partial:
                unpack(source, archive, partial)
                if source.images:
                    sbd.build(archive, partial / source.inside, folder, source.images)
                else:
                    (partial / source.inside).rename(folder)
            print(f"{folder}: complete" + (f"; {source.then}" if source.then else ""))
            if new and not keep:
                archive.unlink()
            else:
                print(f"{archive}: kept; nothing needs it any more")
    except Timeout:
        raise FetchError(f"{downloads / source.file}: another process fetches it. Wait for it, or stop it.") from None
    except OSError as error:
        problem = "cannot be read or written"
        remedy = "Give yourself the right to, or name another folder with --to."
        if error.errno in files.FULL:
            problem = "no room left"
            remedy = "Make room, and run the same command again."
        raise FetchError(f"{error.filename or root}: {problem} ({error.strerror or error}). {remedy}") from None


def missing(folder: Path, parts: tuple[str, ...]) -> list[str]:
    return [part for part in parts if not (folder / part).exists()]


def _check_folder(source: Source, folder: Path) -> None:
    """Raises FetchError where the folder lacks what must be there before, or holds what must not."""
    if source.images:
        if lacking := missing(folder, VOC):
            raise FetchError(f"{folder}: no {lacking[0]}. Get VOC first: ciss data fetch voc")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        lacking = " and ".join(missing(folder, source.makes))
        raise FetchError(f"{folder}: lacks {lacking}. Complete it, or move it away and run this again.")


def obtain(source: Source, downloads: Path, folder: Path, address: str | None = None) -> tuple[Path, bool]:
    """The archive with the right checksum, and whether it was downloaded now: one put there by hand is used.

    Raises: FetchError, DiskFull.
    """
    file = downloads / source.file
    if file.exists():
        if problem := _wrong(source, file):
            raise FetchError(f"{file}: {problem}. Delete it, and run the same command again to download it.")
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
    raise FetchError(
        f"{'; '.join(failures)}. Try again later, or download it by hand to {file} and run the same command again "
        f"(--from ADDRESS: from elsewhere); a copy you have belongs into {folder}, with "
        f"{', '.join(source.makes)} in it."
    )


def _wrong(source: Source, file: Path) -> str:
    """What is wrong with an archive; nothing when its checksum is right."""
    algorithm, _, wanted = source.checksum.partition(":")
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    size = documents.size(file.stat().st_size)
    return "" if found == wanted else f"wrong checksum ({algorithm} {found}, not {wanted}; {size})"


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
            if not (problem := _wrong(source, part)):
                return
            part.unlink()
            if not continued:
                raise _Refused(f"{problem}; removed")
            print(f"{part}: {problem}; starting afresh")
            continued = False
            longest = failures = 0
        except _Cut as cut:
            size = _size(part)
            failures = 1 if size > longest else failures + 1
            longest = max(longest, size)
            if failures > len(WAITS):
                kept = f"; {documents.size(size)} are kept, and the next try goes on there" if size else ""
                raise _Refused(f"cannot be downloaded ({cut}{kept})") from None
            time.sleep(WAITS[failures - 1])


def _continue(url: str, source: Source, part: Path) -> None:
    """One connection: the rest of `part`, or all of it where the server gives no rest. A part that is there stays when
    the answer is a web page, or shorter than the part.

    Raises: _Cut, _Refused, DiskFull.
    """
    had = _size(part)
    kept = f"; the {documents.size(had)} that are here are kept" if had else ""
    headers = {"User-Agent": "ciss"} | ({"Range": f"bytes={had}-"} if had else {})
    try:  # an opener of its own: the shared one would keep the first proxies it saw
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and had:  # complete, or of another file, as the checksum will tell
            return
        answer = f"the server answers {error.code} {error.reason}"
        if error.code >= 500 or error.code in BUSY:
            raise _Cut(answer) from None
        raise _Refused(f"cannot be downloaded ({answer})") from None
    except (OSError, HTTPException) as error:
        raise _Cut(_reason(error)) from None
    except ValueError as error:  # of --from
        raise _Refused(f"is no address ({error})") from None
    with response:
        if response.status == 206 and not re.match(rf"bytes {had}-", response.headers.get("Content-Range", "")):
            part.unlink()
            raise _Cut("the server gives another part than it was asked for")
        start = had if response.status == 206 else 0
        total = None if response.length is None else start + response.length
        block = _read(response)
        if page := _web_page(response.headers.get_content_type(), b"" if start else block):
            raise _Refused(f"the server sent a web page ({page}), not the archive{kept}")
        if start == 0 and total is not None and total < had:
            raise _Refused(f"the server sent {documents.size(total)}, less than is here already{kept}")
        files.require_space(part.parent, (total or start) - had + source.unpacked)
        bar = tqdm(total=total, initial=start, desc=source.file, unit="B", unit_scale=True, disable=None)
        with open(part, "ab" if start else "wb") as stream, bar:
            while block:
                stream.write(block)
                bar.update(len(block))
                block = _read(response)
    if total is not None and _size(part) != total:
        raise _Cut("the connection was cut")


def _web_page(kind: str, block: bytes) -> str:
    """What a web page says, of an answer's content type and first bytes; nothing for other content."""
    if kind != "text/html" and not re.match(rb"\s*(<!doctype html|<html)", block, re.IGNORECASE):
        return ""
    text = re.sub(rb"(?is)<(script|style)\b.*?</\1>|<[^>]*>", b" ", block[:10_000]).decode("utf-8", "replace")
    words = documents.plain(" ".join(text.split())[:60])
    return f"first words: {words}" if words else "without words"


def _read(response) -> bytes:
    try:
        return response.read(BLOCK)
    except (OSError, HTTPException) as error:
        raise _Cut(_reason(error)) from None


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return str(getattr(cause, "strerror", None) or cause) or type(error).__name__


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


# --- unpacking


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder beside another, removed afterwards; one that a killed process left is removed first."""
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unpack(source: Source, archive: Path, into: Path) -> None:
    """Unpacks the parts and extras of an archive.

    Raises: FetchError where it is broken, lacks a part, or one of them has a name or link that leads out of the folder.
    """
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
