"""Files that survive: whole or not at all, the same bytes for the same weights, and a clear word about any other."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save
from torch import nn

from ciss import checkpoint
from ciss.checkpoint import CheckpointError, Locked


def network(width: int = 3) -> nn.Module:
    """Weights that follow from their place."""
    made = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width))
    for k, parameter in enumerate(made.parameters()):
        nn.init.constant_(parameter, k / 7)
    return made


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "runs" / "shapes" / "base-s0" / "weights.safetensors"
    checkpoint.save_weights(file, network(), {"seed": 0, "groups": [[1, 2]], "method": "finetune"})
    return file


def refused(file, match, into=None) -> str:
    """The message, which names the file and the remedy in one line."""
    with pytest.raises(CheckpointError, match=match) as caught:
        checkpoint.restore(into or network(), file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert text.endswith("python -m ciss.engine base-s0")
    assert len(text.splitlines()) == 1
    return text


# --- weights


def test_what_is_saved_comes_back(file):
    other = network()
    for value in other.state_dict().values():
        value.zero_()
    config = checkpoint.restore(other, file)
    assert config == {"seed": 0, "groups": [[1, 2]], "method": "finetune"}
    for name, value in network().state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
        assert other.state_dict()[name].dtype == value.dtype


def test_channels_last_is_saved(file, tmp_path):
    """safetensors refuses such tensors; the bytes are those of the usual layout."""
    last = network().to(memory_format=torch.channels_last)
    assert not last[0].weight.is_contiguous()
    checkpoint.save_weights(tmp_path / "last", last, checkpoint.load_weights(file)[1])
    assert (tmp_path / "last").read_bytes() == file.read_bytes()
    checkpoint.restore(last, file)
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_order_of_the_configuration_does_not_matter(file, tmp_path):
    checkpoint.save_weights(tmp_path / "other", network(), {"method": "finetune", "groups": [[1, 2]], "seed": 0})
    assert (tmp_path / "other").read_bytes() == file.read_bytes()


def test_same_bytes_in_another_process(project, tmp_path):
    """Whose hashes of words differ: sets and maps come in another order there."""
    program = (
        "import sys; from pathlib import Path; from torch import nn; from ciss import checkpoint\n"
        "network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))\n"
        "for k, p in enumerate(network.parameters()): nn.init.constant_(p, k / 7)\n"
        "checkpoint.save_weights(Path(sys.argv[1]), network, dict.fromkeys(set('abcdefgh'), 0))"
    )
    process = project.command("-c", program, str(tmp_path / "there"), env={**os.environ, "PYTHONHASHSEED": "1"})
    assert process.communicate(timeout=60)[1] == ""
    checkpoint.save_weights(tmp_path / "here", network(), dict.fromkeys("hgfedcba", 0))
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_missing(file):
    file.unlink()
    refused(file, "there is no such checkpoint. Train it:")


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    refused(file, r"not a checkpoint of this project, or damaged \(.*\)\. Train it again:")


def test_foreign(file):
    for content in (b"no checkpoint at all", pickle.dumps({"a": 1}), save({"a": torch.ones(1)})):
        file.write_bytes(content)
        refused(file, "not a checkpoint of this project, or damaged")
    file.write_bytes(save({"a": torch.ones(1)}, metadata={"config": "{"}))
    refused(file, "not a checkpoint of this project, or damaged")


def test_a_folder(file):
    file.unlink()
    file.mkdir()
    refused(file, "not a checkpoint of this project, or damaged")


def test_tampered(file):
    """Bytes of the header: a name, a type, a length."""
    whole = file.read_bytes()
    for old, new in ((b'"F32"', b'"F99"'), (b"data_offsets", b"data_offsetz"), (b"[0,", b"[1,")):
        assert old in whole
        file.write_bytes(whole.replace(old, new, 1))
        refused(file, "damaged")
    file.write_bytes(whole.replace(b'"0.weight"', b'"0.height"'))
    assert "0.weight first" in refused(file, "made by another network")
    file.write_bytes(whole + b"\0")
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
    checkpoint.write_bytes(file, b"old")

    def crash(*_):
        raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, crash)
        with pytest.raises(OSError, match="no power"):
            checkpoint.write_bytes(file, b"new and longer")
    assert file.read_bytes() == b"old"
    assert list(file.parent.iterdir()) == [file], "nothing half-written stays"
    checkpoint.write_text(file, "né")
    assert file.read_text(encoding="utf-8") == "né"


def test_the_data_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _n=name, _o=original: (done.append(_n), _o(*a))[1])
    checkpoint.write_bytes(tmp_path / "file", b"x")
    assert done == ["fsync", "replace"]


# --- the state of a stopped training


def parts() -> dict:
    made = network()
    return {"student": made, "optimiser": torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)}


def stepped() -> dict:
    made = parts()
    for parameter in made["student"].parameters():
        parameter.grad = torch.ones_like(parameter)
    made["optimiser"].step()
    return made


VALUES = {"epoch": 3, "log": [{"loss": 0.5}], "curve": [(0.5, torch.eye(2, dtype=torch.int64))], "seconds": 1.5}


def test_a_state_comes_back(tmp_path):
    file, stored = tmp_path / "state.pt", stepped()
    checkpoint.save_state(file, "key", stored, VALUES)
    found = parts()
    values = checkpoint.load_state(file, "key", found)
    assert values.keys() == VALUES.keys()
    assert values["log"] == VALUES["log"] and values["epoch"] == 3
    assert values["curve"][0][0] == 0.5 and torch.equal(values["curve"][0][1], VALUES["curve"][0][1])
    for name, value in stored["student"].state_dict().items():
        assert torch.equal(found["student"].state_dict()[name], value)
    momenta = [state["momentum_buffer"] for state in found["optimiser"].state_dict()["state"].values()]
    assert len(momenta) == 4 and all((m == 1).all() for m in momenta)


def test_no_state(tmp_path, capsys):
    assert checkpoint.load_state(tmp_path / "state.pt", "key", {}) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "list", "other key"])
def test_a_state_that_cannot_be_continued(tmp_path, capsys, damage):
    file = tmp_path / "state.pt"
    checkpoint.save_state(file, "key", stepped(), VALUES)
    whole = file.read_bytes()
    if damage == "list":
        torch.save([1], file)
    elif damage != "other key":
        file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    untouched = parts()
    assert checkpoint.load_state(file, "another" if damage == "other key" else "key", untouched) is None
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f"{file}: ") and said.endswith("starting afresh.")
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
    state = tmp_path / "state.pt"
    torch.save({"key": "key", "parts": {}, "values": Harm(trap)}, state)
    assert checkpoint.load_state(state, "key", {}) is None
    assert "starting afresh" in capsys.readouterr().out
    torch.save({"0.weight": Harm(trap)}, file)
    refused(file, "damaged")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Harm(trap)))
    assert trap.exists(), "the trap works"


def test_a_state_is_forgotten_with_its_halves(tmp_path):
    for name in ("state.pt", ".state.pt.123", "lock", "state.pt2"):
        (tmp_path / name).touch()
    checkpoint.forget_state(tmp_path / "state.pt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lock", "state.pt2"]
    checkpoint.forget_state(tmp_path / "state.pt")


# --- one trainer a run


def test_the_lock_names_its_owner_and_is_given_back(tmp_path):
    lock = tmp_path / "new" / "lock"
    with checkpoint.exclusive(lock, "base"):
        with pytest.raises(Locked, match=f"^base is being trained by process {os.getpid()}"):
            checkpoint.exclusive(lock, "base").__enter__()
        assert (tmp_path / "new" / "lock.pid").read_text() == str(os.getpid())
    assert not (tmp_path / "new" / "lock.pid").exists()
    with pytest.raises(KeyError), checkpoint.exclusive(lock, "base"):
        raise KeyError
    with checkpoint.exclusive(lock, "base"):
        pass


def test_a_lock_without_a_name(tmp_path):
    with checkpoint.exclusive(tmp_path / "lock", "base"):
        (tmp_path / "lock.pid").unlink()
        with pytest.raises(Locked, match="process unknown"):
            checkpoint.exclusive(tmp_path / "lock", "base").__enter__()
        (tmp_path / "lock.pid").touch()


def test_a_description_is_json(file):
    header = file.read_bytes()
    length = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + length])["__metadata__"]
    assert list(metadata) == ["config"], "the order of several entries changes from process to process"
    assert metadata["config"] == '{"groups": [[1, 2]], "method": "finetune", "seed": 0}'
