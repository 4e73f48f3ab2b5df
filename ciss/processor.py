"""Processor cores of this process, and how its threads share them with other programs.

Two threads of a training wait for each other hundreds of times in each update. Where another program runs, one of them
often has no core. How long the other then spins decides the speed: see reports/speed/start.md. It changes no result.

`share_cores` must run before torch is imported. Standard library only.
"""

import math
import os
from contextlib import suppress
from pathlib import Path

AFFECTS_RESULTS = False  # changes here do not outdate results, see store/code
# How long a waiting thread spins before it sleeps. GNU's OpenMP counts iterations; 30,000 take about a millisecond,
# its default is 300,000. LLVM's and Intel's count milliseconds; their default is 200.
SPINNING = {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "1"}
CHOICES = ("OMP_WAIT_POLICY", *SPINNING)  # variables by which users choose
RUNTIMES = {"libgomp": "GOMP_SPINCOUNT", "libomp": "KMP_BLOCKTIME", "libiomp5": "KMP_BLOCKTIME"}  # by file name
# Variables by which torch, oneDNN and MKL use the same instructions on every x86-64 processor with AVX2.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
CGROUP = Path("/sys/fs/cgroup")


def share_cores() -> None:
    """Sets how this process and those that it starts wait for each other. Keeps what the user has set.

    Without OMP_NUM_THREADS, no process has more threads than the quota of its container has cores.
    """
    if not any(name in os.environ for name in CHOICES):
        os.environ.update(SPINNING)
    if available_cores() < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))


def choose_instructions(config_file: str, run: str = "") -> None:
    """Sets the variables of `train.portable`, for this process and those that it starts, if a benchmark asks for it.

    It must come before torch computes anything; `training/instructions.py` checks that. A file with mistakes is
    reported by those that load it next.

    Args:
        run: name of the run that is trained; empty: any of them.
    """
    from ciss import paths

    with suppress(OSError, ValueError):
        if "portable: true" not in (paths.project() / config_file).read_text(encoding="utf-8"):
            return  # without loading the file, as most do
        from ciss import config

        with suppress(config.ConfigError):
            settings = config.load(config_file)
            runs = settings.runs()
            names = [runs[run].benchmark] if run in runs else settings.benchmarks
            if any(settings.benchmarks[name].train.portable for name in names):
                os.environ.update(PORTABLE)


def available_cores() -> int:
    """Cores that this process may use: those of its affinity, and at most the quota of its container, rounded up."""
    return max(1, math.ceil(min(_affinity(), _quota())))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota() -> float:
    """Cores that the control group of this process may use; infinite without a limit."""
    with suppress(OSError, ValueError):  # cgroups 2: "200000 100000", microseconds of a period; "max" without a limit
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):  # cgroups 1: -1 without a limit
        quota, period = (int((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    return math.inf


def waiting(libraries: list[str]) -> str:
    """How threads of this process wait for each other, in words. `libraries`: paths of those that are loaded."""
    names = {Path(library).name for library in libraries}
    spinning = []
    for runtime, variable in RUNTIMES.items():
        if any(name.startswith((f"{runtime}.", f"{runtime}-")) for name in names):
            policy = os.environ.get("OMP_WAIT_POLICY")
            value = os.environ.get(variable, "not set")
            spinning.append(f"{runtime}: {f'OMP_WAIT_POLICY {policy}, ' if policy else ''}{variable} {value}")
    return "; ".join(spinning or ["no OpenMP"])
