"""Executes a notebook with papermill, as every stage of the pipeline does.

    python -m ciss.execute notebooks/2_base.ipynb reports/shapes/shapes-s0.ipynb -p config params.yaml -p run shapes-s0

Its printed lines pass through; an error becomes one message, and the executed copy shows where it happened. Ctrl-C
stops the notebook too, at once.
"""

import argparse
import logging
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil

# What papermill reads notebooks with would first build a grammar of web addresses in any script, over a second that
# every stage pays, for a check that no notebook asks for. It is optional: seen as not installed, it is left out.
sys.modules.setdefault("rfc3987_syntax", None)
import papermill  # noqa: E402
from nbclient.exceptions import DeadKernelError  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402

QUIET = "--IPKernelApp.log_level=ERROR"  # every kernel warns that it speaks to this machine unencrypted
EXPLAINED = (
    "ConfigError",
    "DataError",
    "CheckpointError",
    "DiskFull",
    "MemoryShort",
    "WeightsError",
    "Locked",
    "DivergenceError",
    "ProvenanceError",
    "WorkerError",
    "FileNotFoundError",
    "OSError",
    "PermissionError",
)


def execute(notebook: Path, output: Path, parameters: dict[str, str]) -> None:
    """Runs `notebook` in the current folder and writes the executed copy, also of a failed run.

    Raises PapermillExecutionError with the cell's error, FileNotFoundError without a notebook.
    """
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook}: there is no such notebook.")
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook),
        str(output),
        parameters,
        progress_bar=False,
        log_output=True,
        extra_arguments=[QUIET],
        shutdown_kernel="immediate",  # what a notebook leaves is on the disk by then
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ciss.execute", description="Execute a notebook with parameters.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="where the executed copy goes")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("papermill").setLevel(logging.INFO)
    logging.getLogger("papermill").addFilter(_printed)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    try:
        # in a thread: in the main one nbclient takes Ctrl-C for itself, and lets the notebook go on for seconds
        ThreadPoolExecutor(1).submit(execute, arguments.notebook, arguments.output, dict(arguments.p)).result()
    except KeyboardInterrupt:
        _stop()
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    except DeadKernelError:
        sys.exit(
            f"error: {arguments.notebook}: its process was killed, perhaps because the machine had no memory left. "
            "Finished epochs are kept. Free some, and run the same command again."
        )
    except PapermillExecutionError as error:
        if error.ename not in EXPLAINED:
            print("\n".join(error.traceback), file=sys.stderr)
        sys.exit(f"error: {error.evalue}\n(in {arguments.output}, cell {error.exec_count})")


def _stop() -> None:
    """Ends the notebook's process and this one."""
    kernels = psutil.Process().children(recursive=True)
    for order in (signal.SIGINT, signal.SIGKILL):  # the first lets it tidy up
        for kernel in kernels:
            with suppress(psutil.NoSuchProcess):
                kernel.send_signal(order)
        _, kernels = psutil.wait_procs(kernels, timeout=0.3)
    print("\nStopped. The same command goes on after the last finished epoch.", file=sys.stderr, flush=True)
    os._exit(130)


def _printed(record: logging.LogRecord) -> bool:
    """Papermill's log carries what cells print among its own remarks: keep the first, without figures' descriptions."""
    text = record.getMessage().rstrip()
    record.msg, record.args = text, ()
    heard = record.funcName == "log_output_message" or record.levelno >= logging.WARNING
    return heard and bool(text) and not re.fullmatch("<.*>", text)


if __name__ == "__main__":
    main()
