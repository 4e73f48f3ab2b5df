"""Fetching real data sets, from a server of the test's own with tiny archives of the official structure."""

import errno
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from ciss import cli
from ciss.data import commands as command
from ciss.data import fetch as module
from ciss.data import sbd
from ciss.data.fetch import SOURCES, fetch
from ciss.data.pictures import DataError
from ciss.data.sets import voc as sets_voc
from ciss.data.sets.voc import palette
from ciss.store import files as store_files
from ciss.store.files import DiskFull

SHAPE = (12, 9)
VOC_MASKS = {"2007_train": 3, "2007_val": 4}  # image id -> class of its mask in VOC, which has a void border too
SBD_MASKS = {"2008_c": 15, "2008_d": 20, "2007_train": 7, "2007_val": 8}  # VOC's own masks count where there are both
SBD_LISTS = {"train": ["2008_d", "2007_val"], "val": ["2008_c"]}
IMAGES = ["2007_train", "2007_val", "2008_c", "2008_d", "2009_of_no_use"]
AUGMENTED = ["2007_train", "2008_c", "2008_d"]


def mask_of(number: int, void: bool) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:7, 3:6] = number
    if void:
        mask[7, 3:6] = 255
    return mask


def png(mask: np.ndarray) -> bytes:
    image, stream = Image.fromarray(mask), io.BytesIO()
    image.putpalette(sets_voc.palette().tobytes())
    image.save(stream, "png")
    return stream.getvalue()


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (*SHAPE, 3), np.uint8)).save(stream, "jpeg")
    return stream.getvalue()


def mat(mask: np.ndarray) -> bytes:
    """As SBD's: a struct GTcls of a cell array of sparse boundaries, the mask, and the classes in it."""
    stream, cells = io.BytesIO(), np.empty((20, 1), object)
    cells[:, 0] = [csc_matrix(SHAPE)] * 20
    classes = np.unique(mask[mask > 0])
    savemat(stream, {"GTcls": {"Boundaries": cells, "Segmentation": mask, "CategoriesPresent": classes}})
    return stream.getvalue()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as opened:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return stream.getvalue()


def voc_files() -> dict[str, bytes]:
    top = "VOCdevkit/VOC2012"
    files = {f"{top}/JPEGImages/{name}.jpg": jpeg() for name in IMAGES}
    files |= {f"{top}/SegmentationClass/{name}.png": png(mask_of(n, True)) for name, n in VOC_MASKS.items()}
    files |= {f"{top}/ImageSets/Segmentation/{split}.txt": f"2007_{split}\n".encode() for split in ("train", "val")}
    return files | {f"{top}/Annotations/2007_train.xml": b"<annotation/>"}


def sbd_files() -> dict[str, bytes]:
    top = "benchmark_RELEASE/dataset"
    files = {f"{top}/cls/{name}.mat": mat(mask_of(n, False)) for name, n in SBD_MASKS.items()}
    files |= {f"{top}/{split}.txt": "\n".join(names).encode() for split, names in SBD_LISTS.items()}
    return files | {f"{top}/img/2008_c.jpg": jpeg(), "benchmark_RELEASE/README": b"read me"}


def ade_files() -> dict[str, bytes]:
    top = "ADEChallengeData2016"
    files = {f"{top}/images/{split}/{split}_1.jpg": jpeg() for split in ("training", "validation")}
    masks = {file.replace("images", "annotations").replace("jpg", "png"): png(mask_of(9, False)) for file in files}
    return {**files, **masks, f"{top}/objectInfo150.txt": b"Idx", f"{top}/else.txt": b"of no use"}


