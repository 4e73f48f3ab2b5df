"""`ciss doctor`: a sound installation passes; each thing broken on purpose is found, with what to do."""

import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import nullcontext, redirect_stdout
from copy import deepcopy
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from ruamel.yaml import YAML

from ciss import doctor, documents, paths
from ciss.config import Model
from ciss.data.notes import FETCH, data_notes
from ciss.doctor import Setup, main
from ciss.findings import CHECKS, Check, Finding, examine
from ciss.methods import METHODS
from ciss.models import create_network
from ciss.store import files, locks
from ciss.training import trials
from tests.helpers.project import DOCUMENT

ROOT = paths.project()
Usage = namedtuple("Usage", "total used free")
WIDTH = max(map(len, CHECKS))


def levels(found) -> list[str]:
    return [finding.level for finding in found]


def only(check, setup: Setup, level: str):
    """The one finding of a level, or all but one are of another."""
    (found,) = [finding for finding in check.findings(setup) if finding.level == level]
    return found


def finds(check, setup: Setup, level: str, text: str, remedy: str) -> None:
    """The one finding of a level has these words."""
    found = only(check, setup, level)
    assert text in found.text and remedy in found.remedy, found


def passes(check, setup: Setup) -> str:
    found = list(check.findings(setup))
    assert set(levels(found)) == {"ok"}, found
    return "\n".join(finding.text for finding in found)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(**changes of the tiny benchmark) -> the Setup of a small project: git, DVC, parameters; nothing trained."""
    folder = tmp_path / "project"
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    (folder / ".dvc" / "config").touch()
    (folder / "dvc.yaml").touch()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    subprocess.run(["git", "init", "-q", folder], check=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CISS_DATA", raising=False)

    def make(**changes) -> Setup:
        document = deepcopy(DOCUMENT)
        for key, value in changes.items():
            section = document["benchmarks"]["tiny"]
            *parents, last = key.split("__")
            for parent in parents:
                section = section[parent]
            section[last] = value
        YAML().dump(document, folder / "params.yaml")
        return Setup(folder)

    return make


# --- the whole


@pytest.fixture(scope="module")
def report() -> tuple[int, list[str]]:
    """Exit status and lines of a run in the project's own tree."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(ROOT)
        patch.delenv("CISS_DATA", raising=False)
        with pytest.raises(SystemExit) as stopped:
            main("params.yaml")
    return stopped.value.code, printed.getvalue().splitlines()


def test_a_sound_installation_passes(report):
    status, lines = report
    assert status == 0, lines
    assert lines[-1].startswith("Ready")
    assert not [line for line in lines if line.startswith("FAIL")]


def test_every_check_says_something_and_every_note_what_to_do(report):
    _, lines = report
    findings = [line for line in lines[:-2] if not line.strip().startswith("->")]
    assert {line[6 : 6 + WIDTH].strip() for line in findings} == set(doctor.CHECKS)
    assert {line[:6] for line in findings} <= {"ok    ", "note  "}
    for line, after in pairwise(lines[:-1]):
        assert after.strip().startswith("-> ") == line.startswith("note"), line


def test_what_it_reports(report):
    text = "\n".join(report[1])
    for words in (
        f"torch {torch.__version__}",
        "cpu: a training step in float32",
        "`auto` is float32",
        "the same seed gives the same bits",
        "params.yaml: shapes; 12 runs",
        "needed (",
        "writing, replacing whole files and locks work",
        "gloo",
        "copy works",
        "stages use this Python",
        "stages start this Python",
        "no folder of outputs is a link",
    ):
        assert words in text, words


def test_nothing_is_left_behind(made):
    setup = made()
    before = sorted(setup.root.rglob("*"))
    for check in (doctor.disk, doctor.files, doctor.dvc, doctor.at_work):
        passes(check, setup)
    passes(doctor.parameters, setup)
    assert sorted(setup.root.rglob("*")) == before


def test_without_torch_it_gets_to_the_end():
    """In a process of its own: modules that were imported before would hide what is missing."""
    code = "import sys; sys.modules['torch'] = None; from ciss import cli; cli.main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "-> install torch: uv sync" in done.stdout
    lines = {line[6 : 6 + WIDTH].strip(): line[:4].strip() for line in done.stdout.splitlines()}
    assert {name: lines[name] for name in ("python", "torch build", "training", "files", "notebooks")} == {
        "python": "ok",
        "torch build": "FAIL",
        "training": "FAIL",
        "files": "ok",
        "notebooks": "ok",
    }
    assert done.stdout.splitlines()[-1].startswith("Not ready: ")


