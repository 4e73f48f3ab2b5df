"""What training needs of a machine: processor, GPUs, updates in every precision, loader processes, process groups.

The functions that take a `setup`, which has the benchmarks by name, are checks of `ciss.doctor`.
"""

import copy
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ciss.config import Model
from ciss.distributed import device as training_device
from ciss.documents import size
from ciss.findings import Found, fail, note, short
from ciss.methods import METHODS, Batch
from ciss.models import create_network, set_norm_mode
from ciss.training.evaluation import automatic_precision, precision_of

CPU = torch.device("cpu")
DECODERS = ("deeplabv3", "mask_transformer")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARED = Path("/dev/shm")  # where loader processes leave their batches
WAIT = timedelta(seconds=30)
TORCH = "uv sync --reinstall-package torch --reinstall-package torchvision"


def processor(setup: Any) -> Iterator[Found]:
    model = platform.processor() or platform.machine()
    with suppress(OSError, TypeError):
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"{model}, {cores} cores, torch uses {torch.get_num_threads()} threads"
    for name, benchmark in setup.benchmarks.items():
        threads = benchmark.train.threads
        text = f"benchmarks.{name}.train.threads is {threads}"
        if threads > cores:
            yield note(f"{text}, but there are {cores} cores", f"set it to {cores}, which changes the last digits")
        variable = os.environ.get("OMP_NUM_THREADS", str(threads))
        if variable != str(threads):
            remedy = f"unset OMP_NUM_THREADS, or set it to {threads}"
            yield note(f"OMP_NUM_THREADS is {variable!r}, but {text}, which training uses", remedy)


def gpu(setup: Any) -> Iterator[Found]:
    listed = _nvidia_smi()
    if torch.cuda.is_available():
        driver = listed.partition("\n")[0].rpartition(", ")[2] or "unknown"
        yield from (_gpu(number, driver) for number in range(torch.cuda.device_count()))
        return
    seen = listed or ("driver loaded" if Path("/proc/driver/nvidia/version").exists() else "")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not seen:
        yield "none; trainings run on the processor"
    elif hidden in ("", "-1"):
        yield note(f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}: {seen}", "unset CUDA_VISIBLE_DEVICES")
    else:
        cuda = torch.version.cuda
        build = f"built for CUDA {cuda}" if cuda else "without CUDA"
        remedy = "update the NVIDIA driver, or install a torch built for an earlier CUDA" if cuda else TORCH
        yield fail(f"{seen}, but torch {torch.__version__} ({build}) does not see it", remedy)


def _gpu(number: int, driver: str) -> Found:
    free, total = torch.cuda.mem_get_info(number)
    fast = automatic_precision(torch.device("cuda", number)) == torch.bfloat16
    text = f"cuda:{number} {torch.cuda.get_device_name(number)}, {size(free)} of {size(total)} free"
    text += f", {'bfloat16' if fast else 'no bfloat16'}, driver {driver}, CUDA {torch.version.cuda}"
    remedy = "other processes use it (nvidia-smi names them): choose a free one with CUDA_VISIBLE_DEVICES"
    return text if free > 0.5 * total else note(text, remedy)


