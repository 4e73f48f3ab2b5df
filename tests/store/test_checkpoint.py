"""Files written whole or not at all, the same bytes for the same weights, and a clear message about other files."""

import errno
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from ciss.store import files
from ciss.store.files import CheckpointError, DiskFull, Locked
from ciss.store.weights import forget_state, load_state, load_weights, restore, save_state, save_weights


def network(width: int = 3) -> nn.Module:
    """Weights that follow from their position."""
    modules = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width))
    for k, parameter in enumerate(modules.parameters()):
        nn.init.constant_(parameter, k / 7)
    return modules


def os_error(number: int) -> Mock:
    """A function of `os` that fails."""
    return Mock(side_effect=OSError(number, os.strerror(number)))


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "runs" / "shapes" / "base-s0" / "weights.safetensors"
    save_weights(file, network(), {"seed": 0, "groups": [[1, 2]], "method": "finetune"})
    return file


def refused(file, match, into=None) -> str:
    """The message, which names the file and the remedy in one line."""
    with pytest.raises(CheckpointError, match=match) as caught:
        restore(into or network(), file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert text.endswith("ciss train base-s0")
    assert len(text.splitlines()) == 1
    return text


# --- weights


def test_what_is_saved_comes_back(file):
    other = network()
    for value in other.state_dict().values():
        value.zero_()
    config = restore(other, file)
    assert config == {"seed": 0, "groups": [[1, 2]], "method": "finetune"}
    for name, value in network().state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
        assert other.state_dict()[name].dtype == value.dtype


def test_channels_last_is_saved(file, tmp_path):
    """safetensors refuses such tensors; the bytes are those of the usual layout."""
    last = network().to(memory_format=torch.channels_last)
    assert not last[0].weight.is_contiguous()
    save_weights(tmp_path / "last", last, load_weights(file)[1])
    assert (tmp_path / "last").read_bytes() == file.read_bytes()
    restore(last, file)
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_order_of_the_configuration_does_not_matter(file, tmp_path):
    save_weights(tmp_path / "other", network(), {"method": "finetune", "groups": [[1, 2]], "seed": 0})
    assert (tmp_path / "other").read_bytes() == file.read_bytes()


def test_same_bytes_in_another_process(project, tmp_path):
    """Whose hashes of words differ: sets and maps come in another order there."""
    program = (
        "import sys; from pathlib import Path; from torch import nn; from ciss.store import weights\n"
        "network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))\n"
        "for k, p in enumerate(network.parameters()): nn.init.constant_(p, k / 7)\n"
        "weights.save_weights(Path(sys.argv[1]), network, dict.fromkeys(set('abcdefgh'), 0))"
    )
    process = project.command("-c", program, str(tmp_path / "there"), env={**os.environ, "PYTHONHASHSEED": "1"})
    assert process.communicate(timeout=60)[1] == ""
    save_weights(tmp_path / "here", network(), dict.fromkeys("hgfedcba", 0))
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_missing(file):
    file.unlink()
    refused(file, "there is no such checkpoint. Train it:")


CONTENTS = {f"truncated at {size}": size for size in (0, 5, 60, -1)} | {
    "a text": b"no checkpoint at all",
    "a pickle": pickle.dumps({"a": 1}),
    "other tensors": save({"a": torch.ones(1)}),
    "no JSON": save({"a": torch.ones(1)}, metadata={"config": "{"}),
    "a folder": None,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_foreign_and_truncated(file, content):
    data = file.read_bytes()[:content] if isinstance(content, int) else content
    file.unlink()
    if data is None:
        file.mkdir()
    else:
        file.write_bytes(data)
    refused(file, r"not a checkpoint of this project, or damaged \(.*\)\. Train it again:")


def test_tampered(file):
    """Any byte: a name, a type, a length, the configuration, a weight, the checksum itself."""
    whole = file.read_bytes()
    for old, new in ((b'"F32"', b'"F99"'), (b"data_offsets", b"data_offsetz"), (b"[0,", b"[1,"), (b"tune", b"tuna")):
        assert old in whole
        file.write_bytes(whole.replace(old, new, 1))
        refused(file, "damaged")
    file.write_bytes(whole + b"\0")
    refused(file, "damaged")
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        refused(file, "damaged")


def test_a_checkpoint_without_its_seal(file):
    """As another program writes safetensors, or as someone who edits the configuration by hand."""
    tensors, description = load_weights(file)
    for text in (json.dumps(description), json.dumps({**description, "sha256": "0" * 64}), "[]", "null", "[" * 100000):
        file.write_bytes(save(tensors, metadata={"config": text}))
        refused(file, "damaged")


def test_another_network(file):
    text = refused(file, "made by another network", into=network(4))
    assert "6 parameters do not fit, 0.weight first" in text
    assert "model section" in text
    more = nn.Sequential(*network(), nn.Conv2d(3, 1, 1))
    refused(file, r"2 parameters do not fit, 2\.weight first", into=more)
    refused(file, r"5 parameters do not fit, 1\.bias first", into=nn.Sequential(network()[0]))


def test_a_refused_checkpoint_leaves_the_network_alone(file):
    other = network(4)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    refused(file, "another network", into=other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


# --- atomic


@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch, moment):
    file = tmp_path / "a" / "file"
    files.write_bytes(file, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, Mock(side_effect=OSError("no power")))
        with pytest.raises(OSError, match="no power"):
            files.write_bytes(file, b"new and longer")
    assert file.read_bytes() == b"old"
    assert list(file.parent.iterdir()) == [file], "nothing half-written stays"
    files.write_text(file, "né")
    assert file.read_text(encoding="utf-8") == "né"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync(tmp_path, monkeypatch, number):
    """vfat, 9p and network file systems lack it for folders or altogether: the file is written all the same."""
    monkeypatch.setattr(os, "fsync", os_error(number))
    files.write_bytes(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_disk_that_fails_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", os_error(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_bytes(tmp_path / "file", b"x")


def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    """Windows opens no folder."""
    monkeypatch.setattr(os, "open", os_error(errno.EACCES))
    files.sync_folder(tmp_path)
    assert os.open.called


def test_the_data_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _n=name, _o=original: (done.append(_n), _o(*a))[1])
    files.write_bytes(tmp_path / "file", b"x")
    assert done == ["fsync", "replace", "fsync"], "the file's data, its name, and the folder that holds the name"


# --- the state of a stopped training


def parts(stepped: bool = False) -> dict:
    student = network()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    if stepped:
        for parameter in student.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
    return {"student": student, "optimiser": optimiser}


KEY = {"data": "0a" * 32, "train": {"lr": 0.1}}
VALUES = {
    "epoch": 3,
    "log": [{"loss": 0.1 + 0.2, "log": None, "broken": float("nan"), "huge": -float("inf"), "on": True}],
    "curve": [(0.5, torch.eye(2, dtype=torch.int64))],
    "map": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "counts": {"argmax": np.arange(6).reshape(2, 3)},
    7: {"empty": {}, "none": []},
}


def test_a_state_comes_back(tmp_path):
    file, stored = tmp_path / "state", parts(stepped=True)
    stored["student"].to(memory_format=torch.channels_last)
    save_state(file, KEY, stored, VALUES)
    restored = parts()
    values = load_state(file, KEY, restored)
    assert values.keys() == VALUES.keys()
    assert repr(values["log"]) == repr(VALUES["log"]), "NaN, infinity, every digit, true and not 1"
    assert values["epoch"] == 3 and values[7] == {"empty": {}, "none": []}
    assert values["curve"][0][0] == 0.5 and torch.equal(values["curve"][0][1], VALUES["curve"][0][1])
    assert values["map"].is_contiguous(memory_format=torch.channels_last), "momenta lie as their weights do"
    assert values["map"].flatten().tolist() == list(range(24))
    counts = values["counts"]["argmax"]
    assert isinstance(counts, np.ndarray) and counts.tolist() == [[0, 1, 2], [3, 4, 5]]
    for name, value in stored["student"].state_dict().items():
        assert torch.equal(restored["student"].state_dict()[name], value)
    momenta = [state["momentum_buffer"] for state in restored["optimiser"].state_dict()["state"].values()]
    assert len(momenta) == 4 and all((m == 1).all() for m in momenta)


def test_no_state(tmp_path, capsys):
    assert load_state(tmp_path / "state", KEY, {}) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle", "a weight", "weights", "other identity"])
def test_a_state_that_cannot_be_continued(tmp_path, capsys, damage):
    file = tmp_path / "state"
    save_state(file, KEY, parts(stepped=True), VALUES)
    whole = file.read_bytes()
    if damage == "pickle":
        torch.save([1], file)
    elif damage == "weights":
        save_weights(file, network(), KEY)
    elif damage != "other identity":
        changed = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "a weight": whole[:-1] + b"!"}
        file.write_bytes(changed[damage])
    untouched = parts()
    asked = {**KEY, "data": "f" * 64, "train": {"lr": 0.2}} if damage.startswith("other") else KEY
    assert load_state(file, asked, untouched) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{file}: ") and line.endswith("starting afresh.")
    if damage.startswith("other"):
        assert "begun with other values (data; train.lr 0.1, now 0.2)" in line, "which, not their hashes"
    for name, value in network().state_dict().items():
        assert torch.equal(untouched["student"].state_dict()[name], value)


class Harm:
    """Runs a command when it is unpickled by a reader that trusts its file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_nothing_is_unpickled_unsafely(tmp_path, file, capsys):
    trap = tmp_path / "trap"
    state = tmp_path / "state"
    for protocol in (True, False):
        torch.save({"identity": KEY, "parts": {}, "values": Harm(trap)}, state, _use_new_zipfile_serialization=protocol)
        assert load_state(state, KEY, {}) is None
        assert "starting afresh" in capsys.readouterr().out
        torch.save({"0.weight": Harm(trap)}, file, _use_new_zipfile_serialization=protocol)
        refused(file, "damaged")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Harm(trap)))
    assert trap.exists(), "the trap works"


def test_nothing_here_can_unpickle():
    """The one reader of foreign files is timm's, told to take weights only; arrays are read without objects."""
    package = Path(files.__file__).parent
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"pickle\.|import pickle|torch\.load\(|allow_pickle|joblib|marshal", text), file
        for call in re.findall(r"[^_.]load_state_dict\(str\(.*", text):
            assert "weights_only=True" in call, file


