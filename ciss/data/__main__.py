"""`python -m ciss.data shapes` draws the embedded data set into `data/shapes`."""

import argparse
import sys

from ciss import paths
from ciss.data import shapes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ciss.data", description="Data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("shapes", help="draw the embedded data set into data/shapes")
    parser.parse_args()
    try:
        shapes.write(paths.project() / "data" / "shapes")
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