def _nvidia_smi() -> str:
    """Names and driver versions of the GPUs, one a line; empty without the program."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    return ""


def training(setup: Any) -> Iterator[Found]:
    """An update in each precision on each device: a failure in a precision that a benchmark uses, else a note."""
    for device in (CPU, *(torch.device("cuda", number) for number in range(torch.cuda.device_count()))):
        used = device.type == training_device().type
        needed = {precision_of(b.train, device) for b in setup.benchmarks.values() if used} | {torch.float32}
        works = []
        for name, precision in PRECISIONS.items():
            started = time.perf_counter()
            if problem := _update_problem(device, precision):
                remedy = TORCH if precision == torch.float32 else "set train.precision: float32"
                yield (fail if precision in needed else note)(f"{device} {name}: {problem}", remedy)
            else:
                works.append(f"{name} {time.perf_counter() - started:.2f} s")
        if works:
            means = f"`auto` is {str(automatic_precision(device)).removeprefix('torch.')}"
            yield f"{device}: a training step in {', '.join(works)}; {means}"


def repeatability(setup: Any) -> Found:
    first, second = (update("deeplabv3", CPU, torch.float32)[0].item() for _ in range(2))
    if first == second:
        return "cpu: the same seed gives the same bits"
    remedy = "set train.threads: 1 if results must repeat to the last digit"
    return note(f"cpu: the same seed gave losses {first!r} and {second!r}", remedy)


def update(decoder: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """The loss of an incremental step of MBS on random images, and whether it and all gradients are finite."""
    torch.manual_seed(0)
    student = create_network(Model(decoder=decoder, width=16, atrous_rates=(1,)), [3])
    student = student.to(device, memory_format=torch.channels_last)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    method = METHODS["mbs"]()
    method.initialise(student, 2)
    set_norm_mode(student, "batch")
    images = torch.randn(2, 3, 32, 32).to(device)
    labels = torch.tensor([0, 3, 4])[torch.randint(3, (2, 32, 32))].to(device)
    steps = torch.tensor([0, 0, 0, 1, 1]).to(device)
    new = torch.tensor([3, 4]).to(device)
    batch = Batch(images, labels, labels, ids=["a", "b"], step=1, old_channels=3, class_steps=steps, new_classes=new)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        teacher_out = teacher(images)
        student_out = student(images)
    batch.labels = method.labels(batch, teacher_out)
    loss = sum(method.losses(student_out, teacher_out, batch).values())
    loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    finite = bool(gradients) and all(bool(value.isfinite().all()) for value in (loss, *gradients))
    return loss.detach().cpu(), finite


def _update_problem(device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with an update of any decoder; an empty text where nothing is."""
    for decoder in DECODERS:
        try:
            loss, finite = update(decoder, device, dtype)
        except Exception as error:
            return f"{decoder}: {short(error)}"
        if not finite:
            return f"{decoder}: the loss is {loss.item():.3g}, and not every gradient is finite"
    return ""


def loaders(setup: Any) -> Iterator[Found]:
    """Two loader processes, and the shared memory for the batches that wait."""
    trains = [benchmark.train for benchmark in setup.benchmarks.values() if benchmark.train.workers]
    try:
        loader = DataLoader(TensorDataset(torch.arange(4.0)), batch_size=2, num_workers=2, timeout=60)
        total = sum(batch.sum().item() for (batch,) in loader)
        if total != 6:
            raise RuntimeError(f"batches add up to {total}, not 6")
        yield "two loader processes return their batches"
    except Exception as error:
        text = f"two loader processes: {short(error)}"
        yield (fail if trains else note)(text, "set train.workers: 0, or free memory")
    if trains and SHARED.is_dir():
        # uint8 images and labels, two batches waiting for each process
        need = max(2 * train.workers * train.batch * 4 * train.crop**2 for train in trains)
        free = shutil.disk_usage(SHARED).free
        text = f"{SHARED}: {size(free)} free, loader processes need {size(need)}"
        remedy = "make it larger (docker run --shm-size=8g), or set train.workers: 0"
        yield text if free > 2 * need else (fail if free < need else note)(text, remedy)


def processes(setup: Any) -> Iterator[Found]:
    """A group of one process for each backend, as torchrun makes it of several."""
    if not dist.is_available():
        yield note("this torch has no torch.distributed: one process only", TORCH)
        return
    for backend in ("gloo", "nccl") if torch.cuda.is_available() else ("gloo",):
        try:
            _sum_in_group(backend)
            yield f"{backend} can start a group of processes"
        except Exception as error:
            remedy = "one process works without it; for torchrun name a network interface"
            text = f"{backend} cannot start a group of processes: {short(error)}"
            yield note(text, f"{remedy}: {backend.upper()}_SOCKET_IFNAME=lo")


def _sum_in_group(backend: str) -> None:
    """A sum in a group of one process. Raises what torch raises, and RuntimeError for a wrong sum."""
    try:
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=WAIT)
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=WAIT)
        value = torch.ones(1, device="cuda" if backend == "nccl" else "cpu")
        dist.all_reduce(value)
        if value.item() != 1:
            raise RuntimeError(f"the sum over one process is {value.item()}, not 1")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
