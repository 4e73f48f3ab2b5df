"""The command `ciss`, also `python -m ciss`. Every command imports its room only when it is called."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option
from typer.core import TyperCommand

PACKAGE = Path(__file__).parent
PRESETS = sorted(file.stem for file in PACKAGE.glob("study/presets/*.yaml"))
DATA_SETS = [name for name in PRESETS if "-" not in name and name != "own"]
NO_METHODS = ("__init__", "base", "joint")  # joint training is planned without being named
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


# Arguments and options of `ciss plan`, then those that several commands share.
KNOWN = f"Of {', '.join(DATA_SETS)}, or a folder in data/."
Dataset = Annotated[str | None, Argument(metavar="DATASET", help=KNOWN, autocompletion=lambda: DATA_SETS)]
Protocol = Annotated[str | None, Argument(metavar="PROTOCOL", help="Base classes, then classes a step: 15-1.")]
Setting = Annotated[str | None, Option(metavar="SETTING", help="Which images and labels a step sees.")]
USUAL = f"Of {', '.join(METHODS)}, or a variant: plop-released. Default: the preset's, or the usual ones."
Methods = Annotated[list[str] | None, Option(metavar="METHOD ...", help=USUAL, autocompletion=lambda: METHODS)]
Seeds = Annotated[list[int] | None, Option(metavar="SEED ...", min=0, max=10**9, help="One chain per seed.")]
Orders = Annotated[int, Option(metavar="N", min=1, max=999, help="Class orders: the usual one and N-1 shuffled ones.")]
Order = Annotated[list[int] | None, Option(metavar="ID ...", help="One class order, as raw ids.")]
Joint = Annotated[bool, Option("--joint/--no-joint", help="Whether to plan joint training.")]
Preset = Annotated[str | None, Option(metavar="NAME", help="Start from this preset.", autocompletion=lambda: PRESETS)]
Name = Annotated[str | None, Option(metavar="NAME", help="Of the benchmark. Default: data set, and unusual protocol.")]
CHANGES = "Change the benchmark: train.base.epochs=30 model.encoder=resnet50."
Settings = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE ...", help=CHANGES)]
Add = Annotated[bool, Option("--add", help="Keep the benchmarks that the file has.")]
Fresh = Annotated[bool, Option("--fresh", help="Take the preset's numbers, not those of the file.")]
Output = Annotated[str, Option(metavar="FILE", help="File to write or check, relative to the project.")]
Check = Annotated[bool, Option("--check", help="Check the file and its data. Change nothing.")]
Clean = Annotated[bool, Option("--clean", help="Remove results of runs that the file does not name.")]
Config = Annotated[str, Option("--config", metavar="FILE", help="Parameter file, relative to the project.")]
Benchmark = Annotated[str, Argument(metavar="BENCHMARK", help="A name under benchmarks of the parameter file.")]
RUN = {"metavar": "RUN", "help": "A name under bases, joints or chain of the parameter file."}
Run = Annotated[str, Argument(**RUN, autocompletion=run_names)]
Runs = Annotated[list[str] | None, Argument(**RUN, autocompletion=run_names)]
app = typer.Typer(
    help="A reproducible laboratory for class-incremental semantic segmentation.",
    epilog="Example: ciss plan shapes 4-2, then: dvc repro",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
)
data = typer.Typer(rich_markup_mode=None)
app.add_typer(data, name="data", help="Data sets: draw, download or describe one.")


def main(arguments: list[str] | None = None) -> None:
    """Runs one command, by default that of the command line.

    Raises SystemExit: with the message of a command that fails, 0 after a help text, 2 for a wrong argument.
    """
    try:
        status = app(arguments, prog_name="ciss", standalone_mode=False)
    except typer.TyperException as error:
        if context := getattr(error, "ctx", None):
            print(f"{context.get_usage()}   (all options: --help)", file=sys.stderr)
        print(f"error: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ciss"):
            raise
        sys.exit(f"error: this command needs the package {error.name}. Install the project: uv sync")
    if status is not None:
        sys.exit(status)


@app.callback(invoke_without_command=True)
def _no_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(cls=Command)
def plan(
    dataset: Dataset = None,
    protocol: Protocol = None,
    setting: Setting = None,
    methods: Methods = None,
    seeds: Seeds = None,
    orders: Orders = 1,
    order: Order = None,
    joint: Joint = True,
    preset: Preset = None,
    name: Name = None,
    settings: Settings = None,
    add: Add = False,
    fresh: Fresh = False,
    output: Output = "params.yaml",
    check: Check = False,
    clean: Clean = False,
) -> None:
    """Write params.yaml for a benchmark: data, network, schedule, methods, and the chain of runs.

    The preset of the data set gives what the command does not name.

    \b
    ciss plan shapes 4-2                                      # the default
    ciss plan voc 15-1 --methods finetune mib --seeds 0 1 2   # a paper's benchmark
    ciss plan shapes 4-2 --orders 3 --set train.batch=8       # three class orders
    ciss plan --check                                         # check params.yaml and its data
    ciss plan --clean                                         # remove results that params.yaml does not name
    """
    if check and clean:
        raise typer.BadParameter("not allowed with --check", param_hint="--clean")
    if check or clean:
        from ciss.study import plan_check

        plan_check.main(output, plan_check.check if check else plan_check.clean)
        return
    if dataset is None:
        raise typer.BadParameter("name a data set, or use --check or --clean", param_hint="DATASET")
    if orders > 1 and order:
        raise typer.BadParameter("not allowed with --order", param_hint="--orders")
    from ciss.study.plan import Request, main

    if methods is not None:
        methods = [method for method in methods if method]  # `--methods` alone: none
    main(
        Request(
            dataset, protocol, setting, methods, seeds, orders, order, joint, preset, name, settings, add, fresh, output
        )
    )


@app.command(cls=Command)
def train(
    runs: Runs = None,
    config: Config = "params.yaml",
    jobs: Annotated[int | None, Option(metavar="N", min=1, help="Runs at a time. Default: one per GPU, or 1.")] = None,
    trial: Annotated[bool, Option("--try", help="Two updates, all scores and figures; nothing is kept.")] = False,
) -> None:
    """Train runs of params.yaml: one in this process, several each in a process of its own, without a name all.

    \b
    ciss train shapes-s0-mib-1        # one run
    ciss train shapes-s0-mib-1 --try  # does everything once, in a folder that is thrown away
    ciss train --jobs 2               # all runs, two at a time; then: dvc repro
    torchrun --standalone --nproc-per-node 2 -m ciss train shapes-s0    # one run on two GPUs

    A run starts when a job is free and the run it continues has ended. With at most as many jobs as GPUs, each job has
    a GPU of its own; CUDA_VISIBLE_DEVICES selects them. If a run fails, the runs that continue it are left out.

    Ctrl-C stops all. The same command continues each run after its last finished epoch. For several runs on the cores
    of one machine, plan with --set train.threads=1.
    """
    if trial and (jobs is not None or len(runs or []) != 1):
        raise typer.BadParameter("name one run, without --jobs", param_hint="--try")
    if trial:
        from ciss.study import trial as study_trial

        study_trial.main(runs[0], config)
    elif runs and len(runs) == 1 and jobs is None:
        from ciss.training import loop

        loop.main(runs[0], config)
    else:
        from ciss.study import launch

        launch.main(runs or [], config, jobs)


@app.command(cls=Command)
def predict(
    run: Run,
    images: Annotated[list[str], Argument(metavar="IMAGE...", help="Pictures, or folders of pictures.")],
    config: Config = "params.yaml",
    out: Annotated[
        str | None, Option(metavar="FOLDER", help="Where the files go. Default: predictions/RUN of the project.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], Option(help="auto: a GPU if there is one.")] = "auto",
) -> None:
    """Label pictures with a trained run.

    \b
    ciss predict shapes-s0-mib-2 photo.jpg more/photos

    Each picture gives two files. NAME.png is a palette mask of raw class ids, as in params.yaml. In CamVid, Cityscapes
    and data whose 0 is a class, they are one more than the annotations' numbers or train ids. NAME_overlay.png is the
    picture with the classes drawn over it and a legend.

    A picture with an EXIF orientation is turned first; mask and overlay have the turned size. (Data sets are read
    without turning.) The benchmark's evaluation section gives size, scales and flip.
    """
    from ciss.inspection import predict as inspection_predict

    inspection_predict.main(run, images, config, out, device)


@app.command(cls=Command)
def tune(
    config: Config = "params.yaml",
    only: Annotated[
        list[str] | None, Option(metavar="METHOD ...", help="Train the trials of these methods; write no table.")
    ] = None,
) -> None:
    """Choose coefficients on the hold-out set: equally many trials for every method, on a seed that is not reported.

    \b
    ciss plan voc8 --preset tuning    # a preset that lists the trials, each as a variant
    ciss tune                         # trains what is missing, then writes reports/BENCHMARK/tuning.csv
    ciss tune --only mib plop         # trains these methods only, for example one terminal for each half

    The validation images are not used. Plan trials without --add, so that their seed is not among the reported ones.
    """
    from ciss.study import tune as study_tune

    study_tune.main(config, only)


@app.command(cls=Command)
def report(
    config: Config = "params.yaml",
    against: Annotated[
        str | None, Option(metavar="REVISION", help="Write nothing: compare the scores with those of a git revision.")
    ] = None,
) -> int | None:
    """Write reports/report.html from the tables and figures that the analyses left.

    \b
    ciss report
    ciss report --against HEAD    # which scores differ from the commit, and by how much; status 1 if some do

    Seconds and memory of the runs that were trained here go to timings/, beside the page.
    """
    if against is not None:
        from ciss.study.report import against as comparison

        return comparison.main(config, against)
    from ciss.study.report import command

    command.main(config)
    return None


@app.command(cls=Command)
def doctor(config: Config = "params.yaml") -> None:
    """Check an installation and say what to do: one line per finding.

    \b
    ciss doctor
    """
    from ciss import doctor as ciss_doctor

    ciss_doctor.main(config)


@data.command("shapes", cls=Command)
def data_shapes() -> None:
    """Draw the embedded data set into data/shapes.

    \b
    ciss data shapes
    """
    from ciss.data import commands

    commands.draw()


@data.command("fetch", cls=Command)
def data_fetch(
    dataset: Annotated[
        Literal["voc", "sbd", "ade20k", "cityscapes"],
        Argument(metavar="DATASET", help="voc, sbd (more masks for voc), ade20k or cityscapes."),
    ],
    to: Annotated[Path | None, Option(metavar="FOLDER", help="Default: $CISS_DATA, or data/ of the project.")] = None,
    keep: Annotated[bool, Option("--keep", help="Keep the archive, in FOLDER/downloads.")] = False,
    address: Annotated[str | None, Option("--from", metavar="ADDRESS", help="Download the archive from there.")] = None,
) -> None:
    """Download a real data set. The same command continues a stopped download.

    \b
    ciss data fetch voc           # into $CISS_DATA, or data/ of the project
    ciss data fetch cityscapes    # says how to get it
    """
    from ciss.data import commands

    commands.download(dataset, to, keep, address)


@data.command("content", cls=Command)
def data_content(benchmark: Benchmark) -> None:
    """For the pipeline: write the hash of the images and masks of your own, .data/BENCHMARK.

    \b
    ciss data content leaves
    """
    from ciss.data import commands

    commands.content(benchmark)


@data.command("init", cls=Command)
def data_init(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="A folder of images and masks: data/leaves.")],
) -> None:
    """Write dataset.yaml for a folder of images and masks of your own.

    \b
    ciss data init data/leaves
    """
    from ciss.data import commands

    commands.init(folder)


@app.command(cls=Command)
def source() -> None:
    """For the pipeline: write .source/, the code and notebooks that results depend on.

    \b
    ciss source    # in the root of the project
    """
    from ciss.store import code

    try:
        code.write(Path.cwd())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


@app.command(cls=Command)
def execute(
    notebook: Annotated[Path, Argument(metavar="NOTEBOOK")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="Where the executed copy goes.")],
    parameters: Annotated[
        list[str] | None, Option("-p", metavar="NAME VALUE", help="A parameter; may be repeated.")
    ] = None,
) -> None:
    """For the pipeline: execute a notebook with parameters.

    \b
    ciss execute notebooks/2_base.ipynb reports/shapes/shapes-s0.ipynb -p config params.yaml -p run shapes-s0
    """
    words = parameters or []
    if len(words) % 2:
        raise typer.BadParameter("write a name and a value", param_hint="-p")
    from ciss.study import execute as study_execute

    study_execute.main(notebook, output, dict(zip(words[::2], words[1::2], strict=True)))


@app.command(cls=Command)
def probe(benchmark: Benchmark, config: Config = "params.yaml") -> None:
    """For the pipeline: write what networks see in the hold-out set before and after each increment, into probes/.

    \b
    ciss probe shapes
    """
    from ciss.inspection import probe as inspection_probe

    inspection_probe.main(benchmark, config)