def broken(setup):
    yield "so far"
    raise KeyError("lost")


def unimportable(setup):
    raise ImportError("No module named 'ruamel'", name="ruamel.yaml")


def notable(setup):
    return Finding("note", "much", "do it")


def test_an_exception_in_a_check_is_a_finding(capsys):
    checks = {name: Check(function) for name, function in (("a", broken), ("b", unimportable), ("c", notable))}
    assert examine(Setup(ROOT), checks) == 1
    printed = capsys.readouterr().out
    assert "so far" in printed and f"FAIL  {'a':<{WIDTH}}  KeyError: 'lost'" in printed
    assert "install ruamel.yaml: uv sync" in printed
    assert "Not ready: 2 FAIL" in printed
    assert examine(Setup(ROOT), {"c": checks["c"]}) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"note  {'c':<{WIDTH}}  much",
        f"{'':<{WIDTH + 8}}-> do it",
        "",
        "Ready, 1 to note. Next: dvc repro",
    ]


def test_a_remedy_of_the_check_is_that_of_findings_without_one(capsys):
    checks = [Check(function, "help") for function in (lambda setup: Finding("FAIL", "bad"), broken, notable)]
    remedies = [[finding.remedy for finding in check.findings(Setup(ROOT))] for check in checks]
    assert remedies == [["help"], ["", "help"], ["do it"]]


def test_outside_of_any_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "ciss" / "paths.py"))
    assert examine(Setup(tmp_path), {"project": doctor.project}) == 1
    assert "change to the folder of the project" in capsys.readouterr().out


# --- software


def test_python_of_another_version(monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.10.4")
    found = only(doctor.python, Setup(ROOT), "FAIL")
    assert found.text == "3.10.4, but the project needs >=3.11,<3.14"
    assert "uv sync --python 3.12" in found.remedy


def test_a_user_without_name_or_home(monkeypatch, tmp_path):
    """As in a container that is run with a number as its user."""

    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path) in passes(doctor.user, Setup(ROOT))
    monkeypatch.setenv("HOME", "/dev/null/x")
    assert only(doctor.user, Setup(ROOT), "FAIL").remedy == "export HOME=/tmp/home"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no HOME, and no name by which to look it up
    assert "'~', which cannot be created" in only(doctor.user, Setup(ROOT), "FAIL").text
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written" in only(doctor.user, Setup(ROOT), "note").text
    monkeypatch.setattr("getpass.getuser", Mock(side_effect=KeyError("getpwuid(): uid not found: 12345")))
    assert "export USER=ciss" in only(doctor.user, Setup(ROOT), "FAIL").remedy


def with_versions(monkeypatch, **versions) -> None:
    real = metadata.version

    def version(name):
        if versions.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_packages_too_old_or_missing(monkeypatch):
    with_versions(monkeypatch, timm="1.0.3", seaborn=None)
    found = only(doctor.packages, Setup(ROOT), "FAIL")
    assert found.text == "timm 1.0.3 (>=1.0.20); seaborn is missing"
    assert found.remedy.startswith("uv sync")


def test_other_versions_than_pinned_are_one_note(monkeypatch):
    with_versions(
        monkeypatch, **{"numpy": "2.99.1", "pillow": "99.0", "tqdm": "99.0", "pydantic": "3.0", "click": "99"}
    )
    assert levels(doctor.packages.findings(Setup(ROOT))) == ["ok", "note"]
    found = only(doctor.packages, Setup(ROOT), "note")
    assert "numpy 2.99.1 (==" in found.text and " more" in found.text
    assert "last digit" in found.remedy


def test_another_copy_of_the_code(made):
    setup = made()
    assert "run `python -m ciss" in only(doctor.project, setup, "note").remedy
    (setup.root / "ciss").symlink_to(ROOT / "ciss")
    assert passes(doctor.project, setup) == str(setup.root)


@pytest.mark.parametrize("kept", [RuntimeError("operator torchvision::nms does not exist"), torch.tensor([0, 1])])
def test_torchvision_of_another_build(kept, monkeypatch):
    def nms(*_):
        if isinstance(kept, Exception):
            raise kept
        return kept

    monkeypatch.setattr("torchvision.ops.nms", nms)
    finds(doctor.torch_build, Setup(ROOT), "FAIL", "nms", "--reinstall-package torchvision")


