"""Writes `reports/report.html` from the tables and figures that the analyses left: `ciss report`."""

import os
import sys
from pathlib import Path

import matplotlib as mpl

from ciss import config, paths
from ciss.analysis.figures.style import style
from ciss.documents import ConfigError
from ciss.study.report.page import page, pictures


def main(config_file: str, look: str | None) -> None:
    """Writes the page. Exits with a message where it cannot.

    Args:
        config_file: the parameter file that says what was run.
        look: a benchmark: write only names and hashes of its pictures, in `.pictures/`, and no page.
    """
    try:
        settings = config.load(config_file)
        root = (paths.project() / settings.output).resolve()
        if look:
            if look not in settings.benchmarks:
                known = ", ".join(settings.benchmarks)
                raise ConfigError(f"{config_file}: there is no benchmark {look!r}. Known: {known}.")
            _write(root / ".pictures" / look, pictures(root / "reports", look))
            return
        for file in (root / ".pictures").glob("*"):  # of another study
            if file.name not in settings.benchmarks and file.name != ".gitignore":
                file.unlink()
        mpl.use("Agg")
        style()
        compared = {end.benchmark for end in settings.ends.values()}
        planned = {name: value for name, value in settings.benchmarks.items() if name in compared}
        text = page(root / "reports", planned)
        _write(root / "reports" / "report.html", text)
        print(f"reports/report.html: {len(text) / 2**20:.1f} MiB")
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def _write(file: Path, text: str) -> None:
    """A file, whole. What `checkpoint` has for this takes seconds to import."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    scratch.write_text(text, encoding="utf-8", newline="\n")
    os.replace(scratch, file)
