"""Time of a training step on the CPU in bfloat16 against float32, in turns in one process.

    python -m tests.helpers.precision_speed --turns 8

Printed for each network and method: processor seconds of an incremental step (teacher, student, losses, gradients and
update; random images and weights) in float32 and bfloat16 (medians), and the ratios float32 / bfloat16 of each turn
(median, least, most), in processor time and on the clock.
"""

import argparse
import copy
import statistics
import time

import torch

from ciss.config import Model, Phase, Train
from ciss.methods import METHODS, Batch
from ciss.models import create_network, set_norm_mode
from ciss.training.evaluation import autocast
from ciss.training.optimisation import make_optimiser

CPU = torch.device("cpu")
PHASE = Phase(epochs=1, lr=1e-6)
TRAIN = Train(base=PHASE, increment=PHASE, crop=8, batch=1)
CASES = {  # name -> model, groups of channels, batch, pixels
    "shapes": (Model(output_stride=4, width=48, atrous_rates=(2, 4)), [5, 2], 16, 64),
    "voc8": (Model(encoder="mobilenetv2_100", output_stride=16, width=128, atrous_rates=(6, 12, 18)), [5, 1], 8, 160),
    "vit_base": (
        Model(encoder="vit_base_patch16_384", image_size=256, output_stride=16, decoder="mask_transformer", width=768),
        [16, 1],
        4,
        256,
    ),
}
TURNED = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def make_step(name: str, method: str):
    """A function of the precision that does one update and returns its seconds: of the processor, on the clock."""
    model, (old, new), size, side = CASES[name]
    torch.manual_seed(0)
    student = create_network(model, [old]).to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    rule = METHODS[method]()
    rule.initialise(student, new)
    set_norm_mode(student, "frozen")
    optimiser = make_optimiser(list(student.parameters()), student, PHASE, TRAIN)
    images = torch.randn(size, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(old, old + new, (size, side // 16, side // 16)) * (torch.rand(size, 1, 1) < 0.5)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    steps = torch.tensor([0] * old + [1] * new)
    batch = Batch(images, labels, labels, ["a"] * size, 1, old, steps, torch.arange(old, old + new))

    def step(precision: torch.dtype) -> tuple[float, float]:
        started = time.process_time(), time.perf_counter()
        with autocast(CPU, precision):
            with torch.no_grad():
                before = teacher(batch.images)
            batch.labels = rule.labels(batch, before)
            after = student(batch.images)
        sum(rule.losses(after, before, batch).values()).backward()
        optimiser.step(torch.ones((), dtype=torch.bool))
        optimiser.zero_grad()
        return time.process_time() - started[0], time.perf_counter() - started[1]

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="*", default="shapes:mib shapes:mbs voc8:mib voc8:mbs vit_base:mbs".split())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| network, method | float32, s | bfloat16, s | ratio, processor time | ratio, clock |\n|---|---|---|---|---|"
    )
    for case in arguments.cases:
        step = make_step(*case.split(":"))
        turns = [[step(precision) for precision in TURNED] for _ in range(arguments.turns + 1)][1:]
        cells = [f"{statistics.median(turn[column][0] for turn in turns):.3f}" for column in range(len(TURNED))]
        for clock in (0, 1):
            ratios = [full[clock] / half[clock] for full, half in turns]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print("|", " | ".join([case, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
