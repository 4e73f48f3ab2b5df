"""A process of `ciss bench`: measures the training step of one case on command.

It reads a case (JSON) from the first line of its standard input, then one command a line, and answers each line with
one line of JSON: `{"error": TEXT}`, or for the case what was built, and for a command what was measured.

`--vs` runs this file with the code of another commit. It therefore imports nothing of its own folder, and only what
has long been there: the training itself, `ciss.training.loop`.
"""

import ctypes
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import Tensor

from ciss import config
from ciss.data import prepare
from ciss.documents import read_yaml
from ciss.losses import cross_entropy
from ciss.methods import METHODS, Batch, Method, code_of, method_class
from ciss.methods.base import coefficients
from ciss.models import Output
from ciss.runs.run import Run, classes_of, index_folder, predecessor, resolve
from ciss.runs.state import TrainingState
from ciss.runs.timings import device_name
from ciss.store.weights import save_weights
from ciss.training.log import LossLog
from ciss.training.loop import Setup, prepare_step, prepare_training, train_update
from ciss.training.meter import read_peak, reset_peak

DATASET = "drawn"
EPOCHS = 1_000_000  # the schedule never ends
CELLS = 6  # a drawn image has 6 x 6 cells
UNMARKED = 10  # updates on a GPU that are timed together, without waiting between their parts


@coefficients
class Bare(Method):
    """Teacher, student and plain cross-entropy: what every method with a teacher costs at least."""

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(student.upsample(batch.size), batch.labels)}


# --- the benchmark of a case: drawn images, a network with random weights, one incremental step


def document(case: dict) -> dict:
    """A parameter document whose last run is the incremental step of a case. Raises ConfigError.

    Args:
        case: see `command.Case`. What it leaves open is as in the parameter file `case["parameters"]`.
    """
    parameters = read_yaml(Path(case["parameters"]))
    name, settings = next(iter(parameters["benchmarks"].items()))
    steps = case["classes"]
    if steps is None:
        base, *later = classes_of(config.parse(parameters).benchmarks[name], name).sizes
        steps = [1 + base, *later]
    ends = np.cumsum(steps)
    groups = [list(range(max(1, end - size), end)) for end, size in zip(ends.tolist(), steps, strict=True)]
    model = model_section(case, settings["model"])
    train = {**settings["train"], **{key: value for key, value in case["train"].items() if value is not None}}
    train["processes"] = 1
    for phase in ("base", "increment"):
        train[phase] = {**train[phase], "epochs": EPOCHS}
    method = case["method"]
    # without stored images, which the drawn data set has not; `tables` says so
    values = {key: value for key, value in method_values(method, parameters).items() if key != "memory"}
    shared = {"benchmark": DATASET, "seed": 0}
    chain, after = {}, "base"
    for step in range(1, len(steps)):
        chain[f"step-{step}"] = {**shared, "method": method, "after": after, "step": step}
        after = f"step-{step}"
    benchmark = {"dataset": DATASET, "protocol": "1-1", "groups": groups, "model": model, "train": train}
    return {
        "benchmarks": {DATASET: {**benchmark, "evaluation": settings.get("evaluation", {})}},
        "methods": {"finetune": {}, method: values},
        "bases": {"base": {**shared, "method": "finetune"}},
        "chain": chain,
    }


def method_values(method: str, parameters: dict) -> dict:
    """The coefficients of a method: those of the parameter document, or those of a variant."""
    if method == "bare":
        METHODS[method] = Bare
    values = parameters["methods"].get(method)
    if values is None:
        values = {} if method == code_of(method) else method_class(method).variants()[method.partition("-")[2]]
    return values


def model_section(case: dict, settings: dict) -> dict:
    """The network of a case without pretrained weights: that of the parameter file, or one for another encoder."""
    model = {key: value for key, value in settings.items() if key not in ("pretrained", "weights", "input_statistics")}
    if case["encoder"] in (None, model["encoder"]) and case["decoder"] in (None, model["decoder"]):
        return model
    encoder = case["encoder"] or model["encoder"]
    from timm.models import is_model_in_modules

    plain = is_model_in_modules(encoder, ["vision_transformer", "deit"])
    decoder = case["decoder"] or ("mask_transformer" if plain else "deeplabv3")
    stride = model["output_stride"] if case["encoder"] is None else 16
    model = {"encoder": encoder, "decoder": decoder, "output_stride": stride, "width": 256}
    if plain:
        import timm

        with torch.device("meta"):
            width = timm.create_model(encoder).embed_dim
        model |= {"width": width, "image_size": case["train"]["crop"]}
    return model if decoder == "mask_transformer" else {**model, "atrous_rates": [6, 12, 18]}


