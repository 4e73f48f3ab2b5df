"""One process, or several started by `torchrun`: the same calls."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def device() -> torch.device:
    """This process's device: its own GPU under torchrun, the first one alone, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def session() -> Iterator[None]:
    """Joins the processes that torchrun started; does nothing without it, nor inside of another session.

    Not to be repeated by one program: the second time, processes may find the addresses of the first. Put one session
    around several trainings.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(device())
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    return all_sum(tensor.to(device())).cpu() if dist.is_initialized() else tensor


def share(tensors: Iterable[Tensor]) -> None:
    """Gives every process the first one's values, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def union(found: dict) -> dict:
    """The dictionaries of all processes in one."""
    if not dist.is_initialized():
        return found
    parts: list = [None] * world()
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def say(text: str) -> None:
    """Prints in one process only."""
    if is_main():
        print(text, flush=True)
