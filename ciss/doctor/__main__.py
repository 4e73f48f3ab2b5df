"""`python -m ciss.doctor`: see the package."""

import argparse
import sys
import warnings
from pathlib import Path

from ciss import doctor, paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ciss.doctor", description="Check an installation.")
    parser.add_argument(
        "--config", default="params.yaml", help="parameter file, relative to the project (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    try:
        root = paths.project()
    except FileNotFoundError:
        root = Path.cwd()  # the check of the project says it
    warnings.simplefilter("ignore")
    try:
        sys.exit(doctor.examine(doctor.Setup(root, chosen.config)))
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


if __name__ == "__main__":
    main()
