"""The training loop of one run, from the first line to the last.

    ciss train RUN                                                    # one process
    torchrun --standalone --nproc-per-node 2 -m ciss train RUN        # several processes

A run starts from the checkpoint of the run named in `after`. It writes `runs/<benchmark>/<run>/` (weights, losses) and
`results/<benchmark>/<run>/` (scores, confusion matrices, curves, sample predictions).

With several processes, each sees its share of every batch. With `accumulate`, an update has several batches.
Losses are means over the whole update, all batches and processes included: see `Method.normalisers`.
"""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ciss import config, distributed
from ciss.config import Config, ConfigError
from ciss.data import DataError, Index, prepare
from ciss.data.loaders import Loader, evaluation_loader, stable_seed, training_loader
from ciss.methods import Batch, Method
from ciss.models import Network, Output, WeightsError, set_norm_mode
from ciss.runs import results as runs_results
from ciss.runs.check import check
from ciss.runs.results import finished, keep, recover, write
from ciss.runs.run import Run, index_folder, load_network, predecessor, resolve, starting_network
from ciss.runs.state import TrainingState
from ciss.store import files
from ciss.store.files import CheckpointError, Locked
from ciss.store.weights import STATE_WEIGHTS, forget_state, load_state, save_state
from ciss.training import checks
from ciss.training.batches import BatchMaker, loss_weights, prepare_method, without_large_cache
from ciss.training.checks import MemoryShort, require_current, training_identity
from ciss.training.curves import Curves
from ciss.training.evaluation import autocast, evaluate, judge_labels, precision_of, predict_samples, token_cosines
from ciss.training.instructions import set_processor
from ciss.training.log import DivergenceError, LossLog
from ciss.training.memory import choose_stored, count_draws, stored_of, use_stored
from ciss.training.meter import Meter
from ciss.training.optimisation import CountingSchedule, GuardedSGD, choose_trainable, make_optimiser, make_schedule
from ciss.training.usage import Usage

STATE = "state.safetensors"  # in a run's folder `resume`
# Errors whose message is enough for the user: no traceback is shown.
USER_ERRORS = (ConfigError, DataError, CheckpointError, WeightsError, Locked, OSError, ValueError)
RUN_ERRORS = (*USER_ERRORS, DivergenceError, MemoryShort, distributed.Lost, distributed.WorkerError)


def train(run: Run) -> Path:
    """Trains a run, or continues it where it stopped. Returns its folder.

    Raises:
        DivergenceError: a loss or a weight is not finite. The last finished epoch is kept.
        Locked: another process trains this run.
        CheckpointError: the run to start from is missing, damaged or outdated.
        DataError: the data changed or are damaged, or a batch of one image cannot be normalised.
        ConfigError, WeightsError: a setting does not work on this machine; the encoder's weights are missing or wrong.
        DiskFull, MemoryShort: the machine lacks space or memory.
        WorkerError, Lost, Disagreement: a process of the training failed, ended, or has other values than the others.
    """
    processes = run.settings.train.processes
    if processes > 1 and not distributed.under_torchrun():
        distributed.launch(processes, "ciss", "train", run.name, "--config", run.config)
        return run.folder
    with distributed.session():
        checks.require_processes(run)
        index = run.index()
        if run.after:  # checked together: an error on one node alone would leave the others waiting
            distributed.check_equal(predecessor(run).is_file(), f"{predecessor(run).relative_to(run.root)} is there")
        identity = training_identity(run, index)
        distributed.check_equal(identity, run.name)
        lock = files.exclusive(run.resume / "lock", run.name) if distributed.is_main() else nullcontext()
        with lock, checks.explained_memory_errors(run):
            if distributed.broadcast_result(lambda: finished(run, identity) or recover(run, identity)):
                distributed.log(f"{run.name}: trained already with these parameters, code and data; nothing to do.")
            else:
                if different := runs_results.outdated(run, identity):
                    distributed.log(f"{run.name}: trained before with other values ({'; '.join(different)}); again.")
                run_training(run, index, identity)
            if distributed.is_main():
                keep(run, identity)
                forget_state(run.resume / STATE)
    return run.folder


