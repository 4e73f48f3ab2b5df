"""The command `ciss`, also as `python -m ciss`. Every command imports its room only when it is called."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ciss.arguments import (
    DATA_SETS,
    METHODS,
    PRESETS,
    Command,
    check_choice,
    count,
    read_settings,
    run_names,
    whole_number,
)

Config = Annotated[str, Option("--config", metavar="FILE", help="Parameter file, relative to the project.")]
DatasetName = Annotated[
    str | None,
    Argument(
        metavar="DATASET",
        help=f"One of {', '.join(DATA_SETS)}, or a folder of your own in data/.",
        autocompletion=lambda: DATA_SETS,
    ),
]
Protocol = Annotated[
    str | None, Argument(metavar="PROTOCOL", help="Base classes, then classes per step: 15-1. Default: the preset's.")
]
Setting = Annotated[
    str | None, Option(metavar="SETTING", help="Which images and labels a step sees. Default: the preset's.")
]
Methods = Annotated[
    list[str] | None,
    Option(
        metavar="METHOD ...",
        help=f"Of {', '.join(METHODS)}, or a variant: plop-released. Default: the preset's, or the usual ones.",
        autocompletion=lambda: METHODS,
    ),
]
Seeds = Annotated[
    list[int] | None,
    Option(metavar="SEED ...", parser=whole_number, help="One chain per seed. Default: the preset's, or 0."),
]
Orders = Annotated[
    int | None, Option(metavar="N", parser=count, help="Class orders: the data set's own and N-1 shuffled ones.")
]
Order = Annotated[list[int] | None, Option(metavar="ID ...", parser=whole_number, help="One class order, as raw ids.")]
Joint = Annotated[bool, Option("--joint/--no-joint", help="Whether to plan joint training.")]
Preset = Annotated[
    str | None,
    Option(metavar="NAME", help="Start from this preset, not the data set's.", autocompletion=lambda: PRESETS),
]
Name = Annotated[
    str | None, Option(metavar="NAME", help="Of the benchmark. Default: the data set, and the protocol if not usual.")
]
Settings = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE ...", help="Change the benchmark: train.base.epochs=30 model.encoder=resnet50."),
]
Add = Annotated[bool, Option("--add", help="Keep the benchmarks that the file has.")]
Fresh = Annotated[bool, Option("--fresh", help="Take the preset's numbers, not the file's for this benchmark.")]
Output = Annotated[str, Option(metavar="FILE", help="File to write or check, relative to the project.")]
Check = Annotated[bool, Option("--check", help="Check the file and its data. Change nothing.")]
Clean = Annotated[bool, Option("--clean", help="Remove results of runs that the file does not name.")]
RunName = Argument(
    metavar="RUN", help="A name under bases, joints or chain of the parameter file.", autocompletion=run_names
)
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

    Raises:
        SystemExit: with the message of a command that fails; with 0 after a help text and 2 for a wrong argument.
    """
    try:
        status = app(arguments, prog_name="ciss", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if context is None:
            sys.exit(f"error: {error.format_message()}")
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
    dataset: DatasetName = None,
    protocol: Protocol = None,
    setting: Setting = None,
    methods: Methods = None,
    seeds: Seeds = None,
    orders: Orders = None,
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

    \b
    ciss plan shapes 4-2                                      # the default
    ciss plan voc 15-1 --methods finetune mib --seeds 0 1 2   # a paper's benchmark
    ciss plan shapes 4-2 --orders 3 --set train.batch=8       # three class orders
    ciss plan --check                                         # check params.yaml and its data
    ciss plan --clean                                         # remove results that params.yaml does not name
    """
    if check or clean:
        from ciss.study import plan_check

        plan_check.main(output, plan_check.check if check else plan_check.clean)
        return
    if dataset is None:
        raise typer.BadParameter("name a data set, or use --check or --clean", param_hint="DATASET")
    if orders is not None and order is not None:
        raise typer.BadParameter("not allowed with --order", param_hint="--orders")
    from ciss.protocol import SETTINGS
    from ciss.study.plan import Request, main

    if setting is not None:
        check_choice("--setting", setting, SETTINGS)
    if methods is not None:
        methods = [method for method in methods if method]  # `--methods` alone: none
    pairs = read_settings(settings or [])
    orders = orders or 1
    main(
        Request(
            dataset, protocol, setting, methods, seeds, orders, order, joint, preset, name, pairs, add, fresh, output
        )
    )


@app.command(cls=Command)
def train(
    runs: Annotated[list[str] | None, RunName] = None,
    config: Config = "params.yaml",
    jobs: Annotated[int | None, Option(metavar="N", help="Runs at a time. Default: one per GPU, or one.")] = None,
    trial: Annotated[bool, Option("--try", help="Two updates, all scores and figures; nothing is kept.")] = False,
) -> None:
    """Train runs of params.yaml: one in this process, several each in a process of its own, without a name all.

    \b
    ciss train shapes-s0-mib-1        # one run
    ciss train shapes-s0-mib-1 --try  # does everything once, in a folder that is thrown away
    ciss train --jobs 2               # all runs, two at a time; then: dvc repro
    torchrun --standalone --nproc-per-node 2 -m ciss train shapes-s0    # one run on two GPUs

    A run starts as soon as there is a free job and the run it continues has ended. With several GPUs each job has one
    to itself, as long as there are no more jobs than GPUs (CUDA_VISIBLE_DEVICES says which). A run that fails takes
    with it what continues it; all others go on. Ctrl-C stops all; the same command goes on after the last finished
    epoch of each. Set train.threads=1 in the plan for several runs on the cores of one machine.
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
    run: Annotated[str, RunName],
    images: Annotated[list[str], Argument(metavar="IMAGE...", help="Pictures, or folders of pictures.")],
    config: Config = "params.yaml",
    out: Annotated[
        str | None, Option(metavar="FOLDER", help="Where the files go. Default: predictions/RUN of the project.")
    ] = None,
    device: Annotated[str, Option(metavar="auto|cpu|cuda", help="auto: a GPU if there is one.")] = "auto",
) -> None:
    """Label pictures by a trained run.

    \b
    ciss predict shapes-s0-mib-2 photo.jpg more/photos

    For each picture two files: NAME.png, a palette mask of the data set's raw class ids, those of params.yaml (of
    CamVid, Cityscapes and data whose 0 is a class one more than the annotations' numbers or train ids), and
    NAME_overlay.png, the picture with the classes laid over it and a legend of those that occur.

    A picture whose EXIF tag turns it is turned first, and mask and overlay have the size of the turned picture. (In
    data sets pixels count as stored.) Labels are made as the evaluation makes them, by the benchmark's evaluation
    section: size, scales, flip.
    """
    from ciss.inspection import predict as inspection_predict

    check_choice("--device", device, ("auto", "cpu", "cuda"))
    inspection_predict.main(run, images, config, out, device)


