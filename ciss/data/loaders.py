"""Batches of a step. An image's pixels depend on seed, epoch and image alone, not on the number of loader processes.

torchvision takes seconds to import. The functions that make a loader import it, before any loader process starts.
"""

import hashlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ciss import distributed
from ciss.config import Benchmark
from ciss.data.index import Index
from ciss.data.normalisation import input_statistics
from ciss.data.pictures import DataError, read_pair

Cache = dict[int, tuple[Tensor, Tensor]]  # decoded images and masks by image number


class Loader(DataLoader):
    """torch's DataLoader with short messages for a broken file and for the death of a loader process."""

    def __iter__(self) -> Iterator:
        try:
            batches = super().__iter__()
            if self.num_workers:
                _explain_dead_processes()
            yield from batches
        except DataError as error:  # a loader process puts its traceback around the message
            raise DataError(str(error).strip().rpartition(f"{DataError.__module__}.DataError: ")[2]) from None
        except (RuntimeError, EOFError, OSError) as error:
            if _broken_off(error):
                time.sleep(1)  # until the signal of the dead process arrives, so that it raises only one error
            raise _explained(error) from None


def _explain_dead_processes() -> None:
    """Replaces torch's message in its signal handler for dead loader processes. Windows has no such signal."""
    child_signal = getattr(signal, "SIGCHLD", None)
    if child_signal is None or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(child_signal)
    if not callable(handler) or getattr(handler, "explains", False):
        return

    def explaining(number: int, frame) -> None:
        try:
            handler(number, frame)
        except RuntimeError as error:
            raise _explained(error) from None

    explaining.explains = True
    signal.signal(child_signal, explaining)


def _broken_off(error: Exception) -> bool:
    """Whether a loader process died while it handed over a batch."""
    return isinstance(error, EOFError | ConnectionError | FileNotFoundError)


def _explained(error: Exception) -> Exception:
    """A DataError with a remedy for full shared memory and for a dead loader process; any other error unchanged."""
    reason = re.search("unable to (?:allocate|open|resize|mmap|map).*", str(error))  # torch's words
    if reason and re.search("shm|shared memory|No space left|torch_", reason[0]):
        problem = f"no shared memory (/dev/shm) is left for the batches of loader processes ({reason[0]})"
    elif _broken_off(error) or str(error).startswith("DataLoader worker"):
        why = " ".join(str(error).split()) or "while it handed over a batch"
        problem = f"a loader process was killed ({why}): memory or shared memory (/dev/shm) may have run out"
    else:
        return error
    return DataError(
        f"{problem}. The last finished epoch is kept: run the same command again, with fewer train.workers (0 needs no "
        "shared memory), or give a container more shared memory: docker run --shm-size=8g."
    )


class Images(Dataset):
    """Pairs of image (3,H,W) uint8 and labels (H,W) uint8 as positions, with the image's number in the index."""

    def __init__(
        self, index: Index, split: str, table: np.ndarray, transform: Callable, seed: int, cache: Cache | None = None
    ):
        self.pairs, self.digests = index.pairs(split), index.digests[split]
        self.label_table = torch.from_numpy(table)
        self.transform, self.seed, self.cache = transform, seed, cache

    def __getitem__(self, epoch_and_number: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        from torchvision import tv_tensors

        epoch, number = epoch_and_number
        image, mask = self._read_decoded(number)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPU, with every image.
            torch.default_generator.manual_seed(stable_seed(self.seed, epoch, number))
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), self.label_table[mask.as_subclass(Tensor).long()], number

    def _read_decoded(self, number: int) -> tuple[Tensor, Tensor]:
        if self.cache is not None and number in self.cache:
            return self.cache[number]
        pair, why = self.pairs[number], ""
        try:
            image, mask, digest, _ = read_pair(pair)
        except DataError as error:
            digest, why = None, f" ({error})"
        if digest != self.digests[number]:
            changed = f"{pair.image} or its mask changed since the data were prepared{why}"
            raise DataError(f"{changed}. Run: dvc repro -f prepare")
        decoded = torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)
        if self.cache is not None:
            self.cache[number] = decoded
        return decoded


