"""The training loop of one run, in plain sight.

    python -m ciss.engine RUN                                  # one process
    torchrun --standalone --nproc-per-node 2 -m ciss.engine RUN  # several

A run reads the checkpoint of the run it continues `after`, trains, and leaves `runs/<benchmark>/<run>/` (weights,
losses) and `results/<benchmark>/<run>/` (scores, confusion matrices, curves, sample predictions).
"""

import argparse
import copy
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ciss import checkpoint, config, distributed, metrics, protocol, results, runs
from ciss.checkpoint import CheckpointError, Locked
from ciss.config import Config, ConfigError, Train
from ciss.data import DataError, Index, Loader, evaluation_loader, normalise, prepare, training_loader
from ciss.data.loaders import stable_seed
from ciss.methods import Batch, Method
from ciss.models import Network, WeightsError, set_norm_mode
from ciss.progress import Progress
from ciss.runs import Run

CHECK_EVERY = 50  # updates between two looks at the losses: looking waits for the device

USER_ERRORS = (ConfigError, DataError, CheckpointError, WeightsError, Locked, FileNotFoundError, ValueError)


class DivergenceError(Exception):
    """A loss that is not a finite number; the message gives the terms and the images."""


def train(run: Run) -> Path:
    """Trains a run, or continues it where it stopped. Returns its folder.

    Raises: DivergenceError for a loss that is not finite (the last good epoch is kept), Locked when another process
    trains this run, CheckpointError for a missing or foreign predecessor, DataError for changed or broken data.
    """
    with distributed.session():
        index = run.index()
        predecessor = run.folder.with_name(run.after) / "weights.safetensors" if run.after else None
        key = run.key(index.fingerprint, results.file_hash(predecessor) if predecessor else None)
        if results.finished(run, key):
            print(f"{run.name}: trained already with these parameters, code and data; nothing to do.")
            return run.folder
        if not distributed.is_main():
            return _train(run, index, predecessor, key)
        with checkpoint.exclusive(run.resume / "lock", run.name):
            return _train(run, index, predecessor, key)


def complete(settings: Config, names: Iterable[str] | None = None) -> None:
    """Prepares data and trains runs that are missing, with what they continue, if the file says `complete: true`.

    `names`: default all runs. Without `complete`, the caller's reading names what is missing.
    """
    if not settings.complete:
        return
    every = settings.runs()
    for name in every if names is None else names:
        run = runs.resolve(settings, name)
        if run.after:
            complete(settings, [run.after])
        if not (run.results / "result.json").is_file() or not (run.folder / "weights.safetensors").is_file():
            folder = runs.index_folder(run.root, run.benchmark)
            if not (folder / "index.json").is_file():
                prepare(run.settings, folder, progress=False)
            train(run)


