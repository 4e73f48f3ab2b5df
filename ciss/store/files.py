"""Files that survive: written whole or not at all; space, and one lock a run. Imports no torch."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ciss import documents

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # of vfat, 9p, CIFS and FUSE


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged or foreign; the message names it and the remedy."""


class DiskFull(CheckpointError):
    """No room for a file; what was there before is untouched."""


class Locked(Exception):
    """Another process trains this run."""


def write_bytes(file: Path, data: bytes) -> None:
    """Atomic: readers see the old file or the new one, also after a power cut. Raises DiskFull, and CheckpointError
    where nothing may be written."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                _fsync(stream.fileno())
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(file.parent)
    except OSError as error:
        if error.errno in FULL:
            raise _full(file, len(data)) from None
        if error.errno in REFUSED:
            raise CheckpointError(
                f"{file}: cannot be written ({error.strerror}). Give yourself the right to write into {file.parent}, "
                "or change `output` in the parameter file."
            ) from None
        raise


def write_text(file: Path, text: str) -> None:
    write_bytes(file, text.encode())


def sync_folder(folder: Path) -> None:
    """Makes names in a folder, new and replaced ones, survive a power cut too, where the file system can do this."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder; elsewhere a folder may be writable but not readable
        return
    try:
        _fsync(handle)
    finally:
        os.close(handle)


def _fsync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def require_space(folder: Path, size: int) -> None:
    """Raises DiskFull when there is no room for `size` bytes in a folder, or in the one that it will be made in."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if shutil.disk_usage(place).free < size:
        raise _full(folder, size)


def _full(place: Path, size: int) -> DiskFull:
    free = shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free
    lack = f"{documents.size(size - free)} missing" if free < size else "a quota or limit forbids more"
    return DiskFull(
        f"{place}: no room: {documents.size(size)} needed, {documents.size(free)} free, {lack}. What was finished "
        "before is kept. Make room, and run the same command again."
    )


@contextmanager
def exclusive(file: Path, what: str) -> Iterator[None]:
    """Holds an operating-system lock, released even by SIGKILL. Raises Locked, naming the process that has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    owner, here = file.with_suffix(".pid"), socket.gethostname()
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder, host = "unknown", here  # for the moment between the lock and its owner's file
        with suppress(FileNotFoundError, ValueError):
            holder, host = owner.read_text(encoding="utf-8").split()
        place = "" if host == here else f" on {host}"
        raise Locked(
            f"{what} is being trained by process {holder}{place}, perhaps left over from a stopped pipeline. "
            f"Wait for it, or stop it: kill {holder}"
        ) from None
    try:
        owner.write_text(f"{os.getpid()} {here}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
