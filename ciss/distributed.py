"""One process, or several started by `torchrun`: the same functions for both."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from ciss.documents import differences

# How long a process waits for the others. The longest wait is one pass over the data through a teacher, or an
# evaluation, on the slowest node.
TIMEOUT = timedelta(minutes=30)
GRACE = 20.0  # seconds in which torchrun notices a dead process and ends the others, also on a busy machine
_store: dist.Store | None = None  # torchrun's; holds the error messages that a process has printed


class Lost(Exception):
    """Another process ended or hangs. Its own message, or torchrun's, gives the reason."""


class WorkerError(Exception):
    """The error message of a process that `launch` started."""


class Disagreement(ValueError):
    """Processes of one training have different values. The message names processes and values."""


def device() -> torch.device:
    """The device of this process: under torchrun its own GPU, else the first GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def under_torchrun() -> bool:
    """Whether torchrun, or a program that sets its variables, started this process."""
    return "WORLD_SIZE" in os.environ


def launch(processes: int, *command: str) -> None:
    """Runs `python -m COMMAND` in several processes of this machine, by torchrun, and prints their output.

    A fork would copy the GPU memory of this process, such as a notebook's. Raises WorkerError if a process fails.
    """
    torchrun = "-u -m torch.distributed.run --standalone --nproc-per-node".split()
    arguments = [sys.executable, *torchrun, str(processes), "-m", *command]
    lines: list[str] = []
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                lines.append(line)
                print_line(line.removesuffix("\n"))
        except BaseException:
            process.terminate()  # torchrun ends its processes, which releases the lock of the run
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            raise
    if process.returncode:
        errors = [line.partition(" error: ")[2] for line in lines if line.startswith("process ")]
        raise WorkerError("".join(errors).strip() or "".join(lines[-20:]) or f"exit status {process.returncode}")


@contextmanager
def session() -> Iterator[None]:
    """Joins the processes that torchrun started. Without torchrun, or inside another session, it does nothing.

    A program has one session, around all its trainings: in a second one, processes may find the addresses of the
    first. Raises Lost if another process ended, or did not answer within TIMEOUT.
    """
    global _store
    if not under_torchrun() or dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(device())
    _store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    group_store = dist.PrefixStore("group", _store)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        try:
            yield
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, dist.DistError) and "gloo" not in reason:
            raise
        time.sleep(GRACE)  # torchrun names the process that ends first as the cause, and stops the others meanwhile
        minutes = f"{TIMEOUT.total_seconds() / 60:g} minutes"
        raise Lost(
            f"another process ended, or did not answer for {minutes}: see its own message or torchrun's. "
            f"Run the same command to continue after the last finished epoch. ({reason})"
        ) from None


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


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Gives every process the values of rank 0, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def broadcast_result(function: Callable[[], Any]) -> Any:
    """The result of the function on rank 0, for all: files may differ between nodes, and change meanwhile."""
    if not dist.is_initialized():
        return function()
    result = [function() if is_main() else None]
    dist.broadcast_object_list(result, src=0)
    return result[0]


def gather(value: Any) -> list:
    """The values of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world()
    dist.all_gather_object(values, value)
    return values


def gather_dict(values: dict) -> dict:
    """The dictionaries of all processes, merged."""
    return {key: value for part in gather(values) for key, value in part.items()}


def check_equal(value: Any, name: str) -> None:
    """Checks that all processes have the same value. Raises Disagreement in every process, which names dotted keys."""
    nodes = gather((platform.node(), value))
    lines = []
    for number, (node, other) in enumerate(nodes):
        for difference in differences(other, nodes[0][1], name, "not"):
            lines.append(f"process {number} on {node} differs from process 0: {difference}")
    if lines:
        text = "\n".join(lines)
        raise Disagreement(
            f"the processes of a training must not differ, but these do:\n{text}\n"
            "Let every node use one project folder, or a full copy of it, and the same environment."
        )


def print_line(text: str) -> None:
    """Prints a line in one call. With PYTHONUNBUFFERED, `print` writes its end in another, and lines of runs mix."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def log(text: str) -> None:
    """Prints on rank 0 only."""
    if is_main():
        print_line(text)


def exit_process(text: str) -> NoReturn:
    """Exits with an error message. Of several processes the message names one, and equal messages appear once."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        sys.exit(text)
    first = True
    with suppress(RuntimeError):  # without torchrun, a message may appear twice
        first = _store is None or _store.add(f"message/{text}", 1) == 1
    if first:
        process = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} on {platform.node()}"
        sys.stderr.write(f"{process}: {text.strip()}\n")  # in one write, so that lines of others do not mix in
        sys.stderr.flush()
    sys.exit(1)
