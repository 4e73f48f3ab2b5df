"""Training steps a second beside other programs, by how threads wait: `python -m tests.helpers.shared_cores`.

Each way is a process of its own that trains the network of the default benchmark with two threads. The processes take
turns: first alone, then beside one busy process for each core. A program of one thread shows the fair share.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from statistics import median

from ciss import processor

NO_CHOICE = {"KMP_BLOCKTIME": "200"}  # a choice without effect on GNU's OpenMP: keeps its default
WAYS = {  # variables
    "as the project sets it": {},
    "nothing set": NO_CHOICE,
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
BUSY = f"import os\nwhile os.getppid() == {os.getpid()}:\n    sum(range(100_000))"
STEPS = 10  # before the first round; the weights after them are compared


def train() -> None:
    """Prints a hash of the weights after `STEPS` steps. Then trains for as many seconds as each line of stdin says."""
    import torch
    import torch.nn.functional as F

    from ciss import config
    from ciss.models import create_network, set_norm_mode
    from ciss.training.optimisation import make_optimiser

    benchmark = next(iter(config.load("params.yaml").benchmarks.values()))
    torch.manual_seed(0)
    torch.set_num_threads(2)
    network = set_norm_mode(create_network(benchmark.model, [5]).to(memory_format=torch.channels_last), "batch")
    options = benchmark.train
    optimiser = make_optimiser(list(network.parameters()), network, options.base, options)
    images = torch.randn(options.batch, 3, options.crop, options.crop).to(memory_format=torch.channels_last)
    labels = torch.randint(5, (options.batch, options.crop, options.crop))

    def step() -> None:
        F.cross_entropy(network(images).upsample(labels.shape[-2:]), labels).backward()
        optimiser.step(torch.tensor(True))
        optimiser.zero_grad()

    for _ in range(STEPS):
        step()
    weights = b"".join(value.contiguous().numpy().tobytes() for value in network.state_dict().values())
    print(hashlib.sha256(weights).hexdigest()[:12], flush=True)
    for line in sys.stdin:
        started, steps = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < float(line):
            step()
            steps += 1
        print(steps / seconds, flush=True)


def start(variables: dict[str, str]) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if name not in (*processor.CHOICES, "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "tests.helpers.shared_cores", "--train"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=kept | variables, **pipes)


def share(seconds: float) -> float:
    """The share of a core that this process gets, with one thread."""
    started, worked = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - started) < seconds:
        sum(range(100_000))
    return (time.process_time() - worked) / passed


def measure(rounds: int, seconds: float) -> None:
    trainings = {name: start(way) for name, way in WAYS.items()}
    hashes = {name: process.stdout.readline().strip() for name, process in trainings.items()}
    rates = {name: ([], []) for name in WAYS}
    shares = []
    for number in range(rounds):
        order = [*WAYS][number % len(WAYS) :] + [*WAYS][: number % len(WAYS)]
        for loaded in (0, 1):
            count = loaded * processor.available_cores()
            others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
            for name in order:
                print(seconds, file=trainings[name].stdin, flush=True)
                rates[name][loaded].append(float(trainings[name].stdout.readline()))
            shares += [share(seconds)] * loaded
            for other in others:
                other.kill()
                other.wait()
    print(f"share of a core of a program of one thread beside the busy processes: {median(shares):.2f}")
    print("| threads wait | alone | beside busy processes | weights |\n|---|---|---|---|")
    for name, (alone, beside) in rates.items():
        print(f"| {name} | {median(alone):.1f} | {median(beside):.1f} | {hashes[name]} |")
        trainings[name].stdin.close()
        trainings[name].wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    chosen = parser.parse_args()
    if chosen.train:
        train()
    else:
        measure(chosen.rounds, chosen.seconds)
