"""Executes a notebook with papermill, as the stages of the pipeline do: `ciss execute`.

The notebook runs in the Python of this module, whichever kernel its metadata name. Its printed lines appear here, and
an error is one message; the executed copy shows its cell. Ctrl-C stops the notebook too.

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

# An optional package of papermill's reader builds a grammar of web addresses, which takes over a second in every stage.
# No notebook needs it. Here it counts as not installed.
sys.modules.setdefault("rfc3987_syntax", None)
import nbformat  # noqa: E402
import papermill  # noqa: E402
from jupyter_client import AsyncKernelManager  # noqa: E402
from jupyter_client.kernelspec import KernelSpec  # noqa: E402
from nbclient.exceptions import DeadKernelError  # noqa: E402
from papermill.engines import NBClientEngine, papermill_engines  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402

from ciss.processor import choose_instructions  # noqa: E402

KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of IPython's traceback
TRACEBACK_LINES = 15
UNPRINTED = "remove-stdout"  # tag of cells; MyST-NB knows it too
OUTPUT_TIMEOUT = 600  # seconds from the end of a cell until its last printed line arrives; nbclient's default is 4
QUIET = "--IPKernelApp.log_level=ERROR"  # without the warning that the connection is not encrypted
# Errors whose message says enough, by name, as the kernel sends them; others come with the end of their traceback.
EXPLAINED = "ConfigError DataError CheckpointError DiskFull MemoryShort WeightsError Locked DivergenceError "
EXPLAINED += "ProvenanceError WorkerError Lost FileNotFoundError OSError PermissionError"


class KernelManager(AsyncKernelManager):
    """Starts kernels of this Python. A kernelspec python3 of the user, which Jupyter searches first, may be another."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name=KERNELSPEC["display_name"], language=KERNELSPEC["language"])


class Engine(NBClientEngine):
    """Runs a notebook by `KernelManager`, and writes that kernelspec into the executed copy."""

    @classmethod
    def execute_managed_notebook(cls, manager, kernel_name: str, **options) -> None:
        manager.nb.metadata["kernelspec"] = dict(KERNELSPEC)
        options |= {"kernel_manager_class": KernelManager, "iopub_timeout": OUTPUT_TIMEOUT}
        options |= {"coalesce_streams": True}  # messages are cut at other places each time
        super().execute_managed_notebook(manager, kernel_name, **options)


papermill_engines.register("ciss", Engine)


def execute(notebook: Path, output: Path, parameters: dict[str, str]) -> None:
    """Runs a notebook in the current folder and writes the executed copy, also if a cell fails.

    Raises PapermillExecutionError for an error in a cell, and other errors of papermill and nbclient.
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
        shutdown_kernel="immediate",  # all outputs of a notebook are files, written before
    )
    executed = nbformat.read(output, as_version=4)
    remove_changing(executed)
    move_links_of(executed, notebook.parent, output.parent)
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


def move_links_of(notebook: nbformat.NotebookNode, source: Path, target: Path) -> None:
    """Makes relative links of Markdown cells, from the folder `source`, work from the folder `target`."""
    if source.resolve() == target.resolve():
        return
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            link = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s]+(?=\))")
            cell.source = link.sub(
                lambda found: Path(os.path.relpath(source / found[0], target)).as_posix(), cell.source
            )


def move_links(file: Path, source: Path, target: Path) -> None:
    """Makes relative links in an executed notebook, which work from the folder `source`, work from `target`."""
    notebook = nbformat.read(file, as_version=4)
    move_links_of(notebook, source, target)
    nbformat.write(notebook, file)


def _without_folders(text: str) -> str:
    """The text with the folders of this machine by the names that they have everywhere."""
    names = {str(Path.cwd()): "."}
    if root := os.environ.get("CISS_DATA"):
        names[str(Path(root).expanduser().absolute())] = "$CISS_DATA"
    for folder in sorted(names, key=len, reverse=True):
        text = text.replace(f"{folder}{os.sep}", f"{names[folder]}{os.sep}")
    return text


def parameter_names(notebook: Path) -> list[str]:
    """The names that the notebook's cell of parameters sets; none without such a cell."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
        lines = [line for source in sources for line in ast.parse(source).body]
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, OSError):
        return []  # papermill reports what is wrong
    return [target.id for line in lines if isinstance(line, ast.Assign) for target in line.targets]


def main(notebook: Path, output: Path, parameters: dict[str, str]) -> None:
    """Executes a notebook and prints the output of its cells. Exits with a message if it fails."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("papermill").setLevel(logging.INFO)
    logging.getLogger("papermill").addFilter(_is_printed)
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # its errors are also exceptions
    if not notebook.is_file():
        sys.exit(f"error: {notebook}: there is no such notebook.")
    known = parameter_names(notebook)
    for name in parameters:
        if known and name not in known:
            from ciss.documents import choose  # not needed by a stage

            sys.exit(f"error: {notebook}: no parameter {name!r}. {choose(name, known)}")
    choose_instructions(parameters.get("config", ""), parameters.get("run", ""))
    try:
        # In the main thread, nbclient would handle Ctrl-C and let the notebook continue for seconds.
        ThreadPoolExecutor(1).submit(execute, notebook, output, parameters).result()
    except KeyboardInterrupt:
        _stop()
    except DeadKernelError:
        problem = "its process was killed, perhaps because the machine had no memory left"
        sys.exit(f"error: {notebook}: {problem}. Finished epochs are kept. Free memory and run the same command again.")
    except PapermillExecutionError as error:
        if error.ename not in EXPLAINED.split():
            print(_end_of_traceback(error.traceback), file=sys.stderr)
        sys.exit(f"error: {error.evalue}\n(in {output}, cell {error.exec_count})")
    except Exception as error:  # before the first cell: the notebook is not readable, or its kernel does not start
        reason = str(error).partition("\n")[0]
        sys.exit(
            f"error: {notebook}: cannot be executed: {type(error).__name__}: {reason}\n"
            "Open it with `jupyter lab` to see whether it is a notebook, and run `ciss doctor`."
        )


def _end_of_traceback(entries: list[str]) -> str:
    """The last lines of IPython's traceback, without colours."""
    lines = ANSI.sub("", "\n".join(entries)).splitlines()
    return "\n".join(["Traceback, its last lines; the executed copy has all of it:", *lines[-TRACEBACK_LINES:]])


def _stop() -> None:
    """Ends the notebook's process and this one."""
    kernels = psutil.Process().children(recursive=True)
    interrupt = signal.SIGTERM if os.name == "nt" else signal.SIGINT  # Windows has no SIGINT for a single process
    for number in (interrupt, getattr(signal, "SIGKILL", signal.SIGTERM)):  # after the first one, a kernel can tidy up
        for kernel in kernels:
            with suppress(psutil.NoSuchProcess):
                kernel.send_signal(number)
        _, kernels = psutil.wait_procs(kernels, timeout=0.3)
    print("\nStopped. The same command goes on after the last finished epoch.", file=sys.stderr, flush=True)
    os._exit(130)


def _is_printed(record: logging.LogRecord) -> bool:
    """Whether a record of papermill's log is output of a cell or a warning, and no description of a figure."""
    text = record.getMessage().rstrip()
    record.msg, record.args = text, ()
    wanted = record.funcName == "log_output_message" or record.levelno >= logging.WARNING
    return wanted and bool(text) and not re.fullmatch("<.*>", text)
