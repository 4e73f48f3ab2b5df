"""Arguments and options of the command `ciss`. Imports nothing heavy."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

PACKAGE = Path(__file__).parent
PRESETS = sorted(file.stem for file in PACKAGE.glob("study/presets/*.yaml"))
DATA_SETS = [name for name in PRESETS if "-" not in name and name != "own"]
NO_METHODS = ("__init__", "base", "hosts", "joint")  # joint training is planned without being named
METHODS = sorted(file.stem for file in PACKAGE.glob("methods/*.py") if file.stem not in NO_METHODS)


class Command(TyperCommand):
    """A command whose options take several values at once, `--seeds 0 1 2`, or one by one."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, repeat_options(args, several))

    def format_usage(self, ctx: typer.Context, formatter: Any) -> None:
        """Writes the usage on one line, which stands above the message of a wrong argument."""
        formatter.write(f"usage: {ctx.command_path} {' '.join(self.collect_usage_pieces(ctx))}\n")


def repeat_options(arguments: list[str], several: set[str]) -> list[str]:
    """Repeats an option before each of its values. An option without a value gets the value ""."""
    result: list[str] = []
    option = None  # the one whose values follow
    for argument in [*arguments, "-"]:
        if argument.startswith("-") and not argument[1:2].isdigit():
            if option and result[-1] == option:
                result.append("")
            option = argument if argument in several else None
        elif option and result[-1] != option:
            result.append(option)
        result.append(argument)
    return result[:-1]


def run_names() -> list[str]:
    """Names of the runs in `params.yaml`, for the shell's completion."""
    from ciss import config

    try:
        return list(config.load().runs())
    except (config.ConfigError, OSError):
        return []


