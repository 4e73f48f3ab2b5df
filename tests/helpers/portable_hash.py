"""Hashes of the weights after each of three updates: do they depend on the processor?

python -m tests.helpers.portable_hash            # as the process finds it
python -m tests.helpers.portable_hash portable   # with the variables of `train.portable`
qemu-x86_64 -cpu EPYC-Milan $(which python) -m tests.helpers.portable_hash portable
"""

import hashlib
import os
import sys
import time

from ciss.processor import PORTABLE

if "portable" in sys.argv:
    os.environ.update(PORTABLE)

import torch
import torch.nn.functional as F

from ciss.config import Model
from ciss.models import create_network

SIZE = 32  # pixels
CLASSES = 6


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = create_network(Model(encoder="ciss_tiny", width=32, output_stride=4, atrous_rates=(1, 2)), [CLASSES])
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    hashes = []
    started = time.process_time()
    for _ in range(3):
        images = torch.rand(4, 3, SIZE, SIZE, generator=generator)
        labels = torch.randint(0, CLASSES, (4, SIZE, SIZE), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(network(images).upsample((SIZE, SIZE)), labels).backward()
        optimiser.step()
        digest = hashlib.sha256()
        for _, values in sorted(network.state_dict().items()):
            digest.update(values.numpy().tobytes())
        hashes.append(digest.hexdigest()[:8])
    print(torch.backends.cpu.get_cpu_capability(), *hashes, f"{time.process_time() - started:.2f} s")


if __name__ == "__main__":
    main()
