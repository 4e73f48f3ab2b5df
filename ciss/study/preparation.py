"""The data of one run, prepared where they are missing: `ciss train RUN`. Needs only what a training needs."""

import sys
from contextlib import suppress

from ciss import config, distributed
from ciss.data import DataError, prepare
from ciss.runs.check import check
from ciss.runs.run import index_folder, resolve
from ciss.training.loop import USER_ERRORS


def prepare_missing(name: str, config_file: str) -> None:
    """Prepares the data of a run if their index is missing, damaged or made for other settings. Exits with a message if
    that fails.

    Under torchrun it does nothing: the processes of several nodes would write the same files.
    """
    if distributed.under_torchrun():
        return
    try:
        settings = config.load(config_file)
        run = resolve(settings, name)
        with suppress(DataError):
            run.index()
            return
        check(settings)
        prepare(run.settings, index_folder(run.root, run.benchmark))
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
