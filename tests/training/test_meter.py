"""Seconds and memory of a training alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ciss.training import meter
from ciss.training.meter import Meter

CPU = torch.device("cpu")
MIB = 2**20
measured = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the resident peak is Linux's")


def touch(mib: int) -> None:
    """Uses memory and gives it back."""
    np.ones(mib * MIB // 8)


@measured
def test_only_what_runs_is_measured(monkeypatch):
    clock = iter([10.0, 12.0, 100.0, 101.0, 0.0, 0.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(clock))
    touch(512)  # as a notebook before the training
    run = Meter(CPU)
    run.start()
    before = run.peak_bytes
    touch(64)
    with run.paused():
        touch(384)
    run.stop()
    assert before is None and run.seconds == 3.0
    idle = Meter(CPU)
    idle.start()
    idle.stop()
    assert 48 * MIB < run.peak_bytes - idle.peak_bytes < 200 * MIB


def test_a_system_that_does_not_tell_is_not_measured(monkeypatch):
    def refuse(self, *_):
        raise PermissionError

    monkeypatch.setattr(meter.Path, "write_text", refuse)
    run = Meter(CPU)
    run.start()
    run.stop()
    assert run.peak_bytes is None