def draw(folder: Path, groups: list[list[int]], images: int, side: int) -> None:
    """Writes a data set of noise whose images have classes of every step in cells, half of them background."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    names = {raw: f"class {raw}" for group in groups for raw in group}
    with open(folder / "dataset.yaml", "w", encoding="utf-8") as stream:
        folders = {"images": "images", "masks": "masks"}
        YAML(typ="safe").dump({"classes": names, "train": folders, "val": folders}, stream)
    dice = np.random.default_rng(0)
    for number in range(images):
        cells = np.zeros(CELLS * CELLS, np.uint8)
        chosen = dice.permutation(cells.size)[: cells.size // 2]
        for position, cell in enumerate(chosen):
            cells[cell] = dice.choice(groups[position % len(groups)])
        rows = np.arange(side) * CELLS // side
        mask = cells.reshape(CELLS, CELLS)[rows][:, rows]
        Image.fromarray(mask).save(folder / "masks" / f"{number:03d}.png")
        image = dice.integers(0, 255, (side // 4 + 1, side // 4 + 1, 3), dtype=np.uint8)
        Image.fromarray(image).resize((side, side)).save(folder / "images" / f"{number:03d}.jpg", quality=90)


def build(case: dict, folder: Path) -> Setup:
    """Everything that the training of a case uses, prepared by the training's own code. Changes to the folder."""
    os.chdir(folder)
    os.environ["CISS_DATA"] = str(folder / "data")
    (folder / "dvc.yaml").touch()  # makes the folder a project
    values = document(case)
    settings = config.parse(values, case["parameters"])
    benchmark = settings.benchmarks[DATASET]
    train = benchmark.train
    draw(
        folder / "data" / DATASET,
        values["benchmarks"][DATASET]["groups"],
        2 * train.batch * train.accumulate,
        train.crop,
    )
    run = resolve(settings, list(settings.runs())[-1])
    prepare(benchmark, index_folder(run.root, DATASET), progress=False)
    torch.manual_seed(0)
    before: Run = run.before
    save_weights(predecessor(run), before.build_network(starting_weights=False), before.description())
    if not run.epochs:
        raise config.ConfigError(f"--methods: {run.method} trains nothing in an increment, so no step is measured.")
    setup = prepare_training(run, run.index())
    predecessor(run).unlink()  # hundreds of megabytes, maybe in memory
    prepare_step(setup, TrainingState())
    if case["mode"]:
        setup = replace(setup, student_for_training=torch.compile(setup.student, mode=case["mode"]))
    return setup


# --- measuring


