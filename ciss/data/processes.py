"""Loader processes: how many there are, whether their shared memory suffices, and what to do when one dies."""

import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

from ciss import distributed, documents
from ciss.config import Train
from ciss.data.pictures import DataError
from ciss.processor import available_cores

SHARED = Path("/dev/shm")  # where loader processes leave their batches
PREFETCHED = 2  # batches that wait for each process (torch's default)
MOST = 8  # processes that `auto` starts: reports/speed/loader.md
REMEDY = "give a container more shared memory (docker run --shm-size=8g)"


def loader_processes(train: Train) -> int:
    """Loader processes of one loader: `train.workers`, at most one for each core.

    `auto`: the cores that training leaves free, shared by the training's processes of this machine, at most MOST. A
    training on the CPU keeps `threads` cores, one on a GPU keeps one. On the CPU, images in `cache` need no process.
    """
    cores = available_cores()
    if train.workers != "auto":
        return min(train.workers, cores)  # torch warns of more; the batches do not depend on it
    on_cpu = distributed.device().type == "cpu"
    if on_cpu and train.cache:
        return 0
    own_cores = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(MOST, own_cores - (train.threads if on_cpu else 1)))


def shared_bytes(workers: int, pixels: int) -> int:
    """Shared memory for the batches that wait. `pixels`: in the images of one batch."""
    return workers * PREFETCHED * 4 * pixels  # uint8: three colours and the label


def free_shared_memory() -> int | None:
    """Bytes; None where the system has no folder for it."""
    return shutil.disk_usage(SHARED).free if SHARED.is_dir() else None


def affordable(workers: int, pixels: int, batches: int) -> int:
    """`workers`, or as many of them as half of the free shared memory suffices for, with a message.

    Training and scoring each have loader processes, so each may take half. Without space a process would be killed.

    Args:
        pixels: in the images of one batch.
        batches: of an epoch. More processes than batches would have nothing to do.
    """
    workers, free = min(workers, batches), free_shared_memory()
    if not workers or free is None or shared_bytes(workers, pixels) <= free / 2:
        return workers
    fewer = int(free / 2 // shared_bytes(1, pixels))
    distributed.log(
        f"{workers} loader processes need {documents.size(2 * shared_bytes(workers, pixels))} of shared memory, but "
        f"{SHARED} has {documents.size(free)} free: starting {fewer}. For more, {REMEDY}, or lower train.batch."
    )
    return fewer


def explain_deaths() -> None:
    """Replaces torch's message in its signal handler for dead loader processes. Windows has no such signal."""
    child_signal = getattr(signal, "SIGCHLD", None)
    if child_signal is None or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(child_signal)
    if not callable(handler) or getattr(handler, "explains", False):
        return

    def explaining(number: int, frame) -> None:
        try:
            handler(number, frame)
        except RuntimeError as error:
            raise _with_remedy(error) from None

    explaining.explains = True
    signal.signal(child_signal, explaining)


def explained(error: Exception) -> Exception:
    """A DataError with a remedy for full shared memory and for a dead loader process; any other error unchanged."""
    if _broken_off(error):
        time.sleep(1)  # until the signal of the dead process arrives, so that it raises only one error
    return _with_remedy(error)


def _broken_off(error: Exception) -> bool:
    """Whether a loader process died while it handed over a batch."""
    return isinstance(error, EOFError | ConnectionError | FileNotFoundError)


def _with_remedy(error: Exception) -> Exception:
    reason = re.search("unable to (?:allocate|open|resize|mmap|map).*", str(error))  # torch's words
    if reason and re.search("shm|shared memory|No space left|torch_", reason[0]):
        problem = f"no shared memory ({SHARED}) is left for the batches of loader processes ({reason[0]})"
    elif _broken_off(error) or str(error).startswith("DataLoader worker"):
        why = " ".join(str(error).split()) or "while it handed over a batch"
        problem = f"a loader process was killed ({why}): memory or shared memory ({SHARED}) may have run out"
    else:
        return error
    return DataError(
        f"{problem}. The last finished epoch is kept: run the same command again, with fewer train.workers (0 needs no "
        "shared memory), or give a container more shared memory: docker run --shm-size=8g."
    )