def test_no_dvc_or_no_git(made, monkeypatch):
    setup = made()
    assert "hardlink" in passes(doctor.dvc, setup)
    assert passes(doctor.git, setup) == "the project is a repository"
    shutil.rmtree(setup.root / ".git")
    remedy = only(doctor.git, setup, "FAIL").remedy
    assert "git init" in remedy and "dvc config core.no_scm true" in remedy
    (setup.root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")  # a release's archive
    passes(doctor.git, setup)
    (setup.root / ".dvc" / "config").write_text("")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install git" in only(doctor.git, setup, "FAIL").remedy
    shutil.rmtree(setup.root / ".dvc")
    assert "dvc init" in only(doctor.dvc, setup, "FAIL").remedy


def test_a_repository_of_another_owner(made, monkeypatch):
    setup = made()
    words = "fatal: detected dubious ownership in repository"
    answer = subprocess.CompletedProcess([], 128, "", f"{words}\nTo add an exception")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    found = only(doctor.git, setup, "FAIL")
    assert found.text == words and found.remedy == f"git config --global --add safe.directory {setup.root}"


def test_dvc_configured_badly(made, monkeypatch):
    setup = made()
    (setup.root / ".dvc" / "config").write_text("[cache]\n    typo = 1\n")
    finds(doctor.dvc, setup, "FAIL", "typo", "correct .dvc/config")
    (setup.root / ".dvc" / "config").write_text("[cache]\n    type = reflink\n")
    monkeypatch.setattr("dvc_objects.fs.generic.test_links", lambda *_: ["copy"])
    assert only(doctor.dvc, made(), "FAIL").remedy == "dvc config cache.type reflink,copy"


def test_links_are_tried(made, monkeypatch):
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError("not here")))
    monkeypatch.setattr("dvc_objects.fs.system.reflink", Mock(side_effect=OSError("not here")))
    text = passes(doctor.dvc, made())
    assert "reflink does not, hardlink does not, symlink works, copy works; reflink,copy selects copy" in text


def test_a_cache_elsewhere(made, tmp_path):
    shared = Path("/dev/shm")
    setup = made()
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == setup.root.stat().st_dev:
        pytest.skip("needs two file systems")
    (setup.root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {shared}/ciss-cache\n")
    found = only(doctor.dvc, setup, "note")
    assert str(shared / "ciss-cache") in found.text and "another file system" in found.text
    assert "dvc cache dir" in found.remedy


def test_the_kernel_of_another_environment(monkeypatch):
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

    def kernel(program, folder="/home/someone/.local/share/jupyter/kernels/python3"):
        spec = KernelSpec(argv=[program, "-m", "ipykernel_launcher"], resource_dir=folder)
        monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: spec)

    kernel("/opt/conda/envs/other/bin/python")
    found = only(doctor.notebooks, Setup(ROOT), "note")
    assert "/opt/conda/envs/other/bin/python" in found.text and "`dvc repro` does not use it" in found.text
    assert "python -m ipykernel install --sys-prefix" in found.remedy and "remove python3" in found.remedy
    kernel("/opt/conda/envs/other/bin/python", f"{sys.prefix}/share/jupyter/kernels/python3")
    assert only(doctor.notebooks, Setup(ROOT), "note").remedy == doctor.KERNEL
    for program in ("python", "python3", sys.executable):
        kernel(program)
        passes(doctor.notebooks, Setup(ROOT))
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", Mock(side_effect=NoSuchKernel("python3")))
    assert only(doctor.notebooks, Setup(ROOT), "note").remedy == doctor.KERNEL


