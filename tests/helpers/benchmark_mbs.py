"""What a step of MBS costs over the bare sum of its parts: teacher forward, student forward, cross-entropy, backward.

    python -m tests.helpers.benchmark_mbs  # ViT-B/16 at 256 pixels, batch 4, with 17 and with 112 classes
    python -m tests.helpers.benchmark_mbs --classes 17 --pairs 20
    python -m tests.helpers.benchmark_mbs --encoder vit_tiny_patch16_224 --image 64  # a quick look

Time: median of the ratios of interleaved pairs, in one process. Memory: peak resident set of one process for each of
the two, networks included. No optimiser in either.
"""

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import time

import torch

from ciss.config import Model
from ciss.losses import cross_entropy
from ciss.methods import METHODS, Batch
from ciss.models import create_network


class Step:
    """One training step without the optimiser; `bare` leaves out everything that MBS adds to it."""

    def __init__(self, arguments: argparse.Namespace, classes: int):
        torch.manual_seed(0)
        size, new = arguments.image, arguments.new
        model = Model(
            encoder=arguments.encoder,
            image_size=size,
            output_stride=16,
            decoder="mask_transformer",
            width=arguments.width,
        )
        self.student = create_network(model, [classes - new])
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.method = METHODS["mbs"]()
        self.method.initialise(self.student, new)
        self.student.train()
        patches = torch.randint(0, 3, (arguments.batch, size // 16, size // 16))
        labels = torch.where(patches == 0, classes - 1, 0).repeat_interleave(16, 1).repeat_interleave(16, 2)
        steps = torch.tensor([0] * (classes - new) + [1] * new)
        images = torch.randn(arguments.batch, 3, size, size)
        positions = torch.arange(classes - new, classes)
        self.batch = Batch(images, labels, labels, ["a"] * arguments.batch, 1, classes - new, steps, positions)

    def run(self, bare: bool) -> float:
        started, batch = time.perf_counter(), self.batch
        with torch.no_grad():
            old = self.teacher(batch.images)
        new = self.student(batch.images)
        if bare:
            loss = cross_entropy(new.upsample(batch.size), batch.given)
        else:
            batch.labels = self.method.labels(batch, old)
            loss = sum(self.method.losses(new, old, batch).values())
        loss.backward()
        self.student.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def compare(arguments: argparse.Namespace, classes: int) -> dict[str, float]:
    """Ratios of time and of peak memory, and the bare step's seconds and bytes."""
    torch.set_num_threads(arguments.threads)
    step = Step(arguments, classes)
    step.run(bare=True), step.run(bare=False)
    pairs = [(step.run(bare=True), step.run(bare=False)) for _ in range(arguments.pairs)]
    del step
    bare, full = (_peak(arguments, classes, kind) for kind in ("bare", "mbs"))
    return {
        "time": statistics.median(b / a for a, b in pairs),
        "memory": full / bare,
        "seconds": statistics.median(a for a, _ in pairs),
        "bytes": bare,
    }


def _peak(arguments: argparse.Namespace, classes: int, kind: str) -> int:
    """Bytes, of a process that does three steps."""
    options = {**vars(arguments), "classes": classes, "peak": kind}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vit_base_patch16_384")
    parser.add_argument("--width", type=int, default=768, help="of the decoder")
    parser.add_argument("--image", type=int, default=256, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, nargs="+", default=[17, 112], help="after the step")
    parser.add_argument("--new", type=int, default=1, help="of them new")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", choices=["bare", "mbs"], help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    if arguments.peak:
        torch.set_num_threads(arguments.threads)
        step = Step(arguments, arguments.classes[0])
        for _ in range(3):
            step.run(bare=arguments.peak == "bare")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(peak if sys.platform == "darwin" else 1024 * peak)
        return
    print(f"{arguments.encoder}, {arguments.image} pixels, batch {arguments.batch}, float32, torch {torch.__version__}")
    for classes in arguments.classes:
        found = compare(arguments, classes)
        print(
            f"{classes} classes: time {found['time']:.3f} of a bare step of {found['seconds']:.2f} s "
            f"({arguments.pairs} pairs), peak memory {found['memory']:.3f} of {found['bytes'] / 2**30:.2f} GiB"
        )


if __name__ == "__main__":
    main()
