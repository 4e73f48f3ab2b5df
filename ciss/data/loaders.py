"""Batches of a step. An image's pixels depend on seed, epoch and image alone, not on the number of loader processes.

With `train.augment_on: device` the loader processes only read and decode. The views of the images are taken on the
device, image by image, with the same random numbers (see `ciss.data.transforms`).
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ciss import distributed
from ciss.config import Benchmark, Train
from ciss.data import processes, saliency
from ciss.data.index import Index
from ciss.data.normalisation import IMAGENET, input_statistics
from ciss.data.pictures import DataError, read_pair
from ciss.data.stored import Stored
from ciss.data.transforms import View, evaluation_view, resized_view, statistics_size, training_view
from ciss.documents import counted

Cache = dict[int, tuple[np.ndarray, np.ndarray]]  # decoded images and masks by image number
# What is shown of an image of this height and width, drawn with this generator
ViewOf = Callable[[int, int, torch.Generator], View]


class Loader(DataLoader):
    """torch's DataLoader of images (B,3,H,W) uint8, labels (B,H,W) uint8 and image numbers (B,).

    It has short messages for a broken file and for the death of a loader process.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        try:
            batches = super().__iter__()
            if self.num_workers:
                processes.explain_deaths()
            yield from map(self.dataset.finish, batches)
        except DataError as error:  # a loader process puts its traceback around the message
            raise DataError(str(error).strip().rpartition(f"{DataError.__module__}.DataError: ")[2]) from None
        except (RuntimeError, EOFError, OSError) as error:
            raise processes.explained(error) from None


