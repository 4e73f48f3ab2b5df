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
from ciss.data import processes as data_processes
from ciss.data.notes import FETCH, data_notes
from ciss.doctor import Setup, main
from ciss.findings import CHECKS, Check, Finding, examine
from ciss.methods import METHODS
from ciss.models import create_network
from ciss.store import files
from ciss.training import machine
from tests.helpers.project import DOCUMENT

ROOT = paths.project()
Usage = namedtuple("Usage", "total used free")
WIDTH = max(map(len, CHECKS))


def only(check: Check, setup: Setup, level: str) -> Finding:
    """The one finding of a level."""
    (finding,) = [finding for finding in check.findings(setup) if finding.level == level]
    return finding


def finds(check: Check, setup: Setup, level: str, text: str, remedy: str) -> None:
    """The one finding of a level has these words."""
    finding = only(check, setup, level)
    assert text in finding.text and remedy in finding.remedy, finding


def passes(check: Check, setup: Setup) -> str:
    findings = list(check.findings(setup))
    assert {finding.level for finding in findings} == {"ok"}, findings
    return "\n".join(finding.text for finding in findings)


@pytest.fixture
def make_setup(tmp_path, monkeypatch):
    """make_setup(**changes of the tiny benchmark): the Setup of a small project with git and DVC, nothing trained."""
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


def test_every_check_reports_and_every_note_has_a_remedy(report):
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
        "links that work: ",
        "stages use this Python",
        "stages start this Python",
        "no folder of outputs is a link",
    ):
        assert words in text, words


def test_nothing_is_left_behind(make_setup):
    setup = make_setup()
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
    assert "-> install it: uv sync" in done.stdout
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
    assert "ok    a  so far" in printed and "FAIL  a  KeyError: 'lost'" in printed
    assert "FAIL  b  cannot import: No module named 'ruamel'\n         -> install it: uv sync" in printed
    assert "Not ready: 2 FAIL" in printed
    assert examine(Setup(ROOT), {"c": checks["c"]}) == 0
    assert capsys.readouterr().out == "note  c  much\n         -> do it\n\nReady, 1 to note. Next: dvc repro\n"


def test_findings_without_a_remedy_get_that_of_the_check():
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
    finds(doctor.python, Setup(ROOT), "FAIL", "3.10.4, but the project needs >=3.11,<3.14", "uv sync --python 3.12")


def test_a_user_without_name_or_home(monkeypatch, tmp_path):
    """As in a container that is run with a number as its user."""
    setup = Setup(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path) in passes(doctor.user, setup)
    monkeypatch.setenv("HOME", "/dev/null/x")
    finds(doctor.user, setup, "FAIL", "/dev/null/x cannot be written to", "HOME=/tmp/home")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no HOME, and no name by which to look it up
    finds(doctor.user, setup, "FAIL", "home directory", "HOME=/tmp/home")
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda *_: False)
    finds(doctor.user, setup, "note", "cannot be written", "HOME=/tmp/home")
    monkeypatch.setattr("getpass.getuser", Mock(side_effect=KeyError("getpwuid(): uid not found: 12345")))
    finds(doctor.user, setup, "FAIL", "uid not found", "export USER=ciss")


def with_versions(monkeypatch, **versions) -> None:
    real = metadata.version

    def version(name):
        if versions.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_packages_too_old_or_missing(monkeypatch):
    with_versions(monkeypatch, timm="1.0.3", seaborn=None)
    finds(doctor.packages, Setup(ROOT), "FAIL", "timm 1.0.3 (>=1.0.20); seaborn is missing", "uv sync")


def test_other_versions_than_pinned_are_one_note(monkeypatch):
    with_versions(monkeypatch, numpy="2.99.1", pillow="99.0", tqdm="99.0", pydantic="3.0", click="99")
    assert [finding.level for finding in doctor.packages.findings(Setup(ROOT))] == ["ok", "note"]
    finds(doctor.packages, Setup(ROOT), "note", "numpy 2.99.1 (==", "last digit")
    assert " more" in only(doctor.packages, Setup(ROOT), "note").text


def test_another_copy_of_the_code(make_setup):
    setup = make_setup()
    assert "run `python -m ciss" in only(doctor.project, setup, "note").remedy
    (setup.root / "ciss").symlink_to(ROOT / "ciss")
    assert passes(doctor.project, setup) == str(setup.root)


