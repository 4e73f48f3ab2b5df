"""Locks and atomic writing, tried in a folder, and the processes that hold the locks of DVC and of trainings."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import filelock

from ciss.store import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
LOCKED = BlockingIOError if fcntl else PermissionError
SECOND_PROCESS = """import sys; from filelock import FileLock, Timeout
try: FileLock(sys.argv[1]).acquire(timeout=0)
except Timeout: sys.exit(7)"""


def folder_problem(folder: Path) -> str:
    """What a folder's file system, perhaps a network's, lacks of atomic writing and locks; an empty text for nothing.

    Raises: what a folder that cannot be written raises, OSError or CheckpointError.
    """
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as inside:
        replaced, lock = Path(inside, "replaced"), Path(inside, "lock")
        replaced.write_bytes(b"old")
        files.write_bytes(replaced, b"new")
        found = [(file.name, file.read_bytes()) for file in Path(inside).iterdir()]
        if found != [("replaced", b"new")]:
            return f"a replaced file is not the new one: {found}"
        with filelock.FileLock(lock, timeout=0):
            command = [sys.executable, "-c", SECOND_PROCESS, str(lock)]
            second = subprocess.run(command, timeout=60, capture_output=True, text=True)
        if second.returncode == 0:
            return "a second process gets the lock that the first one holds"
        return "" if second.returncode == 7 else second.stderr.strip().rpartition("\n")[2]


def trainings(output: Path) -> Iterator[tuple[str, str]]:
    """Trainings at work, and the numbers of their processes. `output`: the folder that holds `runs/`."""
    for file in sorted((output / "runs" / ".resume").glob("*/*/lock")):
        if _held(file):
            yield f"the training of {file.parent.name}", _first_word(file.with_suffix(".pid"))


def dvc_commands(root: Path) -> Iterator[tuple[str, str]]:
    """DVC commands at work in a project, and the numbers of their processes.

    Raises: ValueError for a damaged file of DVC's, naming it.
    """
    import psutil

    temporary = root / ".dvc" / "tmp"
    if _held(temporary / "lock"):
        yield "a DVC command", _first_word(temporary / "lock")
    announced = temporary / "rwlock"  # what commands read and write while they run a stage
    if not announced.is_file():
        return
    try:
        text = json.loads(announced.read_text(encoding="utf-8"))
        readers = [reader for readers in text.get("read", {}).values() for reader in readers]
        processes = [*text.get("write", {}).values(), *readers]
        commands = {f"`{process['cmd']}`": process["pid"] for process in processes if psutil.pid_exists(process["pid"])}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{announced} is damaged: {type(error).__name__}: {error}") from None
    yield from ((command, str(number)) for command, number in commands.items())


def _first_word(file: Path) -> str:
    with suppress(OSError, IndexError):
        return file.read_text(encoding="utf-8").split()[0]
    return "unknown"


def _held(file: Path) -> bool:
    """Whether a process holds the file's lock. The file is not changed."""
    try:
        with file.open("rb" if fcntl else "r+b") as stream:  # Windows opens no locked file for writing
            if fcntl:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except LOCKED:
        return True
    return False