class Site:
    """A server: what it holds, how it answers, and what it was asked for."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.shift = 0  # bytes by which the parts it gives are off
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.codes: list[int] = []  # of the next answers
        self.asked: list[str | None] = []  # the Range of every request
        self.kind: str | None = None  # the content type of the answers

    def put(self, patch: pytest.MonkeyPatch, name: str, data: bytes, **changes) -> None:
        """A source and its archive; `checksum` and others may be given."""
        changes = {"checksum": f"md5:{hashlib.md5(data).hexdigest()}", "unpacked": 0, "mirrors": ()} | changes
        source = replace(SOURCES[name], address=f"{self.address}/pub/{SOURCES[name].file}", **changes)
        patch.setitem(SOURCES, name, source)
        self.files[source.file] = data


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site, wanted = self.server.site, self.headers.get("Range")
        site.asked.append(wanted)
        if site.codes:
            return self.send_error(site.codes.pop(0))
        data = site.files.get(self.path.rpartition("/")[2])
        if data is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) + site.shift if wanted and site.ranges else 0
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if site.kind:
            self.send_header("Content-Type", site.kind)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = start + site.cuts.pop(0) if site.cuts else len(data)
        self.wfile.write(data[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(module, "WAITS", (0, 0))
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.site = site
        site.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        site.put(monkeypatch, "voc", tar(voc_files()))
        site.put(monkeypatch, "sbd", tar(sbd_files(), "w:gz"), images=len(AUGMENTED))
        site.put(monkeypatch, "ade20k", zipped(ade_files()))
        yield site
        server.shutdown()


@pytest.fixture
def root(tmp_path) -> Path:
    """A data root."""
    return tmp_path / "sets"


@pytest.fixture
def voc_archive(site) -> bytes:
    return site.files[SOURCES["voc"].file]


def archive(root: Path, name: str, suffix: str = "") -> Path:
    return root / "downloads" / f"{SOURCES[name].file}{suffix}"


def put_archive(root: Path, name: str, data: bytes, suffix: str = "") -> Path:
    file = archive(root, name, suffix)
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    return file


def tree(folder: Path) -> list[str]:
    """Every file but those of the folder of archives."""
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(str(file) for file in files if file.parts[0] != "downloads")


def read(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        assert opened.mode == "P"
        assert np.array_equal(np.reshape(opened.getpalette(), (-1, 3)), palette())
        return np.array(opened)


def fails(root: Path, match: str = "", name: str = "voc") -> str:
    """What fetching a data set fails with."""
    with pytest.raises(DataError, match=match) as caught:
        fetch(name, root)
    return str(caught.value)


# --- what is made


def test_voc_has_the_parts_that_are_read(site, root, capsys):
    fetch("voc", root)
    assert tree(root) == sorted(name for name in voc_files() if "Annotations" not in name)
    assert os.listdir(root / "VOCdevkit") == ["VOC2012"]
    assert not archive(root, "voc").exists()
    assert (root / "downloads" / ".gitignore").read_text() == "*\n"
    assert "fetch sbd" in capsys.readouterr().out
    (pair,) = sets_voc.pairs(root / "VOCdevkit" / "VOC2012", "val")
    assert np.array_equal(read(pair.mask), mask_of(4, True))


def test_sbd_makes_the_augmented_set(site, root):
    fetch("voc", root)
    fetch("sbd", root)
    folder = root / "VOCdevkit" / "VOC2012"
    pairs = sets_voc.pairs(folder, "train")
    assert [pair.id for pair in pairs] == AUGMENTED
    wanted = [mask_of(3, True), mask_of(15, False), mask_of(20, False)]
    for pair, mask in zip(pairs, wanted, strict=True):
        assert pair.mask.parent.name == "SegmentationClassAug"
        assert np.array_equal(read(pair.mask), mask), pair.id
        assert pair.image.is_file()
    (pair,) = sets_voc.pairs(folder, "val")
    assert pair.mask.parent.name == "SegmentationClassAug"
    assert np.array_equal(read(pair.mask), mask_of(4, True))
    assert len(os.listdir(folder / "SegmentationClassAug")) == 4
    assert sorted(os.listdir(folder)) == ["ImageSets", "JPEGImages", "SegmentationClass", "SegmentationClassAug"]


def test_ade20k(site, root):
    fetch("ade20k", root)
    assert tree(root) == sorted(name for name in ade_files() if "else" not in name)


@pytest.mark.parametrize("name", ["voc", "sbd", "ade20k"])
def test_a_second_call_does_nothing(site, root, capsys, name):
    for each in {"sbd": ["voc", "sbd"]}.get(name, [name]):
        fetch(each, root)
    before = {file: (root / file).stat().st_mtime_ns for file in tree(root)}
    asked = len(site.asked)
    shutil.rmtree(root / "downloads")
    capsys.readouterr()
    fetch(name, root)
    assert "already there" in capsys.readouterr().out
    assert len(site.asked) == asked
    assert {file: (root / file).stat().st_mtime_ns for file in tree(root)} == before
    assert not (root / "downloads").exists()


def test_the_real_sources():
    """Those of torchvision, so that a slip of the hand is noticed."""
    from torchvision.datasets.sbd import SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT as YEARS

    assert (SOURCES["voc"].address, SOURCES["voc"].checksum) == (YEARS["2012"]["url"], f"md5:{YEARS['2012']['md5']}")
    assert (SOURCES["sbd"].address, SOURCES["sbd"].checksum) == (SBDataset.url, f"md5:{SBDataset.md5}")
    assert SOURCES["sbd"].images == 10_582
    assert len(SOURCES["ade20k"].checksum) == len("sha1:") + 40


# --- connections


def test_a_cut_connection_continues(site, root, voc_archive):
    size = len(voc_archive)
    site.cuts = [size // 2, size // 4]
    fetch("voc", root)
    assert site.asked == [None, f"bytes={size // 2}-", f"bytes={size // 2 + size // 4}-"]


def test_many_cuts_are_no_failure_while_it_gets_further(site, root, voc_archive):
    site.cuts = [len(voc_archive) // 10] * 9
    fetch("voc", root)
    assert len(site.asked) == 10


def test_the_next_call_continues_where_the_last_one_stopped(site, root, voc_archive):
    half = len(voc_archive) // 2
    site.cuts = [half, 0, 0]
    text = fails(root, r"cut; .*B are kept, and the next try goes on there")
    assert str(archive(root, "voc")) in text
    assert archive(root, "voc", ".part").read_bytes() == voc_archive[:half]
    assert not (root / "VOCdevkit").exists()
    fetch("voc", root)
    assert site.asked[-1] == f"bytes={half}-"
    assert tree(root)


def test_a_server_without_ranges(site, root, voc_archive):
    site.ranges, site.cuts = False, [len(voc_archive) // 2]
    fetch("voc", root)
    assert len(site.asked) == 2
    assert tree(root)


def test_a_server_without_ranges_that_never_gets_further_is_given_up(site, root):
    site.ranges, site.cuts = False, [1000] * 50
    fails(root, "the connection was cut")
    assert len(site.asked) == 3


PAGE = b"<html><head><title>blocked by firewall</title></head><body>Request <b>rejected</b></body></html>"


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8", None])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_page_instead_of_the_archive(site, root, kind, ranges):
    """The page once took the place of half a download."""
    site.files[SOURCES["voc"].file], site.kind, site.ranges = PAGE, kind, ranges
    fails(root, r"the server sent a web page \(first words: blocked by firewall Request rej")
    assert not archive(root, "voc", ".part").exists()
    half = b"x" * 5_000
    site.ranges = False
    archive(root, "voc", ".part").write_bytes(half)
    fails(root, r"web page .*, not the archive; the 5 kB that are here are kept\. Try again")
    assert archive(root, "voc", ".part").read_bytes() == half


def test_a_shorter_answer_leaves_what_is_there(site, root):
    half, data = b"x" * 100, b"no archive, and no page"
    site.files[SOURCES["voc"].file], site.ranges = data, False
    put_archive(root, "voc", half, ".part")
    fails(root, r"the server sent 23 B, less than is here already; the 100 B that are here")
    assert archive(root, "voc", ".part").read_bytes() == half


def set_addresses(monkeypatch, address: str, *mirrors: str) -> None:
    monkeypatch.setitem(SOURCES, "voc", replace(SOURCES["voc"], address=address, mirrors=mirrors))


def test_a_second_address_has_the_same_archive(site, root, monkeypatch, capsys):
    right, wrong = SOURCES["voc"].address, f"{site.address}/gone/{SOURCES['sbd'].file}s"
    set_addresses(monkeypatch, wrong, right)
    fetch("voc", root)
    assert not module.missing(root / "VOCdevkit" / "VOC2012", module.VOC)
    out = capsys.readouterr().out
    assert out.index(wrong) < out.index(right)


def test_every_address_that_failed_is_named(site, root, monkeypatch):
    addresses = [f"{site.address}/{name}/none.tar" for name in ("a", "b")]
    set_addresses(monkeypatch, *addresses)
    text = fails(root)
    assert all(f"{address}: cannot be downloaded (the server answers 404" in text for address in addresses)
    assert text.count("Try again later") == 1


def test_a_given_address(site, root, monkeypatch):
    right = SOURCES["voc"].address
    set_addresses(monkeypatch, f"{site.address}/none.tar")
    with pytest.raises(DataError, match="nonsense: is no address"):
        fetch("voc", root, address="nonsense")
    fetch("voc", root, address=right)
    assert (root / "VOCdevkit" / "VOC2012" / "JPEGImages").is_dir()


def test_the_mirrors_have_the_archive_of_the_same_name():
    for source in SOURCES.values():
        assert all(mirror.endswith(f"/{source.file}") for mirror in source.mirrors)


def test_a_short_list_is_not_called_complete(site, root):
    """`fetch sbd` is what a note on too few images names: it must not answer that all is there."""
    fetch("voc", root)
    fetch("sbd", root)
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "trainaug.txt"
    lists.write_text("2007_a\n")
    fails(root, r"lists 1 training images, not SBD's .*Move it and SegmentationClassAug away", "sbd")


def test_a_server_that_gives_another_part(site, root):
    site.shift, site.cuts = 7, [1000]
    fetch("voc", root)
    assert site.asked == [None, "bytes=1000-", None]


@pytest.mark.parametrize("times", [1, 10_000], ids=["shorter", "longer"])
def test_a_part_of_another_file_is_started_afresh(site, root, times, capsys):
    part = b"of another file" * times
    put_archive(root, "voc", part, ".part")
    fetch("voc", root)
    assert site.asked == [f"bytes={len(part)}-", None]
    assert "starting afresh" in capsys.readouterr().out
    assert tree(root)


def test_a_complete_part_is_used(site, root, voc_archive):
    """The process was killed between the last byte and the check."""
    put_archive(root, "voc", voc_archive, ".part")
    fetch("voc", root)
    assert len(site.asked) == 1
    assert tree(root)


@pytest.mark.parametrize("codes", [[503, 500], [429]])
def test_a_busy_server_is_asked_again(site, root, codes):
    site.codes = codes.copy()
    fetch("ade20k", root)
    assert len(site.asked) == len(codes) + 1


@pytest.mark.parametrize(("code", "asked"), [(404, 1), (403, 1), (503, 3)])
def test_a_server_that_refuses(site, root, code, asked):
    site.codes = [code] * 9
    fails(root, f"cannot be downloaded \\(the server answers {code} .*by hand")
    assert len(site.asked) == asked


def test_waits_grow(site, root, monkeypatch):
    waits = []
    monkeypatch.setattr(module, "WAITS", (1, 2, 4))
    monkeypatch.setattr(module.time, "sleep", waits.append)
    site.codes = [500] * 9
    fails(root)
    assert waits == [1, 2, 4]


def test_no_server_at_all(site, root, monkeypatch):
    site.put(monkeypatch, "voc", b"", checksum=SOURCES["voc"].checksum)
    set_addresses(monkeypatch, "http://127.0.0.1:9/voc.tar")
    assert fails(root) == (
        "http://127.0.0.1:9/voc.tar: cannot be downloaded (Connection refused). Try again later, or download it by "
        f"hand to {root}/downloads/voc.tar and run the same command again (--from ADDRESS: from elsewhere); a copy you "
        f"have belongs into {root}/VOCdevkit/VOC2012, with JPEGImages, SegmentationClass, ImageSets in it."
    )


def test_a_name_that_nobody_knows(site, root, monkeypatch):
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=error))
    fails(root, r"cannot be downloaded \(Name or service not known\)\. Try again")


def test_a_wrong_checksum_is_removed(site, root, voc_archive):
    site.files[SOURCES["voc"].file] = voc_archive[:-1] + b"x"
    fails(root, r"wrong checksum \(md5 .*; removed\. Try again later, or download it by hand")
    assert not tree(root)
    assert not archive(root, "voc").exists() and not archive(root, "voc", ".part").exists()
    site.files[SOURCES["voc"].file] = voc_archive
    fetch("voc", root)
    assert tree(root)


# --- an archive put there by hand


def test_an_archive_put_there_by_hand_is_used_and_stays(site, root, voc_archive):
    file = put_archive(root, "voc", voc_archive)
    fetch("voc", root)
    assert (site.asked, file.exists()) == ([], True)
    assert tree(root)


def test_a_wrong_archive_put_there_by_hand_is_named_and_stays(site, root, voc_archive):
    file = put_archive(root, "voc", voc_archive[:-100])
    text = fails(root)
    assert text.startswith(f"{file}: wrong checksum (md5 ")
    assert text.endswith("). Delete it, and run the same command again to download it.")
    assert (site.asked, file.exists()) == ([], True)


# --- unpacking


def tar_with_link() -> bytes:
    stream = io.BytesIO(tar(voc_files()))
    with tarfile.open(fileobj=stream, mode="a") as opened:
        link = tarfile.TarInfo("VOCdevkit/VOC2012/JPEGImages/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/"
        opened.addfile(link)
    return stream.getvalue()


def zip_with(name: str) -> bytes:
    return zipped(ade_files() | {f"ADEChallengeData2016/images/training/{name}": b"x"})


OUT = "VOCdevkit/VOC2012/JPEGImages/" + "../" * 6 + "evil"
WITHOUT_MASKS = {name: data for name, data in voc_files().items() if "SegmentationClass" not in name}
BAD_ARCHIVES = {
    "a tar member that leads out": ("voc", tar(voc_files() | {OUT: b"x"}), r"cannot be unpacked .*evil.*Delete it"),
    "a tar link that leads out": ("voc", tar_with_link(), "cannot be unpacked"),
    "a zip member that leads out": ("ade20k", zip_with("../../../evil"), "leads out of the folder"),
    "a Windows path that leads out": ("ade20k", zip_with("..\\..\\evil"), "leads out of the folder"),
    "no masks": ("voc", tar(WITHOUT_MASKS), r"holds no VOCdevkit/VOC2012/SegmentationClass\."),
}


@pytest.mark.parametrize(("name", "data", "message"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_leaves_nothing(site, root, monkeypatch, name, data, message):
    site.put(monkeypatch, name, data)
    fails(root, message, name)
    assert not (root / SOURCES[name].folder).exists()
    assert not any(root.parent.rglob("*evil*"))


def test_members_that_nobody_needs_stay_packed(site, root, monkeypatch):
    site.put(monkeypatch, "ade20k", zipped(ade_files() | {"../evil": b"x", "/evil": b"x"}))
    fetch("ade20k", root)
    assert not any(root.parent.rglob("evil"))


@pytest.mark.parametrize("name", ["voc", "sbd", "ade20k"])
def test_an_archive_that_is_none(site, root, monkeypatch, name):
    if name == "sbd":
        fetch("voc", root)
    site.put(monkeypatch, name, b"The page has moved")
    fails(root, r"cannot be unpacked \(.*Delete it, and run the same command again", name)


@pytest.mark.parametrize(("name", "opener"), [("voc", tarfile.TarFile), ("ade20k", zipfile.ZipFile)])
def test_a_kill_while_unpacking(site, root, name, opener):
    real, members = opener.extract, []

    def extract(*arguments, **options):
        if len(members) == 2:
            raise KeyboardInterrupt
        members.append(arguments)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opener, "extract", extract)
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # a kill tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            fetch(name, root)
    folder = root / SOURCES[name].folder
    assert not folder.exists()
    left = folder.with_name(f".{folder.name}.partial")
    assert len(tree(left)) == 2
    (left / SOURCES[name].inside / "else").touch()
    fetch(name, root)
    assert len(site.asked) == 1  # the archive was complete
    assert not left.exists()
    assert not module.missing(folder, SOURCES[name].makes)
    assert not any(file.endswith("else") for file in tree(root))


def test_a_folder_that_lacks_something_is_left_alone(site, root):
    fetch("voc", root)
    folder = root / "VOCdevkit" / "VOC2012"
    shutil.rmtree(folder / "SegmentationClass")
    fails(root, "VOC2012: lacks SegmentationClass. Complete it, or move it away")
    assert len(site.asked) == 1
    assert (folder / "JPEGImages").is_dir()


def test_two_at_once(site, root):
    (root / "downloads").mkdir(parents=True)
    with FileLock(root / "downloads" / f".{SOURCES['voc'].file}.lock"):
        fails(root, "another process fetches it")
    assert site.asked == []


# --- the augmented set


def test_sbd_needs_voc(site, root):
    fails(root, r"no JPEGImages\. Get VOC first: ciss data fetch voc", "sbd")
    assert site.asked == []
    assert not root.exists()


@pytest.fixture
def folder(site, root) -> Path:
    fetch("voc", root)
    return root / "VOCdevkit" / "VOC2012"


def refused(root: Path) -> str:
    text = fails(root, name="sbd")
    folder = root / "VOCdevkit" / "VOC2012"
    assert not folder.with_name(".VOC2012.partial").exists()
    return text.removeprefix(f"{folder}/")


def test_another_number_of_images(site, root, folder, monkeypatch):
    monkeypatch.setitem(SOURCES, "sbd", replace(SOURCES["sbd"], images=10_582))
    assert refused(root).startswith("ImageSets/Segmentation: 3 training images with SBD's, not 10582: ")
    assert not (folder / "SegmentationClassAug").exists()


def test_an_image_that_lacks(site, root, folder):
    (folder / "JPEGImages" / "2008_d.jpg").unlink()
    assert refused(root).startswith("JPEGImages: lacks 1 images, 2008_d.jpg first. ")


def test_another_list_of_the_same_name_is_left_alone(site, root, folder):
    listed = folder / "ImageSets" / "Segmentation" / "trainaug.txt"
    listed.write_text("2008_c\n")
    assert "trainaug.txt: not the list made of VOC's and SBD's. Move it away" in refused(root)
    assert listed.read_text() == "2008_c\n"


MASKS = {"empty": b"", "broken": b"broken" * 100, "ids": mat(mask_of(21, False)), "none": None}


@pytest.mark.parametrize("data", MASKS.values(), ids=MASKS)
def test_a_mask_that_cannot_be_used(site, root, folder, monkeypatch, data):
    name = "benchmark_RELEASE/dataset/cls/2008_d.mat"
    contents = {file: content for file, content in (sbd_files() | {name: data}).items() if content is not None}
    site.put(monkeypatch, "sbd", tar(contents, "w:gz"))
    text = refused(root)
    assert "the mask of 2008_d cannot be used (" in text and text.endswith("run the same command again.")
    assert not (folder / "SegmentationClassAug").exists()


def test_a_kill_while_masks_are_written(site, root, folder):
    def write(name, archive, given, folder, made):
        if name == "2008_d":
            raise KeyboardInterrupt
        (made / f"{name}.png").touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sbd, "_write", write)
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            fetch("sbd", root)
    assert module.missing(folder, SOURCES["sbd"].makes) == list(SOURCES["sbd"].makes)
    fetch("sbd", root)
    assert np.array_equal(read(folder / "SegmentationClassAug" / "2008_c.png"), mask_of(15, False))
    assert not folder.with_name(".VOC2012.partial").exists()


def test_a_kill_between_masks_and_list(site, root, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store_files, "write_text", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch("sbd", root)
    assert module.missing(folder, SOURCES["sbd"].makes) == ["ImageSets/Segmentation/trainaug.txt"]
    with pytest.raises(FileNotFoundError, match="trainaug"):
        sets_voc.pairs(folder, "train")
    fetch("sbd", root)
    assert [pair.id for pair in sets_voc.pairs(folder, "train")] == AUGMENTED


def test_a_folder_of_masks_that_lacks_some_is_left_alone(site, root, folder):
    masks = folder / "SegmentationClassAug"
    masks.mkdir()
    (masks / "2007_val.png").write_bytes(b"mine")
    assert refused(root).startswith("SegmentationClassAug: lacks 3 masks, 2007_train.png first. Move it away")
    assert (masks / "2007_val.png").read_bytes() == b"mine"


# --- the disk


def free(monkeypatch, count: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(store_files.shutil, "disk_usage", lambda _: usage._replace(free=count))


def test_a_full_disk_is_reported_before_the_download(site, root, voc_archive, monkeypatch):
    site.put(monkeypatch, "voc", voc_archive, unpacked=5000)
    free(monkeypatch, len(voc_archive) + 4999)
    with pytest.raises(DiskFull, match=r"1 B missing.*Make room, and run the same command again"):
        fetch("voc", root)
    assert not archive(root, "voc", ".part").exists()
    free(monkeypatch, len(voc_archive) + 5000)
    fetch("voc", root)
    assert tree(root)


def test_what_was_downloaded_needs_no_room_again(site, root, voc_archive, monkeypatch):
    put_archive(root, "voc", voc_archive[:-1000], ".part")
    free(monkeypatch, 1000)
    fetch("voc", root)
    assert tree(root)


def test_a_full_disk_is_reported_before_unpacking(site, root, voc_archive, monkeypatch):
    site.put(monkeypatch, "voc", voc_archive, unpacked=5000)
    put_archive(root, "voc", voc_archive)
    free(monkeypatch, 4999)
    with pytest.raises(DiskFull):
        fetch("voc", root)
    assert not (root / "VOCdevkit").exists()


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "no room left (.*). Make room"), (errno.EACCES, "cannot be read or written (.*) Give yourself")],
)
def test_a_disk_that_refuses(site, root, monkeypatch, number, message):
    part = archive(root, "voc", ".part")
    monkeypatch.setattr(module.os, "replace", Mock(side_effect=OSError(number, os.strerror(number), str(part))))
    assert fails(root, message).startswith(f"{part}: ")


# --- the command


def run(monkeypatch, *arguments: str) -> str:
    """What it exits with; empty for success."""
    try:
        cli.main(["data", *arguments])
    except SystemExit as ended:
        return str(ended.code)
    return ""


def test_the_command(site, root, monkeypatch):
    monkeypatch.setenv("CISS_DATA", str(root))
    assert run(monkeypatch, "fetch", "voc", "--keep") == ""
    assert run(monkeypatch, "fetch", "sbd") == ""
    assert len(sets_voc.pairs(root / "VOCdevkit" / "VOC2012", "train")) == 3
    assert archive(root, "voc").read_bytes() == site.files[SOURCES["voc"].file] and not archive(root, "sbd").exists()
    assert run(monkeypatch, "fetch", "ade20k", "--to", str(root.parent / "elsewhere")) == ""
    assert (root.parent / "elsewhere" / "ADEChallengeData2016" / "images").is_dir()


def test_without_a_name_it_goes_to_the_project(site, tmp_path, monkeypatch):
    monkeypatch.delenv("CISS_DATA", raising=False)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "fetch", "ade20k") == ""
    assert (tmp_path / "data" / "ADEChallengeData2016").is_dir()


def test_errors_are_one_line(site, root, monkeypatch):
    site.codes = [404]
    text = run(monkeypatch, "fetch", "voc", "--to", str(root))
    assert text.startswith("error: http://127") and "\n" not in text
    root.parent.joinpath("file").touch()
    text = run(monkeypatch, "fetch", "voc", "--to", str(root.parent / "file"))
    assert text.startswith(f"error: {root.parent / 'file'}") and "\n" not in text


def test_cityscapes_says_how(root, monkeypatch):
    text = run(monkeypatch, "fetch", "cityscapes", "--to", str(root))
    for word in ("cityscapes-dataset.com", "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "_labelIds.png"):
        assert word in text
    assert f"{root}/cityscapes/gtFine/{{train,val}}" in text


def test_ctrl_c(site, root, monkeypatch):
    monkeypatch.setattr(command, "fetch", Mock(side_effect=KeyboardInterrupt))
    assert run(monkeypatch, "fetch", "voc", "--to", str(root)) == "stopped; the same command goes on"


def test_a_process_of_its_own_behind_a_proxy(site, root):
    """The official address, asked of the test's server, whose archive has not the official checksum."""
    ended = subprocess.run(
        [sys.executable, "-m", "ciss", "data", "fetch", "ade20k", "--to", str(root)],
        env=os.environ | {"http_proxy": site.address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert site.asked == [None]
    official = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
    assert ended.stderr.startswith(f"error: {official}: wrong checksum (sha1 "), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not tree(root)