@pytest.mark.parametrize(
    "outcome", [{"side_effect": RuntimeError("no operator nms")}, {"return_value": torch.tensor([0, 1])}]
)
def test_torchvision_of_another_build(outcome, monkeypatch):
    monkeypatch.setattr("torchvision.ops.nms", Mock(**outcome))
    finds(doctor.torch_build, Setup(ROOT), "FAIL", "nms", "--reinstall-package torchvision")


def test_no_dvc_or_no_git(make_setup, monkeypatch):
    setup = make_setup()
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


def test_a_repository_of_another_owner(make_setup, monkeypatch):
    setup = make_setup()
    text = "fatal: detected dubious ownership in repository"
    answer = subprocess.CompletedProcess([], 128, "", f"{text}\nTo add an exception")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    finds(doctor.git, setup, "FAIL", text, f"git config --global --add safe.directory {setup.root}")


def test_dvc_configured_badly(make_setup, monkeypatch):
    setup = make_setup()
    (setup.root / ".dvc" / "config").write_text("[cache]\n    typo = 1\n")
    finds(doctor.dvc, setup, "FAIL", "typo", "correct .dvc/config")
    (setup.root / ".dvc" / "config").write_text("[cache]\n    type = reflink\n")
    monkeypatch.setattr("dvc_objects.fs.generic.test_links", lambda *_: ["copy"])
    finds(doctor.dvc, make_setup(), "FAIL", "reflink selects none", "dvc config cache.type reflink,copy")


def test_links_are_tried(make_setup, monkeypatch):
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError("not here")))
    monkeypatch.setattr("dvc_objects.fs.system.reflink", Mock(side_effect=OSError("not here")))
    assert "links that work: symlink, copy; reflink,copy selects copy" in passes(doctor.dvc, make_setup())


def test_a_cache_elsewhere(make_setup, tmp_path):
    shared = Path("/dev/shm")
    setup = make_setup()
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == setup.root.stat().st_dev:
        pytest.skip("needs two file systems")
    (setup.root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {shared}/ciss-cache\n")
    finds(doctor.dvc, setup, "note", f"cache {shared}/ciss-cache", "dvc cache dir")
    assert "another file system" in only(doctor.dvc, setup, "note").text


def test_the_kernel_of_another_environment(monkeypatch):
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

    def kernel(program, folder="/home/someone/.local/share/jupyter/kernels/python3"):
        spec = KernelSpec(argv=[program, "-m", "ipykernel_launcher"], resource_dir=folder)
        monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: spec)

    kernel("/opt/conda/envs/other/bin/python")
    finds(doctor.notebooks, Setup(ROOT), "note", "/opt/conda/envs/other/bin/python", "remove python3, and again")
    assert "`dvc repro` does not use it" in only(doctor.notebooks, Setup(ROOT), "note").text
    kernel("/opt/conda/envs/other/bin/python", f"{sys.prefix}/share/jupyter/kernels/python3")
    assert only(doctor.notebooks, Setup(ROOT), "note").remedy == doctor.KERNEL
    for program in ("python", "python3", sys.executable):
        kernel(program)
        passes(doctor.notebooks, Setup(ROOT))
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", Mock(side_effect=NoSuchKernel("python3")))
    finds(doctor.notebooks, Setup(ROOT), "note", "finds no kernel python3", doctor.KERNEL)


def test_the_python_that_stages_start(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert sys.executable.rpartition("/")[0] in passes(doctor.stages, Setup(ROOT))
    monkeypatch.setenv("PATH", str(tmp_path))
    finds(doctor.stages, Setup(ROOT), "note", "there is no python on PATH", "uv run dvc repro")
    (tmp_path / "python").touch(0o755)
    finds(doctor.stages, Setup(ROOT), "note", f"{tmp_path}/python, not {sys.executable}", "uv run dvc repro")


# --- machine


def test_threads(make_setup, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    passes(CHECKS["processor"], make_setup(train__threads=1))
    remedy = "unset OMP_NUM_THREADS, or set it to 2"
    finds(CHECKS["processor"], make_setup(train__threads=2), "note", "train.threads is 2", remedy)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    finds(CHECKS["processor"], make_setup(train__threads=2), "note", "but the number of cores is 1", "set it to 1")


def with_gpus(monkeypatch, count: int, capability: tuple[int, int], listed: str = "NVIDIA X, 550.1") -> None:
    """As torch and nvidia-smi describe GPUs."""
    values = {"is_available": count > 0, "device_count": count, "get_device_name": "NVIDIA X"}
    for name, value in (values | {"get_device_capability": capability}).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, f"{listed}\n"))