def run_training(run: Run, index: Index, identity: dict) -> None:
    """Trains one run and writes its results, in four parts: prepare, resume, one epoch at a time, finish."""
    usage = Usage()
    setup = prepare_training(run, index)
    file = run.resume / STATE
    shared = {**identity, "processes": distributed.world(), "listing": run.training_code().listing()}
    state = resume(setup, file, shared)
    log = LossLog(run.name)
    with Curves(run, index, setup.student, setup.updates, state) as curves:
        while state.epoch < run.epochs:
            seconds = train_epoch(setup, state, log, curves)
            if distributed.is_main():
                save_state(file, shared, setup.stateful(), vars(state))
            curves.epoch(state, seconds)  # after saving: an epoch that is shown can be resumed
        finish(setup, state)
        if distributed.is_main():
            vars(state).update(usage.read())
            write(run, setup.student, identity, index, state)
        curves.finish(state)
    distributed.barrier()


# --- Part 1: prepare. Networks, data and optimiser are built the same way for a new and for a resumed training.


@dataclass
class Setup:
    """The objects that a training uses. They do not change, except the state of those in `stateful`."""

    run: Run
    index: Index
    device: torch.device
    precision: torch.dtype
    method: Method
    teacher: Network | None  # the predecessor's network, frozen; None where the method uses none
    student: Network
    student_for_training: nn.Module  # the student, compiled or distributed
    loader: Loader  # training batches, labels as this step sees them
    holdout: Loader  # hold-out images with the labels of all classes
    batches: BatchMaker
    per_update: int  # batches of this process in one update
    updates: int  # in one epoch
    optimiser: GuardedSGD
    schedule: torch.optim.lr_scheduler.LRScheduler | CountingSchedule
    scaler: torch.amp.GradScaler

    def autocast(self) -> torch.autocast:
        """The precision of forward passes. Losses are computed outside of this context, in float32."""
        return autocast(self.device, self.precision)

    def stateful(self) -> dict[str, Any]:
        """The objects whose state is saved beside `TrainingState`, by name."""
        return {name: getattr(self, name) for name in ("student", "optimiser", "schedule", "scaler", "method")}


def prepare_training(run: Run, index: Index) -> Setup:
    """Builds networks, loaders, optimiser and schedule.

    Raises:
        CheckpointError: the run to start from is missing, damaged or outdated.
        ConfigError, DataError, WeightsError: see `train`.
    """
    options = run.settings.train
    device = distributed.device()
    method = run.build_method()
    precision = precision_of(options, device)
    set_processor(options, device)
    if run.after and (notice := method.notice(run.settings)):
        distributed.log(f"{run.name}: {notice}.")

    teacher = None
    if run.after:
        require_current(run, index)
        if method.uses_teacher:
            teacher = load_network(run.before, device, reader=run)
    student = starting_network(run, method)
    student = set_norm_mode(student.to(device), run.phase.norm)
    parameters = choose_trainable(method, student, run)
    if options.channels_last:
        student.to(memory_format=torch.channels_last)
        if teacher is not None:
            teacher.to(memory_format=torch.channels_last)

    run = without_large_cache(run, index)
    seed = stable_seed("data", run.seed, run.step)
    table = run.label_table(training=True)
    stored = stored_of(run, index)
    loader = training_loader(run.settings, index, run.images(index), table, seed, method.reads_saliency, stored)
    checks.require_batch_statistics(run, len(run.images(index)), loader.batch_sampler.smallest)

    # If an epoch has fewer batches than `accumulate`, it is one update.
    per_update = min(options.accumulate, len(loader))
    updates = len(loader) // per_update
    scaled = precision == torch.float16
    optimiser = make_optimiser(parameters, student, run.phase, options)
    compiled = torch.compile(student) if options.compile else student
    return Setup(
        run=run,
        index=index,
        device=device,
        precision=precision,
        method=method,
        teacher=teacher,
        student=student,
        student_for_training=DistributedDataParallel(compiled) if distributed.world() > 1 and run.epochs else compiled,
        loader=loader,
        holdout=evaluation_loader(run.settings, index, "train", index.holdout, run.label_table(training=False)),
        batches=BatchMaker(run, index, device),
        per_update=per_update,
        updates=updates,
        optimiser=optimiser,
        schedule=make_schedule(optimiser, updates * run.epochs, options, skips=scaled),
        scaler=torch.amp.GradScaler(device.type, enabled=scaled),
    )


# --- Part 2: resume. Continue after the last finished epoch. Otherwise prepare the method and score the student once.


