"""Executes a notebook with papermill, as every stage of the pipeline does: `ciss execute`.

The notebook runs in the Python that runs this module, whichever kernel its metadata name. Its printed lines pass
through. An error becomes one message, and the executed copy shows where it happened. Ctrl-C stops the notebook too.

The same notebook on the same data leaves the same bytes. The executed copy has no times, no version of Python, no
warnings (they name processes) and no absolute path of the project or of `$CISS_DATA`. It has no printed lines of cells
with the tag `remove-stdout`: a training prints seconds, and fewer lines when it continues a stopped one.
"""

import ast
import json
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
import nbformat  # noqa: E402
import papermill  # noqa: E402
from jupyter_client import AsyncKernelManager  # noqa: E402
from jupyter_client.kernelspec import KernelSpec  # noqa: E402
from nbclient.exceptions import DeadKernelError  # noqa: E402
from papermill.engines import NBClientEngine, papermill_engines  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402

KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of IPython's traceback
TRACEBACK_LINES = 15
UNPRINTED = "remove-stdout"  # tag of cells; MyST-NB knows it too
OUTPUT_TIMEOUT = 600  # seconds from a cell's end until its last printed line has arrived; nbclient's own is 4
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
    "Lost",
    "FileNotFoundError",
    "OSError",
    "PermissionError",
)


class KernelManager(AsyncKernelManager):
    """Starts kernels of this Python. A kernelspec named python3 may belong to another one, for example in
    `~/.local/share/jupyter/kernels`, which Jupyter searches before the environment."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name=KERNELSPEC["display_name"], language=KERNELSPEC["language"])


class Engine(NBClientEngine):
    """Runs a notebook by `KernelManager`, and says so in the metadata of the executed copy."""

    @classmethod
    def execute_managed_notebook(cls, manager, kernel_name: str, **options) -> None:
        manager.nb.metadata["kernelspec"] = dict(KERNELSPEC)
        options |= {"kernel_manager_class": KernelManager, "iopub_timeout": OUTPUT_TIMEOUT}
        options |= {"coalesce_streams": True}  # messages are cut at other places each time
        super().execute_managed_notebook(manager, kernel_name, **options)


papermill_engines.register("ciss", Engine)


def execute(notebook: Path, output: Path, parameters: dict[str, str]) -> None:
    """Runs `notebook` in the current folder and writes the executed copy, also of a failed run.

    Raises PapermillExecutionError with the cell's error, and whatever else papermill and nbclient raise.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook),
        str(output),
        parameters,
        engine_name="ciss",
        kernel_name=KERNELSPEC["name"],
        language=KERNELSPEC["language"],
        progress_bar=False,
        log_output=True,
        extra_arguments=[QUIET],
        shutdown_kernel="immediate",  # what a notebook leaves is on the disk by then
    )
    executed = nbformat.read(output, as_version=4)
    remove_changing(executed)
    nbformat.write(executed, output)


def remove_changing(notebook: nbformat.NotebookNode) -> None:
    """Removes from an executed notebook what another execution would leave otherwise."""
    notebook.metadata.pop("papermill", None)  # times and folders
    notebook.metadata["language_info"] = {"name": KERNELSPEC["language"]}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", ())
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in tags:
            cell["id"] = "injected-parameters"
        if cell.cell_type == "code":
            removed = ("stderr", "stdout") if UNPRINTED in tags else ("stderr",)
            cell.outputs = [output for output in cell.outputs if output.get("name") not in removed]
            for output in cell.outputs:
                texts = output if output.output_type == "stream" else output.get("data", {})
                for kind in [kind for kind in texts if kind.startswith("text")]:
                    texts[kind] = _without_folders(texts[kind])


def _without_folders(text: str) -> str:
    """The text with the folders of this machine by the names that they have everywhere."""
    names = {str(Path.cwd()): "."}
    if root := os.environ.get("CISS_DATA"):
        names[str(Path(root).expanduser().absolute())] = "$CISS_DATA"
    for folder in sorted(names, key=len, reverse=True):
        text = text.replace(f"{folder}{os.sep}", f"{names[folder]}{os.sep}")
    return text


def parameter_names(notebook: Path) -> list[str]:
    """The names that the notebook's cell of parameters sets; none where it has no such cell or cannot be read."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
        lines = [line for source in sources for line in ast.parse(source).body]
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, OSError):
        return []  # papermill's own message says what is wrong
    return [target.id for line in lines if isinstance(line, ast.Assign) for target in line.targets]


def main(notebook: Path, output: Path, parameters: dict[str, str]) -> None:
    """Executes a notebook, printing what its cells print. Exits with a message where it fails."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("papermill").setLevel(logging.INFO)
    logging.getLogger("papermill").addFilter(_printed)
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # its errors arrive as exceptions, too
    if not notebook.is_file():
        sys.exit(f"error: {notebook}: there is no such notebook.")
    known = parameter_names(notebook)
    for name in parameters:
        if known and name not in known:
            from ciss.documents import choose  # no stage waits for it

            sys.exit(f"error: {notebook}: no parameter {name!r}. {choose(name, known)}")
    try:
        # in a thread: in the main one nbclient takes Ctrl-C for itself, and lets the notebook go on for seconds
        ThreadPoolExecutor(1).submit(execute, notebook, output, parameters).result()
    except KeyboardInterrupt:
        _stop()
    except DeadKernelError:
        sys.exit(
            f"error: {notebook}: its process was killed, perhaps because the machine had no memory left. "
            "Finished epochs are kept. Free some, and run the same command again."
        )
    except PapermillExecutionError as error:
        if error.ename not in EXPLAINED:
            print(_end_of_traceback(error.traceback), file=sys.stderr)
        sys.exit(f"error: {error.evalue}\n(in {output}, cell {error.exec_count})")
    except Exception as error:  # before the first cell: the notebook cannot be read, or its kernel does not start
        reason = next(iter(str(error).splitlines()), "")
        sys.exit(
            f"error: {notebook}: cannot be executed: {type(error).__name__}: {reason}\n"
            "Open it with `jupyter lab` to see whether it is a notebook, and run `ciss doctor`."
        )


def _end_of_traceback(entries: list[str]) -> str:
    """The last lines of IPython's traceback, without colours."""
    lines = ANSI.sub("", "\n".join(entries)).splitlines()
    head = [] if len(lines) <= TRACEBACK_LINES else ["Traceback, its last lines; the executed copy has all of it:"]
    return "\n".join([*head, *lines[-TRACEBACK_LINES:]])


def _stop() -> None:
    """Ends the notebook's process and this one."""
    kernels = psutil.Process().children(recursive=True)
    for stop in (_interrupt, psutil.Process.kill):  # the first lets it tidy up
        for kernel in kernels:
            with suppress(psutil.NoSuchProcess):
                stop(kernel)
        _, kernels = psutil.wait_procs(kernels, timeout=0.3)
    print("\nStopped. The same command goes on after the last finished epoch.", file=sys.stderr, flush=True)
    os._exit(130)


def _interrupt(process: psutil.Process) -> None:
    if os.name == "nt":  # no SIGINT for a single process
        process.terminate()
    else:
        process.send_signal(signal.SIGINT)


def _printed(record: logging.LogRecord) -> bool:
    """Papermill's log carries what cells print among its own remarks: keep the first, without figures' descriptions."""
    text = record.getMessage().rstrip()
    record.msg, record.args = text, ()
    heard = record.funcName == "log_output_message" or record.levelno >= logging.WARNING
    return heard and bool(text) and not re.fullmatch("<.*>", text)
