"""Files that survive: written whole or not at all, weights without pickles, one lock a run."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ciss import distributed


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged or foreign; the message names it and the remedy."""


class Locked(Exception):
    """Another process trains this run."""


def write_bytes(file: Path, data: bytes) -> None:
    """Atomic: readers see the old file or the new one, also after a power cut."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    write_bytes(file, text.encode())


def save_weights(file: Path, network: nn.Module, config: dict) -> None:
    """Weights as safetensors, the configuration beside them. The same weights give the same bytes."""
    # Contiguous, because channels-last tensors are refused; one metadata entry, because the order of several varies.
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_bytes(file, save(tensors, metadata={"config": json.dumps(config, sort_keys=True)}))


def load_weights(file: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and configuration of a checkpoint. Raises CheckpointError."""
    try:
        with safe_open(str(file), "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads((stored.metadata() or {})["config"])
    except FileNotFoundError:
        raise CheckpointError(f"{file}: there is no such checkpoint. Train it: {_remedy(file)}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{file}: not a checkpoint of this project, or damaged ({error}). Train it again: {_remedy(file)}"
        ) from None


def restore(network: nn.Module, file: Path) -> dict:
    """Loads a checkpoint into a network of the same shape; returns its configuration. Raises CheckpointError."""
    tensors, config = load_weights(file)
    wanted = network.state_dict()
    wrong = [k for k in wanted if k not in tensors or tensors[k].shape != wanted[k].shape] + [
        k for k in tensors if k not in wanted
    ]
    if wrong:
        raise CheckpointError(
            f"{file}: made by another network ({len(wrong)} parameters do not fit, {wrong[0]} first). "
            f"Restore the benchmark's model section, or train it again: {_remedy(file)}"
        )
    network.load_state_dict(tensors)
    return config


def save_state(file: Path, key: str, parts: dict[str, Any], values: dict) -> None:
    """What a stopped training needs to go on. `parts`: what has a state_dict; `values`: plain values and tensors."""
    buffer = BytesIO()
    torch.save({"key": key, "parts": {n: part.state_dict() for n, part in parts.items()}, "values": values}, buffer)
    write_bytes(file, buffer.getvalue())


def load_state(file: Path, key: str, parts: dict[str, Any]) -> dict | None:
    """Puts the parts back and returns the values; None, with the parts untouched, when there is nothing to go on from:
    no file, a damaged one, or one of another `key`, that is of other parameters, code, data or number of processes."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        found, states, values = state["key"], state["parts"], state["values"]
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive raises many kinds; starting afresh is right for each
        reason = str(error).partition("\n")[0]
        distributed.say(f"{file}: cannot be continued ({reason}); starting afresh.")
        return None
    if found != key:
        distributed.say(f"{file}: belongs to other parameters, code, data or processes; starting afresh.")
        return None
    for name, part in parts.items():
        part.load_state_dict(states[name])
    return values


def forget_state(file: Path) -> None:
    """Removes the state, and what a kill left of half-written ones."""
    for left in [file, *file.parent.glob(f".{file.name}.*")]:
        left.unlink(missing_ok=True)


@contextmanager
def exclusive(file: Path, what: str) -> Iterator[None]:
    """Holds an operating-system lock, released even by SIGKILL. Raises Locked, naming the process that has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    owner = file.with_suffix(".pid")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = "unknown"  # for the moment between the lock and its owner's file
        with suppress(FileNotFoundError):
            holder = owner.read_text() or holder
        raise Locked(f"{what} is being trained by process {holder}. Wait for it, or stop it: kill {holder}") from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _remedy(file: Path) -> str:
    return f"python -m ciss.engine {file.parent.name}"
