"""Images and masks of every kind: accepted, and then the loader's pixels and ids are those of the file, or one sentence
with file and remedy. Lists of images, class orders and dead loader processes the same."""

import io
import os
import random
import re
import signal
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ciss import config
from ciss.data import DATASETS, DataError, prepare, processes
from ciss.data.index import scan
from ciss.data.loaders import evaluation_loader, training_loader
from ciss.data.pictures import Pair, read_pair
from ciss.data.sets import voc as sets_voc
from ciss.data.sets.voc import read_list
from ciss.protocol import SETTINGS, Classes, class_groups, select_images

REMEDY = (
    r"(Fetch it again|Convert (?:it|the original) |Complete the data set|Keep one|Cut it up|Turn |Lay it|Make a|"
    r"Allow it|Replace|Correct)"
)
BENCHMARK = {
    "dataset": "shapes",
    "protocol": "joint",
    "train": {"base": {"epochs": 1, "lr": 1}, "increment": {"epochs": 1, "lr": 1}, "crop": 8, "batch": 1, "workers": 0},
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
IDENTITY = np.arange(256, dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, depth: int, colour: int, *rows: bytes, extra: bytes = b"", height: int | None = None) -> bytes:
    """A PNG byte by byte. colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    head = struct.pack(">IIBBBBB", width, height or len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def palette(count: int) -> bytes:
    return chunk(b"PLTE", bytes(3 * n % 256 for n in range(3 * count)))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (24, 32, 3)).astype(np.uint8))
GREY = encoded(Image.new("L", (4, 2), 50), "PNG")
IDS = png(4, 8, 0, bytes([0, 1, 8, 255]), bytes([2, 3, 4, 5]))


def both(folder: Path, image: bytes = GREY, mask: bytes = IDS) -> tuple[np.ndarray, np.ndarray, str, bool]:
    (folder / "a.jpg").write_bytes(image)
    (folder / "a.png").write_bytes(mask)
    return read_pair(Pair("a", folder / "a.jpg", folder / "a.png"))


def refused(folder: Path, **files: bytes) -> str:
    with pytest.raises(DataError) as caught:
        both(folder, **files)
    return sentence(str(caught.value), folder)


def sentence(message: str, folder: Path) -> str:
    assert len(message.splitlines()) == 1 and message.startswith(f"{folder}/a."), message
    assert re.search(rf"\. {REMEDY}[^\n]*\.$", message) and "0x7f" not in message, message
    return message


@pytest.mark.parametrize(
    ("depth", "colour", "row", "ids"),
    [
        (8, 0, b"\x00\x01\x08\xff", [0, 1, 8, 255]),
        (4, 0, b"\x01\x8f", [0, 1, 8, 15]),  # Pillow says 0, 17, 136, 255
        (2, 0, b"\x1b", [0, 1, 2, 3]),  # Pillow says 0, 85, 170, 255
        (8, 3, b"\x00\x01\x08\x0f", [0, 1, 8, 15]),
        (4, 3, b"\x01\x8f", [0, 1, 8, 15]),
        (2, 3, b"\x1b", [0, 1, 2, 3]),
        (1, 3, b"\x50", [0, 1, 0, 1]),
    ],
)
def test_masks_are_read_bit_by_bit(tmp_path, depth, colour, row, ids):
    """What the file holds, by hand, whatever depth it is held in, with a transparent id as well."""
    for extra in (b"", palette(2**depth) if colour == 3 else chunk(b"tRNS", b"\0\1")):
        extra = extra if colour == 0 else palette(2**depth) + (chunk(b"tRNS", b"\xff\0") if extra else b"")
        found = both(tmp_path, encoded(Image.new("L", (4, 1)), "PNG"), png(4, depth, colour, row, extra=extra))[1]
        assert found.dtype == np.uint8 and found.tolist() == [ids]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (png(4, 1, 0, b"\x50", b"\x50"), "mode 1, not one id"),
        (png(4, 16, 0, bytes(8), bytes(8)), "mode I;16, not one id"),
        (png(4, 8, 2, bytes(12), bytes(12)), "mode RGB, not one id"),
        (png(4, 8, 4, bytes(8), bytes(8)), "mode LA, not one id"),
        (png(4, 8, 6, bytes(16), bytes(16)), "mode RGBA, not one id"),
        (encoded(Image.new("L", (4, 2)), "JPEG"), "the mask is a JPEG file"),
        (encoded(Image.new("P", (4, 2)), "GIF"), "the mask is a GIF file"),
        (encoded(Image.new("L", (4, 2)), "TIFF"), "the mask is a TIFF file"),
        (png(40_000, 8, 0, b"", height=40_000), "too large"),
        (png(10_000, 8, 0, b"", height=10_000), "too large (10000x10000 pixels)"),
        (encoded(Image.new("L", (4, 2)), "PNG", save_all=True, append_images=[Image.new("L", (4, 2), 9)]), "2 frames"),
        (b"", "it is empty"),
        (b"<html>", "no image of a known format"),
    ],
)
def test_masks_that_are_none(tmp_path, mask, words):
    assert words in refused(tmp_path, mask=mask)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (png(4, 8, 2, bytes([1, 2, 3] * 4), bytes(12)), [1, 2, 3]),
        (png(4, 16, 2, bytes([1, 128, 127, 0, 255, 255] * 4), bytes(24)), [1, 127, 255]),  # to scale: upper bytes
        (png(4, 1, 0, b"\x80", b"\x00"), [255, 255, 255]),
        (png(4, 4, 0, b"\x10\x00", b"\x00\x00"), [17, 17, 17]),
        (png(4, 8, 6, bytes([1, 2, 3, 255] * 4), bytes([9, 9, 9, 255] * 4)), [1, 2, 3]),
        (png(4, 8, 4, bytes([7, 255] * 4), bytes([7, 255] * 4)), [7, 7, 7]),
        (png(4, 8, 3, bytes(4), bytes(4), extra=palette(2) + chunk(b"tRNS", b"\xff\0")), [0, 3, 6]),  # id 1 is not used
        (encoded(Image.new("CMYK", (4, 2), (0, 0, 0, 255)), "TIFF"), [0, 0, 0]),
        (encoded(Image.new("RGB", (4, 2), (9, 8, 7)), "BMP"), [9, 8, 7]),
        (encoded(Image.new("RGB", (4, 2), (9, 8, 7)), "WEBP", lossless=True), [9, 8, 7]),
        (encoded(Image.new("RGB", (4, 2), (9, 8, 7)), "PPM"), [9, 8, 7]),
    ],
)
def test_images_of_many_kinds(tmp_path, image, pixel):
    found, _, _, turned = both(tmp_path, image)
    assert found.shape == (2, 4, 3) and found.dtype == np.uint8 and found[0, 0].tolist() == pixel and not turned


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (png(4, 16, 0, bytes(8), bytes(8)), "mode I;16, more than 8 bits"),
        (encoded(Image.new("I", (4, 2)), "TIFF"), "mode I, more than 8 bits"),
        (encoded(Image.new("I;16B", (4, 2)), "TIFF"), "mode I;16B, more than 8 bits"),
        (encoded(Image.new("F", (4, 2)), "TIFF"), "mode F, more than 8 bits"),
        (png(4, 8, 6, bytes([1, 2, 3, 255] * 4), bytes([9, 9, 9, 254] * 4)), "transparent. Lay it on a background"),
        (png(4, 16, 4, bytes([7, 7, 0, 0] * 4), bytes(16)), "transparent"),
        (png(4, 8, 3, b"\0\1\0\0", bytes(4), extra=palette(2) + chunk(b"tRNS", b"\xff\0")), "transparent"),
        (png(4, 8, 2, bytes(12), bytes(12), extra=chunk(b"tRNS", bytes(6))), "transparent"),
        (encoded(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(180)]), "2 frames"),
        (
            encoded(Image.new("RGB", (4, 2)), "TIFF", save_all=True, append_images=[Image.new("RGB", (4, 2))]),
            "2 frames",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 2\n", "no image of a known format"),
    ],
)
def test_images_that_would_lose_something(tmp_path, image, words):
    assert words in refused(tmp_path, image=image)


def tagged(size: tuple[int, int], turn: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return encoded(Image.new("RGB", size), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(10))
def test_pixels_count_as_stored(tmp_path, capsys, turn, kind):
    wide, square = IDS, png(3, 8, 0, bytes(3), bytes(3), bytes(3))
    image, _, _, unsure = both(tmp_path, tagged((4, 2), turn, kind), wide)
    assert image.shape == (2, 4, 3) and unsure == (turn in (2, 3, 4)), "5 to 8 would not fit"
    assert both(tmp_path, tagged((3, 3), turn, kind), square)[3] == (2 <= turn <= 8)
    message = refused(tmp_path, image=tagged((2, 4), turn, kind), mask=wide)
    assert ("EXIF" in message) == (5 <= turn <= 8) and "the mask is 4x2, its image 2x4 pixels" in message
    assert turn < 5 or turn > 8 or f"(orientation {turn}) turns it. Turn the pixels" in message
    if 2 <= turn <= 8:
        assert "has a tag that turns it" in refused(tmp_path, image=tagged((4, 2), turn, "TIFF"))


def test_prepare_tells_of_turned_images(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path, {"a": (tagged((4, 2), 3), IDS), "b": (GREY, IDS), "c": (tagged((4, 2), 2), IDS)})
    monkeypatch.setenv("CISS_DATA", str(tmp_path))
    prepare(benchmark(), tmp_path / "index", progress=False)
    line, other = capsys.readouterr().out.splitlines()
    first = folder / "JPEGImages" / "a.jpg"
    assert line.startswith(
        f"note: 2 of 3 train images have an EXIF tag that turns them, first {first}. Pixels count as"
    )
    assert other.startswith("note: 2 of 3 val images")


def write(root: Path, pairs: dict[str, tuple[bytes, bytes]], listed: bytes | None = None) -> Path:
    folder = root / "shapes"
    for part in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, (image, mask) in pairs.items():
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(image)
        (folder / "SegmentationClassAug" / f"{name}.png").write_bytes(mask)
    for file in ("trainaug.txt", "val.txt"):
        (folder / "ImageSets" / "Segmentation" / file).write_bytes(listed or "\n".join(pairs).encode())
    return folder


def benchmark(**train) -> config.Benchmark:
    return config.validate(config.Benchmark, {**BENCHMARK, "train": {**BENCHMARK["train"], **train}}, "test", "b")


SPECKS = np.random.RandomState(1).randint(0, 9, (24, 32)).astype(np.uint8)
WHOLE = [encoded(NOISE, "JPEG"), encoded(NOISE, "PNG"), encoded(NOISE.quantize(), "GIF"), encoded(NOISE, "TIFF")]
WHOLE += [encoded(NOISE, "JPEG", progressive=True), encoded(NOISE, "WEBP"), encoded(NOISE.convert("CMYK"), "JPEG")]
LABELS = [encoded(Image.fromarray(SPECKS), "PNG"), encoded(Image.fromarray(SPECKS).convert("P"), "PNG", bits=4)]


@given(st.data())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_damage_is_named_or_changes_nothing(tmp_path_factory, data):
    """Cut off anywhere, bytes changed, random bytes: refused with a sentence, or read as something of the same size; a
    file cut off and accepted has the pixels of the whole."""
    folder = tmp_path_factory.getbasetemp()
    image, mask = data.draw(st.sampled_from(WHOLE)), data.draw(st.sampled_from(LABELS))
    whole = both(folder, image, mask)
    assert (whole[1] == SPECKS).all()
    broken = bytearray(data.draw(st.sampled_from([image, mask])))
    is_mask = bytes(broken) == mask
    how = data.draw(st.sampled_from(["cut", "cut", "flip", "random", "swap"]))
    if how == "cut":
        del broken[data.draw(st.integers(0, len(broken) - 1)) :]
    elif how == "flip":
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    elif how == "random":
        broken[data.draw(st.integers(0, 100)) :] = random.Random(data.draw(st.integers(0, 99))).randbytes(200)
    else:
        broken[:] = mask if not is_mask else image
    try:
        found = both(folder, *((image, bytes(broken)) if is_mask else (bytes(broken), mask)))
    except DataError as error:
        sentence(str(error), folder)
    else:
        assert found[0].shape == (24, 32, 3) and found[1].shape == (24, 32)
        if how == "cut":
            assert (found[0] == whole[0]).all() and (found[1] == whole[1]).all()
        assert found[2] != whole[2], "the digest tells"


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "loop", "missing", "forbidden"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_what_is_no_file(tmp_path, monkeypatch, kind, name):
    both(tmp_path)
    file = tmp_path / name
    file.unlink()
    words = "(it is no file). Fetch it again, or take a off its list."
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind in ("dangling", "loop"):
        file.symlink_to(tmp_path / "nowhere" if kind == "dangling" else file)
        words = "(it is a link that leads nowhere). Fetch"
    elif kind == "missing":
        words = "is missing. Complete the data set, or take a off its list."
    else:
        words = "may not be read. Allow it (chmod u+r), or take a off its list."
        file.write_bytes(GREY)
        read = Path.read_bytes  # whoever runs the tests may read everything

        def forbidden(path: Path) -> bytes:
            if path.name == name:
                raise PermissionError(13, "Permission denied")
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(DataError) as caught:
        read_pair(Pair("a", tmp_path / "a.jpg", tmp_path / "a.png"))
    assert words in sentence(str(caught.value), tmp_path)


def test_the_loader_sees_what_the_scan_saw(tmp_path, monkeypatch):
    """Every accepted pair, and no change since, of whatever size and kind, goes unnoticed."""
    masks = [LABELS[0], LABELS[1], LABELS[0], LABELS[1], LABELS[0], LABELS[1], LABELS[0]]
    folder = write(tmp_path, {f"i{n}": pair for n, pair in enumerate(zip(WHOLE, masks, strict=True))})
    monkeypatch.setenv("CISS_DATA", str(tmp_path))
    index = prepare(benchmark(), tmp_path / "index", progress=False)
    loader = evaluation_loader(benchmark(), index, "train", list(range(7)), IDENTITY)
    counts = np.bincount(SPECKS.flatten(), minlength=9)
    assert index.pixels == {str(raw): 7 * int(count) for raw, count in enumerate(counts)}
    for images, labels, numbers in loader:
        for image, label, number in zip(images, labels, numbers.tolist(), strict=True):
            pair = index.pairs("train")[number]
            assert (label.numpy() == SPECKS).all()
            assert (image.permute(1, 2, 0).numpy() == read_pair(pair)[0]).all()
    other = SPECKS.copy()
    other[0, 0] = (other[0, 0] + 1) % 9
    (folder / "SegmentationClassAug" / "i2.png").write_bytes(encoded(Image.fromarray(other), "PNG"))
    with pytest.raises(
        DataError, match=r"i2\.jpg or its mask changed since the data were prepared\. Run: dvc repro -f"
    ):
        list(loader)


# --- lists


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb\r\n\r\n", ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        (b"2007_1 1\n2007_2", ["2007_1 1", "2007_2"]),
        (b"\xef\xbb\xbfa\n\n  \n\tb  ", ["a", "b"]),
        (b"a b\nb", ["a b", "b"]),
        ("ä\n日本".encode(), ["ä", "日本"]),
        (b"..a\n-", ["..a", "-"]),
    ],
)
def test_lists_are_read(tmp_path, text, ids):
    (tmp_path / "list.txt").write_bytes(text)
    assert read_list(tmp_path / "list.txt") == ids


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the list is empty. Fetch it again."),
        (b"\xef\xbb\xbf \r\n\n", "the list is empty. Fetch it again."),
        (b"a\n\xff\n", "the list is not UTF-8 (invalid start byte). Fetch it again."),
        (b"a\n../b\n", "line 2: '../b' is no image id. Write one a line, without folder or second column, such as"),
        (b"2007_1  1\r2007_2 -1\r2007_3  0\r", "line 1: '2007_1  1' is no image id."),
        (b"/etc/passwd\n", "line 1: '/etc/passwd' is no image id."),
        (b"/JPEGImages/a.jpg /SegmentationClassAug/a.png\n", "line 1: '/JPEGImages/a.jpg /Seg"),
        (b"a\\b\n", "is no image id"),
        (b"a\0b\n", "line 1: 'a\\x00b' is no image id."),
        (b"a\tb\n", "line 1: 'a\\tb' is no image id."),
        (b"x/" * 9999, "...' is no image id."),
    ],
)
def test_lists_that_are_none(tmp_path, text, words):
    file = tmp_path / "list.txt"
    file.write_bytes(text)
    with pytest.raises(DataError) as caught:
        sets_voc.read_list(file)
    assert str(caught.value).startswith(f"{file}: ") and words in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("part", ["shapes", "JPEGImages", "SegmentationClassAug", "ImageSets"])
def test_folders_that_lead_to_themselves(tmp_path, monkeypatch, part):
    folder = write(tmp_path, {"a": (GREY, IDS)})
    loop = folder if part == "shapes" else folder / part
    loop.rename(tmp_path / "away")
    loop.symlink_to(loop)
    dataset = DATASETS["shapes"]
    with pytest.raises((DataError, FileNotFoundError)) as caught:
        scan(dataset.pairs(folder, "train"), dataset)
    assert str(folder) in str(caught.value)


def test_lists_that_are_folders(tmp_path):
    folder = write(tmp_path, {"a": (GREY, IDS)})
    (folder / "ImageSets/Segmentation/val.txt").unlink()
    (folder / "ImageSets/Segmentation/val.txt").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no val\.txt\. A data set in Pascal VOC's layout has its list of val"):
        sets_voc.pairs(folder, "val")


# --- loader processes


def test_no_shared_memory_left():
    """torch's words, as a loader process hands them over in a container with 64 MB of /dev/shm."""
    error = RuntimeError(
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "storage.py", line 423, in _new_shared\n    return cls._new_using_fd_cpu(size)\n'
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)\n"
    )
    message = str(processes.explained(error))
    assert len(message.splitlines()) == 1 and "No space left on device (28)" in message
    assert "train.workers" in message and "--shm-size" in message
    other = RuntimeError("expected a tensor")
    assert processes.explained(other) is other


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_loader_process(tmp_path, monkeypatch, busy):
    """Whether training waits for a batch or computes with one when the process dies."""
    write(tmp_path, {f"i{n}": (GREY, IDS) for n in range(40)})
    monkeypatch.setenv("CISS_DATA", str(tmp_path))
    index = prepare(benchmark(), tmp_path / "index", progress=False)
    loader = training_loader(benchmark(workers=1), index, list(range(40)), IDENTITY, 0)
    batches = iter(loader)
    next(batches)
    (worker,) = loader._iterator._workers

    def go_on() -> None:
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(20 * busy)
        list(batches)

    with pytest.raises(DataError) as caught:
        go_on()
    with suppress(DataError):  # where a batch broke off first, torch's handler of the signal speaks a moment later
        time.sleep(1)
    message = str(caught.value)
    assert message.startswith("a loader process was killed (") and len(message.splitlines()) == 1
    assert "run the same command again, with fewer train.workers" in message and "/dev/shm" in message
    assert message.endswith("docker run --shm-size=8g.")


