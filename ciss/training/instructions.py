"""Threads and instructions of the processor that a training uses. Both change the last digits of its results.

torch, oneDNN and MKL choose their code by the processor: wider vectors add numbers in another order. With
`train.portable`, all of them use AVX2, and MKL its code for every vendor. See reports/speed/portable.md.
"""

import os

import torch

from ciss.config import ConfigError, Train
from ciss.processor import PORTABLE


def set_processor(options: Train, device: torch.device) -> None:
    """Sets the number of threads and, with `portable`, the instructions.

    The libraries read the variables at their first operation, so this must come before it.

    Raises ConfigError where `portable` is not possible: on a GPU, on a processor without AVX2, and in a process that
    has used tensors before.
    """
    torch.set_num_threads(options.threads)
    if not options.portable:
        return
    if device.type != "cpu":
        raise ConfigError(f"train.portable: true is for CPUs, and this training uses {device}. Set it to false.")
    os.environ.update(PORTABLE)
    if (used := torch.backends.cpu.get_cpu_capability()) != PORTABLE["ATEN_CPU_CAPABILITY"].upper():
        variables = " ".join(f"{name}={value}" for name, value in PORTABLE.items())
        raise ConfigError(
            f"train.portable: true needs AVX2 instructions, and this process uses {used}. On a processor without AVX2, "
            f"set it to false. Otherwise set the environment before torch is used: {variables}"
        )