def test_the_python_that_stages_start(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert sys.executable.rpartition("/")[0] in passes(doctor.stages, Setup(ROOT))
    monkeypatch.setenv("PATH", str(tmp_path))
    finds(doctor.stages, Setup(ROOT), "note", "there is no program python on PATH", "uv run dvc repro")
    (tmp_path / "python").touch(0o755)
    finds(doctor.stages, Setup(ROOT), "note", f"{tmp_path}/python, not {sys.executable}", "uv run dvc repro")


# --- machine


def test_threads(made, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    passes(CHECKS["processor"], made(train__threads=1))
    found = only(CHECKS["processor"], made(train__threads=2), "note")
    assert "train.threads is 2" in found.text and found.remedy == "unset OMP_NUM_THREADS, or set it to 2"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert only(CHECKS["processor"], made(train__threads=2), "note").remedy.startswith("set it to 1")


def test_a_gpu_that_torch_does_not_see(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(trials, "_nvidia_smi", lambda: "NVIDIA X, 550.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    found = only(CHECKS["gpu"], Setup(ROOT), "FAIL")
    assert "NVIDIA X, 550.1" in found.text and "CUDA 13.2" in found.text and "update the NVIDIA driver" in found.remedy
    monkeypatch.setattr(torch.version, "cuda", None)
    assert only(CHECKS["gpu"], Setup(ROOT), "FAIL").remedy.startswith("uv sync --reinstall-package torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert only(CHECKS["gpu"], Setup(ROOT), "note").remedy == "unset CUDA_VISIBLE_DEVICES"
    monkeypatch.setattr(trials, "_nvidia_smi", lambda: "")
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert "none" in passes(CHECKS["gpu"], Setup(ROOT))


def test_gpus_by_name(monkeypatch):
    values = {"is_available": True, "device_count": 1, "get_device_name": "NVIDIA X", "get_device_capability": (7, 5)}
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (7e9, 8e9))
    monkeypatch.setattr(trials, "_nvidia_smi", lambda: "NVIDIA X, 550.1")
    text = passes(CHECKS["gpu"], Setup(ROOT))
    assert "cuda:0 NVIDIA X, 7 GB of 8 GB free, no bfloat16, driver 550.1" in text
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1e9, 8e9))
    assert "CUDA_VISIBLE_DEVICES" in only(CHECKS["gpu"], Setup(ROOT), "note").remedy


CPU = torch.device("cpu")


@pytest.fixture
def losses(monkeypatch):
    """losses(change): what MBS adds up, changed."""
    kind = METHODS["mbs"]
    real = kind.losses

    def set_change(change):
        monkeypatch.setattr(kind, "losses", lambda *args: {k: change(v) for k, v in real(*args).items()})

    return set_change


@pytest.mark.parametrize("decoder", trials.DECODERS)
def test_a_training_step(decoder, losses):
    loss, finite = trials.update(decoder, CPU, torch.float32)
    assert finite and 0 < loss.item() < 1000 and not loss.requires_grad
    losses(lambda value: value * math.nan)
    assert not trials.update(decoder, CPU, torch.float32)[1]
    losses(lambda value: value + math.nan)  # a loss that is not finite, with gradients that are
    assert not trials.update(decoder, CPU, torch.float32)[1]
    losses(lambda value: value + (value * 0).sqrt())  # a finite loss whose gradient is not
    loss, finite = trials.update(decoder, CPU, torch.float32)
    assert loss.isfinite() and not finite


def with_steps(monkeypatch, outcome: dict, gpus: int = 0) -> None:
    """Training steps that give what `outcome` says of a precision, or device and precision, else a loss of 1."""

    def step(decoder, device, dtype):
        name = str(dtype).removeprefix("torch.")
        found = outcome.get(name, outcome.get(f"{device} {name}", (torch.tensor(1.0), True)))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(trials, "update", step)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))


def test_a_precision_that_fails(made, monkeypatch):
    with_steps(monkeypatch, {})
    assert "float32" in passes(CHECKS["training"], made())
    with_steps(monkeypatch, {"bfloat16": RuntimeError("not implemented for 'BFloat16'")})
    found = only(CHECKS["training"], made(), "note")
    assert "cpu bfloat16: deeplabv3: not implemented for 'BFloat16'" in found.text
    assert found.remedy == "set train.precision: float32"
    found = only(CHECKS["training"], made(train__precision="bfloat16"), "FAIL")
    assert found.remedy == "set train.precision: float32"
    with_steps(monkeypatch, {"float16": (torch.tensor(math.nan), False)})
    assert "the loss is nan" in only(CHECKS["training"], made(), "note").text