class Images(Dataset):
    """Views of images (H,W,3) uint8 and of labels (H,W) uint8 as positions, with the image's number in the index.

    `device`: where views are taken; None: in the loader processes. `saliency_maps`: background pixels that are not
    salient are labelled `saliency.NOT_SALIENT`. `stored`: larger numbers are stored images, see `Stored.replace_half`.
    """

    def __init__(
        self,
        index: Index,
        split: str,
        table: np.ndarray,
        view_of: ViewOf,
        *,
        seed: int = 0,
        colour: tuple[int, int, int] = IMAGENET.colour,
        cache: Cache | None = None,
        device: torch.device | None = None,
        saliency_maps: bool = False,
        stored: Stored | None = None,
    ):
        self.maps: dict[int, Tensor] | None = {} if saliency_maps else None
        self.pairs, self.digests = index.pairs(split), index.digests[split]
        self.tables = [table] if stored is None else [table, stored.table]
        self.view_of, self.seed, self.cache = view_of, seed, cache
        self.colour, self.device = torch.tensor(colour, dtype=torch.uint8), device

    def __getitem__(self, epoch_and_number: tuple[int, int]) -> tuple:
        """View of the image, view of the labels, number; or image, mask, view and number for `device`."""
        epoch, drawn = epoch_and_number
        number = drawn % len(self.pairs)
        image, mask = map(torch.from_numpy, self._read_decoded(number))
        generator = torch.Generator().manual_seed(stable_seed(self.seed, epoch, drawn))
        view = self.view_of(*mask.shape, generator)
        if self.device is not None:
            return image, mask, view, self._map(number), drawn
        labels = _labels(view.mask(mask), self.tables[drawn >= len(self.pairs)])
        if self.maps is not None:
            labels = saliency.mark(labels, view.mask(self._map(number)))
        return view.image(image, self.colour), labels, drawn

    def finish(self, batch: list) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B,3,H,W), labels (B,H,W) and numbers (B,) of a batch that a loader process has put together."""
        if self.device is None:
            images, labels, numbers = batch
            return images.permute(0, 3, 1, 2), labels, numbers
        # not blocking: the host would wait for all that the device has to do
        tables = map(torch.from_numpy, self.tables)
        colour, *tables = (tensor.to(self.device, non_blocking=True) for tensor in (self.colour, *tables))
        images, labels = [], []
        for image, mask, view, salient, number in batch:
            images.append(view.image(image.to(self.device, non_blocking=True), colour))
            table = tables[number >= len(self.pairs)]
            positions = table[view.mask(mask.to(self.device, non_blocking=True)).int()]
            if salient is not None:
                positions = saliency.mark(positions, view.mask(salient.to(self.device, non_blocking=True)))
            labels.append(positions)
        numbers = torch.tensor([number for *_, number in batch])
        return torch.stack(images).permute(0, 3, 1, 2), torch.stack(labels), numbers

    def _map(self, number: int) -> Tensor | None:
        """The saliency map (H,W) of an image, kept where images are. None: maps are not used."""
        if self.maps is None or number in self.maps:
            return self.maps and self.maps[number]
        salient = torch.from_numpy(saliency.read_map(self.pairs[number], self._read_decoded(number)[1].shape))
        if self.cache is not None:
            self.maps[number] = salient
        return salient

    def _read_decoded(self, number: int) -> tuple[np.ndarray, np.ndarray]:
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
        if self.cache is not None:
            self.cache[number] = image, mask
        return image, mask


def _labels(mask: Tensor, table: np.ndarray) -> Tensor:
    """Labels of raw ids (H,W) on the CPU."""
    # as table[mask], in a seventh of the time
    labels = bytearray(mask.contiguous().numpy()).translate(table)
    return torch.frombuffer(labels, dtype=torch.uint8).view(mask.shape)


class ShuffledBatches(Sampler):
    """Batches of (epoch, image). The order is the same in every process; each process takes its share of every batch.

    An epoch drops the images that do not fill a last update (batch x accumulate). An epoch with fewer images than an
    update uses all, in batches of even size. Raises DataError for fewer images than processes.

    Args:
        batch: images of a batch, those of all processes together.
        stored: drawn in increments with `memory`. Its numbers must be known before the first epoch.
    """

    def __init__(self, images: list[int], batch: int, accumulate: int, seed: int, stored: Stored | None = None):
        self.images, self.batch, self.seed, self.epoch = torch.tensor(images), batch, seed, 0
        self.stored = stored
        self.rank, self.world = distributed.rank(), distributed.world()
        number, update = len(images) + (stored.memory.appended if stored else 0), batch * accumulate
        self.images_per_epoch = number - (number % update if number >= update else 0)
        if number < self.world:
            raise _too_few(number, self.world)

    def __len__(self) -> int:
        batches = -(-self.images_per_epoch // self.batch)
        return min(batches, self.images_per_epoch // self.world)  # each process has an image of every batch

    @property
    def smallest(self) -> int:
        """Images in the smallest batch, those of all processes together."""
        return self.images_per_epoch // len(self)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.of_all_processes(self.epoch):  # one process has the same batches, as a whole
            yield [(self.epoch, number) for number in batch.tensor_split(self.world)[self.rank].tolist()]

    def of_all_processes(self, epoch: int) -> Iterable[Tensor]:
        """The batches of an epoch: image numbers, see `Stored.replace_half` for those of stored images."""
        generator = torch.Generator().manual_seed(stable_seed(self.seed, epoch))
        if self.stored is not None and not self.stored.numbers:
            raise ValueError("the stored images are not chosen yet: see training.memory.use_stored")
        images = self.images if self.stored is None else self.stored.appended(self.images)
        order = images[torch.randperm(len(images), generator=generator)[: self.images_per_epoch]]
        batches = order.tensor_split(len(self))
        return batches if self.stored is None else self.stored.replace_half(batches, generator)


def _too_few(images: int, processes: int) -> DataError:
    return DataError(f"{counted(images, 'training image')} cannot feed {processes} processes. Start fewer of them.")


def cache_size(benchmark: Benchmark, index: Index, images: list[int]) -> int:
    """Bytes of all decoded `images` and masks. Every loader process keeps its own copies."""
    copies = max(1, processes.loader_processes(benchmark.train)) * distributed.world()
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


def training_loader(
    benchmark: Benchmark,
    index: Index,
    images: list[int],
    table: np.ndarray,
    seed: int,
    saliency_maps: bool = False,
    stored: Stored | None = None,
) -> Loader:
    """Shuffled, augmented batches of training images. Set `loader.batch_sampler.epoch` before each epoch.

    `saliency_maps`, `stored`: see `Images` and `ShuffledBatches`.
    """
    train = benchmark.train
    on_device = train.augment_on == "device"
    dataset = Images(
        index,
        "train",
        table,
        partial(training_view, train=train),
        seed=seed,
        colour=input_statistics(benchmark.model).colour,
        cache={} if train.cache else None,
        device=distributed.device() if on_device else None,
        saliency_maps=saliency_maps,
        stored=stored,
    )
    pixels = max(height * width for height, width in index.sizes["train"]) if on_device else train.crop**2
    share = -(-train.batch // distributed.world())
    batches = ShuffledBatches(images, train.batch, train.accumulate, seed, stored)
    return _loader(dataset, batches, train, share * pixels)


def evaluation_loader(benchmark: Benchmark, index: Index, split: str, images: list[int], table: np.ndarray) -> Loader:
    """Batches of images of one size, without padding. Each process takes its share of the batches."""
    crop = benchmark.train.crop if benchmark.evaluation.size == "crop" else None
    cache = {} if benchmark.train.cache and split == "train" else None
    dataset = Images(index, split, table, partial(_evaluation_view, crop=crop), cache=cache)
    by_size: dict[tuple, list[int]] = {}
    for number in images:
        by_size.setdefault((crop, crop) if crop else tuple(index.sizes[split][number]), []).append(number)
    size = benchmark.evaluation.batch
    batches = {shape: _split(group, size) for shape, group in by_size.items()}
    return _whole_image_loader(dataset, batches, benchmark.train)


def statistics_loader(
    benchmark: Benchmark, index: Index, images: list[int], table: np.ndarray, cache: Cache | None = None
) -> Loader:
    """Batches for method statistics: every training image once, whole and without augmentation (`statistics_size`).

    The batches do not depend on `train.batch`, on the seed or on the order of `images`. A batch has images of one size,
    at most `evaluation.batch` of them, and at most as many pixels as that many training crops. Each process takes its
    share of the batches, at least one. `cache`: decoded images to use and to add to.
    """
    train, most, world = benchmark.train, benchmark.evaluation.batch, distributed.world()
    dataset = Images(index, "train", table, partial(_statistics_view, train=train), cache=cache)
    by_size: dict[tuple[int, int], list[int]] = {}
    for number in sorted(images):
        by_size.setdefault(statistics_size(*index.sizes["train"][number], train), []).append(number)
    batches = {}
    for (height, width), group in by_size.items():
        size = max(1, min(most, most * train.crop**2 // (height * width), len(images) // world))
        batches[height, width] = _split(group, size)
    if sum(map(len, batches.values())) < world:
        raise _too_few(len(images), world)
    return _whole_image_loader(dataset, batches, train)


def stable_seed(*parts: int | str) -> int:
    """A seed from several numbers, the same in every process and version."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def _evaluation_view(height: int, width: int, _: torch.Generator, crop: int | None) -> View:
    return evaluation_view(height, width, crop)