def _train(run: Run, index: Index, predecessor: Path | None, key: str) -> Path:
    options, phase, started = run.settings.train, run.phase, time.perf_counter()
    torch.set_num_threads(options.threads)
    torch.manual_seed(stable_seed("weights", run.seed, run.reached))
    device, method = distributed.device(), run.build_method()

    # --- networks: the teacher is the predecessor; the student starts as its copy, grown by the new classes
    teacher, student = None, run.build_network(run.step - 1 if run.after else None)
    if predecessor:
        checkpoint.restore(student, predecessor)
        teacher = copy.deepcopy(student).to(device).eval().requires_grad_(False)
        method.initialise(student, len(run.groups[run.step]))
    student = set_norm_mode(student.to(device), phase.norm)
    if options.channels_last:
        student.to(memory_format=torch.channels_last)
        teacher = teacher and teacher.to(memory_format=torch.channels_last)

    # --- data: labels as this step sees them; curves on the hold-out with all labels
    table = run.label_table(training=True)
    loader = training_loader(run.settings, index, run.images(index), table, stable_seed("data", run.seed, run.step))
    batches = BatchMaker(run, index, teacher, device)
    if teacher is not None:
        method.before_step(batches.read(loader, epoch=0), teacher)

    # --- optimiser and schedule, per update
    parameters = _trainable(method, student, run)
    encoder = [p for p in student.encoder.parameters() if p.requires_grad]
    inside = {id(p) for p in encoder}
    optimiser = torch.optim.SGD(
        [
            {"params": encoder, "lr": phase.lr * options.encoder_lr},
            {"params": [p for p in parameters if id(p) not in inside]},
        ],
        lr=phase.lr,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
        weight_decay=options.weight_decay,
    )
    updates = max(1, len(loader) // options.accumulate)
    total = updates * phase.epochs
    # poly: lr_k = lr (1 - k / total)^power
    poly = options.schedule == "poly"
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: (1 - k / total) ** options.power if poly else 1.0)
    precision = _precision(options, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    forward = torch.compile(student) if options.compile else student
    if distributed.world() > 1:
        forward = DistributedDataParallel(forward)

    # --- go on where a stopped training left off
    first, log, curve, spent = 0, [], [], 0.0
    state = checkpoint.load_state(run.resume / "state.pt", key)
    if state:
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        scaler.load_state_dict(state["scaler"])
        first, log, curve, spent = state["epoch"], state["log"], state["curve"], state["seconds"]
        print(f"{run.name}: continuing after epoch {first} of {phase.epochs}.")

    watch = Watch()
    truth = run.label_table(training=False)
    holdout = evaluation_loader(run.settings, index, "train", index.holdout, truth)
    marks = {round(share * updates) for share in options.curve if share < 1}

    def score_holdout(epochs: float) -> None:
        if index.holdout:
            curve.append((epochs, evaluate(run, student, holdout)))
            set_norm_mode(student, phase.norm)

    if not curve:
        score_holdout(0.0)

    with Progress(run.name, phase.epochs, updates, first, enabled=distributed.is_main()) as progress:
        for epoch in range(first, phase.epochs):
            torch.manual_seed(stable_seed("epoch", run.seed, run.step, epoch))
            clock = time.perf_counter()
            for k, batch in enumerate(batches.read(loader, epoch)):
                if k >= updates * options.accumulate:
                    break  # an epoch shorter than one update's worth of batches
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    with torch.no_grad():
                        old = teacher(batch.images) if teacher is not None else None
                    new = forward(batch.images)
                if old is not None:
                    batch.labels = method.labels(batch, old)
                losses = method.losses(new, old, batch)
                scaler.scale(sum(losses.values()) / options.accumulate).backward()
                watch.see(losses, batch.ids)
                if (k + 1) % options.accumulate == 0:
                    scaler.step(optimiser)
                    scaler.update()
                    optimiser.zero_grad(set_to_none=True)
                    schedule.step()
                    progress.update()
                    if epoch == 0 and (k + 1) // options.accumulate in marks:
                        score_holdout((k + 1) / options.accumulate / updates)
            means = watch.epoch()
            seconds = time.perf_counter() - clock
            log.append(
                {"epoch": epoch + 1, "updates": (epoch + 1) * updates, "lr": schedule.get_last_lr()[-1], **means}
            )
            progress.epoch(log[-1], seconds)
            score_holdout(float(epoch + 1))
            if distributed.is_main():
                spent += seconds
                state = {
                    "key": key,
                    "epoch": epoch + 1,
                    "student": student.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "scaler": scaler.state_dict(),
                    "log": log,
                    "curve": curve,
                    "seconds": spent,
                }
                checkpoint.save_state(run.resume / "state.pt", state)

    # --- the last epoch is the result: nothing is selected on the reported images
    method.after_step(student)
    everything = list(range(len(index.ids["val"])))
    confusion = evaluate(run, student, evaluation_loader(run.settings, index, "val", everything, truth))
    samples = predict_samples(run, student, index)
    if distributed.is_main():
        wall = time.perf_counter() - started
        results.write(run, student, key, index, log, curve, confusion, samples, spent, wall)
    distributed.barrier()
    return run.folder


class BatchMaker:
    """Turns a loader's bytes into what methods see, on the device."""

    def __init__(self, run: Run, index: Index, teacher: Network | None, device: torch.device):
        steps = torch.as_tensor(protocol.class_steps(run.groups[: run.reached + 1]), dtype=torch.int64)
        self.class_steps = (torch.zeros_like(steps) if run.joint else steps).to(device)
        first = sum(run.channel_groups[:-1]) if run.after else 1
        self.new_classes = torch.arange(first, sum(run.channel_groups), device=device)
        self.old_channels = first if teacher is not None else 0
        self.ids, self.device, self.channels_last = index.ids["train"], device, run.settings.train.channels_last

    def read(self, loader: Loader, epoch: int) -> Iterator[Batch]:
        loader.batch_sampler.epoch = epoch
        for images, labels, numbers in loader:
            labels = labels.to(self.device, non_blocking=True).long()
            yield Batch(
                images=normalise(images, self.device, self.channels_last),
                given=labels,
                labels=labels,
                ids=[self.ids[n] for n in numbers.tolist()],
                old_channels=self.old_channels,
                class_steps=self.class_steps,
                new_classes=self.new_classes,
            )


class Watch:
    """Collects the losses on the device and looks at them now and then."""

    def __init__(self):
        self.terms: list[Tensor] = []
        self.ids: list[list[str]] = []
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.count = 0

    def see(self, losses: dict[str, Tensor], ids: list[str]) -> None:
        self.names = list(losses)
        self.terms.append(torch.stack([value.detach().float() for value in losses.values()]))
        self.ids.append(ids)
        if len(self.terms) >= CHECK_EVERY:
            self.look()

    def look(self) -> None:
        """Raises DivergenceError for the first batch with a loss that is not finite."""
        if not self.terms:
            return
        terms = torch.stack(self.terms).cpu()
        bad = (~terms.isfinite()).any(dim=1).nonzero()
        if len(bad):
            values = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.names, terms[bad[0, 0]].tolist(), strict=True))
            raise DivergenceError(
                f"the loss is not finite after {self.count + int(bad[0, 0]) + 1} batches of this epoch: {values}. "
                f"Images: {', '.join(self.ids[bad[0, 0]])}. The last finished epoch is kept. "
                "Lower train.*.lr, or look at these images."
            )
        self.sums = terms.double().sum(0) if self.sums is None else self.sums + terms.double().sum(0)
        self.count += len(terms)
        self.terms, self.ids = [], []

    def epoch(self) -> dict[str, float]:
        """Means of the epoch, and a fresh start."""
        self.look()
        means = (self.sums / self.count).tolist()
        self.sums, self.count = None, 0
        return {"loss": sum(means), **{f"loss/{name}": value for name, value in zip(self.names, means, strict=True)}}


