"""Real data sets from their official places: downloaded, checked, and unpacked whole or not at all.

Addresses and MD5 of VOC and SBD: torchvision.datasets. ADE20K: the challenge's address, SHA-1 as GluonCV states it.
Mirrors of VOC: the site of the challenge, and the copy that the authors of YOLO keep. The checksum decides which
archive is accepted, whatever its address.
"""

import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from ciss import documents, paths
from ciss.data.archive import FetchError, Source, beside, missing, unpack
from ciss.store import files

WAITS = (1, 2, 4, 8)  # seconds after failures in a row; one more is the end
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20  # bytes
BUSY = (408, 425, 429)  # answers of a server that may give another one later, as may all from 500 on


class _Cut(Exception):
    """A failure that the next try may not have."""


class _Refused(Exception):
    """A failure that this address will have again: the reason."""


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
    named = os.environ.get("CISS_DATA")
    return Path(named).expanduser().absolute() if named else paths.project() / "data"


def fetch(name: str, root: Path, keep: bool = False, address: str | None = None) -> None:
    """Puts a data set of SOURCES under a data root, or says that it is there. The archive goes when it was downloaded
    by this call, unless `keep`. `address`: where to download it instead of the known addresses.

    Raises FetchError, CheckpointError and DataError: a sentence with file or address and the remedy.
    """
    source = SOURCES[name]
    folder, downloads = root / source.folder, root / "downloads"
    if not missing(folder, source.makes):
        if name == "sbd":
            from ciss.data.sets.voc import read_list

            listed = folder / source.makes[1]
            if (images := len(read_list(listed))) != source.images:
                problem = f"{listed}: lists {images:,} training images, not SBD's {source.images:,}"
                raise FetchError(f"{problem}. Move it and {source.makes[0]} away, and run this again.")
        print(f"{folder}: already there")
        return
    try:
        if name == "sbd":
            from ciss.data.sbd import build as place  # here, because nothing else needs scipy

            if lacking := missing(folder, VOC):
                raise FetchError(f"{folder}: no {lacking[0]}. Get VOC first: ciss data fetch voc")
        else:
            place = _place
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                lacking = " and ".join(missing(folder, source.makes))
                raise FetchError(f"{folder}: lacks {lacking}. Complete it, or move it away and run this again.")
        with _alone(downloads, source):
            archive, new = obtain(source, downloads, folder, address)
            files.require_space(folder.parent, source.unpacked)
            place(source, archive, folder)
            print(f"{folder}: complete" + (f"; {source.then}" if source.then else ""))
            if new and not keep:
                archive.unlink()
            else:
                print(f"{archive}: kept; nothing needs it any more")
    except OSError as error:
        place, why = error.filename or root, error.strerror or error
        if error.errno in files.FULL:
            raise FetchError(f"{place}: no room left ({why}). Make room, and run the same command again.") from None
        raise FetchError(
            f"{place}: cannot be read or written ({why}). Give yourself the right to, or name another folder with --to."
        ) from None


@contextmanager
def _alone(downloads: Path, source: Source) -> Iterator[None]:
    """One process at a time; the folder of archives keeps itself out of git."""
    downloads.mkdir(parents=True, exist_ok=True)
    (downloads / ".gitignore").write_text("*\n", encoding="utf-8")
    lock = FileLock(downloads / f".{source.file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FetchError(f"{downloads / source.file}: another process fetches it. Wait for it, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


# --- download


def obtain(source: Source, downloads: Path, folder: Path, address: str | None = None) -> tuple[Path, bool]:
    """The archive, its checksum verified, and whether it was downloaded now: one put there by hand is used.

    Raises FetchError, DiskFull.
    """
    file = downloads / source.file
    if file.exists():
        if found := _wrong(source, file):
            raise FetchError(f"{file}: {found}. Delete it, and run the same command again to download it.")
        print(f"{file}: is there, its checksum is right")
        return file, False
    failures = []
    for url in [address] if address else [source.address, *source.mirrors]:
        print(f"{url} -> {file}")
        try:
            _obtain_from(url, source, file)
            return file, True
        except _Refused as refused:
            failures.append(f"{url}: {refused}")
    raise FetchError(
        f"{'; '.join(failures)}. Try again later, or download it by hand to {file} and run the same command again "
        f"(--from ADDRESS: from elsewhere); a copy you have belongs into {folder}, with "
        f"{', '.join(source.makes)} in it."
    )


def _obtain_from(url: str, source: Source, file: Path) -> None:
    """Downloads an archive from one address. Raises _Refused, DiskFull."""
    part = file.with_name(f"{file.name}.part")
    while True:
        continued = part.exists()
        _download(url, source, part)
        problem = _wrong(source, part)
        if not problem:
            os.replace(part, file)
            return
        part.unlink()
        if not continued:
            raise _Refused(f"{problem}; removed")
        print(f"{part}: {problem}; starting afresh")


def _wrong(source: Source, file: Path) -> str:
    """What is wrong with an archive; nothing when its checksum is right."""
    algorithm, _, wanted = source.checksum.partition(":")
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    size = documents.size(file.stat().st_size)
    return "" if found == wanted else f"wrong checksum ({algorithm} {found}, not {wanted}; {size})"


def _download(url: str, source: Source, part: Path) -> None:
    """Completes `part`, in several tries where the connection fails. Raises _Refused when none gets further."""
    longest, failures = _size(part), 0
    while True:
        try:
            return _continue(url, source, part)
        except _Cut as cut:
            reason = str(cut)
        size = _size(part)
        failures = 1 if size > longest else failures + 1
        longest = max(longest, size)
        if failures > len(WAITS):
            had = f"; {documents.size(size)} are kept, and the next try goes on there" if size else ""
            raise _Refused(f"cannot be downloaded ({reason}{had})")
        time.sleep(WAITS[failures - 1])


def _continue(url: str, source: Source, part: Path) -> None:
    """One connection: the rest of `part`, or all of it where the server gives no rest. Raises _Cut, _Refused. What is
    there stays when the answer is a web page, or shorter than what is there."""
    had = _size(part)
    kept = f"; the {documents.size(had)} that are here are kept" if had else ""
    headers = {"User-Agent": "ciss"} | ({"Range": f"bytes={had}-"} if had else {})
    try:  # an opener of its own: the shared one would keep the first proxies it saw
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and had:  # there is no rest: complete, or of another file, as the checksum will tell
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
        if page := _web_page(response.headers.get_content_type(), block if start == 0 else b""):
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


def _place(source: Source, archive: Path, folder: Path) -> None:
    with beside(folder) as partial:
        unpack(source, archive, partial)
        (partial / source.inside).rename(folder)
