"""The training loop of one run, in plain sight.

    ciss train RUN                                                    # one process
    torchrun --standalone --nproc-per-node 2 -m ciss train RUN        # several

A run reads the checkpoint of the run it continues `after`, trains, and leaves `runs/<benchmark>/<run>/` (weights,
losses) and `results/<benchmark>/<run>/` (scores, confusion matrices, curves, sample predictions).

Several processes see one batch each, and their gradients are averaged: as one process does with `accumulate`. A mean
over pixels is one over the pixels of a process.
"""

import copy
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ciss import config, distributed
from ciss.config import Config, ConfigError, Phase, Train
from ciss.data import DataError, Index, evaluation_loader, prepare, training_loader
from ciss.data.loaders import stable_seed
from ciss.methods import Method
from ciss.models import Network, WeightsError, set_norm_mode
from ciss.runs import results as runs_results
from ciss.runs import run as runs_run
from ciss.runs.check import check
from ciss.runs.results import Record, file_hash, finished, keep, outdated, recover, weights_of, write
from ciss.runs.run import Run, index_folder, lone_image, resolve
from ciss.store import files
from ciss.store.files import CheckpointError, Locked
from ciss.store.weights import STATE_WEIGHTS, forget_state, load_state, restore, save_state
from ciss.training.batches import BatchMaker, prepare_method, without_large_cache
from ciss.training.evaluation import evaluate, judge_labels, precision_of, predict_samples, token_cosines
from ciss.training.log import DivergenceError, Watch
from ciss.training.progress import Progress

USER_ERRORS = (ConfigError, DataError, CheckpointError, WeightsError, Locked, OSError, ValueError)

STATE = "state.safetensors"  # in a run's folder `resume`


class MemoryShort(Exception):
    """The device or the machine has no memory left; the message says what needs less."""


# one message each, and no traceback
RUN_ERRORS = (*USER_ERRORS, DivergenceError, MemoryShort, distributed.Lost, distributed.WorkerError)


def train(run: Run) -> Path:
    """Trains a run, or continues it where it stopped. Returns its folder.

    Raises: DivergenceError for a loss that is not finite (the last good epoch is kept), Locked when another process
    trains this run, CheckpointError for a missing or foreign predecessor, DataError for changed or broken data,
    DiskFull and MemoryShort for what the machine lacks, WorkerError for `train.processes` that end badly.
    """
    processes = run.settings.train.processes
    if processes > 1 and not distributed.started():
        distributed.launch(processes, "ciss", "train", run.name, "--config", run.config)
        return run.folder
    with distributed.session():
        if processes not in (1, distributed.world()):
            raise ConfigError(f"train.processes is {processes}, but there are {distributed.world()}. Make them equal.")
        index = run.index()
        if run.after:  # on a node without it, a message there would leave the others waiting
            distributed.agree(predecessor(run).is_file(), f"{predecessor(run).relative_to(run.root)} is there")
        identity = _identity(run, index)
        distributed.agree(identity, run.name)
        lock = files.exclusive(run.resume / "lock", run.name) if distributed.is_main() else nullcontext()
        with lock, _memory(run):
            if distributed.of_first(lambda: runs_results.finished(run, identity) or recover(run, identity)):
                distributed.say(f"{run.name}: trained already with these parameters, code and data; nothing to do.")
            else:
                if different := runs_results.outdated(run, identity):
                    distributed.say(f"{run.name}: trained before with other values ({'; '.join(different)}); again.")
                _train(run, index, identity)
            if distributed.is_main():
                keep(run, identity)
                forget_state(run.resume / STATE)
    return run.folder


def complete(settings: Config, names: Iterable[str] | None = None) -> None:
    """Prepares the data and trains the runs that are missing or outdated, with what they continue, if the file says
    `complete: true`. Without it, the caller's reading names what is missing.

    `names`: default all runs.
    """
    if settings.complete:
        train_all(settings, names)


