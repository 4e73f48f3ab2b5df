"""What passes over full-resolution maps cost in a strip of 4 MiB: `python -m tests.helpers.map_speed`.

Prints nanoseconds of processor time an element, and the loss part of GSC at 151 channels as the sum of its passes.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

CHANNELS, ROWS, WIDTH, GRID, IMAGES = 151, 13, 256, 16, 2
ELEMENTS = IMAGES * CHANNELS * 256 * WIDTH  # of a whole map
# How often GSC needs a pass; a logarithm and a sigmoid count as an exponential. Labels: two enlargements, logarithm,
# two maxima, five passes in place. Gradient magnitudes: enlargement, log-softmax. Losses: two enlargements,
# log-softmax, target (sigmoid, exponential, sum), product and its sum, entropy (exponential, in place, sum). Way back:
# exponential, product, two in place, to the grid.
GSC = {"enlarge": 5, "log_softmax": 2, "exp": 5, "in place": 8, "largest": 2, "sum": 3, "product": 2, "to the grid": 1}


def measure(passes: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Nanoseconds an element by pass: medians of rounds."""
    times = {name: [] for name in passes}
    for _ in range(rounds):
        for name, function in passes.items():
            function()
            started = time.process_time()
            for _ in range(20):
                function()
            times[name].append((time.process_time() - started) / 20 / (IMAGES * CHANNELS * ROWS * WIDTH) * 1e9)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    block = torch.zeros(31 * 2**18)  # the C library then keeps freed memory of this size, as in a training
    del block
    maps = torch.randn(IMAGES, CHANNELS, ROWS, WIDTH)
    other, scratch = torch.randn_like(maps), torch.randn_like(maps)
    rows, across = torch.randn(IMAGES, CHANNELS, ROWS, GRID), torch.rand(GRID, WIDTH)
    large, copy = torch.zeros(2**26), torch.zeros(2**26)
    passes = {
        "enlarge": lambda: rows @ across,
        "to the grid": lambda: maps @ across.T,
        "log_softmax": lambda: maps.log_softmax(dim=1),
        "exp": lambda: maps.exp(),
        "product": lambda: maps * other,
        "in place": lambda: scratch.mul_(0.999),
        "largest": lambda: maps.amax(dim=1),
        "sum": lambda: maps.sum(dim=1),
    }
    found = measure(passes, arguments.rounds)
    for name, value in found.items():
        print(f"{name:12} {value:5.2f} ns x {GSC[name]}")
    print(f"sum of GSC's passes: {sum(found[name] * GSC[name] for name in GSC) * ELEMENTS / 1e6:.0f} ms")
    started = time.process_time()
    copy.copy_(large)
    bandwidth = 8 * large.numel() / (time.process_time() - started) / 1e9
    started = time.process_time()
    for _ in range(50):
        scratch.copy_(maps)
    in_strip = 50 * 8 * maps.numel() / (time.process_time() - started) / 1e9
    print(f"copying: {bandwidth:.1f} GB/s in memory, {in_strip:.1f} GB/s in a strip, of processor time")


if __name__ == "__main__":
    main()
