"""One process, or several started by `torchrun`: the same calls."""

import json
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

# How long a process waits for the others before it calls them lost. The longest time between two meetings is a pass
# over the data through a teacher or an evaluation on the slowest node; what one process does alone, writing, is short.
TIMEOUT = timedelta(minutes=30)
GRACE = 20.0  # seconds in which torchrun sees a process die and ends the others, also on a busy machine
_board: dist.Store | None = None  # where messages are noted that a process has given; torchrun's own


class Lost(Exception):
    """Another process ended or hangs: it, or torchrun, says why."""


class WorkerError(Exception):
    """A process that `launch` started ended badly: its message."""


class Disagreement(ValueError):
    """Processes of one training differ in what must be equal; the message names processes and values."""


def device() -> torch.device:
    """This process's device: its own GPU under torchrun, the first one alone, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def started() -> bool:
    """Whether torchrun, or whoever sets its variables, started this process."""
    return "WORLD_SIZE" in os.environ


def launch(processes: int, *command: str) -> None:
    """`python -m COMMAND` in several processes of this machine, through torchrun; what they say is printed here.

    Not by a fork: this process, a notebook's, may hold a GPU. Raises WorkerError when they end badly.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    line = [sys.executable, "-u", "-m", *torchrun, "-m", *command]
    said: list[str] = []
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for text in process.stdout:
                said.append(text)
                print(text, end="", flush=True)
        except BaseException:
            process.terminate()  # torchrun ends its processes; with them goes the lock
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            raise
    if process.returncode:
        errors = [text.partition(" error: ")[2] for text in said if " error: " in text and text.startswith("process ")]
        raise WorkerError("".join(errors).strip() or "".join(said[-20:]) or f"exit status {process.returncode}")


@contextmanager
def session() -> Iterator[None]:
    """Joins the processes that torchrun started; does nothing without it, nor inside of another session.

    Not to be repeated by one program: the second time, processes may find the addresses of the first. Put one session
    around several trainings. Raises Lost where another process ended, or did not come to a meeting within TIMEOUT.
    """
    global _board
    if not started() or dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(device())
    _board, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
    backend, store = "nccl" if cuda else "gloo", dist.PrefixStore("group", _board)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        try:
            yield
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, dist.DistError) and "gloo" not in reason:
            raise
        time.sleep(GRACE)  # torchrun calls the first to end the cause, and stops the others meanwhile
        minutes = f"{TIMEOUT.total_seconds() / 60:g} minutes"
        raise Lost(
            f"another process ended, or did not answer for {minutes}: its own message or torchrun's says why. "
            f"The same command goes on after the last finished epoch. ({reason})"
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


def of_first(question: Callable[[], Any]) -> Any:
    """The first process's answer, for all: what files say may differ between nodes, and change in between."""
    if not dist.is_initialized():
        return question()
    answer = [question() if is_main() else None]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def agree(value: Any, what: str) -> None:
    """Makes sure that all processes have the same value: plain, as JSON has them, sections in sections too.

    Raises Disagreement, in every process, naming what differs: for sections the keys, with dots.
    """
    if not dist.is_initialized():
        return
    found: list = [None] * world()
    dist.all_gather_object(found, (platform.node(), dict(_flat(value, what))))
    lines = []
    for key in dict.fromkeys(key for _, values in found for key in values):
        holders: dict[str, list[str]] = {}
        for number, (node, values) in enumerate(found):
            holders.setdefault(values.get(key, "nothing"), []).append(f"{number} on {node}")
        if len(holders) > 1:
            lines.append(f"{key}: " + "; ".join(f"{v} in process {', '.join(who)}" for v, who in holders.items()))
    if lines:
        differences = "\n".join(lines)
        raise Disagreement(
            f"the processes of a training must not differ, but these do:\n{differences}\n"
            "Let every node use one project folder, or a full copy of it, and the same environment."
        )


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Dotted names and values as text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    else:
        yield name, json.dumps(value)


def say(text: str) -> None:
    """Prints in one process only."""
    if is_main():
        print(text, flush=True)


def leave(text: str) -> NoReturn:
    """Ends this process with an error message: of several processes by name, and what several say is said once."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        sys.exit(text)
    first = True
    with suppress(RuntimeError):  # without torchrun, better twice than not at all
        first = _board is None or _board.add(f"said/{text}", 1) == 1
    if first:
        who = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} on {platform.node()}"
        sys.stderr.write(f"{who}: {text.strip()}\n")  # at once, so that others do not write in between
        sys.stderr.flush()
    sys.exit(1)
