"""Processor time of the loader, this working copy's against that of other commits and of plain torchvision.

    python -m tests.helpers.loader_speed FOLDER --before OTHER_WORKING_COPY --turns 8

FOLDER holds photographs (`*.jpg`) and their masks (`*.png`, the same names). Plain torchvision is measured twice: with
Pillow as decoder, as its tutorials do, and with `torchvision.io.decode_image`. Each loader has a process of its own,
without loader processes and with one thread. They take turns: each turn is an epoch of all images. Printed are images
a second of processor time (medians), and the ratio to this working copy's in each turn (median, least, most).
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

AUGMENTATIONS = {
    "MBS": {"augmentation": "scaled_crop", "scale": [0.5, 2.0], "resize": 512},
    "random resized crop": {"augmentation": "resized_crop", "scale": [0.5, 2.0]},
    "scaled_crop": {"augmentation": "scaled_crop", "scale": [0.5, 2.0]},
    "crop only": {"augmentation": "none"},
}
PILLOW, DECODE_IMAGE = "v2 with Pillow", "v2 with decode_image"


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    return [(image, image.with_suffix(".png")) for image in sorted(folder.glob("*.jpg"))]


def package_loader(folder: Path, train: dict):
    """The loader of the package that is imported: PYTHONPATH decides which."""
    from PIL import Image

    from ciss.config import Benchmark, validate
    from ciss.data.loaders import training_loader
    from ciss.data.pictures import Pair

    phase, files = {"epochs": 1, "lr": 1}, pairs(folder)
    document = {
        "dataset": "voc",
        "protocol": "15-1",
        "train": {"base": phase, "increment": phase, "workers": 0, **train},
    }
    index = SimpleNamespace(
        pairs=lambda _: [Pair(image.stem, image, mask) for image, mask in files],
        digests={"train": [hashlib.sha256(i.read_bytes() + m.read_bytes()).hexdigest()[:16] for i, m in files]},
        sizes={"train": [Image.open(image).size[::-1] for image, _ in files]},
    )
    table = np.arange(256, dtype=np.uint8)
    return training_loader(validate(Benchmark, document, "f", ""), index, list(range(len(files))), table, 0)


def plain_loader(folder: Path, train: dict, pillow: bool):
    """torchvision's transforms, without any check. Pillow decodes the masks, and the images too if `pillow`."""
    import torch
    from PIL import Image
    from torchvision import tv_tensors
    from torchvision.io import decode_image
    from torchvision.transforms import v2

    def scale(image, mask):
        factor = torch.empty(()).uniform_(*train["scale"]).item()
        size = [max(1, round(side * factor)) for side in image.shape[1:]]
        return v2.functional.resize(image, size), v2.functional.resize(mask, size)

    crop = v2.RandomCrop(train["crop"], pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255})
    steps = [v2.Resize(train["resize"])] if train.get("resize") else []
    if train["augmentation"] == "resized_crop":
        steps.append(v2.RandomResizedCrop(train["crop"], scale=train["scale"]))
    else:
        steps += ([scale] if train["augmentation"] == "scaled_crop" else []) + [crop]
    steps.append(v2.RandomHorizontalFlip())

    class Plain(torch.utils.data.Dataset):
        files = pairs(folder)

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, number: int):
            file = self.files[number][0]
            if pillow:
                image = v2.functional.to_image(Image.open(file).convert("RGB"))
            else:
                image = tv_tensors.Image(decode_image(str(file)))
            mask = tv_tensors.Mask(torch.from_numpy(np.array(Image.open(self.files[number][1]))))
            for step in steps:
                image, mask = step(image, mask)
            return image, mask, number

    return torch.utils.data.DataLoader(Plain(), train["batch"], shuffle=True)


def serve(kind: str, folder: str, train: str) -> None:
    """Reads all images once for every line on standard input, and prints the seconds of processor time."""
    import torch

    torch.set_num_threads(1)
    loaders = {"package": package_loader}
    loaders |= {name: partial(plain_loader, pillow=name == PILLOW) for name in (PILLOW, DECODE_IMAGE)}
    loader = loaders[kind](Path(folder), json.loads(train))
    for epoch, _ in enumerate(sys.stdin):
        if hasattr(loader.batch_sampler, "epoch"):
            loader.batch_sampler.epoch = epoch
        started = time.process_time()
        images = sum(len(numbers) for *_, numbers in loader)
        print(json.dumps([images, time.process_time() - started]), flush=True)


def turns(folder: Path, train: dict, packages: dict[str, Path], count: int) -> Iterator[dict[str, float]]:
    """Images a second of each loader, turn by turn; the first turn is not counted."""
    servers = {}
    for name, package in packages.items():
        command = [sys.executable, __file__, "serve", name if name in (PILLOW, DECODE_IMAGE) else "package"]
        environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        start = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        servers[name] = start([*command, str(folder), json.dumps(train)])
    for turn in range(count + 1):
        speeds = {}
        for name, server in servers.items():
            print(file=server.stdin, flush=True)
            images, seconds = json.loads(server.stdout.readline())
            speeds[name] = images / seconds
        if turn:
            yield speeds
    for server in servers.values():
        server.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path, help="a working copy of another commit")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--augmentations", nargs="*", default=list(AUGMENTATIONS), choices=AUGMENTATIONS)
    arguments = parser.parse_args()
    packages = dict.fromkeys(("now", PILLOW, DECODE_IMAGE), Path(__file__).parents[2])
    if arguments.before:
        packages["before"] = arguments.before
    print("| augmentation | " + " | ".join(f"{name}, images/s" for name in packages), end=" | ")
    print(" | ".join(f"now / {name}" for name in list(packages)[1:]), "|")
    print("|---" * (2 * len(packages)) + "|")
    for name in arguments.augmentations:
        train = {"crop": arguments.crop, "batch": 8, **AUGMENTATIONS[name]}
        speeds = list(turns(arguments.folder, train, packages, arguments.turns))
        cells = [f"{statistics.median(turn[package] for turn in speeds):.0f}" for package in packages]
        for package in list(packages)[1:]:
            ratios = [turn["now"] / turn[package] for turn in speeds]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print("|", " | ".join([name, *cells]), "|", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    else:
        main()
