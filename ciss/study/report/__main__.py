"""Writes `reports/report.html` from the tables and figures that the analyses left."""

import argparse
import sys

import matplotlib as mpl

from ciss import config, paths
from ciss.analysis.figures.style import style
from ciss.documents import ConfigError
from ciss.store import files
from ciss.study.report.page import page


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ciss.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="params.yaml", help="what was run (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config)
        root = (paths.project() / settings.output).resolve()
        mpl.use("Agg")
        style()
        compared = {end.benchmark for end in settings.ends.values()}
        planned = {name: value for name, value in settings.benchmarks.items() if name in compared}
        text = page(root / "reports", planned)
        files.write_text(root / "reports" / "report.html", text)
        print(f"reports/report.html: {len(text) / 2**20:.1f} MiB")
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
