"""Loader processes: how many there are, and that nothing but time depends on it."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ciss import distributed
from ciss.config import Benchmark, ConfigError, Evaluation, Phase, Train, validate
from ciss.data import prepare, processes
from ciss.data.loaders import evaluation_loader, statistics_loader, training_loader

IDENTITY = np.arange(256, dtype=np.uint8)
PHASE = Phase(epochs=1, lr=0.1)
TRAIN = Train(base=PHASE, increment=PHASE, crop=40, batch=4, augmentation="scaled_crop", transpose=True)
CUDA = torch.device("cuda")
Usage = SimpleNamespace


@pytest.fixture
def cores(monkeypatch):
    """cores(n): this machine has n of them."""
    return lambda number: monkeypatch.setattr(processes, "available_cores", lambda: number)


@pytest.fixture
def shared_memory(monkeypatch, tmp_path):
    """shared_memory(n): n bytes of it are free."""
    monkeypatch.setattr(processes, "SHARED", tmp_path)
    return lambda free: monkeypatch.setattr(processes.shutil, "disk_usage", lambda _: Usage(free=free))


def settings(**train) -> Benchmark:
    train = dataclasses.replace(TRAIN, **train)
    return Benchmark(dataset="shapes", protocol="4-2", train=train, evaluation=Evaluation(batch=5))


@pytest.fixture
def index(tiny_data, monkeypatch, tmp_path):
    monkeypatch.setenv("CISS_DATA", str(tiny_data))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return prepare(settings(), tmp_path / "index", progress=False)


def epoch_of(loader, epoch: int = 0) -> list[tuple[torch.Tensor, ...]]:
    if hasattr(loader.batch_sampler, "epoch"):
        loader.batch_sampler.epoch = epoch
    return list(loader)


@pytest.mark.parametrize(
    ("device", "number", "local", "train", "expected"),
    [
        ("cpu", 2, 1, {}, 0),  # both compute
        ("cpu", 2, 1, {"threads": 1}, 1),
        ("cpu", 6, 1, {}, 4),
        ("cpu", 6, 3, {"threads": 1}, 1),
        ("cpu", 64, 1, {}, 8),
        ("cpu", 64, 1, {"cache": True}, 0),
        ("cuda", 1, 1, {}, 0),
        ("cuda", 2, 1, {}, 1),
        ("cuda", 16, 4, {}, 3),
        ("cuda", 64, 4, {"cache": True}, 8),
        ("cpu", 2, 1, {"workers": 1}, 1),
        ("cuda", 2, 1, {"workers": 16}, 2),
        ("cuda", 16, 1, {"workers": 0}, 0),
    ],
)
def test_the_number_of_processes(device, number, local, train, expected, cores, monkeypatch):
    cores(number)
    monkeypatch.setattr(distributed, "device", lambda: torch.device(device))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert processes.loader_processes(dataclasses.replace(TRAIN, **train)) == expected


def test_a_wrong_number_names_both_kinds():
    train = {"base": {"epochs": 1, "lr": 1}, "increment": {"epochs": 1, "lr": 1}, "crop": 8, "batch": 1}
    with pytest.raises(
        ConfigError, match=r"^f: t\.workers: found 'many', but it should be 'auto', or be a valid integer"
    ):
        validate(Train, {**train, "workers": "many"}, "f", "t")
    assert validate(Train, train, "f", "t").workers == "auto"


def test_shared_memory_is_looked_at_before_processes_start(shared_memory, capsys):
    """3 processes with 2 batches of 1,000 pixels and 4 bytes each: 24,000 bytes, and as much for scoring."""
    shared_memory(48_000)
    assert processes.affordable(3, 1_000, 9) == 3
    assert not capsys.readouterr().out
    shared_memory(47_999)
    assert processes.affordable(3, 1_000, 9) == 2
    message = capsys.readouterr().out
    assert "3 loader processes need 48 kB of shared memory" in message and "has 48 kB free: starting 2." in message
    assert "--shm-size" in message and "train.batch" in message
    shared_memory(15_999)
    assert processes.affordable(3, 1_000, 9) == 0
    assert processes.affordable(0, 10**9, 9) == 0
    assert processes.affordable(3, 1_000, 0) == 0, "there is nothing to read"


def test_a_loader_starts_what_fits(index, cores, shared_memory):
    cores(6)
    shared_memory(2 * 2 * 2 * 4 * 4 * 40**2)  # twice two processes' two batches of four crops
    for workers in (2, 5):
        loader = training_loader(settings(workers=workers), index, list(range(24)), IDENTITY, 0)
        assert loader.num_workers == 2
    assert training_loader(settings(workers=1), index, list(range(24)), IDENTITY, 0).num_workers == 1
    scoring = evaluation_loader(settings(workers=5), index, "val", list(range(8)), IDENTITY)
    assert scoring.num_workers == 0, "two batches of five images of 64 pixels need more"


def test_no_more_processes_than_cores_and_batches(index, recwarn):
    """torch warns of more than cores."""
    many = settings(workers=1_000)
    assert training_loader(many, index, list(range(24)), IDENTITY, 0).num_workers == min(6, processes.available_cores())
    assert evaluation_loader(many, index, "val", [0], IDENTITY).num_workers == 1
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_every_image_is_seen_once_an_epoch(index, cores, workers, augment_on):
    cores(5)
    images, options = list(range(1, 24)), settings(workers=workers, augment_on=augment_on)
    training = training_loader(options, index, images, IDENTITY, 0)
    assert training.num_workers == workers
    for epoch in range(2):
        numbers = Counter(n for *_, batch in epoch_of(training, epoch) for n in batch.tolist())
        assert set(numbers.values()) == {1} and set(numbers) < set(images) and len(numbers) == 20
    for loader in (
        evaluation_loader(options, index, "train", images, IDENTITY),
        statistics_loader(options, index, images, IDENTITY),
    ):
        assert [n for *_, batch in epoch_of(loader) for n in batch.tolist()] == images


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_augmented_on_the_device(index, cores, workers):
    """The same order, labels and views as in the loader processes; the CPU stands for the device."""
    cores(5)
    table = np.append(np.roll(IDENTITY[:255], 1), np.uint8(255))  # what is ignored stays ignored
    for train in ({}, {"augmentation": "none", "cache": True}, {"augmentation": "resized_crop", "scale": (0.2, 1.0)}):
        given, found = (
            epoch_of(training_loader(settings(**train, **where), index, list(range(24)), table, 3), epoch=1)
            for where in ({}, {"augment_on": "device", "workers": workers})
        )
        assert len(given) == len(found) == 6
        for (images, labels, numbers), (shown, positions, order) in zip(given, found, strict=True):
            assert torch.equal(labels, positions) and torch.equal(numbers, order)
            assert shown.shape == images.shape == (4, 3, 40, 40) and shown.dtype == torch.uint8
            assert shown.stride() == images.stride(), (
                "colours beside each other, as networks in channels_last read them"
            )
            assert torch.equal(shown, images)