# --- class groups

RAW = st.one_of(st.integers(-3, 12), st.sampled_from([0, 254, 255, 256, True, False, 1.0, 2.5, "3", None, np.int64(4)]))


def plain(values) -> bool:
    return all(isinstance(v, int | np.integer) and not isinstance(v, bool) and 0 < v < 255 for v in values)


@given(st.lists(st.lists(RAW, max_size=4), max_size=4), st.integers(-2, 5), st.sampled_from([*SETTINGS, "over"]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_groups_are_a_partition_or_refused(groups, step, setting):
    every = [raw for group in groups for raw in group]
    right = plain(every) and len(set(every)) == len(every) and all(groups)
    images = [[0, 255, *range(1, 13)], [1], [2, 3]]
    for use in (
        lambda: Classes(groups),
        lambda: Classes(groups).label_table(step, setting, training=True),
        lambda: select_images(images, groups, step, setting, domains=[0, 1, 1]),
    ):
        try:
            found = use()
        except ValueError as error:
            message = str(error)
            assert message.endswith(".") and ". " in message and len(message.splitlines()) == 1
            continue
        assert right
        if isinstance(found, Classes):
            assert found.raw.tolist() == [0, *every]
        elif len(found) == 256:
            shown = found[(found > 0) & (found < 255)]
            assert found[255] == 255 and found[0] == 0 and len(set(shown.tolist())) == len(shown)
            past = {"sequential", "domain"} & {setting}
            allowed = [raw for t, group in enumerate(groups) if t == step or (past and t <= step) for raw in group]
            assert {raw for raw in range(1, 255) if found[raw]} == set(allowed)
        else:
            assert set(found.tolist()) <= {0, 1, 2} and len(found)
            later = {raw for group in groups[step + 1 :] for raw in group}
            if setting in ("disjoint", "sequential"):
                assert not any(later & set(images[i]) for i in found), "a class of a later step"
    if right and groups:
        steps = Classes(groups).steps
        assert steps.tolist() == [0, *(t for t, group in enumerate(groups) for _ in group)]


@given(st.lists(RAW, max_size=10), st.text("0123456789-joint１s ", max_size=6))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_orders_and_protocols(order, protocol):
    for given_order in (None, order, [8, 7, 6, 5, 4, 3, 2, 1]):
        try:
            groups = class_groups("shapes", protocol, order=given_order)
        except ValueError as error:
            assert str(error).endswith(".") and ". " in str(error) and len(str(error).splitlines()) == 1
        else:
            every = [raw for group in groups for raw in group]
            assert all(groups) and every == list(given_order or range(1, 9)) and sorted(every) == list(range(1, 9))


def test_an_order_without_end_is_refused_at_once():
    with pytest.raises(ValueError, match="no permutation") as caught:
        class_groups("shapes", "joint", order=[*range(10**5)] * 2)
    assert len(str(caught.value)) < 1000