def test_a_gpu_that_torch_does_not_see(monkeypatch):
    check, setup = CHECKS["gpu"], Setup(ROOT)
    with_gpus(monkeypatch, 0, (0, 0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    finds(check, setup, "FAIL", "NVIDIA X, 550.1, but torch", "update the NVIDIA driver")
    assert "CUDA 13.2" in only(check, setup, "FAIL").text
    monkeypatch.setattr(torch.version, "cuda", None)
    finds(check, setup, "FAIL", "without CUDA", "uv sync --reinstall-package torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finds(check, setup, "note", "hidden", "unset CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(subprocess, "run", Mock(side_effect=FileNotFoundError("nvidia-smi")))
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert "none" in passes(check, setup)


def test_gpus_by_name(monkeypatch):
    with_gpus(monkeypatch, 1, (7, 5))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (7e9, 8e9))
    text = passes(CHECKS["gpu"], Setup(ROOT))
    assert "cuda:0 NVIDIA X, 7 GB of 8 GB free, no bfloat16, driver 550.1" in text
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1e9, 8e9))
    finds(CHECKS["gpu"], Setup(ROOT), "note", "1 GB of 8 GB free", "CUDA_VISIBLE_DEVICES")


CPU = torch.device("cpu")
NOT_FINITE = {
    "both": lambda value: value * math.nan,
    "the loss": lambda value: value + math.nan,
    "a gradient": lambda value: value + (value * 0).sqrt(),
}


@pytest.mark.parametrize("decoder", machine.DECODERS)
def test_a_training_step(decoder, monkeypatch):
    loss = machine.update(decoder, CPU, torch.float32)
    assert 0 < loss < 1000
    real = METHODS["mbs"].losses
    for name, change in NOT_FINITE.items():

        def losses(*args, change=change):
            return {key: change(value) for key, value in real(*args).items()}

        monkeypatch.setattr(METHODS["mbs"], "losses", losses)
        words = f"the loss is {loss:.3g}, and not every gradient" if name == "a gradient" else "the loss is nan"
        with pytest.raises(FloatingPointError, match=words):
            machine.update(decoder, CPU, torch.float32)


def with_updates(monkeypatch, errors: dict[str, Exception], gpus: int = 0) -> None:
    """Training steps that fail in a precision, or in a device and precision, and GPUs that know bfloat16."""

    def update(decoder, device, precision):
        name = str(precision).removeprefix("torch.")
        if error := errors.get(name) or errors.get(f"{device} {name}"):
            raise error
        return 1.0

    monkeypatch.setattr(machine, "update", update)
    with_gpus(monkeypatch, gpus, (8, 0))


def test_a_precision_that_fails(make_setup, monkeypatch):
    check, remedy = CHECKS["training"], "set train.precision: float32"
    with_updates(monkeypatch, {})
    assert "float32" in passes(check, make_setup())
    with_updates(monkeypatch, {"bfloat16": RuntimeError("not implemented for 'BFloat16'")})
    text = "cpu bfloat16: deeplabv3: not implemented for 'BFloat16'"
    finds(check, make_setup(), "note", text, remedy)
    finds(check, make_setup(train__precision="bfloat16"), "FAIL", text, remedy)
    with_updates(monkeypatch, {"float32": FloatingPointError("the loss is nan")})
    finds(check, make_setup(), "FAIL", "cpu float32: deeplabv3: the loss is nan", "--reinstall-package torch")


def test_a_precision_counts_where_it_is_trained_in(make_setup, monkeypatch):
    """With a GPU `auto` is bfloat16 there, and nothing trains on the processor."""
    setup = make_setup()
    error = RuntimeError("no kernel image is available for execution on the device")
    with_updates(monkeypatch, {}, gpus=2)
    text = passes(CHECKS["training"], setup)
    assert text.count("`auto` is bfloat16") == 2 and text.count("`auto` is float32") == 1
    with_updates(monkeypatch, {"cuda:1 bfloat16": error}, gpus=2)
    finds(CHECKS["training"], setup, "FAIL", "cuda:1 bfloat16: ", "set train.precision: float32")
    with_updates(monkeypatch, {"cpu bfloat16": error}, gpus=2)
    finds(CHECKS["training"], setup, "note", "cpu bfloat16: ", "set train.precision: float32")


