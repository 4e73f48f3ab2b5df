"""Where runs write: space, file systems, and who is at work there."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ciss import paths
from ciss.doctor.base import Finding, Setup, fail, note, ok, short
from ciss.documents import size

RESULTS = 5e6  # bytes beside the weights of a run: scores, figures, the executed notebook
SCRATCH = 1e8  # bytes in the temporary folder: kernels, compiled code
RIVAL = """import sys; from filelock import FileLock, Timeout
try: FileLock(sys.argv[1]).acquire(timeout=0)
except Timeout: sys.exit(7)"""


def disk(setup: Setup) -> Iterator[Finding]:
    """Free space against what the runs still missing will write."""
    if setup.settings is None:
        yield note(f"{setup.file} cannot be read: what it needs is not known", f"correct {setup.file}, and ask again")
        return
    from ciss.store.weights import STATE_WEIGHTS

    one = {name: _weights(setup, name) for name in setup.benchmarks}
    runs = setup.settings.runs()
    missing = [
        run.benchmark
        for name, run in runs.items()
        if not (setup.output / "runs" / run.benchmark / name / "weights.safetensors").is_file()
    ]
    written = sum(one[benchmark] + RESULTS for benchmark in missing)
    state = STATE_WEIGHTS * max((one[benchmark] for benchmark in missing), default=0)
    needs = {"runs/": written + state, "DVC cache": written, "temporary files": SCRATCH}
    systems: dict[int, list[str]] = {}
    for name, folder in setup.folders().items():
        systems.setdefault(folder.stat().st_dev, []).append(name)
    for names in systems.values():
        folder = setup.folders()[names[0]]
        free, need = shutil.disk_usage(folder).free, sum(needs[name] for name in names)
        text = f"{' and '.join(names)} ({folder}): {size(free)} free, {size(need)} needed"
        text += f" ({len(missing)} of {len(runs)} runs to train)"
        remedy = "free space (dvc gc -w drops old results), or move: `output`, dvc cache dir FOLDER, TMPDIR"
        yield ok(text) if free >= 2 * need else (fail if free < need else note)(text, remedy)


def _weights(setup: Setup, name: str) -> int:
    """Bytes of a benchmark's network with all classes, made without its numbers."""
    import torch

    from ciss.models import create_network
    from ciss.runs.run import class_groups

    benchmark = setup.benchmarks[name]
    channels = 1 + sum(map(len, class_groups(benchmark, name)))
    with torch.device("meta"):
        network = create_network(replace(benchmark.model, pretrained=False, weights=None), [channels])
    return sum(value.nbytes for value in network.state_dict().values())


def links(setup: Setup) -> Iterator[Finding]:
    """DVC refuses outputs outside of the project."""
    runs = setup.settings.runs() if setup.settings else {}
    problems = [fail(*problem) for problem in paths.links(setup.output, [(r.benchmark, n) for n, r in runs.items()])]
    yield from problems or [ok("no folder of outputs is a link out of the project")]


def files(setup: Setup) -> Iterator[Finding]:
    """Network file systems may lack what atomic writing and locks stand on: tried."""
    works = []
    for name, folder in setup.folders().items():
        try:
            with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as inside:
                problem = _write(Path(inside)) or _lock(Path(inside))
        except (OSError, NotImplementedError, subprocess.SubprocessError) as error:
            problem = short(error)
        if problem:
            remedy = f"make {folder} writable, or choose a folder on a local disk"
            yield fail(f"{name} ({folder}): {problem}", remedy)
        else:
            works.append(name)
    if works:
        yield ok(f"{', '.join(works)}: writing, replacing whole files and locks work")


def _write(folder: Path) -> str:
    """What is wrong with replacing a file, or nothing."""
    old, new = folder / "old", folder / "new"
    for file in (old, new):
        with open(file, "wb") as stream:
            stream.write(file.name.encode())
            stream.flush()
            os.fsync(stream.fileno())
    os.replace(new, old)
    found = [(file.name, file.read_bytes()) for file in folder.iterdir()]
    return "" if found == [("old", b"new")] else f"a replaced file is not the new one: {found}"


def _lock(folder: Path) -> str:
    """What is wrong with the locks of two processes, or nothing."""
    from filelock import FileLock

    with FileLock(folder / "lock", timeout=0):
        command = [sys.executable, "-c", RIVAL, str(folder / "lock")]
        rival = subprocess.run(command, timeout=60, capture_output=True, text=True)
    if rival.returncode == 0:
        return "a second process gets the lock that the first one holds"
    return "" if rival.returncode == 7 else rival.stderr.strip().rpartition("\n")[2]


def at_work(setup: Setup) -> Iterator[Finding]:
    """DVC and trainings that run: another one of the same would have to wait."""
    import psutil

    temporary, busy = setup.root / ".dvc" / "tmp", {}
    if _held(temporary / "lock"):
        busy["a DVC command"] = _first_word(temporary / "lock")
    announced = temporary / "rwlock"  # what DVC's commands read and write while they run a stage
    try:
        text = json.loads(announced.read_text(encoding="utf-8"))
        readers = [one for several in text.get("read", {}).values() for one in several]
        for one in [*text.get("write", {}).values(), *readers]:
            if psutil.pid_exists(one["pid"]):
                busy[f"`{one['cmd']}`"] = str(one["pid"])
    except FileNotFoundError:
        pass
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        yield fail(f"{announced} is damaged: {short(error)}", f"when no DVC command runs: rm {announced}")
    for file in sorted((setup.output / "runs" / ".resume").glob("*/*/lock")):
        if _held(file):
            busy[f"the training of {file.parent.name}"] = _first_word(file.with_suffix(".pid"))
    for what, number in busy.items():
        yield note(f"{what} is at work: process {number}", f"wait for it, or stop it: kill {number}")
    if not busy:
        yield ok("nobody: no training, no DVC command")


def _first_word(file: Path) -> str:
    with suppress(OSError, IndexError):
        return file.read_text(encoding="utf-8").split()[0]
    return "unknown"


def _held(file: Path) -> bool:
    """Whether a process holds the file's lock; asking leaves the file as it is."""
    if not file.is_file():
        return False
    try:
        import fcntl
    except ImportError:  # Windows: a locked file cannot be opened for writing
        with suppress(PermissionError):
            file.open("r+b").close()
            return False
        return True
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