def test_a_precision_counts_where_it_is_trained_in(made, monkeypatch):
    """With a GPU `auto` is bfloat16 there, and nothing trains on the processor."""
    broken = RuntimeError("no kernel image is available for execution on the device")
    with_steps(monkeypatch, {}, gpus=2)
    text = passes(CHECKS["training"], made())
    assert text.count("`auto` is bfloat16") == 2 and text.count("`auto` is float32") == 1
    with_steps(monkeypatch, {"cuda:1 bfloat16": broken}, gpus=2)
    found = only(CHECKS["training"], made(), "FAIL")
    assert found.text.startswith("cuda:1 bfloat16: ") and found.remedy == "set train.precision: float32"
    with_steps(monkeypatch, {"cpu bfloat16": broken}, gpus=2)
    assert only(CHECKS["training"], made(), "note").text.startswith("cpu bfloat16: ")


def test_nothing_can_be_trained(made, monkeypatch):
    with_steps(monkeypatch, {"float32": (torch.tensor(math.nan), False)})
    found = next(f for f in CHECKS["training"].findings(made()) if f.level == "FAIL")
    assert "cpu float32" in found.text and "--reinstall-package torch" in found.remedy


def test_bits_that_do_not_repeat(made, monkeypatch):
    assert "gives the same bits" in passes(CHECKS["repeatability"], made())
    numbers = iter(range(100))
    monkeypatch.setattr(trials, "update", lambda *_: (torch.tensor(float(next(numbers))), True))
    finds(CHECKS["repeatability"], made(), "note", "the same seed", "train.threads: 1")


def test_loader_processes(made, monkeypatch):
    monkeypatch.setattr(trials, "SHARED", Path("/nowhere"))
    passes(CHECKS["loaders"], made(train__workers=2))

    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")
    monkeypatch.setattr(trials, "DataLoader", Mock(side_effect=error))
    assert only(CHECKS["loaders"], made(), "note").remedy.startswith("set train.workers: 0")
    assert "Bus error" in only(CHECKS["loaders"], made(train__workers=2), "FAIL").text


def test_shared_memory(made, monkeypatch):
    """Two waiting batches for each of two processes: 2 x 2 x 4 images x 4 bytes x 32 x 32 pixels = 65,536 bytes."""
    setup = made(train__workers=2)
    assert Path("/dev/shm") == trials.SHARED
    monkeypatch.setattr(trials, "SHARED", setup.root)
    for free, level in ((65_535, "FAIL"), (131_072, "note")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(1, 1, free))
        found = only(CHECKS["loaders"], setup, level)
        assert "need 65.5 kB" in found.text and "--shm-size" in found.remedy
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 131_073))
    passes(CHECKS["loaders"], setup)


def test_a_group_of_processes_is_ended(made):
    assert "gloo" in passes(CHECKS["processes"], made())
    assert not torch.distributed.is_initialized()


def test_no_group_of_processes(made, monkeypatch):
    monkeypatch.setattr("torch.distributed.TCPStore", Mock(side_effect=RuntimeError("unable to resolve hostname")))
    found = [f for f in CHECKS["processes"].findings(made()) if f.level == "note"]
    assert "unable to resolve hostname" in found[0].text and "GLOO_SOCKET_IFNAME" in found[0].remedy


# --- study


def test_a_typo_in_the_parameters(made):
    found = only(doctor.parameters, made(train__epocs=3), "FAIL")
    assert "params.yaml: benchmarks.tiny.train.epocs: unknown key" in found.text
    assert "ciss plan --check" in found.remedy
    found = only(doctor.parameters, made(model__encoder="resnet51"), "FAIL")
    assert "resnet51" in found.text
    assert "tiny; 5 runs" in passes(doctor.parameters, made())


def test_another_parameter_file(made, capsys, monkeypatch):
    setup = made()
    (setup.root / "params.yaml").rename(setup.root / "mine.yaml")
    monkeypatch.setattr(examine, "__defaults__", ({"parameters": doctor.parameters},))
    for file, status in (("params.yaml", 1), ("mine.yaml", 0)):
        with pytest.raises(SystemExit) as stopped:
            main(file)
        assert stopped.value.code == status
    assert "mine.yaml: tiny; 5 runs" in capsys.readouterr().out


