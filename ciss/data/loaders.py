"""Batches of a step. What an image becomes depends on seed, epoch and image alone: not on the number of loader
processes, nor on where a stopped training went on.

torchvision takes seconds to import: the functions that make a loader import it, before any loader process starts.
"""

import hashlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ciss import distributed
from ciss.config import Benchmark
from ciss.data.index import Index
from ciss.data.normalisation import input_statistics
from ciss.data.pictures import DataError, read_pair

if TYPE_CHECKING:
    from torchvision.transforms import v2


class Loader(DataLoader):
    """torch's, in which a broken file is the same short message, whichever process reads it, and so is the end of a
    loader process."""

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
                time.sleep(1)  # the signal of the process's end is on its way, and says the same: once is enough
            raise _explained(error) from None


def _explain_dead_processes() -> None:
    """torch notices a dead loader process in the handler of a signal, wherever training is at that moment. Without
    that signal, on Windows, torch looks for dead processes while it waits for a batch."""
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
    """While a loader process handed a batch over."""
    return isinstance(error, EOFError | ConnectionError | FileNotFoundError)


def _explained(error: Exception) -> Exception:
    reason = re.search("unable to (?:allocate|open|resize|mmap|map).*", str(error))  # torch's words
    if reason and re.search("shm|shared memory|No space left|torch_", reason[0]):
        return DataError(
            f"no shared memory (/dev/shm) is left for the batches of loader processes ({reason[0]}). The last finished "
            "epoch is kept: run the same command again, with fewer train.workers (0 needs none), or give a container "
            "more shared memory: docker run --shm-size=8g."
        )
    if not _broken_off(error) and not str(error).startswith("DataLoader worker"):
        return error
    why = " ".join(str(error).split()) or "in the middle of a batch"
    return DataError(
        f"a loader process was killed ({why}): memory or shared memory (/dev/shm) may have run out. The last finished "
        "epoch is kept: run the same command again, with fewer train.workers, or give a container more shared memory: "
        "docker run --shm-size=8g."
    )


class Images(Dataset):
    """Pairs of image (3,H,W) uint8 and labels (H,W) uint8 as positions, with the image's number in the index."""

    def __init__(
        self,
        index: Index,
        split: str,
        table: np.ndarray,
        transform: "v2.Transform",
        seed: int,
        cache: dict[int, tuple[Tensor, Tensor]] | None = None,
    ):
        self.pairs, self.digests, self.transform, self.seed = index.pairs(split), index.digests[split], transform, seed
        self.table = torch.from_numpy(table)
        self.cache = cache  # decoded images by number; None: every read decodes

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        from torchvision import tv_tensors

        epoch, number = key
        image, mask = self._read(number)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would start the GPU's random numbers anew with every image.
            torch.default_generator.manual_seed(stable_seed(self.seed, epoch, number))
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), self.table[mask.as_subclass(Tensor).long()], number

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        if self.cache is None:
            return self._decode(number)
        if number not in self.cache:
            self.cache[number] = self._decode(number)
        return self.cache[number]

    def _decode(self, number: int) -> tuple[Tensor, Tensor]:
        pair, why = self.pairs[number], ""
        try:
            image, mask, digest, _ = read_pair(pair)
        except DataError as error:
            digest, why = None, f" ({error})"
        if digest != self.digests[number]:
            changed = f"{pair.image} or its mask changed since the data were prepared{why}"
            raise DataError(f"{changed}. Run: dvc repro -f prepare")
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)


