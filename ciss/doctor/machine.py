"""What the machine can do: processor, GPUs, a training step in each precision, several processes."""

import copy
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from ciss.doctor.base import TORCH, Finding, Setup, fail, note, ok, said, short
from ciss.documents import size

DECODERS = ("deeplabv3", "mask_transformer")
PRECISIONS = ("float32", "bfloat16", "float16")
SHARED = Path("/dev/shm")  # where loader processes leave their batches


def processor(setup: Setup) -> Iterator[Finding]:
    import torch

    model = platform.processor() or platform.machine()
    with suppress(OSError, TypeError):
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield ok(f"{model}, {cores} cores, torch uses {torch.get_num_threads()} threads")
    wanted = {name: benchmark.train.threads for name, benchmark in setup.benchmarks.items()}
    for name, threads in wanted.items():
        if threads > cores:
            remedy = f"set benchmarks.{name}.train.threads to {cores}; another number gives other last digits"
            yield note(f"benchmarks.{name}.train.threads is {threads}, but there are {cores} cores", remedy)
    said = os.environ.get("OMP_NUM_THREADS")
    if said is not None and wanted and {said} != {str(threads) for threads in wanted.values()}:
        numbers = ", ".join(map(str, sorted(set(wanted.values()))))
        text = f"OMP_NUM_THREADS is {said!r}, train.threads is {numbers}: training uses the latter"
        yield note(text, f"unset OMP_NUM_THREADS, or make it {numbers}")


def gpus(setup: Setup) -> Iterator[Finding]:
    import torch

    listed = said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if not torch.cuda.is_available():
        there = listed or ("driver loaded" if Path("/proc/driver/nvidia/version").exists() else "")
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if not there:
            yield ok("none; trainings run on the processor")
        elif hidden in ("", "-1"):
            yield note(f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}: {there}", "unset CUDA_VISIBLE_DEVICES")
        else:
            built = torch.version.cuda and f"built for CUDA {torch.version.cuda}"
            remedy = "update the NVIDIA driver, or install a torch built for an earlier CUDA" if built else TORCH
            yield fail(f"{there}, but torch {torch.__version__} ({built or 'without CUDA'}) does not see it", remedy)
        return
    from ciss.training.evaluation import automatic_precision

    driver = listed.splitlines()[0].rpartition(", ")[2] if listed else "unknown"
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        fast = automatic_precision(torch.device("cuda", number)) == torch.bfloat16
        half = "bfloat16" if fast else "no bfloat16"
        text = f"cuda:{number} {torch.cuda.get_device_name(number)}, {size(free)} of {size(total)} free, {half}"
        text += f", driver {driver}, CUDA {torch.version.cuda}"
        busy = "others use it (nvidia-smi names them); choose a free one with CUDA_VISIBLE_DEVICES"
        yield ok(text) if free > 0.5 * total else note(text, busy)


def passes(setup: Setup) -> Iterator[Finding]:
    """A training step of each decoder in each precision on each device."""
    import torch

    from ciss.distributed import device as training_device
    from ciss.training.evaluation import automatic_precision, precision_of

    found = [torch.device("cpu"), *(torch.device("cuda", n) for n in range(torch.cuda.device_count()))]
    for device in found:
        used = device.type == training_device().type
        wanted = {precision_of(b.train, device) for b in setup.benchmarks.values() if used} | {torch.float32}
        works = []
        for name in PRECISIONS:
            started = time.perf_counter()
            problem = _steps(device, getattr(torch, name))
            if not problem:
                works.append(f"{name} {time.perf_counter() - started:.2f} s")
                continue
            tell = fail if getattr(torch, name) in wanted else note
            yield tell(f"{device} {name}: {problem}", TORCH if name == "float32" else "set train.precision: float32")
        if works:
            means = f"`auto` is {str(automatic_precision(device)).removeprefix('torch.')}"
            yield ok(f"{device}: a training step in {', '.join(works)}; {means}")
    first, second = (training_step("deeplabv3", found[0], torch.float32)[0] for _ in range(2))
    if torch.equal(first, second):
        yield ok("cpu: the same seed gives the same bits")
    else:
        remedy = "set train.threads: 1 if results must repeat to the last digit"
        yield note(f"cpu: the same seed gave losses {first.item()!r} and {second.item()!r}", remedy)