def test_a_state_of_objects_is_refused(tmp_path):
    """A method that keeps what is no plain value hears so when its state is saved, not when it goes on."""
    with pytest.raises(TypeError, match="set has no place in a state"):
        save_state(tmp_path / "state", KEY, {}, {"a": {1, 2}})


# --- no room


@pytest.mark.parametrize(
    ("number", "free", "words"),
    [
        (errno.ENOSPC, 10**6, "MB needed, 1 MB free, 2 MB missing"),
        (errno.EDQUOT, 10**9, "MB needed, 1 GB free, a quota or limit forbids more"),
    ],
)
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, number, free, words):
    file = tmp_path / "state"
    files.write_bytes(file, b"old")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(os, "fsync", os_error(number))
    with pytest.raises(DiskFull) as caught:
        files.write_bytes(file, bytes(3 * 10**6))
    text = str(caught.value)
    assert text.startswith(f"{file}: no room: 3 {words}.") and "same command again" in text
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_really_full_disk(tmp_path):
    """A limit on the size of files is the one that every user may set; the system then refuses to write."""
    file = tmp_path / "state"
    program = (
        "import resource, signal, sys; from pathlib import Path; from ciss.store import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = Path(sys.argv[1]); files.write_bytes(file, b'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "files.write_bytes(file, bytes(2 * 10**6))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True)
    assert f"DiskFull: {file}: no room: 2 MB needed" in done.stderr and "a quota or limit" in done.stderr
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_room_is_asked_for_beforehand(tmp_path, monkeypatch):
    files.require_space(tmp_path / "not" / "yet", 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=100 * 10**6))
    files.require_space(tmp_path / "not" / "yet", 100 * 10**6)
    with pytest.raises(DiskFull, match="needed, 100 MB free, 1 MB missing"):
        files.require_space(tmp_path / "not" / "yet", 101 * 10**6)
    assert not (tmp_path / "not").exists()


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", os_error(errno.EACCES))
    with pytest.raises(CheckpointError, match=r"cannot be written \(Permission denied\). Give yourself the right"):
        files.write_bytes(tmp_path / "file", b"x")
    assert not list(tmp_path.iterdir())