class Shuffle(Sampler):
    """Batches of (epoch, image), the same in every process; each process takes its share of every batch.

    An epoch drops the images that do not fill a last update (batch x accumulate x processes); one shorter than an
    update uses all it has, in batches as even as can be. Raises DataError for fewer images than processes.
    """

    def __init__(self, images: list[int], batch: int, accumulate: int, seed: int):
        self.images, self.batch, self.seed, self.epoch = torch.tensor(images), batch, seed, 0
        self.rank, self.world = distributed.rank(), distributed.world()
        update = batch * accumulate * self.world
        self.used = len(images) - len(images) % (update if len(images) >= update else self.world)
        if not self.used:
            raise _too_few(len(images), self.world)

    def __len__(self) -> int:
        return -(-self.used // (self.batch * self.world))

    @property
    def smallest(self) -> int:
        """Images in the smallest batch."""
        return self.used // (len(self) * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(stable_seed(self.seed, self.epoch))
        order = self.images[torch.randperm(len(self.images), generator=generator)[: self.used]]
        # by turns, so that the processes have the batches that one process would accumulate
        for share in order.tensor_split(len(self) * self.world)[self.rank :: self.world]:
            yield [(self.epoch, number) for number in share.tolist()]


def _too_few(images: int, processes: int) -> DataError:
    return DataError(f"{images} training images cannot feed {processes} processes. Start fewer of them.")


def cache_size(benchmark: Benchmark, index: Index, images: list[int]) -> int:
    """Bytes that the decoded `images` and masks take in the end: every loader process keeps its own copies."""
    copies = max(1, benchmark.train.workers) * distributed.world()
    return copies * sum(4 * height * width for height, width in (index.sizes["train"][number] for number in images))


def available_memory() -> int:
    """Bytes that this machine, or the limit of this container, still has; without psutil the limit alone counts."""
    left = [sys.maxsize]
    with suppress(ImportError):  # training does without psutil
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
    pairs = Images(index, "train", table, transform, seed, {} if train.cache else None)
    sampler = Shuffle(images, train.batch, train.accumulate, seed)
    return _loader(pairs, sampler, train.workers)


def evaluation_loader(benchmark: Benchmark, index: Index, split: str, images: list[int], table: np.ndarray) -> Loader:
    """Batches of images of one size, so that nothing is padded; each process takes its share of the batches."""
    from ciss.data.transforms import evaluation_transform

    crop = benchmark.train.crop if benchmark.evaluation.size == "crop" else None
    cache = {} if benchmark.train.cache and split == "train" else None
    pairs = Images(index, split, table, evaluation_transform(crop), 0, cache)
    by_size: dict[tuple, list[int]] = {}
    for number in images:
        by_size.setdefault(() if crop else tuple(index.sizes[split][number]), []).append(number)
    size = benchmark.evaluation.batch
    batches = [[(0, n) for n in same[i : i + size]] for same in by_size.values() for i in range(0, len(same), size)]
    return _loader(pairs, batches[distributed.rank() :: distributed.world()], benchmark.train.workers)


def statistics_loader(
    benchmark: Benchmark,
    index: Index,
    images: list[int],
    table: np.ndarray,
    cache: dict[int, tuple[Tensor, Tensor]] | None = None,
) -> Loader:
    """Batches for method statistics: every training image once, whole and without augmentation (`statistics_size`).

    The batches do not depend on `train.batch`, on the seed or on the order of `images`. A batch has images of one size,
    at most `evaluation.batch` of them, and at most as many pixels as that many training crops. Each process takes its
    share of the batches, at least one. `cache`: decoded images to use and to add to.
    """
    from ciss.data.transforms import StatisticsResize, statistics_size

    train, most, world = benchmark.train, benchmark.evaluation.batch, distributed.world()
    pairs = Images(index, "train", table, StatisticsResize(train), 0, cache)
    by_size: dict[tuple[int, int], list[int]] = {}
    for number in sorted(images):
        by_size.setdefault(statistics_size(*index.sizes["train"][number], train), []).append(number)
    batches = []
    for (height, width), same in by_size.items():
        size = max(1, min(most, most * train.crop**2 // (height * width), len(images) // world))
        batches += [[(0, number) for number in same[i : i + size]] for i in range(0, len(same), size)]
    if len(batches) < world:
        raise _too_few(len(images), world)
    return _loader(pairs, batches[distributed.rank() :: world], train.workers)


def stable_seed(*parts: int | str) -> int:
    """A seed from several numbers, the same in every process and version."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loader(pairs: Images, batches, workers: int) -> Loader:
    workers = min(
        workers, available_cores()
    )  # more only wait for each other, and torch warns; the batches are the same
    return Loader(
        pairs,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, so that starting processes leaves the training's random numbers alone
    )


def picture(
    benchmark: Benchmark, index: Index, split: str, number: int, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An image (H,W,3) uint8 and its labels (H,W) uint8 through a label table, sized as they are scored."""
    from ciss.data.transforms import evaluation_transform

    crop = benchmark.train.crop if benchmark.evaluation.size == "crop" else None
    pairs = Images(index, split, table, evaluation_transform(crop), 0)
    image, labels, _ = pairs[0, number]
    return image.permute(1, 2, 0).numpy(), labels.numpy()