@torch.inference_mode()
def evaluate(run: Run, network: Network, loader: Loader) -> Tensor:
    """Confusion matrix (T,T) int64 over all classes of the benchmark, rows truth: future classes have rows only."""
    classes = 1 + sum(len(group) for group in run.groups)
    total = torch.zeros(classes, classes, dtype=torch.int64, device=next(network.parameters()).device)
    for labels, predictions, _ in _predict(run, network, loader):
        total += metrics.confusion_matrix(labels, predictions, classes)
    return distributed.all_sum(total).cpu()


@torch.inference_mode()
def predict_samples(run: Run, network: Network, index: Index) -> dict[str, np.ndarray]:
    """Predictions (H,W) uint8 as positions for the first validation images, by image id."""
    images = sample_images(run, index)
    loader = evaluation_loader(run.settings, index, "val", images, run.label_table(training=False))
    found = {}
    for _, predictions, numbers in _predict(run, network, loader):
        for prediction, number in zip(predictions.to(torch.uint8).cpu().numpy(), numbers.tolist(), strict=True):
            found[index.ids["val"][number]] = prediction
    return found


def sample_images(run: Run, index: Index) -> list[int]:
    """Validation images for the figures: those with most of the benchmark's classes, so that steps can be compared."""
    known = {c for group in run.groups for c in group}
    wealth = [-len(known & set(present)) for present in index.classes["val"]]
    return sorted(np.argsort(wealth, kind="stable")[: run.settings.evaluation.samples].tolist())


def _predict(run: Run, network: Network, loader: Loader):
    """Labels and predictions (B,H,W) and image numbers, batch by batch; leaves the network in evaluation mode."""
    network.eval()
    options, device = run.settings.train, next(network.parameters()).device
    precision = _precision(options, device)
    for images, labels, numbers in loader:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            output = network(normalise(images, device, options.channels_last))
        yield labels.to(device).long(), output.upsample(labels.shape[-2:]).argmax(dim=1), numbers


def _precision(options: Train, device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU has it; the CPU trains in float32 unless told otherwise."""
    if options.precision != "auto":
        return getattr(torch, options.precision)
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _trainable(method: Method, student: Network, run: Run) -> list[nn.Parameter]:
    """Everything at the base step; in an increment what the method says."""
    parameters = list(method.trainable(student) if run.after else student.parameters())
    chosen = {id(p) for p in parameters}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return parameters


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ciss.engine", description="Train one run of a parameter file.")
    parser.add_argument("run", help="a name under bases, joints or chain")
    parser.add_argument(
        "--config", default="params.yaml", help="parameter file, relative to the project (default: %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config)
        runs.check(settings)
        train(runs.resolve(settings, arguments.run))
    except (*USER_ERRORS, DivergenceError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished epoch.")


if __name__ == "__main__":
    main()