def test_bits_that_do_not_repeat(make_setup, monkeypatch):
    assert "gives the same bits" in passes(CHECKS["repeatability"], make_setup())
    monkeypatch.setattr(machine, "update", Mock(side_effect=[1.0, 2.0]))
    finds(CHECKS["repeatability"], make_setup(), "note", "losses 1.0 and 2.0", "train.threads: 1")


def test_loader_processes(make_setup, monkeypatch):
    monkeypatch.setattr(data_processes, "SHARED", Path("/nowhere"))
    assert "two loader processes return their 2 batches" in passes(CHECKS["loaders"], make_setup(train__workers=2))
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")
    monkeypatch.setattr(machine, "DataLoader", Mock(side_effect=error))
    finds(CHECKS["loaders"], make_setup(), "note", "Bus error", "set train.workers: 0")
    finds(CHECKS["loaders"], make_setup(train__workers=2), "FAIL", "Bus error", "set train.workers: 0")


def test_shared_memory(make_setup, monkeypatch):
    """Two waiting batches for each of two processes: 2 x 2 x 4 images x 4 bytes x 32 x 32 pixels = 65,536 bytes."""
    setup = make_setup(train__workers=2)
    assert Path("/dev/shm") == data_processes.SHARED
    monkeypatch.setattr(data_processes, "SHARED", setup.root)
    monkeypatch.setattr(data_processes, "available_cores", lambda: 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 131_071))  # training and scoring have half each
    finds(CHECKS["loaders"], setup, "note", "need 131 kB", "--shm-size")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 131_072))
    passes(CHECKS["loaders"], setup)


def test_a_group_of_processes_is_ended(make_setup):
    assert "gloo" in passes(CHECKS["processes"], make_setup())
    assert not torch.distributed.is_initialized()


def test_no_group_of_processes(make_setup, monkeypatch):
    monkeypatch.setattr("torch.distributed.TCPStore", Mock(side_effect=RuntimeError("unable to resolve hostname")))
    first = next(CHECKS["processes"].findings(make_setup()))
    assert (first.level, "unable to resolve hostname" in first.text) == ("note", True)
    assert "GLOO_SOCKET_IFNAME" in first.remedy


# --- study


def test_a_typo_in_the_parameters(make_setup):
    text = ": benchmarks.tiny.train.epocs: unknown key"
    finds(doctor.parameters, make_setup(train__epocs=3), "FAIL", text, "ciss plan --check")
    finds(doctor.parameters, make_setup(model__encoder="resnet51"), "FAIL", "resnet51", "ciss plan --check")
    assert "tiny; 5 runs" in passes(doctor.parameters, make_setup())


def test_another_parameter_file(make_setup, capsys, monkeypatch):
    setup = make_setup()
    (setup.root / "params.yaml").rename(setup.root / "mine.yaml")
    monkeypatch.setattr(doctor, "CHECKS", {"parameters": doctor.parameters})
    for file, status in (("params.yaml", 1), ("mine.yaml", 0)):
        with pytest.raises(SystemExit) as stopped:
            main(file)
        assert stopped.value.code == status
    assert "mine.yaml: tiny; 5 runs" in capsys.readouterr().out


def test_data_that_are_not_there(make_setup, monkeypatch, tiny_data):
    setup = make_setup()
    assert only(doctor.prepared, setup, "note").remedy == "dvc repro prepare@tiny"
    text = passes(doctor.data, setup)
    assert "voc: not there; not needed" in text and "shapes: not there; drawn when it is needed" in text
    assert not (setup.root / "data").exists()  # looking draws nothing
    monkeypatch.setenv("CISS_DATA", str(setup.root / "nowhere"))
    finds(doctor.data, setup, "FAIL", "nowhere", "CISS_DATA")
    monkeypatch.setenv("CISS_DATA", str(tiny_data))
    assert f"shapes: {tiny_data}/shapes, 24 training and 8 validation images" in passes(doctor.data, setup)
    finds(
        doctor.data, make_setup(dataset="voc", protocol="15-1"), "FAIL", "no VOCdevkit", "remove tiny from params.yaml"
    )


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


def test_a_holdout_larger_than_the_data(make_setup):
    text = "tiny: holdout: 5000, but the data set has only 1200 training images. Make it smaller."
    finds(doctor.prepared, make_setup(holdout=5_000), "FAIL", text, "change benchmarks.tiny in params.yaml")


