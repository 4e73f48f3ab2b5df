"""The command `ciss`, also `python -m ciss`. Every command imports its room only when it is called."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from ciss import arguments, processor
from ciss.arguments import Command
from ciss.inspection import options as inspection_options
from ciss.study.report import options as report_options
from ciss.study.watch import options as watch_options

app = typer.Typer(
    help="Train and compare methods for class-incremental semantic segmentation.",
    epilog="Example: ciss plan shapes 4-2, then: dvc repro",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
)
data = typer.Typer(rich_markup_mode=None)
app.add_typer(data, name="data", help="Generate, download or describe a data set.")


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
    dataset: arguments.Dataset = None,
    protocol: arguments.Protocol = None,
    setting: arguments.Setting = None,
    methods: arguments.Methods = None,
    seeds: arguments.Seeds = None,
    orders: arguments.Orders = None,
    order: arguments.Order = None,
    joint: arguments.Joint = None,
    preset: arguments.Preset = None,
    name: arguments.Name = None,
    settings: arguments.Settings = None,
    add: arguments.Add = False,
    fresh: arguments.Fresh = False,
    output: arguments.Output = "params.yaml",
    check: arguments.Check = False,
    clean: arguments.Clean = False,
    estimate: arguments.Estimate = False,
    cluster: arguments.Cluster = None,
) -> None:
    """Write params.yaml: benchmark, methods, seeds and runs.

    What you do not specify stays as the file has it. For a new benchmark, the preset of the data set is used.

    \b
    ciss plan shapes 4-2                                      # the default
    ciss plan voc 15-1 --methods finetune mib --seeds 0 1 2   # a paper's benchmark
    ciss plan shapes 4-2 --orders 3 --set train.batch=8       # three class orders
    ciss plan --check                                         # check params.yaml and its data
    ciss plan --clean                                         # delete results of runs not in params.yaml
    ciss plan --estimate                                      # measure updates: hours, memory and disk
    ciss plan --estimate --cluster                            # and write cluster.yaml
    """
    arguments.exclusive(check=check, clean=clean, estimate=estimate)
    if check or clean:
        from ciss.study import plan_check

        arguments.exclusive(check=check, clean=clean, cluster=cluster is not None)
        plan_check.main(output, plan_check.check if check else plan_check.clean)
        return
    if dataset is None and not estimate and cluster is None:
        raise typer.BadParameter("name a data set, or use --check or --clean, or --estimate", param_hint="DATASET")
    arguments.exclusive(order=bool(order), orders=(orders or 1) > 1)
    from ciss.study.estimate import command

    cluster_file = command.checked_files(output, cluster)
    if dataset is not None:
        from ciss.study.plan import Request, main

        if methods is not None:
            methods = [method for method in methods if method]  # `--methods` alone: none
        named = (dataset, protocol, setting, methods, seeds, orders, order, joint, preset, name, settings)
        main(Request(*named, add, fresh, output))
    command.after_plan(output, estimate, cluster_file)


@app.command(cls=Command)
def train(
    runs: arguments.Runs = None,
    benchmark: arguments.OfBenchmark = None,
    config: arguments.Config = "params.yaml",
    jobs: arguments.Jobs = None,
    per_run: arguments.PerRun = None,
    trial: arguments.Trial = False,
    slurm: arguments.Slurm = None,
    write: arguments.Write = False,
    status: arguments.Status = False,
    cancel: arguments.Cancel = False,
    tensorboard: arguments.TensorBoard = False,
) -> None:
    """Train runs of params.yaml; without a name, all of them.

    \b
    ciss train shapes-s0-mib-1        # one run
    ciss train shapes-s0-mib-1 --try  # quick test in a temporary folder
    ciss train --jobs 2               # all runs, two at a time; then: dvc repro
    ciss train --benchmark shapes --per-run 4    # those of a benchmark, each on four GPUs
    ciss train --slurm --write        # for a cluster: write cluster.yaml. Then: ciss train --slurm
    ciss train --status               # the state of each run; --cancel removes runs from the queue

    A run waits for a free job and for the run that it continues. If there are no more jobs than GPUs, each job uses
    its own GPU. Choose GPUs with CUDA_VISIBLE_DEVICES. If a run fails, the runs that continue it are skipped.
    Ctrl-C stops all runs. The same command continues each run after its last finished epoch. If you train several runs
    on one CPU, plan with --set train.threads=1. docs/cluster.md explains GPUs and Slurm.
    """
    arguments.switch_tensorboard(tensorboard)
    runs = arguments.chosen_runs(runs, benchmark, config)
    chosen = arguments.exclusive(**{"try": trial, "slurm": slurm is not None, "status": status, "cancel": cancel})
    here = jobs is not None or per_run is not None
    one = len(runs or []) == 1 and not here
    if trial and not one:
        raise typer.BadParameter("name one run, without --jobs or --per-run", param_hint="--try")
    if chosen and here:
        raise typer.BadParameter(f"not allowed with {chosen}", param_hint="--per-run" if jobs is None else "--jobs")
    if write and slurm is None:
        raise typer.BadParameter("only allowed with --slurm", param_hint="--write")
    if one and chosen in (None, "--try"):
        _prepare(config, runs[0])
    if trial:
        from ciss.study import trial as study_trial

        study_trial.main(runs[0], config)
    elif chosen:
        from ciss.study.slurm import commands

        commands.main(chosen, runs or [], config, slurm, write)
    elif one:
        from ciss.training import loop

        loop.main(runs[0], config)
        from ciss.study.estimate import command

        command.print_comparison(runs, config)
    else:
        from ciss.study import launch

        launch.main(runs or [], config, jobs, per_run)


def _prepare(config: str, run: str) -> None:
    """What a run that is trained in this process needs: the processor's instructions, and the data."""
    processor.choose_instructions(config, run)  # before torch is imported
    from ciss.study.preparation import prepare_missing

    prepare_missing(run, config)