def resume(setup: Setup, file: Path, shared: dict) -> TrainingState:
    """Restores a stopped training, or begins a new one. Returns its state.

    Args:
        file: the saved state.
        shared: values that the stopped training must have in common with this one.
    """
    run = setup.run
    if distributed.is_main():  # space for two states (the new one replaces the old one when it is complete) and results
        weights = sum(value.nbytes for value in setup.student.state_dict().values())
        files.require_space(run.resume, STATE_WEIGHTS * weights)
    values = load_state(file, shared, setup.stateful(), setup.device, partial(runs_results.differences, run))
    distributed.check_equal(values["epoch"] if values else 0, "epochs to continue after")
    if values:
        distributed.log(f"{run.name}: continuing after epoch {values['epoch']} of {run.epochs}.")
        return use_stored(setup.loader.batch_sampler, setup.index, TrainingState(**values))
    state = TrainingState()
    if run.after:
        prepare_step(setup, state)
    score_holdout(setup, state, 0.0)
    return state


def prepare_step(setup: Setup, state: TrainingState) -> None:
    """Chooses stored images, calls `start` and `before_step`, and scores pseudo-labels on the hold-out set."""
    clock = time.perf_counter()
    # Only loaders in this process can share the decoded images with the training.
    cache = None if setup.loader.num_workers else setup.loader.dataset.cache
    with torch.no_grad(), setup.autocast():
        choose_stored(setup.method, setup.run, setup.index, setup.teacher, setup.batches, state)
        prepare_method(setup.method, setup.run, setup.index, setup.teacher, setup.batches, cache, setup.student)
    use_stored(setup.loader.batch_sampler, setup.index, state)
    state.training_seconds = state.preparation_seconds = time.perf_counter() - clock
    if state.preparation_seconds > 0.1:  # a pass over the data
        distributed.log(f"{setup.run.name}: prepared from the step's images; {state.preparation_seconds:.1f} s")
    if setup.index.holdout and setup.teacher is not None and type(setup.method).labels is not Method.labels:
        pairs = map(setup.batches.as_given, setup.holdout)
        state.label_counts = judge_labels(setup.run, {"method": setup.method}, setup.teacher, pairs)


def score_holdout(setup: Setup, state: TrainingState, epochs: float) -> None:
    """Adds a point to the curves: confusion matrix and cosines of class tokens after `epochs` epochs of this step."""
    state.cosines.append((epochs, token_cosines(setup.student, len(setup.batches.new_classes))))
    if setup.index.holdout:
        state.curve.append((epochs, evaluate(setup.run, setup.student, setup.holdout)))


# --- Part 3: one epoch.


def train_epoch(setup: Setup, state: TrainingState, log: LossLog, curves: Curves) -> float:
    """Trains for one epoch and adds it to the state. Returns its seconds without scoring."""
    run = setup.run
    options = run.settings.train
    torch.manual_seed(stable_seed("epoch", run.seed, run.step, state.epoch, distributed.rank()))
    # The hold-out is scored after these updates. Points are in epochs.
    scored = {max(1, round(point * setup.updates)) for point in options.curve}
    done = state.epoch * setup.updates
    meter = Meter(setup.device)
    meter.start()
    batches = setup.batches.read(setup.loader, state.epoch)
    for update in zip(*[batches] * setup.per_update, strict=True):  # groups of `per_update` batches from one iterator
        rate = setup.schedule.get_last_lr()[-1]  # before the schedule goes on to the next update's
        train_update(setup, update, log)
        curves.update()
        done += 1
        if done in scored and done % setup.updates:
            with meter.paused():
                score_holdout(setup, state, done / setup.updates)
    means, rows = log.epoch_means(setup.student)
    meter.stop()
    state.epoch += 1
    state.training_seconds += meter.seconds
    if meter.peak_bytes is not None:
        state.peak_memory_bytes = max(state.peak_memory_bytes or 0, meter.peak_bytes)
    state.trace.append(rows)
    state.log.append({"epoch": state.epoch, "updates": done, "lr": float(rate), **means})
    if state.epoch % options.curve_every == 0 or state.epoch == run.epochs or done in scored:
        score_holdout(setup, state, float(state.epoch))
    return meter.seconds