def test_data_that_are_not_there(made, monkeypatch, tiny_data):
    setup = made()
    assert only(doctor.prepared, setup, "note").remedy == "dvc repro prepare@tiny"
    text = passes(doctor.data, setup)
    assert "voc: not there; not needed" in text and "shapes: not there; drawn when it is needed" in text
    assert not (setup.root / "data").exists()  # looking draws nothing
    monkeypatch.setenv("CISS_DATA", str(setup.root / "nowhere"))
    finds(doctor.data, setup, "FAIL", "nowhere", "CISS_DATA")
    monkeypatch.setenv("CISS_DATA", str(tiny_data))
    assert f"shapes: {tiny_data}/shapes, 24 training and 8 validation images" in passes(doctor.data, setup)
    finds(doctor.data, made(dataset="voc", protocol="15-1"), "FAIL", "no VOCdevkit", "remove tiny from params.yaml")


def test_prepared_data(project):
    """So few images leave some out of an epoch and lack classes, which are notes."""
    project.write()
    found = list(doctor.prepared.findings(Setup(project.folder)))
    assert "tiny: prepared, 3 steps" in [f.text for f in found if f.level == "ok"]
    notes = data_notes(project.config.benchmarks["tiny"], project.run("base").index())
    assert any(note.startswith("No image of the hold-out set contains") for note in notes)
    assert [(f.level, f.text) for f in found if f.level != "ok"] == [("note", f"tiny: {note}") for note in notes]


def test_data_that_are_not_the_presets(project, monkeypatch):
    """A VOC with 1,464 training images was called ready for a benchmark of 10,582."""
    project.set("benchmarks.tiny.expects", {"train": 10_582, "val": 8, "classes": 8})
    project.set("train.batch", 40)
    project.write()
    monkeypatch.setitem(FETCH, ("shapes", "train"), "Run `ciss data fetch more`.")
    notes = [f for f in doctor.prepared.findings(Setup(project.folder)) if f.level == "note"]
    assert "tiny: This preset expects 10,582 training images; 24 were found." in notes[0].text
    assert notes[0].remedy == "ciss data fetch more"
    assert notes[1].text.startswith("tiny: Step 0 has ") and "fewer than the 40 of an update" in notes[1].text
    shutil.rmtree(project.folder / "data")  # the index
    found = [f for f in doctor.prepared.findings(Setup(project.folder)) if f.level == "note"]
    assert found[0].remedy == "dvc repro prepare@tiny" and found[1] == notes[0]


def test_a_holdout_larger_than_the_data(made):
    (found,) = [f for f in doctor.prepared.findings(made(holdout=5_000)) if f.level == "FAIL"]
    assert found.text == "tiny: holdout: 5000, but there are only 1200 training images. Make it smaller."
    assert found.remedy == "change benchmarks.tiny in params.yaml"


def test_weights(made, monkeypatch):
    assert passes(doctor.weights, made()) == "tiny: none needed"
    found = only(doctor.parameters, made(model__weights="mine.safetensors"), "FAIL")
    assert "mine.safetensors" in found.text and "model.weights" in found.text and "correct it" in found.remedy
    monkeypatch.setattr("ciss.models.hub.cached_weights", lambda encoder: None)
    setup = made(model__encoder="mobilenetv2_100", model__pretrained=True, model__output_stride=16)
    assert "online" in only(doctor.weights, setup, "note").remedy
    monkeypatch.setattr("ciss.models.hub.cached_weights", lambda encoder: f"/cache/{encoder}")
    assert passes(doctor.weights, setup) == "tiny: /cache/mobilenetv2_100"


# --- storage


def test_space(made, monkeypatch):
    """Five runs of nine channels: weights, results and one training's state; the cache has weights and results too."""
    setup = made()
    monkeypatch.setattr(setup, "folders", lambda: {"runs/": setup.root, "DVC cache": setup.root})
    one = sum(v.nbytes for v in create_network(Model(width=8, atrous_rates=(1,)), [9]).state_dict().values())
    need = 2 * 5 * (one + 5e6) + 5 * one
    for free, level in ((need - 1, "FAIL"), (2 * need - 1, "note"), (2 * need, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(1, 1, free))
        found = only(doctor.disk, setup, level)
        assert "(5 of 5 runs to train)" in found.text
        assert level == "ok" or ("free space" in found.remedy and "dvc cache dir" in found.remedy)
    trained = setup.root / "runs" / "tiny" / "base" / "weights.safetensors"
    trained.parent.mkdir(parents=True)
    trained.touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, need - one))
    assert "(4 of 5 runs to train)" in only(doctor.disk, setup, "note").text