def train_all(settings: Config, names: Iterable[str] | None = None) -> None:
    """Prepares the data and trains the runs that are missing or outdated, with what they continue; default all runs."""
    wanted: dict[str, None] = {}  # in order, predecessors first
    for name in settings.runs() if names is None else names:
        line = [name]
        while line[0] in settings.chain:
            line.insert(0, settings.chain[line[0]].after)
        wanted |= dict.fromkeys(line)
    jobs = [resolve(settings, name) for name in wanted]
    for benchmark in dict.fromkeys(job.benchmark for job in jobs):
        prepare(settings.benchmarks[benchmark], index_folder(jobs[0].root, benchmark), progress=False)
    for job in jobs:
        identity = _identity(job, job.index())
        if not distributed.of_first(lambda job=job, identity=identity: finished(job, identity)):
            train(job)


def _train(run: Run, index: Index, identity: dict) -> None:
    options, phase, started = run.settings.train, run.phase, time.perf_counter()
    torch.set_num_threads(options.threads)
    torch.manual_seed(stable_seed("weights", run.seed, run.reached))
    device, method = distributed.device(), run.build_method()
    if run.after and (notice := method.notice(run.settings)):
        distributed.say(f"{run.name}: {notice}.")
    precision = precision_of(options, device)

    # --- networks: the teacher is the predecessor; the student starts as its copy, grown by the new classes
    teacher, student = None, run.build_network(run.step - 1 if run.after else None)
    if run.after:
        _require_current(run, index, restore(student, predecessor(run)))
        teacher = copy.deepcopy(student).to(device).eval().requires_grad_(False)
        if run.new_classes:
            method.initialise(student, len(run.new_classes))
    student = set_norm_mode(student.to(device), phase.norm)
    parameters = _trainable(method, student, run)
    if options.channels_last:
        student.to(memory_format=torch.channels_last)
        teacher = teacher and teacher.to(memory_format=torch.channels_last)

    # --- data: labels as this step sees them; a hold-out with all labels
    run = without_large_cache(run, index)
    seen, truth = run.label_table(training=True), run.label_table(training=False)
    loader = training_loader(run.settings, index, run.images(index), seen, stable_seed("data", run.seed, run.step))
    if lone_image(run.settings, phase, loader.batch_sampler.smallest):
        raise DataError(_lone_image(run, len(run.images(index))))
    holdout = evaluation_loader(run.settings, index, "train", index.holdout, truth)
    batches = BatchMaker(run, index, teacher, device)

    # --- an update takes `accumulate` batches, or the whole epoch where that is shorter
    per_update = min(options.accumulate, len(loader))
    updates = len(loader) // per_update  # in an epoch
    optimiser = _optimiser(parameters, student, phase, options)
    schedule = _schedule(optimiser, updates * phase.epochs, options)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    forward = torch.compile(student) if options.compile else student
    if distributed.world() > 1:
        forward = DistributedDataParallel(forward)

    # --- go on where a stopped training left off, or prepare the method
    file, shared = run.resume / STATE, {**identity, "processes": distributed.world()}
    parts = {"student": student, "optimiser": optimiser, "schedule": schedule, "scaler": scaler, "method": method}
    if distributed.is_main():  # the state before and after an epoch, and the result
        weights = sum(value.nbytes for value in student.state_dict().values())
        files.require_space(run.resume, STATE_WEIGHTS * weights)
    past = load_state(file, shared, parts, device)
    distributed.agree(past["epoch"] if past else 0, "epochs to continue after")
    if past:
        distributed.say(f"{run.name}: continuing after epoch {past['epoch']} of {phase.epochs}.")
    else:
        past = {"epoch": 0, "log": [], "trace": [], "made": {}, "prepared": 0.0, "seconds": 0.0}
        past |= {"curve": [], "cosines": []}
        if teacher is not None:
            clock = time.perf_counter()
            with torch.no_grad(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
                cache = None if options.workers else loader.dataset.cache  # shared within one process only
                prepare_method(method, run, index, teacher, batches, cache)
            past["seconds"] = past["prepared"] = time.perf_counter() - clock
            if past["prepared"] > 0.1:  # a pass over the data, not nothing
                distributed.say(f"{run.name}: prepared from the step's images; {past['prepared']:.1f} s")
            if index.holdout and type(method).labels is not Method.labels:
                past["made"] = judge_labels(run, {"method": method}, teacher, map(batches.hide, holdout))
    first, log, trace = past["epoch"], past["log"], past["trace"]

    def look(epochs: float) -> None:
        past["cosines"].append((epochs, token_cosines(student, len(batches.new_classes))))
        if index.holdout:
            past["curve"].append((epochs, evaluate(run, student, holdout)))

    if not past["cosines"]:
        look(0.0)
    marks = {max(1, round(point * updates)) for point in options.curve}  # updates after which the network is looked at
    watch = Watch(run.name)

    with Progress(run.name, phase.epochs, updates, first, enabled=distributed.is_main()) as progress:
        for epoch in range(first, phase.epochs):
            torch.manual_seed(stable_seed("epoch", run.seed, run.step, epoch, distributed.rank()))
            clock, done = time.perf_counter(), epoch * updates
            for k, batch in enumerate(batches.read(loader, epoch), start=1):
                completes = k % per_update == 0  # an update; until then DDP need not average the gradients
                if distributed.world() > 1:
                    forward.require_backward_grad_sync = completes
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    with torch.no_grad():
                        old = teacher(batch.images) if teacher is not None else None
                    new = forward(batch.images)
                if old is not None:
                    batch.labels = method.labels(batch, old)
                losses = method.losses(new, old, batch)
                if old is not None:
                    batch.log_gradients(new)
                scaler.scale(sum(losses.values()) / per_update).backward()
                watch.see(losses, batch.ids, batch.logs)
                if completes:
                    scale = scaler.get_scale()
                    scaler.step(optimiser)
                    scaler.update()
                    optimiser.zero_grad(set_to_none=True)
                    # float16: gradients that overflow give no update, but a lower scale
                    if scaler.get_scale() >= scale:
                        schedule.step()
                    progress.update()
                    done += 1
                    if done in marks and done % updates:
                        look(done / updates)
            means, rows = watch.epoch(student)
            trace.append(rows)
            seconds = time.perf_counter() - clock
            past["seconds"] += seconds
            log.append({"epoch": epoch + 1, "updates": done, "lr": schedule.get_last_lr()[-1], **means})
            if (epoch + 1) % options.curve_every == 0 or epoch + 1 == phase.epochs or done in marks:
                look(float(epoch + 1))
            past["epoch"] = epoch + 1
            if distributed.is_main():
                save_state(file, shared, parts, past)
            progress.epoch(log[-1], seconds)  # said when it is kept

    # --- the last epoch is the result: nothing is selected on the reported images
    method.after_step(student)
    scored = index.validation[-1 if run.joint else run.step]
    confusion = evaluate(run, student, evaluation_loader(run.settings, index, "val", scored, truth))
    samples = predict_samples(run, student, index)
    if distributed.is_main():
        wall = time.perf_counter() - started
        record = Record(
            log=log,
            curve=past["curve"],
            cosines=past["cosines"],
            trace=trace,
            labels=past["made"],
            confusion=confusion,
            samples=samples,
            seconds=past["seconds"],
            preparation_seconds=past["prepared"],
            wall=wall,
            precision=precision,
        )
        write(run, student, identity, index, record)
    distributed.barrier()


def predecessor(run: Run) -> Path | None:
    return run.folder.with_name(run.after) / "weights.safetensors" if run.after else None


def _require_current(run: Run, index: Index, stored: dict) -> None:
    """Raises CheckpointError for a predecessor that was trained with other values than are there now: the result would
    name values that its teacher did not have. `stored`: the description in the predecessor's checkpoint."""
    before = run.before
    different = before.differences(stored)
    file, earlier = predecessor(run), predecessor(before)
    if not different and weights_of(before) == file_hash(file):  # else these results are of others
        there = earlier is None or earlier.is_file()
        wanted = before.identity(index.fingerprint, runs_results.file_hash(earlier) if earlier and there else None)
        kinds = ("code", "data", "teacher") if there else ("code", "data")
        different = [line for line in outdated(before, wanted) if line.startswith(kinds)]
    if different:
        raise CheckpointError(
            f"{file}: {before.name} was trained with other values ({'; '.join(different)}). "
            f"Train it again first: dvc repro, or ciss train {before.name}"
        )


def _lone_image(run: Run, images: int) -> str:
    name, layer = (
        "increment" if run.after else "base",
        runs_run.needs_two_images(run.settings.model, run.settings.train.crop),
    )
    across = f" in {distributed.world()} processes" if distributed.world() > 1 else ""
    return (
        f"{run.name}: step {run.step} has {images} training image(s), and with train.batch {run.settings.train.batch}"
        f"{across} a batch of one image, which has no batch statistics in {layer}. "
        f"Set benchmarks.{run.benchmark}.train.{name}.norm: frozen, or change train.batch."
    )


def _identity(run: Run, index: Index) -> dict:
    """What a finished or stopped training must share to count as this one."""
    file = predecessor(run)
    return run.identity(index.fingerprint, runs_results.file_hash(file) if file else None)


@contextmanager
def _memory(run: Run) -> Iterator[None]:
    """Says what to do when there is no memory left."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", reason):
            raise
        raise MemoryShort(
            f"{run.name}: no memory left ({reason[:200]}). The last finished epoch is kept. Free some and run the same "
            "command again; or lower train.batch and raise train.accumulate, which starts the run anew."
        ) from None


def _trainable(method: Method, student: Network, run: Run) -> list[nn.Parameter]:
    """Everything at the base step; in an increment what the method says. Modules that do not learn evaluate."""
    parameters = list(method.trainable(student) if run.after else student.parameters())
    chosen = {id(p) for p in parameters}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    for module in student.modules():  # dropout and drop path of what does not learn would still change its features
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
    return parameters


def _optimiser(parameters: list[nn.Parameter], student: Network, phase: Phase, options: Train) -> torch.optim.SGD:
    """The encoder may learn at a pace of its own."""
    inside = {id(p) for p in student.encoder.parameters()}
    encoder, rest = ([p for p in parameters if (id(p) in inside) == own] for own in (True, False))
    return torch.optim.SGD(
        [{"params": encoder, "lr": phase.lr * options.encoder_lr}, {"params": rest}],
        lr=phase.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
        weight_decay=options.weight_decay,
    )


def _schedule(optimiser: torch.optim.Optimizer, total: int, options: Train) -> torch.optim.lr_scheduler.LambdaLR:
    """By update k of `total`: constant, or poly: lr_k = lr (1 - k / total)^power."""
    poly = options.schedule == "poly"
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: (1 - k / total) ** options.power if poly else 1.0)


def main(name: str, config_file: str) -> None:
    """Trains one run of a parameter file. Exits with a message where it fails, and with 130 after Ctrl-C."""
    try:
        with distributed.session():
            settings = config.load(config_file)
            check(settings)
            train(runs_run.resolve(settings, name))
    except RUN_ERRORS as error:
        distributed.leave(f"error: {error}")
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nStopped. The same command goes on after the last finished epoch.", file=sys.stderr, flush=True)
        for loader in multiprocessing.active_children():
            loader.terminate()
        os._exit(130)  # all is written and unlocked; taking torch down would keep the terminal waiting
    except Exception:  # whole and once, where several processes write to one terminal
        distributed.leave(traceback.format_exc())