def test_a_state_is_forgotten_with_its_halves(tmp_path):
    for name in ("state", ".state.123", "lock", "state2"):
        (tmp_path / name).touch()
    forget_state(tmp_path / "state")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lock", "state2"]
    forget_state(tmp_path / "state")


# --- one trainer a run


def test_the_lock_names_its_owner_and_is_given_back(tmp_path):
    lock = tmp_path / "new" / "lock"
    with files.exclusive(lock, "base"):
        with pytest.raises(Locked, match=f"^base is being trained by process {os.getpid()}"):
            files.exclusive(lock, "base").__enter__()
        assert (tmp_path / "new" / "lock.pid").read_text().split() == [str(os.getpid()), socket.gethostname()]
        (tmp_path / "new" / "lock.pid").write_text("77 elsewhere")  # a folder that machines share
        with pytest.raises(Locked, match="by process 77 on elsewhere, perhaps left over.*kill 77"):
            files.exclusive(lock, "base").__enter__()
    assert not (tmp_path / "new" / "lock.pid").exists()
    with pytest.raises(KeyError), files.exclusive(lock, "base"):
        raise KeyError
    with files.exclusive(lock, "base"):
        pass


def test_a_lock_without_a_name(tmp_path):
    with files.exclusive(tmp_path / "lock", "base"):
        (tmp_path / "lock.pid").unlink()
        with pytest.raises(Locked, match="process unknown"):
            files.exclusive(tmp_path / "lock", "base").__enter__()
        (tmp_path / "lock.pid").touch()


def test_a_description_is_json(file):
    header = file.read_bytes()
    length = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + length])["__metadata__"]
    assert list(metadata) == ["config"], "the order of several entries changes from process to process"
    sealed = r'\{"groups": \[\[1, 2\]\], "method": "finetune", "seed": 0, "sha256": "[0-9a-f]{64}"\}'
    assert re.fullmatch(sealed, metadata["config"])
