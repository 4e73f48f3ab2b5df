"""`train.portable`: the same bits on every x86-64 processor with AVX2."""

import hashlib
import os
import platform

import pytest
import torch
from safetensors.torch import load_file

from ciss import processor
from ciss.config import ConfigError
from ciss.processor import PORTABLE, choose_instructions
from ciss.training.instructions import set_processor

CPU = torch.device("cpu")
TORCH = "2.15.0"
# sha256 over the tensors of `base` and of `mib-1`. A change of the training's arithmetic changes them: put in the
# values that the test prints. On another processor, with the same code and torch, they must not change.
HASHES = {"base": "56ba29a875db14fc", "mib-1": "6f979cb601c15e47"}
has_avx2 = platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def tensors_hash(file) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.skipif(not has_avx2, reason="the processor has no AVX2")
@pytest.mark.skipif(torch.__version__.partition("+")[0] != TORCH, reason=f"the hashes are torch {TORCH}'s")
def test_portable_weights_are_the_same_on_every_processor(project, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # as on a processor without AVX2; the option overrides it
    project.set("train.portable", True)
    for name in HASHES:
        process = project.command("-m", "ciss", "train", name)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    hashes = {name: tensors_hash(project.folder / "runs" / "tiny" / name / "weights.safetensors") for name in HASHES}
    assert hashes == HASHES


def test_portable_is_refused_where_it_cannot_be(project, monkeypatch):
    project.set("train.portable", True)
    train = project.config.benchmarks["tiny"].train
    for name in PORTABLE:
        monkeypatch.setenv(name, "")  # restored at the end
    with pytest.raises(ConfigError, match="train.portable: true is for CPUs, and this training uses cuda"):
        set_processor(train, torch.device("cuda"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with pytest.raises(ConfigError, match=r"this process uses AVX512\..* before torch is used: ATEN_CPU_CAP.*=avx2"):
        set_processor(train, CPU)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    set_processor(train, CPU)
    assert {name: os.environ[name] for name in PORTABLE} == PORTABLE


@pytest.mark.parametrize(
    ("portable", "run", "chosen"), [(True, "", True), (True, "base", True), (True, "unknown", True), (False, "", False)]
)
def test_variables_are_set_for_portable_benchmarks_alone(project, monkeypatch, portable, run, chosen):
    monkeypatch.setattr(processor.os, "environ", {})
    project.set("train.portable", portable)
    project.set("train.flip", True)
    project.write()
    choose_instructions(str(project.folder / "params.yaml"), run)
    assert processor.os.environ == (PORTABLE if chosen else {})


def test_a_run_of_a_benchmark_without_it_keeps_the_fast_instructions(project, monkeypatch):
    monkeypatch.setattr(processor.os, "environ", {})
    other = {**project.document["benchmarks"]["tiny"]}
    other["train"] = {**other["train"], "portable": True}
    project.document["benchmarks"]["other"] = other
    project.write()
    choose_instructions(str(project.folder / "params.yaml"), "base")
    assert processor.os.environ == {}


def test_files_that_cannot_be_read_are_left_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(processor.os, "environ", {})
    (tmp_path / "params.yaml").write_text("portable: true\nbenchmarks: [")
    choose_instructions(str(tmp_path / "params.yaml"))
    choose_instructions(str(tmp_path / "none.yaml"))
    assert processor.os.environ == {}


def test_checkpoints_of_before_stay_readable(project):
    assert "portable" not in project.run("base").description()["benchmark"]["train"]
    project.set("train.portable", True)
    assert project.run("base").description()["benchmark"]["train"]["portable"] is True