def _statistics_view(height: int, width: int, _: torch.Generator, train: Train) -> View:
    return resized_view(height, width, statistics_size(height, width, train))


def _split(images: list[int], size: int) -> list[list[tuple[int, int]]]:
    """Batches of (epoch 0, image)."""
    return [[(0, number) for number in images[i : i + size]] for i in range(0, len(images), size)]


def _whole_image_loader(dataset: Images, batches: dict[tuple[int, int], list], train: Train) -> Loader:
    """A loader of this process's share of batches, given by the height and width of their images."""
    pixels = max((len(batch) * h * w for (h, w), group in batches.items() for batch in group), default=0)
    share = list(chain(*batches.values()))[distributed.rank() :: distributed.world()]
    return _loader(dataset, share, train, pixels)


def _loader(dataset: Images, batches, train: Train, pixels: int) -> Loader:
    """A loader. `pixels`: in the images of its largest batch."""
    workers = processes.affordable(processes.loader_processes(train), pixels, len(batches))
    return Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=default_collate if dataset.device is None else list,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: starting processes must not change the training's random numbers
    )


def picture(
    benchmark: Benchmark, index: Index, split: str, number: int, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An image (H,W,3) uint8 and its labels (H,W) uint8 through a label table, sized as they are scored."""
    image, labels, _ = evaluation_loader(benchmark, index, split, [number], table).dataset[0, number]
    return image.numpy(), labels.numpy()