def chosen_runs(runs: list[str] | None, benchmark: str | None, file: str) -> list[str] | None:
    """Names of the runs that a command is for: those that it names, or those of a benchmark. Raises BadParameter, and
    SystemExit with the message of a wrong file."""
    if benchmark is None:
        return runs
    if runs:
        raise typer.BadParameter("not allowed with names of runs", param_hint="--benchmark")
    from ciss import config

    try:
        settings = config.load(file)
    except (config.ConfigError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    if names := [name for name, run in settings.runs().items() if run.benchmark == benchmark]:
        return names
    known = config.choose(benchmark, settings.benchmarks)
    raise SystemExit(f"error: {file}: no run is of a benchmark {benchmark!r}. {known}")


# Arguments and options of `ciss plan`, then those that several commands share.
KNOWN = f"Name of the data set: {', '.join(DATA_SETS)}, or a folder in data/."
Dataset = Annotated[str | None, Argument(metavar="DATASET", help=KNOWN, autocompletion=lambda: DATA_SETS)]
Protocol = Annotated[str | None, Argument(metavar="PROTOCOL", help="Base classes, then classes per step: 15-1.")]
KINDS = "overlapped, disjoint, sequential, partitioned or domain."
Setting = Annotated[str | None, Option(metavar="SETTING", help=KINDS)]
USUAL = f"{', '.join(METHODS)}, or a variant: plop-released. Default: the preset's, else finetune, mib, plop, gsc, mbs."
Methods = Annotated[list[str] | None, Option(metavar="METHOD ...", help=USUAL, autocompletion=lambda: METHODS)]
Seeds = Annotated[list[int] | None, Option(metavar="SEED ...", min=0, max=10**9, help="One chain per seed.")]
ORDERS = "Number of class orders: default and N-1 random. Default: the preset's, else 1."
Orders = Annotated[int | None, Option(metavar="N", min=1, max=999, help=ORDERS)]
Order = Annotated[list[int] | None, Option(metavar="ID ...", help="One class order, as raw ids.")]
Joint = Annotated[bool | None, Option("--joint/--no-joint", help="Whether to plan joint training.")]
Preset = Annotated[str | None, Option(metavar="NAME", help="Start from this preset.", autocompletion=lambda: PRESETS)]
Name = Annotated[str | None, Option(metavar="NAME", help="Name of the benchmark. Default: from preset and protocol.")]
CHANGES = "Change settings, for example train.base.epochs=30 model.encoder=resnet50."
Settings = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE ...", help=CHANGES)]
Add = Annotated[bool, Option("--add", help="Keep the benchmarks already in the file.")]
Fresh = Annotated[bool, Option("--fresh", help="Ignore settings and coefficients in the file; use the preset.")]
Output = Annotated[str, Option(metavar="FILE", help="File to write or check, relative to the project.")]
Check = Annotated[bool, Option("--check", help="Check the file and its data. Change nothing.")]
Clean = Annotated[bool, Option("--clean", help="Delete results of runs that are not in the file.")]
MEASURE = "Measure a few updates of each kind of run: hours, memory and disk. Without DATASET, of the file as it is."
Estimate = Annotated[bool, Option("--estimate", help=MEASURE)]
RESOURCES = "Write FILE (default: cluster.yaml) for ciss train --slurm, with the estimate's hours and memory."
Cluster = Annotated[list[str] | None, Option(metavar="[FILE]", help=RESOURCES)]
Config = Annotated[str, Option("--config", metavar="FILE", help="Parameter file, relative to the project.")]
Benchmark = Annotated[str, Argument(metavar="BENCHMARK", help="Name of a benchmark in params.yaml.")]
RUN = {"metavar": "RUN", "help": "Name of a run: a key under bases, joints or chain in params.yaml."}
Run = Annotated[str, Argument(**RUN, autocompletion=run_names)]
Runs = Annotated[list[str] | None, Argument(**RUN, autocompletion=run_names)]


def one_of(*choices: str) -> dict[str, Any]:
    """Options of `typer.Option` for a list of values, each of which is one of the choices."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or []:
            if value not in choices:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, choices))}")
        return values

    return {"callback": check, "autocompletion": lambda: list(choices)}


# Options of `ciss bench`.
MEASURED = "Methods, variants, or bare (teacher, student and cross-entropy only). Default: those of params.yaml."
BenchMethods = Annotated[list[str] | None, Option("--methods", metavar="METHOD ...", help=MEASURED)]
Encoder = Annotated[list[str] | None, Option(metavar="NAME ...", help="timm's names. Default: that of params.yaml.")]
DECODERS = {"metavar": "NAME ...", "help": "deeplabv3 or mask_transformer.", **one_of("deeplabv3", "mask_transformer")}
Decoder = Annotated[list[str] | None, Option(**DECODERS)]
Image = Annotated[list[int] | None, Option(metavar="PIXELS ...", min=16, help="Sides of the training images.")]
CHANNELS = "Channels of each step, background included, the new ones last: 141+10."
Classes = Annotated[list[str] | None, Option(metavar="N+N ...", help=CHANNELS)]
Batch = Annotated[list[int] | None, Option(metavar="IMAGES ...", min=1, help="Images of a batch.")]
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
PRECISION = {"metavar": "NAME ...", "help": f"{', '.join(PRECISIONS)}.", **one_of(*PRECISIONS)}
Precision = Annotated[list[str] | None, Option(**PRECISION)]
MODES = {"metavar": "MODE ...", "help": "off, on, or reduce-overhead: CUDA graphs."}
Compile = Annotated[list[str] | None, Option("--compile", **MODES, **one_of("off", "on", "reduce-overhead"))]
Rounds = Annotated[int, Option(metavar="N", min=1, max=1000, help="Turns of each case.")]
REPORT = "Write FILE.md and FILE.json, relative to the project. With --gpu: reports/speed/gpu-CARD."
Report = Annotated[str | None, Option("--output", metavar="FILE", help=REPORT)]
Versus = Annotated[str | None, Option("--vs", metavar="REVISION", help="Compare with the code of a git revision.")]
Gpu = Annotated[bool, Option("--gpu", help="Tests on the GPU, repeated trainings, step times, NCCL.")]
Minutes = Annotated[float, Option(metavar="N", min=0.1, max=600, help="With --gpu: time for everything.")]

# Options of `ciss train`.
OF_BENCHMARK = "All runs of this benchmark, instead of RUN ...: a part of a study."
OfBenchmark = Annotated[str | None, Option("--benchmark", metavar="NAME", help=OF_BENCHMARK)]
Jobs = Annotated[int | None, Option(metavar="N", min=1, help="Runs at a time. Default: as many as GPUs, or 1.")]
Processes = Annotated[int, Option("--jobs", metavar="N", min=1, help="Processes that share the runs.")]
GROUP = "GPUs of each run, a process for each. Default: train.processes in params.yaml."
PerRun = Annotated[int | None, Option(metavar="N", min=1, help=GROUP)]
Trial = Annotated[bool, Option("--try", help="Test: two updates, all scores and figures; nothing is kept.")]
QUEUE = "Queue each run as a job of Slurm, with the resources in FILE (default: cluster.yaml)."
Slurm = Annotated[list[str] | None, Option(metavar="[FILE]", help=QUEUE)]
Write = Annotated[bool, Option("--write", help="With --slurm: write FILE, or add sections to it. Queue nothing.")]
STATES = "Show each run: trained, training, queued, failed, stopped or missing."
Status = Annotated[bool, Option("--status", help=STATES)]
Cancel = Annotated[bool, Option("--cancel", help="Remove runs, and all that continue them, from Slurm's queue.")]

# Options of `ciss tune`; also `Jobs`.
TUNED = "Methods or variants with ranges, see docs/tuning.md. Default: no training, only the table."
TunedMethods = Annotated[list[str] | None, Argument(metavar="METHOD ...", help=TUNED, autocompletion=lambda: METHODS)]
TRIALS = "Trials of each method, those of earlier commands included. Default: 20; with --write no training."
Trials = Annotated[int | None, Option(metavar="N", min=1, max=100_000, help=TRIALS)]
FIRST = "A benchmark of params.yaml. Default: the first one."
TunedBenchmark = Annotated[str, Option("--benchmark", metavar="NAME", help=FIRST)]
SEED = "Seed of all trials; not one of the runs in params.yaml."
TuningSeed = Annotated[int, Option(metavar="N", min=0, max=10**9, help=SEED)]
CHOSEN = "Write the chosen coefficients into params.yaml. Comments stay. Trains nothing without --trials."
WriteChosen = Annotated[bool, Option("--write", help=CHOSEN)]

BOARD = "Write files for TensorBoard to live/, as with CISS_TENSORBOARD=1 in the environment."
TensorBoard = Annotated[bool, Option("--tensorboard", help=BOARD)]


def switch_tensorboard(on: bool) -> None:
    """Sets the variable that all trainings of this command read, also those in other processes."""
    if on:
        os.environ["CISS_TENSORBOARD"] = "1"


def exclusive(**given: bool) -> str | None:
    """The option that is given, of options that exclude each other. Raises BadParameter if there are several."""
    names = [f"--{name}" for name, present in given.items() if present]
    if len(names) > 1:
        raise typer.BadParameter(f"not allowed with {names[0]}", param_hint=names[1])
    return names[0] if names else None