def test_space_on_two_file_systems(made, monkeypatch):
    setup, shared = made(), Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == setup.root.stat().st_dev:
        pytest.skip("needs two file systems")
    monkeypatch.setattr(setup, "folders", lambda: {"runs/": setup.root, "DVC cache": shared})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1, 1, 1 if folder == shared else 1e12))
    assert [f.level for f in doctor.disk.findings(setup)] == ["ok", "FAIL"]


def test_space_for_parameters_that_cannot_be_read(made):
    assert "correct params.yaml" in only(doctor.disk, made(train__epocs=3), "note").remedy


def test_sizes():
    assert [documents.size(n) for n in (0, 999, 999.6, 65_536, 1.2e9, 3e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "65.5 kB",
        "1.2 GB",
        "3 TB",
    ]


@pytest.fixture
def one_folder(made, monkeypatch) -> Setup:
    setup = made()
    monkeypatch.setattr(setup, "folders", lambda: {"runs/": setup.root})
    return setup


def test_a_folder_that_cannot_be_written(one_folder, monkeypatch):
    error = PermissionError(13, "Permission denied", str(one_folder.root))
    monkeypatch.setattr("tempfile.TemporaryDirectory", Mock(side_effect=error))
    finds(doctor.files, one_folder, "FAIL", "Permission denied", f"make {one_folder.root} writable")


def test_folders_that_are_links(made, tmp_path):
    setup = made()
    assert passes(doctor.links, setup) == "no folder of outputs is a link out of the project"
    (tmp_path / "scratch").mkdir()
    (setup.root / "runs").symlink_to(tmp_path / "scratch")
    found = only(doctor.links, setup, "FAIL")
    assert found.text.startswith(f"{setup.root}/runs is a link to {tmp_path}/scratch, and DVC refuses")
    assert "dvc cache dir" in found.remedy


def test_a_read_only_folder(one_folder):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    one_folder.root.chmod(0o500)
    assert "writable" in only(doctor.files, one_folder, "FAIL").remedy
    one_folder.root.chmod(0o700)


def test_a_file_system_that_does_not_replace(one_folder, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda new, old: None)
    assert "a replaced file is not the new one" in only(doctor.files, one_folder, "FAIL").text


def test_a_file_system_without_locks(one_folder, monkeypatch):
    monkeypatch.setattr("filelock.FileLock", lambda *_, **__: nullcontext())
    finds(doctor.files, one_folder, "FAIL", "a second process gets the lock", "local disk")
    monkeypatch.setattr(locks, "SECOND_PROCESS", "import nothing_of_this_name")
    assert "nothing_of_this_name" in only(doctor.files, one_folder, "FAIL").text


def test_a_training_at_work(made):
    setup = made()
    lock = setup.root / "runs" / ".resume" / "tiny" / "mib-1" / "lock"
    with files.exclusive(lock, "mib-1"):
        found = only(doctor.at_work, setup, "note")
        assert found.text == f"the training of mib-1 is at work: process {os.getpid()}"
        assert found.remedy == f"wait for it, or stop it: kill {os.getpid()}"
    assert lock.is_file()
    assert "no training" in passes(doctor.at_work, setup)  # a lock's file without a holder


def test_dvc_at_work(made):
    setup = made()
    code = "import sys, zc.lockfile; held = zc.lockfile.LockFile(sys.argv[1]); print(flush=True); sys.stdin.read()"
    lock = setup.root / ".dvc" / "tmp" / "lock"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], **pipes) as holder:
        holder.stdout.readline()
        assert only(doctor.at_work, setup, "note").text == f"a DVC command is at work: process {holder.pid}"
        holder.stdin.close()
    assert "no training" in passes(doctor.at_work, setup)
    announced = setup.root / ".dvc" / "tmp" / "rwlock"
    dead = {"pid": holder.pid, "cmd": "dvc repro"}
    announced.write_text(json.dumps({"write": {"/runs/a": dead}, "read": {}}))
    assert "no training" in passes(doctor.at_work, setup)
    here = {"pid": os.getpid(), "cmd": "dvc repro"}
    announced.write_text(json.dumps({"write": {"/runs/a": dead}, "read": {"/data": [here]}}))
    assert only(doctor.at_work, setup, "note").text == f"`dvc repro` is at work: process {os.getpid()}"
    announced.write_text('{"write": ')
    found = only(doctor.at_work, setup, "FAIL")
    assert f"{announced} is damaged" in found.text and found.remedy.endswith("rm .dvc/tmp/rwlock")