def test_weights(make_setup, monkeypatch):
    assert passes(doctor.weights, make_setup()) == "tiny: none needed"
    setup = make_setup(model__weights="mine.safetensors")
    finds(doctor.parameters, setup, "FAIL", "model.weights", "correct it")
    assert "mine.safetensors" in only(doctor.parameters, setup, "FAIL").text
    monkeypatch.setattr("ciss.models.hub.cached_weights", lambda encoder: None)
    setup = make_setup(model__encoder="mobilenetv2_100", model__pretrained=True, model__output_stride=16)
    assert "online" in only(doctor.weights, setup, "note").remedy
    monkeypatch.setattr("ciss.models.hub.cached_weights", lambda encoder: f"/cache/{encoder}")
    assert passes(doctor.weights, setup) == "tiny: /cache/mobilenetv2_100"


# --- storage


def test_space(make_setup, monkeypatch):
    """Five runs of nine channels: weights, results and one training's state; the cache has weights and results too."""
    setup = make_setup()
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


def test_space_on_two_file_systems(make_setup, monkeypatch):
    setup, shared = make_setup(), Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == setup.root.stat().st_dev:
        pytest.skip("needs two file systems")
    monkeypatch.setattr(setup, "folders", lambda: {"runs/": setup.root, "DVC cache": shared})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1, 1, 1 if folder == shared else 1e12))
    assert [f.level for f in doctor.disk.findings(setup)] == ["ok", "FAIL"]


def test_space_for_parameters_that_cannot_be_read(make_setup):
    finds(doctor.disk, make_setup(train__epocs=3), "note", "the space is unknown", "correct params.yaml")


def test_sizes():
    texts = {0: "0 B", 999: "999 B", 999.6: "1 kB", 65_536: "65.5 kB", 1.2e9: "1.2 GB", 3e12: "3 TB"}
    assert {count: documents.size(count) for count in texts} == texts


@pytest.fixture
def one_folder(make_setup, monkeypatch) -> Setup:
    setup = make_setup()
    monkeypatch.setattr(setup, "folders", lambda: {"runs/": setup.root})
    return setup


def test_a_folder_that_cannot_be_written(one_folder, monkeypatch):
    error = PermissionError(13, "Permission denied", str(one_folder.root))
    monkeypatch.setattr("tempfile.TemporaryDirectory", Mock(side_effect=error))
    finds(doctor.files, one_folder, "FAIL", "Permission denied", f"make {one_folder.root} writable")


def test_folders_that_are_links(make_setup, tmp_path):
    setup = make_setup()
    assert passes(doctor.links, setup) == "no folder of outputs is a link out of the project"
    (tmp_path / "scratch").mkdir()
    (setup.root / "runs").symlink_to(tmp_path / "scratch")
    text = f"{setup.root}/runs is a link to {tmp_path}/scratch, and DVC refuses"
    finds(doctor.links, setup, "FAIL", text, "dvc cache dir")


def test_a_read_only_folder(one_folder):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    one_folder.root.chmod(0o500)
    assert "writable" in only(doctor.files, one_folder, "FAIL").remedy
    one_folder.root.chmod(0o700)


def test_a_file_system_that_does_not_replace(one_folder, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda new, old: None)
    finds(doctor.files, one_folder, "FAIL", "a replaced file is not the new one", "local disk")


def test_a_file_system_without_locks(one_folder, monkeypatch):
    monkeypatch.setattr("filelock.FileLock", lambda *_, **__: nullcontext())
    finds(doctor.files, one_folder, "FAIL", "a second process gets the lock", "local disk")
    monkeypatch.setattr(doctor, "SECOND_PROCESS", "import nothing_of_this_name")
    finds(doctor.files, one_folder, "FAIL", "nothing_of_this_name", "local disk")


def test_a_training_at_work(make_setup):
    setup = make_setup()
    lock = setup.root / "runs" / ".resume" / "tiny" / "mib-1" / "lock"
    with files.exclusive(lock, "mib-1"):
        text = f"the training of mib-1 is at work: process {os.getpid()}"
        finds(doctor.at_work, setup, "note", text, f"wait for it, or stop it: kill {os.getpid()}")
    assert lock.is_file()
    assert "no training" in passes(doctor.at_work, setup)  # a lock's file without a holder


def test_dvc_at_work(make_setup):
    setup = make_setup()
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
    finds(doctor.at_work, setup, "FAIL", f"{announced} is damaged", "rm .dvc/tmp/rwlock")