class Clock:
    """Processor seconds (of all threads) and wall seconds of the parts of a step."""

    def __init__(self, device: torch.device):
        self.device = device

    def start(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._last = self._now()

    def mark(self, part: str) -> None:
        """Counts the time since the last mark as that of a part."""
        now = self._now()
        sums = self.seconds.setdefault(part, [0.0, 0.0])
        for clock in range(2):
            sums[clock] += now[clock] - self._last[clock]
        self._last = now

    def around(self, function: Callable, before: str, inside: str) -> Callable:
        """The function, with the time before it counted as one part and its own as another."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.mark(before)
            result = function(*arguments, **options)
            self.mark(inside)
            return result

        return timed

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time(), time.perf_counter()


class TimedScaler:
    """A gradient scaler that tells the clock when the backward pass begins, and when the update."""

    def __init__(self, scaler: torch.amp.GradScaler, clock: Clock):
        self._scaler = scaler
        self.scale = clock.around(scaler.scale, "losses", "losses")
        self.step = clock.around(scaler.step, "update", "update")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scaler, name)


def with_clock(setup: Setup, clock: Clock, log: LossLog) -> Setup:
    """The setup with objects that tell the clock which part of `train_update` runs; changes the log in the same way.

    Parts: `teacher`, `student` (forward passes), `losses` (labels, losses, logs), `backward`, `update`.
    """
    log.add = clock.around(log.add, "backward", "losses")
    return replace(
        setup,
        teacher=setup.teacher and clock.around(setup.teacher, "losses", "teacher"),
        student_for_training=clock.around(setup.student_for_training, "losses", "student"),
        scaler=TimedScaler(setup.scaler, clock),
    )


def leaves(output: Output, learns: bool) -> Output:
    """The output of a network with detached tensors, which are leaves if it `learns`, and without what it keeps."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().requires_grad_(learns)
        if isinstance(value, list):
            return [leaf(entry) for entry in value]
        if isinstance(value, dict):  # logits of extra rows by name, or what the output keeps
            return {name: leaf(entry) for name, entry in value.items() if isinstance(name, str)}
        return value

    changes = {part.name: leaf(getattr(output, part.name)) for part in fields(output) if part.init}
    return replace(output, **changes)


class StepBench:
    """The training step of one case, its loss part by itself, and their memory."""

    def __init__(self, case: dict, folder: Path):
        started = time.perf_counter()
        self.case, self.setup = case, build(case, folder)
        self.clock, self.log = Clock(self.setup.device), LossLog()
        self.timed_log = LossLog()
        self.timed = with_clock(self.setup, self.clock, self.timed_log)
        self.epoch, self.batches = 0, iter(())
        self.step()  # the first one compiles and allocates
        if self.setup.device.type == "cuda":
            self.step()
        self.update = self._update()
        with torch.no_grad(), self.setup.autocast():
            images = self.update[0].images
            self.teacher_output = self.setup.teacher and self.setup.teacher(images)
            self.student_output = leaves(self.setup.student(images), False)
        self.losses()
        self.built = {
            "device": device_name(),
            "gpu": self.setup.device.type == "cuda",
            "torch": torch.__version__,
            "precision": str(self.setup.precision).removeprefix("torch."),
            "compile": case["mode"] or ("on" if self.setup.run.settings.train.compile else "off"),
            "channels": self.setup.student.channels,
            "old_channels": self.setup.run.old_channels,
            "images": sum(len(batch.images) for batch in self.update),
            "size": self.update[0].size[0],
            "encoder": self.setup.run.settings.model.encoder,
            "decoder": self.setup.run.settings.model.decoder,
            "without_memory": bool(method_values(case["method"], read_yaml(Path(case["parameters"]))).get("memory")),
            "parameters": sum(parameter.numel() for parameter in self.setup.student.parameters()),
            "build_seconds": time.perf_counter() - started,
        }

    def step(self) -> dict:
        """Seconds [processor, wall] by part of one update; `whole`: of an update without waits between its parts."""
        self.clock.start()
        update = self._update()
        self.clock.mark("loader")
        train_update(self.timed, update, self.timed_log)
        self.clock.mark("update")
        seconds = self.clock.seconds
        parts = [times for part, times in seconds.items() if part != "loader"]
        seconds["step"] = [sum(times[clock] for times in parts) for clock in range(2)]
        if self.setup.device.type != "cuda":
            seconds["whole"] = [seconds["step"][clock] + seconds["loader"][clock] for clock in range(2)]
            return seconds
        self.clock.start()
        for _ in range(UNMARKED):
            train_update(self.setup, self._update(), self.log)
        self.clock.mark("whole")
        return seconds | {"whole": [value / UNMARKED for value in self.clock.seconds["whole"]]}

    def losses(self) -> dict:
        """Seconds [processor, wall] of the loss part by itself: labels, losses, logs and the way back to the outputs.

        An update whose networks return outputs that are there already, so that their gradients end in these outputs.
        """
        setup = replace(
            self.setup,
            teacher=self.setup.teacher and (lambda images: leaves(self.teacher_output, False)),
            student_for_training=lambda images: leaves(self.student_output, True),
            scaler=torch.amp.GradScaler(self.setup.device.type, enabled=False),
        )
        update = [replace(batch, labels=batch.given, weights=None, logs={}) for batch in self.update[:1]]
        update *= self.setup.per_update
        self.clock.start()
        train_update(setup, update, self.log)
        self.clock.mark("loss part")
        return self.clock.seconds

    def memory(self) -> dict:
        """Bytes: `peak` of a step, and how much more than before a step and the loss part need."""
        found = {}
        for name, function in (("step", self.step), ("loss part", self.losses)):
            with suppress(AttributeError, OSError):  # the C library's free memory does not count; glibc only
                ctypes.CDLL(None).malloc_trim(0)
            if not reset_peak(self.setup.device):
                return {}
            before = read_peak(self.setup.device)
            function()
            found[name] = read_peak(self.setup.device) - before
            found.setdefault("peak", before + found[name])
        return found

    def _update(self) -> list[Batch]:
        """The next batches of one update."""
        batches = []
        while len(batches) < self.setup.per_update:
            batch = next(self.batches, None)
            if batch is None:
                self.batches = self.setup.batches.read(self.setup.loader, self.epoch)
                self.epoch += 1
            else:
                batches.append(batch)
        if self.case["mode"]:
            torch.compiler.cudagraph_mark_step_begin()  # the graphs' outputs of the last step may be overwritten
        return batches


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the training prints is no reply

    def reply(function: Callable[[], dict]) -> None:
        try:
            text = json.dumps(function())
        except Exception as error:
            traceback.print_exc()
            text = json.dumps({"error": f"{type(error).__name__}: {error}"})
        print(text, file=replies, flush=True)

    case = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(prefix="ciss-bench-") as folder:
        bench: list[StepBench] = []
        reply(lambda: bench.append(StepBench(case, Path(folder))) or bench[0].built)
        for line in sys.stdin:
            command = line.strip()
            reply(getattr(bench[0], command))
        os.chdir("/")


if __name__ == "__main__":
    main()