@app.command(cls=Command)
def tune(
    config: Config = "params.yaml",
    only: Annotated[
        list[str] | None, Option(metavar="METHOD ...", help="Train the trials of these, and write nothing.")
    ] = None,
) -> None:
    """Choose coefficients on the hold-out: as many trials for every method, on a seed that is not reported.

    \b
    ciss plan voc8 --preset tuning    # a preset that spells out the trials, a variant each
    ciss tune                         # trains what is missing, then writes reports/BENCHMARK/tuning.csv
    ciss tune --only mib plop         # trains those alone; once the base is there, another terminal the rest

    The validation images have no say. That the seed is not reported is up to the file: plan trials without --add.
    """
    from ciss.study import tune as study_tune

    study_tune.main(config, only)


@app.command(cls=Command)
def report(config: Config = "params.yaml") -> None:
    """Write reports/report.html from the tables and figures that the analyses left.

    \b
    ciss report
    """
    from ciss.study.report import command

    command.main(config)


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
        str, Argument(metavar="DATASET", help="voc, sbd (masks for voc, which it needs), ade20k or cityscapes.")
    ],
    to: Annotated[Path | None, Option(metavar="FOLDER", help="Default: $CISS_DATA, or data/ of the project.")] = None,
    keep: Annotated[bool, Option("--keep", help="Keep the archive, in FOLDER/downloads.")] = False,
    address: Annotated[str | None, Option("--from", metavar="ADDRESS", help="Download the archive from there.")] = None,
) -> None:
    """Download a real data set; a stopped download goes on where it was.

    \b
    ciss data fetch voc           # into $CISS_DATA, or data/ of the project
    ciss data fetch cityscapes    # says how to get it
    """
    from ciss.data import commands

    check_choice("DATASET", dataset, commands.DOWNLOADS)
    commands.download(dataset, to, keep, address)


@data.command("content", cls=Command)
def data_content(benchmark: Annotated[str, Argument(metavar="BENCHMARK", help="On data of your own.")]) -> None:
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
    """For the pipeline: write .source/, the meaning of code and notebooks.

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
def probe(benchmark: Annotated[str, Argument(metavar="BENCHMARK")], config: Config = "params.yaml") -> None:
    """For the pipeline: what the networks before and after every increment see of the hold-out, into probes/.

    \b
    ciss probe shapes
    """
    from ciss.inspection import probe as inspection_probe

    inspection_probe.main(benchmark, config)
