"""How processes share processor cores: waiting threads, quotas of containers."""

import os
import subprocess
import sys

import pytest

from ciss import processor

SHOWN = "from ciss import processor; import os; print(*(os.environ.get(n) for n in processor.CHOICES), sep=',')"


def shown(program: str, **variables: str) -> str:
    """What a Python program prints, without variables by which the tests themselves were started."""
    kept = {name: value for name, value in os.environ.items() if name not in processor.CHOICES}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "None,30000,1"),
        ({"OMP_WAIT_POLICY": "passive"}, "passive,None,None"),
        ({"GOMP_SPINCOUNT": "5"}, "None,5,None"),
        ({"KMP_BLOCKTIME": "200"}, "None,None,200"),
    ],
)
def test_waiting_is_set_where_the_user_has_not(variables, expected):
    assert shown(SHOWN, **variables) == expected


def test_it_is_set_before_torch_starts():
    program = "import sys, ciss; print('torch' in sys.modules)"
    assert shown(program) == "False"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_of_affinity_and_quota(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processor, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert processor.available_cores() == cores
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in processor.CHOICES:
        monkeypatch.setenv(name, "5")  # monkeypatch restores them
    processor.share_cores()
    assert os.environ.get("OMP_NUM_THREADS") == (str(cores) if cores < 8 else None)


def test_what_the_doctor_says(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "10")
    assert processor.waiting(["/lib/libgomp.so.1", "/lib/libc.so"]) == "libgomp: GOMP_SPINCOUNT 10"
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    expected = "libiomp5: OMP_WAIT_POLICY passive, KMP_BLOCKTIME not set"
    assert processor.waiting(["C:/libs/libiomp5md.dll", "/x/libiomp5.so"]) == expected
    assert processor.waiting([]) == "no OpenMP"
