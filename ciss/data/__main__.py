"""`python -m ciss.data shapes` draws the embedded data set into `data/shapes`; `python -m ciss.data fetch voc` (or
sbd, ade20k) downloads a real one into `$CISS_DATA` or `data/`, and `fetch cityscapes` says how to get that one.
`python -m ciss.data init data/leaves` writes the `dataset.yaml` of a data set of your own."""

import argparse
import sys
from pathlib import Path

from ciss import paths
from ciss.data.describe import describe
from ciss.data.fetch import CITYSCAPES, SOURCES, FetchError, default_root, fetch
from ciss.data.pictures import DataError
from ciss.data.sets.shapes import write
from ciss.store.files import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ciss.data", description="Data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("shapes", help="draw the embedded data set into data/shapes")
    fetching = commands.add_parser("fetch", help="download a real data set; a stopped download goes on where it was")
    fetching.add_argument("dataset", choices=[*SOURCES, "cityscapes"], help="sbd: masks for voc, which it needs")
    fetching.add_argument("--to", type=Path, metavar="FOLDER", help="instead of $CISS_DATA or data/ of the project")
    fetching.add_argument("--keep", action="store_true", help="keep the archive, in FOLDER/downloads")
    fetching.add_argument("--from", dest="address", metavar="ADDRESS", help="download the archive from there")
    describing = commands.add_parser("init", help="write dataset.yaml for a folder of images and masks of your own")
    describing.add_argument("folder", type=Path, metavar="FOLDER", help="such as data/leaves")
    options = parser.parse_args()
    try:
        if options.command == "shapes":
            write(paths.project() / "data" / "shapes")
            return
        if options.command == "init":
            print(describe(options.folder))
            return
        root = options.to.expanduser().absolute() if options.to else default_root()
        if options.dataset == "cityscapes":
            sys.exit(CITYSCAPES.format(folder=root / "cityscapes"))
        fetch(options.dataset, root, options.keep, options.address)
    except (OSError, FetchError, CheckpointError, DataError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")


if __name__ == "__main__":
    main()
