"""Files written whole or not at all, free space, and one lock per run. Imports no torch."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ciss import documents, paths

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
    """Atomic: readers see the old file or the new one, also after a power cut.

    Raises: DiskFull, and CheckpointError without the right to write.
    """
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
    """Makes new and replaced names in a folder survive a power cut, where the file system can do this."""
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
    """Raises DiskFull without room for `size` bytes in a folder, which may be missing yet."""
    if shutil.disk_usage(paths.existing_parent(folder)).free < size:
        raise _full(folder, size)


def _full(path: Path, size: int) -> DiskFull:
    free = shutil.disk_usage(paths.existing_parent(path)).free
    lack = f"{documents.size(size - free)} missing" if free < size else "a quota or limit forbids more"
    return DiskFull(
        f"{path}: no room: {documents.size(size)} needed, {documents.size(free)} free, {lack}. What was finished "
        "before is kept. Make room, and run the same command again."
    )


@contextmanager
def exclusive(file: Path, run: str) -> Iterator[None]:
    """Holds an operating-system lock, released even by SIGKILL. Raises Locked, naming the process that holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    owner = file.with_suffix(".pid")
    host = socket.gethostname()
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        process, holding_host = "unknown", host  # for the moment between the lock and its owner's file
        with suppress(FileNotFoundError, ValueError):
            process, holding_host = owner.read_text(encoding="utf-8").split()
        where = "" if holding_host == host else f" on {holding_host}"
        raise Locked(
            f"{run} is being trained by process {process}{where}, perhaps left over from a stopped pipeline. "
            f"Wait for it, or stop it: kill {process}"
        ) from None
    try:
        owner.write_text(f"{os.getpid()} {host}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