class Shuffle(Sampler):
    """Batches of (epoch, image). The order is the same in every process; each process takes its share of every batch.

    An epoch drops the images that do not fill a last update (batch x accumulate x processes). An epoch with fewer
    images than an update uses all, in batches of even size. Raises DataError for fewer images than processes.
    """

    def __init__(self, images: list[int], batch: int, accumulate: int, seed: int):
        self.images, self.batch, self.seed, self.epoch = torch.tensor(images), batch, seed, 0
        self.rank, self.world = distributed.rank(), distributed.world()
        update = batch * accumulate * self.world
        self.images_per_epoch = len(images) - len(images) % (update if len(images) >= update else self.world)
        if not self.images_per_epoch:
            raise _too_few(len(images), self.world)

    def __len__(self) -> int:
        return -(-self.images_per_epoch // (self.batch * self.world))

    @property
    def smallest(self) -> int:
        """Images in the smallest batch."""
        return self.images_per_epoch // (len(self) * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(stable_seed(self.seed, self.epoch))
        order = self.images[torch.randperm(len(self.images), generator=generator)[: self.images_per_epoch]]
        # Process r takes every world-th batch. One process with accumulation would have the same batches.
        for own_batch in order.tensor_split(len(self) * self.world)[self.rank :: self.world]:
            yield [(self.epoch, number) for number in own_batch.tolist()]


def _too_few(images: int, processes: int) -> DataError:
    return DataError(f"{images} training images cannot feed {processes} processes. Start fewer of them.")


def cache_size(benchmark: Benchmark, index: Index, images: list[int]) -> int:
    """Bytes of all decoded `images` and masks. Every loader process keeps its own copies."""
    copies = max(1, benchmark.train.workers) * distributed.world()
    return copies * sum(4 * height * width for height, width in (index.sizes["train"][number] for number in images))


def available_memory() -> int:
    """Bytes that are free on this machine and within the limit of this container; without psutil only the latter."""
    left = [sys.maxsize]
    with suppress(ImportError):  # training does not need psutil
        import psutil

        left.append(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # cgroups 2; "max" without a limit
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        left.append(limit - used)
    return max(0, min(left))


def training_loader(benchmark: Benchmark, index: Index, images: list[int], table: np.ndarray, seed: int) -> Loader:
    """Shuffled, augmented batches of training images. Set `loader.batch_sampler.epoch` before each epoch."""
    from ciss.data.transforms import training_transform

    train = benchmark.train
    transform = training_transform(train, input_statistics(benchmark.model).colour)
    dataset = Images(index, "train", table, transform, seed, {} if train.cache else None)
    sampler = Shuffle(images, train.batch, train.accumulate, seed)
    return _loader(dataset, sampler, train.workers)


def evaluation_loader(benchmark: Benchmark, index: Index, split: str, images: list[int], table: np.ndarray) -> Loader:
    """Batches of images of one size, without padding. Each process takes its share of the batches."""
    from ciss.data.transforms import evaluation_transform

    crop = benchmark.train.crop if benchmark.evaluation.size == "crop" else None
    cache = {} if benchmark.train.cache and split == "train" else None
    dataset = Images(index, split, table, evaluation_transform(crop), 0, cache)
    by_size: dict[tuple, list[int]] = {}
    for number in images:
        by_size.setdefault(() if crop else tuple(index.sizes[split][number]), []).append(number)
    size = benchmark.evaluation.batch
    batches = []
    for group in by_size.values():
        batches += [[(0, number) for number in group[i : i + size]] for i in range(0, len(group), size)]
    return _loader(dataset, batches[distributed.rank() :: distributed.world()], benchmark.train.workers)


def statistics_loader(
    benchmark: Benchmark, index: Index, images: list[int], table: np.ndarray, cache: Cache | None = None
) -> Loader:
    """Batches for method statistics: every training image once, whole and without augmentation (`statistics_size`).

    The batches do not depend on `train.batch`, on the seed or on the order of `images`. A batch has images of one size,
    at most `evaluation.batch` of them, and at most as many pixels as that many training crops. Each process takes its
    share of the batches, at least one. `cache`: decoded images to use and to add to.
    """
    from ciss.data.transforms import Resize, statistics_size

    train, most, world = benchmark.train, benchmark.evaluation.batch, distributed.world()
    dataset = Images(index, "train", table, Resize(partial(statistics_size, train=train)), 0, cache)
    by_size: dict[tuple[int, int], list[int]] = {}
    for number in sorted(images):
        by_size.setdefault(statistics_size(*index.sizes["train"][number], train), []).append(number)
    batches = []
    for (height, width), group in by_size.items():
        size = max(1, min(most, most * train.crop**2 // (height * width), len(images) // world))
        batches += [[(0, number) for number in group[i : i + size]] for i in range(0, len(group), size)]
    if len(batches) < world:
        raise _too_few(len(images), world)
    return _loader(dataset, batches[distributed.rank() :: world], train.workers)


def stable_seed(*parts: int | str) -> int:
    """A seed from several numbers, the same in every process and version."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loader(dataset: Images, batches, workers: int) -> Loader:
    workers = min(workers, available_cores())  # torch warns of more; the batches do not depend on it
    return Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: starting processes must not change the training's random numbers
    )


def picture(
    benchmark: Benchmark, index: Index, split: str, number: int, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An image (H,W,3) uint8 and its labels (H,W) uint8 through a label table, sized as they are scored."""
    image, labels, _ = evaluation_loader(benchmark, index, split, [number], table).dataset[0, number]
    return image.permute(1, 2, 0).numpy(), labels.numpy()
