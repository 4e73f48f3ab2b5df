"""timm's own weights: find them on this machine, or fetch them."""

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

ANSWER = 10  # seconds until the first answer of the server
FILES = ("model.safetensors", "pytorch_model.bin")  # file names that timm asks the hub for
WAIT = "CISS_CONNECT_SECONDS"  # environment variable: seconds to wait for a connection; 0: do not try one


class WeightsError(Exception):
    """A weight file that is missing, unreadable, or of another network."""


def cached_weights(encoder: str) -> Path | None:
    """The file of timm's weights for an encoder in the local caches of huggingface_hub and torch, or None."""
    source = _source(encoder)
    if source is None:
        return None
    if source.hf_hub_id:
        for name, repository in _hub_files(source):
            file = try_to_load_from_cache(filename=name, **repository)
            if isinstance(file, str):
                return Path(file)
        return None
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(source.url).path).name)
    return file if file.is_file() else None


def unavailable(encoder: str) -> str | None:
    """A message with what to do where weights are not on this machine and cannot be fetched; otherwise None.

    Tries one connection per process, for at most three seconds (`CISS_CONNECT_SECONDS`).
    """
    if _source(encoder) is None or cached_weights(encoder) or _reachable(_server(encoder)):
        return None
    return f"{missing(encoder)}, and {_server(encoder)} cannot be reached. {remedy(encoder)}"


def fetch(encoder: str) -> Path | None:
    """Fetches timm's weights of an encoder from the hub. Returns the file; None where they are not on the hub.

    Raises WeightsError after one failed attempt.
    """
    if problem := unavailable(encoder):
        raise WeightsError(problem)
    source = _source(encoder)
    if source is None or not source.hf_hub_id:
        return None
    reason = ""
    for name, repository in _hub_files(source):
        try:
            return Path(hf_hub_download(filename=name, **repository, etag_timeout=ANSWER))
        except Exception as error:  # of the hub, its HTTP client or the system
            reason = reason or str(error).strip().partition("\n")[0] or type(error).__name__
            if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                break
    raise WeightsError(f"{missing(encoder)}, and fetching them failed ({reason}). {remedy(encoder)}")


def missing(encoder: str) -> str:
    return f"timm's weights of {encoder} are not in the cache of this machine ({constants.HF_HUB_CACHE})"


def remedy(encoder: str) -> str:
    """How to use weights that this machine cannot fetch."""
    source = _source(encoder)
    file = f"{FILES[0]} of {constants.ENDPOINT}/{source.hf_hub_id}" if source.hf_hub_id else source.url
    return f"Fetch {file} on another machine, name the file in model.weights, and set model.pretrained to false."


def _source(encoder: str) -> "PretrainedCfg | None":
    """Where timm has the weights of an encoder; None where it has none."""
    from timm.models import get_pretrained_cfg  # here, because timm takes seconds to import

    source = get_pretrained_cfg(encoder)
    return source if source and (source.hf_hub_id or source.url) else None


def _hub_files(source: "PretrainedCfg") -> list[tuple[str, dict]]:
    """File names to try, each with the arguments that name the repository."""
    name, _, revision = source.hf_hub_id.partition("@")
    files = (source.hf_hub_filename,) if source.hf_hub_filename else FILES
    return [(file, {"repo_id": name, "revision": revision or None}) for file in files]


def _server(encoder: str) -> str:
    source = _source(encoder)
    return urlsplit(constants.ENDPOINT if source.hf_hub_id else source.url).netloc


@functools.cache
def _reachable(server: str) -> bool:
    """Whether a connection to a server, or to the proxy for it, can be opened."""
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

    attempt = threading.Thread(target=connect, daemon=True)  # because the lookup of a name has no time limit
    attempt.start()
    attempt.join(seconds)
    return bool(opened)