for command in (watch_options.watch, inspection_options.predict, inspection_options.export, report_options.report):
    app.command(cls=Command)(command)


@app.command(cls=Command)
def tune(
    methods: arguments.TunedMethods = None,
    trials: arguments.Trials = None,
    benchmark: arguments.TunedBenchmark = "",
    seed: arguments.TuningSeed = 9,
    jobs: arguments.Jobs = None,
    write: arguments.WriteChosen = False,
    config: arguments.Config = "params.yaml",
) -> None:
    """Choose coefficients on the hold-out set.

    docs/tuning.md explains what is tried, and how.

    \b
    ciss tune mib --trials 20           # trains what is missing, writes tuning/BENCHMARK-s9/trials.csv
    ciss tune mib plop gsc --jobs 2     # as many trials for each method, two at a time
    ciss tune                           # only writes the table and the figures again
    """
    from ciss.study.tune import command

    command.main(command.Request(methods or [], trials, benchmark, seed, jobs, write, config))


@app.command(cls=Command)
def bench(
    methods: arguments.BenchMethods = None,
    encoder: arguments.Encoder = None,
    decoder: arguments.Decoder = None,
    image: arguments.Image = None,
    classes: arguments.Classes = None,
    batch: arguments.Batch = None,
    precision: arguments.Precision = None,
    compile: arguments.Compile = None,
    rounds: arguments.Rounds = 5,
    output: arguments.Report = None,
    vs: arguments.Versus = None,
    gpu: arguments.Gpu = False,
    minutes: arguments.Minutes = 8,
    config: arguments.Config = "params.yaml",
) -> int:
    """Measure seconds and memory of each part of an update.

    \b
    ciss bench                      # the methods of params.yaml on its network
    ciss bench --vs HEAD~3          # ratios to the code of an earlier commit, in turns
    ciss bench --methods mib gsc --encoder resnet50 --image 256 --classes 20+1 141+10 --batch 2
    ciss bench --gpu --minutes 8    # test and measure a new GPU

    If options have several values, every combination is measured. Images are generated and weights are random: no data
    set is needed. Options that you leave out have the values of the first benchmark of params.yaml.
    """
    choices = (methods, encoder, decoder, image, classes, batch, precision, compile)
    if gpu:
        if vs or any(choices):
            raise typer.BadParameter("not allowed with other options than --minutes and --output", param_hint="--gpu")
        from ciss.study.bench import gpu as bench_gpu

        return bench_gpu.main(minutes, output)
    from ciss.study.bench import command

    return command.main(command.Request(*choices, rounds, output, vs, config))


