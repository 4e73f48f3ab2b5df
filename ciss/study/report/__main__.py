"""Writes `reports/report.html` from the tables and figures that the analyses left.

python -m ciss.report                  # the page
python -m ciss.report --look shapes    # names and hashes of a benchmark's pictures, in .pictures/, for the pipeline
"""

import argparse
import sys

import matplotlib as mpl

from ciss import config, paths
from ciss.analysis.figures.style import style
from ciss.documents import ConfigError
from ciss.store import files
from ciss.store.files import CheckpointError
from ciss.study.report.page import page, pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ciss.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="params.yaml", help="what was run (default: %(default)s)")
    parser.add_argument("--look", metavar="BENCHMARK", help="only write down what the page takes from a benchmark")
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config)
        root = (paths.project() / settings.output).resolve()
        if arguments.look:
            if arguments.look not in settings.benchmarks:
                known = ", ".join(settings.benchmarks)
                raise ConfigError(f"{arguments.config}: there is no benchmark {arguments.look!r}. Known: {known}.")
            files.write_text(root / ".pictures" / arguments.look, pictures(root / "reports", arguments.look))
            return
        for file in (root / ".pictures").glob("*"):  # of another study
            if file.name not in settings.benchmarks and file.name != ".gitignore":
                file.unlink()
        mpl.use("Agg")
        style()
        compared = {end.benchmark for end in settings.ends.values()}
        planned = {name: value for name, value in settings.benchmarks.items() if name in compared}
        text = page(root / "reports", planned)
        files.write_text(root / "reports" / "report.html", text)
        print(f"reports/report.html: {len(text) / 2**20:.1f} MiB")
    except (ConfigError, CheckpointError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
