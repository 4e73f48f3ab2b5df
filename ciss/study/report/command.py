"""Writes `reports/report.html` from the tables and figures that the analyses left: `ciss report`."""

import sys

import matplotlib as mpl

from ciss import config, paths
from ciss.analysis.figures.style import style
from ciss.documents import ConfigError
from ciss.store import files
from ciss.study.report.page import page


def main(config_file: str) -> None:
    """Writes the page. Exits with a message where it cannot.

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
        text = page(root / "reports", planned)
        files.write_text(root / "reports" / "report.html", text)
        print(f"reports/report.html: {len(text) / 2**20:.1f} MiB")
    except (ConfigError, files.CheckpointError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
