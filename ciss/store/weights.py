"""Weights and the state of a training as safetensors with a checksum, without pickles."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ciss import distributed, documents
from ciss.store.files import CheckpointError, write_bytes

STATE_WEIGHTS = 5  # times a network's weights: a training's state, and the file that replaces it
NO_CHECKSUM = b"0" * 64  # stands in a file's header while its checksum is computed
DAMAGED = (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError)


def _seal(tensors: dict[str, Tensor], values: dict) -> bytes:
    # One metadata entry: the order of several varies, and the same content should give the same bytes.
    text = json.dumps({**values, "sha256": NO_CHECKSUM.decode()}, sort_keys=True)
    # Contiguous: safetensors refuses channels-last tensors.
    data = save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, metadata={"config": text})
    return data.replace(NO_CHECKSUM, hashlib.sha256(data).hexdigest().encode(), 1)


def _open(data: bytes) -> tuple[dict[str, Tensor], dict]:
    """Tensors and values of a sealed file. Raises one of DAMAGED. The checksum is compared before tensors are read."""
    size = int.from_bytes(data[:8], "little")
    values = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["config"])
    checksum = values.pop("sha256")
    if hashlib.sha256(data.replace(checksum.encode(), NO_CHECKSUM, 1)).hexdigest() != checksum:
        raise ValueError("its bytes are not those that were written")
    return dict(sorted(load(data).items())), values  # `load` gives them in any order


def save_weights(file: Path, network: nn.Module, config: dict) -> None:
    """Weights as safetensors, with the configuration. The same weights give the same bytes."""
    write_bytes(file, _seal(network.state_dict(), config))


def load_weights(file: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and configuration of a checkpoint. Raises CheckpointError when it is missing, damaged or foreign."""
    try:
        return _open(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{file}: there is no such checkpoint. Train it: {_remedy(file)}") from None
    except DAMAGED as error:
        raise CheckpointError(
            f"{file}: not a checkpoint of this project, or damaged ({_short(error)}). Train it again: {_remedy(file)}"
        ) from None


def restore(network: nn.Module, file: Path) -> dict:
    """Loads a checkpoint into a network of the same shape; returns its configuration. Raises CheckpointError."""
    tensors, config = load_weights(file)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if wrong := [name for name in expected | shapes if expected.get(name) != shapes.get(name)]:
        parameters = "1 parameter does" if len(wrong) == 1 else f"{len(wrong)} parameters do"
        raise CheckpointError(
            f"{file}: made by another network ({parameters} not fit, {wrong[0]} first). "
            f"Restore the benchmark's model section, or train it again: {_remedy(file)}"
        )
    network.load_state_dict(tensors)
    return config


def save_state(file: Path, identity: dict, parts: dict[str, Any], values: dict) -> None:
    """Saves what a stopped training needs to continue. Raises DiskFull.

    Args:
        identity: plain values by name that must be the same in the training that continues.
        parts: objects with a `state_dict`.
        values: plain values, arrays and tensors.
    """
    tensors: dict[str, Tensor] = {}
    states = {name: part.state_dict() for name, part in parts.items()}
    stored = {"identity": identity, "parts": _encode(states, tensors), "values": _encode(values, tensors)}
    write_bytes(file, _seal(tensors, stored))


def load_state(
    file: Path,
    identity: dict,
    parts: dict[str, Any],
    device: torch.device | str = "cpu",
    differences: Callable[[dict, dict], list[str]] = documents.differences,
) -> dict | None:
    """Restores the parts on a device and returns the values.

    Without a file, and after printing why for a damaged file and one of another identity: leaves the parts and returns
    None.

    Args:
        differences: describes how the stored identity differs from this one; empty: it does not.
    """
    try:
        tensors, stored = _open(file.read_bytes())
        stored_identity, values = stored["identity"], _decode(stored["values"], tensors)
        states = _decode(stored["parts"], {name: tensor.to(device) for name, tensor in tensors.items()})
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        distributed.log(f"{file}: cannot be continued ({_short(error)}); starting afresh.")
        return None
    if different := differences(stored_identity, identity):
        distributed.log(f"{file}: begun with other values ({'; '.join(different)}); starting afresh.")
        return None
    for name, part in parts.items():
        part.load_state_dict(states[name])
    return values


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON can keep it: mappings as pairs, because keys may be numbers; tensors by their number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        channels_last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        return {"tensor": name, "channels_last": channels_last}
    if isinstance(value, np.ndarray):
        return {"array": _encode(torch.from_numpy(value), tensors)}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _encode(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_encode(entry, tensors) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a state: use plain values, arrays and tensors")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_encode`, with lists for tuples."""
    if isinstance(value, list):
        return [_decode(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return _decode(value["array"], tensors).numpy()
    if "pairs" in value:
        return {key: _decode(entry, tensors) for key, entry in value["pairs"]}
    tensor = tensors[value["tensor"]]
    return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor


def forget_state(file: Path) -> None:
    """Removes the state, and half-written ones that a killed process left."""
    for path in [file, *file.parent.glob(f".{file.name}.*")]:
        path.unlink(missing_ok=True)


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _remedy(file: Path) -> str:
    return f"ciss train {file.parent.name}"
