"""Seconds, memory and machine of each training: `timings/<benchmark>/<run>.json`.

They differ each time, so they lie apart from the scores. Neither git nor DVC keeps them: the same training leaves the
same bytes everywhere else. Imports no torch until a training writes.
"""

import json
import platform
from contextlib import suppress
from pathlib import Path

from ciss.store import files

AFFECTS_RESULTS = False  # a change here trains nothing again, see store/code
FOLDER = "timings"


def write(root: Path, benchmark: str, run: str, timing: dict) -> None:
    """Writes what a training took.

    Args:
        root: the folder that holds `runs/` and `results/`.
        benchmark, run: names.
        timing: `weights` (sha256 of the checkpoint that the training left), seconds and bytes by name.
    """
    machine = {"device": device_name(), "host": platform.node(), "python": platform.python_version()}
    files.write_text(_file(root, benchmark, run), json.dumps({**timing, **machine}, indent=1) + "\n")


def read(root: Path, benchmark: str, run: str) -> dict | None:
    """What `write` wrote of the training whose results are there; None where it was not measured here."""
    try:
        timing = json.loads(_file(root, benchmark, run).read_text(encoding="utf-8"))
        result = json.loads((root / "results" / benchmark / run / "result.json").read_text(encoding="utf-8"))
        return timing if timing["weights"] == result["weights"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(root: Path, benchmark: str, run: str) -> None:
    """Removes what `write` wrote, if it is there."""
    _file(root, benchmark, run).unlink(missing_ok=True)


def _file(root: Path, benchmark: str, run: str) -> Path:
    return root / FOLDER / benchmark / f"{run}.json"


def device_name() -> str:
    """The GPU, or the processor: another kind of either gives other last digits."""
    import torch  # here, because it takes seconds to import

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with suppress(OSError, KeyError):  # Linux; clouds give generations of processors one name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name = f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    vectors = torch.backends.cpu.get_cpu_capability()  # what the kernels use, AVX2 or AVX512, say
    return f"{name}, {vectors}, {torch.get_num_threads()} threads"