def _steps(device: Any, dtype: Any) -> str:
    """What is wrong, or nothing."""
    for decoder in DECODERS:
        try:
            loss, finite = training_step(decoder, device, dtype)
        except Exception as error:
            return f"{decoder}: {short(error)}"
        if not finite:
            return f"{decoder}: the loss is {loss.item():.3g}, and not every gradient is finite"
    return ""


def training_step(decoder: str, device: Any, dtype: Any) -> tuple[Any, bool]:
    """An incremental step of MBS on random images: its loss, and whether it and all gradients are finite."""
    import torch

    from ciss.config import Model
    from ciss.methods import METHODS, Batch
    from ciss.models import create_network, set_norm_mode

    torch.manual_seed(0)
    student = create_network(Model(decoder=decoder, width=16, atrous_rates=(1,)), [3])
    student = student.to(device, memory_format=torch.channels_last)
    teacher, method = copy.deepcopy(student).eval().requires_grad_(False), METHODS["mbs"]()
    method.initialise(student, 2)
    set_norm_mode(student, "batch")
    images, steps = torch.randn(2, 3, 32, 32).to(device), torch.tensor([0, 0, 0, 1, 1]).to(device)
    given = torch.tensor([0, 3, 4])[torch.randint(3, (2, 32, 32))].to(device)
    new = torch.tensor([3, 4]).to(device)
    batch = Batch(images, given, given, ids=["a", "b"], step=1, old_channels=3, class_steps=steps, new_classes=new)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            before = teacher(images)
        after = student(images)
    batch.labels = method.labels(batch, before)
    loss = sum(method.losses(after, before, batch).values())
    loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    finite = bool(gradients) and all(bool(value.isfinite().all()) for value in (loss, *gradients))
    return loss.detach().cpu(), finite


def loaders(setup: Setup) -> Iterator[Finding]:
    """Two loader processes hand over a batch; shared memory holds those that wait."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    trains = {name: benchmark.train for name, benchmark in setup.benchmarks.items() if benchmark.train.workers}
    try:
        loader = DataLoader(TensorDataset(torch.arange(4.0)), batch_size=2, num_workers=2, timeout=60)
        total = sum(batch.sum().item() for (batch,) in loader)
        if total != 6:
            raise RuntimeError(f"batches add up to {total}, not 6")
        yield ok("two loader processes give their batches")
    except Exception as error:
        tell = fail if trains else note
        yield tell(f"two loader processes: {short(error)}", "set train.workers: 0, or free memory")
    if trains and SHARED.is_dir():
        # uint8 images and labels, two batches waiting for each process
        need = max(2 * train.workers * train.batch * 4 * train.crop**2 for train in trains.values())
        free = shutil.disk_usage(SHARED).free
        text = f"{SHARED}: {size(free)} free, loader processes need {size(need)}"
        remedy = "make it larger (docker run --shm-size=8g), or set train.workers: 0"
        yield ok(text) if free > 2 * need else (fail if free < need else note)(text, remedy)


def processes(setup: Setup) -> Iterator[Finding]:
    """A group of one, as torchrun makes it of several."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        yield note("this torch has no torch.distributed: one process only", TORCH)
        return
    works = []
    for backend in ("gloo", "nccl") if torch.cuda.is_available() else ("gloo",):
        try:
            wait = timedelta(seconds=30)
            store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=wait)
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=wait)
            value = torch.ones(1, device="cuda" if backend == "nccl" else "cpu")
            dist.all_reduce(value)
            if value.item() != 1:
                raise RuntimeError(f"the sum over one process is {value.item()}, not 1")
            works.append(backend)
        except Exception as error:
            variable = "GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME"
            remedy = f"one process works without it; for torchrun name a network interface: {variable}=lo"
            yield note(f"{backend} cannot start a group of processes: {short(error)}", remedy)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    if works:
        yield ok(f"{' and '.join(works)} can start a group of processes")
