"""timm's own weights: whether they are on this machine, and whether they can be fetched."""

import functools
import os
import socket
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

ANSWER = 10  # seconds that the server has for its first answer
FILES = ("model.safetensors", "pytorch_model.bin")  # what timm asks the hub for
WAIT = "CISS_CONNECT_SECONDS"  # environment: how long to wait for the server of the weights; 0: take it as reachable


class WeightsError(Exception):
    """A weight file that is missing, unreadable, or of another network."""


def cached_weights(encoder: str) -> Path | None:
    """The file of timm's weights for an encoder in the local caches of huggingface_hub and torch, or None."""
    source = _source(encoder)
    if source is None:
        return None
    if source.hf_hub_id:
        repository, _, revision = source.hf_hub_id.partition("@")
        for name in (source.hf_hub_filename,) if source.hf_hub_filename else FILES:
            found = try_to_load_from_cache(repository, name, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
        return None
    if source.url:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(source.url).path).name)
        return file if file.is_file() else None
    return None


def unavailable(encoder: str) -> str | None:
    """What to do where the weights of an encoder are neither on this machine nor can be fetched; else None.

    Waits at most three seconds for the server (`CISS_CONNECT_SECONDS`), once in a process.
    """
    if _source(encoder) is None or cached_weights(encoder) or _reachable(_server(encoder)):
        return None
    return f"{missing(encoder)}, and {_server(encoder)} cannot be reached. {remedy(encoder)}"


def fetch(encoder: str) -> Path | None:
    """Fetches timm's weights of an encoder from the hub, with one attempt, and returns the file; None where timm has no
    weights, or another address. Raises WeightsError."""
    if problem := unavailable(encoder):
        raise WeightsError(problem)
    source = _source(encoder)
    if source is None or not source.hf_hub_id:
        return None
    repository, _, revision = source.hf_hub_id.partition("@")
    reason = ""
    for name in (source.hf_hub_filename,) if source.hf_hub_filename else FILES:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None, etag_timeout=ANSWER))
        except Exception as error:  # the hub's, its HTTP client's and the system's kinds
            reason = reason or str(error).strip().partition("\n")[0] or type(error).__name__
            if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                break
    raise WeightsError(f"{missing(encoder)}, and fetching them failed ({reason}). {remedy(encoder)}")


def missing(encoder: str) -> str:
    return f"timm's weights of {encoder} are not in the cache of this machine ({constants.HF_HUB_CACHE})"


def remedy(encoder: str) -> str:
    """Which file to bring."""
    source = _source(encoder)
    file = f"{FILES[0]} of {constants.ENDPOINT}/{source.hf_hub_id}" if source.hf_hub_id else source.url
    return f"Fetch {file} on another machine, name the file in model.weights, and set model.pretrained to false."


def _source(encoder: str) -> "PretrainedCfg | None":
    """Where timm has the weights of an encoder; None where it has none."""
    from timm.models import get_pretrained_cfg  # here, because timm takes seconds to import

    source = get_pretrained_cfg(encoder)
    return source if source and (source.hf_hub_id or source.url) else None


def _server(encoder: str) -> str:
    source = _source(encoder)
    return urlsplit(constants.ENDPOINT if source.hf_hub_id else source.url).netloc


@functools.cache
def _reachable(server: str) -> bool:
    """Whether a connection to a server, or to the proxy before it, can be opened."""
    if constants.HF_HUB_OFFLINE:
        return False
    seconds = float(os.environ.get(WAIT, "3"))
    if seconds <= 0:
        return True
    proxy = urllib.request.getproxies().get("https")
    address = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy or server}")
    opened: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, address.port or 443), timeout=seconds).close()
            opened.append(True)
        except OSError:
            pass

    attempt = threading.Thread(target=connect, daemon=True)  # looking a name up has no time limit of its own
    attempt.start()
    attempt.join(seconds)
    return bool(opened)
