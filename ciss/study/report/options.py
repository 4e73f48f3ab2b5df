"""The command `ciss report`. Imports nothing heavy before it is called."""

from typing import Annotated

import typer
from typer import Option

from ciss import arguments

AGAINST = "Write nothing: compare the scores with those of a git revision."
Against = Annotated[str | None, Option(metavar="REVISION", help=AGAINST)]
KEPT = "Write what tables, figures and page need to FOLDER/BENCHMARK: small files for git, a part of a study."
Keep = Annotated[str | None, Option(metavar="FOLDER", help=KEPT)]
Benchmark = Annotated[str | None, Option(metavar="NAME", help="With --keep: this benchmark alone. Default: all.")]
REDRAWN = "Make tables, figures and page from the parts in FOLDER, without weights and data."
Redraw = Annotated[str | None, Option(metavar="FOLDER", help=REDRAWN)]
Out = Annotated[str | None, Option(metavar="FOLDER", help="With --redraw: where to. Default: reports in its folder.")]
Mixed = Annotated[bool, Option("--mixed", help="With --redraw: also from parts that different code made.")]


def report(
    config: arguments.Config = "params.yaml",
    against: Against = None,
    keep: Keep = None,
    benchmark: Benchmark = None,
    redraw: Redraw = None,
    out: Out = None,
    mixed: Mixed = False,
) -> int | None:
    """Write reports/report.html from the results of the analyses.

    \b
    ciss report
    ciss report --against HEAD    # list the scores that differ; exit status 1 if some do
    ciss report --keep reports/study/orders --benchmark voc8-orders-order1
    ciss report --redraw reports/study/orders

    Run time and memory of the runs trained on this machine are written to timings/. docs/benchmarks.md explains
    studies in parts.
    """
    arguments.exclusive(against=against is not None, keep=keep is not None, redraw=redraw is not None)
    if benchmark is not None and keep is None:
        raise typer.BadParameter("only allowed with --keep", param_hint="--benchmark")
    if redraw is None and (mixed or out is not None):
        raise typer.BadParameter("only allowed with --redraw", param_hint="--mixed" if mixed else "--out")
    if against is not None:
        from ciss.study.report import against as comparison

        return comparison.main(config, against)
    if keep is not None:
        from ciss.study.report import parts

        parts.main(config, keep, benchmark)
    elif redraw is not None:
        from ciss.study.report import redraw as from_parts

        from_parts.main(redraw, out, mixed)
    else:
        from ciss.study.report import command

        command.main(config)
    return None
