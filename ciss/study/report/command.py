"""Writes `reports/report.html` from the tables and figures that the analyses left: `ciss report`."""

import hashlib
import sys

import matplotlib as mpl

from ciss import config, paths
from ciss.analysis.figures.style import style
from ciss.documents import ConfigError
from ciss.runs import timings
from ciss.store import files
from ciss.study.report import cost
from ciss.study.report.page import page, with_costs

STAMP = ".reported"  # beside `reports/`: what the pipeline knows of the page


def main(config_file: str) -> None:
    """Writes the page, and what the methods take to `timings/`. Exits with a message where it cannot.

    The page has seconds, so its bytes differ each time. `.reported` has the hash of the page without them.

    Args:
        config_file: the parameter file that says what was run.
    """
    try:
        settings = config.load(config_file)
        root = (paths.project() / settings.output).resolve()
        mpl.use("Agg")
        style()
        compared = {end.benchmark for end in settings.ends.values()}
        planned = {name: value for name, value in settings.benchmarks.items() if name in compared}
        methods = {name: {} for name in planned}
        for end in settings.ends.values():
            name = settings.runs()[end.run].method
            methods[end.benchmark][name] = settings.methods[name]
        text = page(root / "reports", planned, methods)
        stamp = hashlib.sha256(text.encode()).hexdigest()
        ends, members = cost.measure(root, settings)
        cost.write(root / timings.FOLDER, ends, members)
        text = with_costs(text, cost.sections(ends))
        files.write_text(root / "reports" / "report.html", text)
        files.write_text(root / STAMP, f"{stamp}  reports/report.html without its sections on cost\n")
        print(f"reports/report.html: {len(text) / 2**20:.1f} MiB")
    except (ConfigError, files.CheckpointError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