@app.command(cls=Command)
def doctor(config: arguments.Config = "params.yaml") -> None:
    """Check the installation, and say how to mend it.

    \b
    ciss doctor
    """
    from ciss import doctor as ciss_doctor

    ciss_doctor.main(config)


@data.command("shapes", cls=Command)
def data_shapes() -> None:
    """Generate the synthetic data set in data/shapes.

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
    address: Annotated[str | None, Option("--from", metavar="ADDRESS", help="URL of the archive elsewhere.")] = None,
) -> None:
    """Download a real data set, or continue a stopped download.

    \b
    ciss data fetch voc           # into $CISS_DATA, or data/ of the project
    ciss data fetch cityscapes    # says how to get it
    """
    from ciss.data import commands

    commands.download(dataset, to, keep, address)


@data.command("content", cls=Command, hidden=True)
def data_content(benchmark: arguments.Benchmark) -> None:
    """For dvc.yaml: write a hash of your images and masks to .data/.

    \b
    ciss data content leaves
    """
    from ciss.data import commands

    commands.content(benchmark)


@data.command("init", cls=Command)
def data_init(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="A folder of images and masks: data/leaves.")],
) -> None:
    """Write dataset.yaml for your own images and masks.

    \b
    ciss data init data/leaves
    """
    from ciss.data import commands

    commands.init(folder)


@app.command(cls=Command, hidden=True)
def source() -> None:
    """For dvc.yaml: list the code of each stage in .source/.

    \b
    ciss source    # in the root of the project
    """
    from ciss.store import code

    try:
        code.write(Path.cwd())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


@app.command(cls=Command, hidden=True)
def execute(
    notebook: Annotated[Path, Argument(metavar="NOTEBOOK")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="File for the executed copy.")],
    parameters: Annotated[
        list[str] | None, Option("-p", metavar="NAME VALUE", help="A parameter; may be repeated.")
    ] = None,
) -> None:
    """For dvc.yaml: execute a notebook with parameters.

    \b
    ciss execute notebooks/2_base.ipynb reports/shapes/shapes-s0.ipynb -p config params.yaml -p run shapes-s0
    """
    words = parameters or []
    if len(words) % 2:
        raise typer.BadParameter("write a name and a value", param_hint="-p")
    from ciss.study import execute as study_execute

    study_execute.main(notebook, output, dict(zip(words[::2], words[1::2], strict=True)))


@app.command("copy-notebooks", cls=Command, hidden=True)
def copy_notebooks(benchmark: arguments.Benchmark, config: arguments.Config = "params.yaml") -> None:
    """For dvc.yaml: copy executed notebooks to reports/notebooks.

    \b
    ciss copy-notebooks shapes
    """
    from ciss.study import copies

    copies.main(benchmark, config)


@app.command(cls=Command)
def probe(
    benchmark: arguments.Benchmark,
    config: arguments.Config = "params.yaml",
    jobs: arguments.Processes = 1,
) -> None:
    """Write features and gradients that the analyses read.

    \b
    ciss probe shapes
    ciss probe shapes --jobs 2       # two processes share the runs
    """
    from ciss.inspection import probe as inspection_probe

    inspection_probe.main(benchmark, config, jobs)