def train_update(setup: Setup, batches: Sequence[Batch], log: LossLog) -> None:
    """One update of the weights. The batches of all processes count as one large batch."""
    teacher_outputs = [label_batch(setup, batch) for batch in batches]
    weights = loss_weights(setup.method, teacher_outputs, batches)
    broken_batches = torch.zeros((), device=setup.device)  # number of batches with a loss that is not finite
    for number, (batch, teacher_output) in enumerate(zip(batches, teacher_outputs, strict=True)):
        if distributed.world() > 1:  # average gradients over processes once, in the last batch
            setup.student_for_training.require_backward_grad_sync = number == len(batches) - 1
        with setup.autocast():
            student_output = setup.student_for_training(batch.images)
        losses = setup.method.losses(student_output, teacher_output, batch)
        if weights is not None:
            losses = weights[number].apply(losses)
        if setup.run.after and setup.method.softmax:
            batch.log_gradients(student_output)
        total = sum(losses.values())
        setup.scaler.scale(total / len(batches)).backward()
        broken_batches += ~torch.stack([value.detach() for value in losses.values()]).isfinite().all()
        log.add(losses, batch.ids, batch.logs)
    # float16: where gradients overflow, the update is skipped and the scaler lowers its scale. The schedule then waits.
    setup.scaler.unscale_(setup.optimiser)
    # If a loss is not finite, every process skips the update. The next check of the log ends the training.
    setup.scaler.step(setup.optimiser, distributed.all_sum(broken_batches) == 0)
    setup.scaler.update()
    setup.optimiser.zero_grad(set_to_none=True)
    setup.schedule.step()


def label_batch(setup: Setup, batch: Batch) -> Output | None:
    """Runs the teacher and sets `batch.labels` to the labels that the method learns. Returns the teacher's output."""
    if setup.teacher is None:
        return None
    with torch.no_grad(), setup.autocast():
        output = setup.teacher(batch.images)
    batch.labels = setup.method.labels(batch, output)
    # Outputs of a whole update are in memory at the same time: drop the full-resolution maps.
    return output if setup.per_update == 1 else output.without_cache()


# --- Part 4: finish. The weights of the last epoch are the result. No epoch is selected on the validation images.


def finish(setup: Setup, state: TrainingState) -> None:
    """Calls `after_step`, scores the student on the validation images, and predicts samples. Fills in the state."""
    run = setup.run
    if run.after:
        setup.method.after_step(setup.student)
    images = setup.index.validation[-1 if run.joint else run.step]
    loader = evaluation_loader(run.settings, setup.index, "val", images, run.label_table(training=False))
    state.confusion = evaluate(run, setup.student, loader)
    state.samples = predict_samples(run, setup.student, setup.index)
    state.draws = count_draws(setup.loader.batch_sampler, state.epoch)
    state.precision = str(setup.precision).removeprefix("torch.")


# --- Several runs, and the command.


def complete(settings: Config, names: Iterable[str] | None = None) -> None:
    """Calls `train_all` if the parameter file has `complete: true`. Otherwise readers report missing runs."""
    if settings.complete:
        train_all(settings, names)


def train_all(settings: Config, names: Iterable[str] | None = None) -> None:
    """Prepares the data and trains missing and outdated runs, predecessors first.

    Args:
        names: runs to train with all their predecessors; None: all runs.
    """
    jobs: list[Run] = []
    for name in settings.runs() if names is None else names:
        path = [resolve(settings, name)]
        while path[0].before:
            path.insert(0, path[0].before)
        jobs += [job for job in path if job not in jobs]
    for benchmark in dict.fromkeys(job.benchmark for job in jobs):
        prepare(settings.benchmarks[benchmark], index_folder(jobs[0].root, benchmark), progress=False)
    for job in jobs:
        identity = training_identity(job, job.index())
        if not distributed.broadcast_result(lambda job=job, identity=identity: finished(job, identity)):
            train(job)


def main(name: str, config_file: str) -> None:
    """Trains one run of a parameter file. Exits with a message after an error, and with 130 after Ctrl-C."""
    try:
        with distributed.session():
            settings = config.load(config_file)
            check(settings)
            train(resolve(settings, name))
    except RUN_ERRORS as error:
        distributed.exit_process(f"error: {error}")
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nStopped. The same command goes on after the last finished epoch.", file=sys.stderr, flush=True)
        for loader in multiprocessing.active_children():
            loader.terminate()
        os._exit(130)  # everything is written and unlocked; the normal exit of torch would take seconds
    except Exception:  # the whole traceback in one piece, although several processes write to one terminal
        distributed.exit_process(traceback.format_exc())
