"""What training needs of a machine. Each public function that takes a `setup` is a check of `ciss.doctor`."""

import copy
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from ciss.config import Model
from ciss.data.processes import REMEDY, SHARED, free_shared_memory, loader_processes, shared_bytes
from ciss.distributed import device as training_device
from ciss.documents import counted, size
from ciss.findings import Result, Setup, fail, note, short
from ciss.methods import METHODS, Batch
from ciss.models import create_network, set_norm_mode
from ciss.processor import available_cores, waiting
from ciss.training.evaluation import autocast, automatic_precision, precision_of

CPU = torch.device("cpu")
DECODERS = ("deeplabv3", "mask_transformer")
WAIT = timedelta(seconds=30)
TORCH = "uv sync --reinstall-package torch --reinstall-package torchvision"


def processor(setup: Setup) -> Iterator[Result]:
    model = platform.processor() or platform.machine()
    with suppress(OSError, TypeError):
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    cores = available_cores()
    yield f"{model}, {counted(cores, 'core')}, torch uses {counted(torch.get_num_threads(), 'thread')}"
    with suppress(AttributeError, psutil.Error):  # macOS does not list the libraries of a process
        yield f"waiting threads: {waiting([library.path for library in psutil.Process().memory_maps()])}"
    for name, benchmark in setup.benchmarks.items():
        threads = benchmark.train.threads
        text = f"benchmarks.{name}.train.threads is {threads}"
        if threads > cores:
            yield note(
                f"{text}, but the number of cores is {cores}", f"set it to {cores}, which changes the last digits"
            )
        variable = os.environ.get("OMP_NUM_THREADS", str(threads))
        if variable != str(threads):
            remedy = f"unset OMP_NUM_THREADS, or set it to {threads}"
            yield note(f"OMP_NUM_THREADS is {variable!r}, but {text}, which training uses", remedy)


def gpu(setup: Setup) -> Iterator[Result]:
    listed = ""  # names and driver versions, one GPU a line
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        listed = done.stdout.strip()
    present = listed or ("driver loaded" if Path("/proc/driver/nvidia/version").exists() else "")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    cuda = torch.version.cuda
    if torch.cuda.is_available():
        driver = listed.partition("\n")[0].rpartition(", ")[2] or "unknown"
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            fast = automatic_precision(torch.device("cuda", number)) == torch.bfloat16
            text = f"cuda:{number} {torch.cuda.get_device_name(number)}, {size(free)} of {size(total)} free"
            text += f", {'bfloat16' if fast else 'no bfloat16'}, driver {driver}, CUDA {cuda}"
            remedy = "other processes use it (nvidia-smi names them): choose a free one with CUDA_VISIBLE_DEVICES"
            yield text if free > 0.5 * total else note(text, remedy)
    elif not present:
        yield "none; trainings run on the processor"
    elif hidden in ("", "-1"):
        yield note(f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}: {present}", "unset CUDA_VISIBLE_DEVICES")
    else:
        build = f"built for CUDA {cuda}" if cuda else "without CUDA"
        remedy = "update the NVIDIA driver, or install a torch built for an earlier CUDA" if cuda else TORCH
        yield fail(f"{present}, but torch {torch.__version__} ({build}) does not see it", remedy)


def training(setup: Setup) -> Iterator[Result]:
    """An update in each precision on each device. A failure in a precision that no benchmark uses is a note."""
    for device in (CPU, *(torch.device("cuda", number) for number in range(torch.cuda.device_count()))):
        used = setup.benchmarks.values() if device.type == training_device().type else ()
        needed = {precision_of(benchmark.train, device) for benchmark in used} | {torch.float32}
        times = []
        for name in ("float32", "bfloat16", "float16"):
            precision = getattr(torch, name)
            started = time.perf_counter()
            try:
                for decoder in DECODERS:
                    update(decoder, device, precision)
                times.append(f"{name} {time.perf_counter() - started:.2f} s")
            except Exception as error:
                level = fail if precision in needed else note
                remedy = TORCH if name == "float32" else "set train.precision: float32"
                yield level(f"{device} {name}: {decoder}: {short(error)}", remedy)
        if times:
            automatic = str(automatic_precision(device)).removeprefix("torch.")
            yield f"{device}: a training step in {', '.join(times)}; `auto` is {automatic}"


def repeatability(setup: Setup) -> Result:
    losses = [update("deeplabv3", CPU, torch.float32) for _ in range(2)]
    if losses[0] == losses[1]:
        return "cpu: the same seed gives the same bits"
    remedy = "set train.threads: 1 if results must repeat to the last digit"
    return note("cpu: the same seed gave losses {!r} and {!r}".format(*losses), remedy)


def update(decoder: str, device: torch.device, precision: torch.dtype) -> float:
    """The loss of an incremental step of MBS on random images. Raises FloatingPointError unless all is finite."""
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
    with autocast(device, precision):
        teacher_out, student_out = teacher(images), student(images)
    batch.labels = method.labels(batch, teacher_out)
    loss = sum(method.losses(student_out, teacher_out, batch).values())
    loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    if not gradients or not all(value.isfinite().all() for value in (loss, *gradients)):
        raise FloatingPointError(f"the loss is {loss.item():.3g}, and not every gradient is finite")
    return loss.item()


def loaders(setup: Setup) -> Iterator[Result]:
    """Two loader processes, and the shared memory for the batches that wait."""
    trains = [b.train for b in setup.benchmarks.values() if loader_processes(b.train)]
    try:
        batches = list(DataLoader(TensorDataset(torch.arange(4.0)), batch_size=2, num_workers=2, timeout=60))
        yield f"two loader processes return their {len(batches)} batches"
    except Exception as error:
        text = f"two loader processes: {short(error)}"
        yield (fail if trains else note)(text, "set train.workers: 0, or free memory")
    free = free_shared_memory()
    if trains and free is not None:
        # as `affordable`: half for training, half for scoring; with less, fewer processes are started
        need = 2 * max(
            shared_bytes(loader_processes(train), train.batch // train.processes * train.crop**2) for train in trains
        )
        text = f"{SHARED}: {size(free)} free, loader processes need {size(need)}"
        yield text if free >= need else note(text, f"{REMEDY}, or training starts fewer processes")


def processes(setup: Setup) -> Iterator[Result]:
    """A group of one process for each backend, as torchrun makes it of several."""
    for backend in ("gloo", "nccl") if torch.cuda.is_available() else ("gloo",):
        try:
            store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=WAIT)
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=WAIT)
            dist.all_reduce(torch.ones(1, device="cuda" if backend == "nccl" else "cpu"))
            yield f"{backend} can start a group of processes"
        except Exception as error:
            remedy = f"one process works without it; for torchrun name a network interface: {backend.upper()}"
            yield note(f"{backend} cannot start a group of processes: {short(error)}", f"{remedy}_SOCKET_IFNAME=lo")
        finally:
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
