"""How processes share processor cores: waiting threads, time slices, quotas of containers."""

import os
import subprocess
import sys
import threading

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


@pytest.mark.skipif(processor.time_slice() is None, reason="this system does not tell")
def test_a_shorter_time_slice_for_all_threads_and_processes():
    slices = [processor.time_slice()]
    thread = threading.Thread(target=lambda: slices.append(processor.time_slice()))
    thread.start()
    thread.join()
    own = "import runpy, sys; print(runpy.run_path(sys.argv[1])['time_slice']())"  # does not import ciss
    command = [sys.executable, "-c", own, processor.__file__]
    slices.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert slices == [0.1, 0.1, 0.1]


@pytest.mark.skipif(processor.time_slice() is None, reason="this system does not tell")
def test_the_priority_stays():
    program = "import os; nice = os.nice(3); import ciss; from ciss import processor as p"
    assert shown(f"{program}; print(os.nice(0) - nice, p.time_slice())") == "0 0.1"


@pytest.mark.parametrize(("policy", "calls"), [("SCHED_OTHER", 1), ("SCHED_BATCH", 0), ("SCHED_IDLE", 0)])
@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux only")
def test_another_policy_stays(monkeypatch, policy, calls):
    made = []
    monkeypatch.setattr(processor, "_scheduling", lambda: (48, getattr(os, policy), 0, 0, 0, 3_000_000, 0, 0))
    monkeypatch.setattr(processor, "_system_call", lambda *arguments: made.append(arguments))
    for name in processor.CHOICES:
        monkeypatch.setenv(name, "5")  # monkeypatch restores them
    processor.share_cores()
    assert len(made) == calls


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
    monkeypatch.setattr(processor, "time_slice", lambda: 0.1)
    assert (
        processor.waiting(["/lib/libgomp.so.1", "/lib/libc.so"]) == "libgomp: GOMP_SPINCOUNT 10; time slices of 0.1 ms"
    )
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    monkeypatch.setattr(processor, "time_slice", lambda: None)
    expected = "libiomp5: OMP_WAIT_POLICY passive, KMP_BLOCKTIME not set; usual time slices"
    assert processor.waiting(["C:/libs/libiomp5md.dll", "/x/libiomp5.so"]) == expected
    assert processor.waiting([]).startswith("no OpenMP")
