"""Notebooks in the pipeline: what they print passes through, what goes wrong is one message."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from papermill.clientwrap import PapermillNotebookClient

from ciss import cli, paths
from ciss.study import execute

HELLO = "print('hello', name, flush=True)\nprint('Executing is what I say')\n{'all': 0.5}"
OURS = "class CheckpointError(Exception): pass\nraise CheckpointError('base: no such checkpoint. Train it: now')"
FOREIGN = "def divide(depth):\n    return 1 / depth if depth == 0 else divide(depth - 1)\ndivide(30)"
PYTHON = "import sys\nprint(sys.executable)"
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
OTHER_KERNEL = {"name": "conda-env-x-py", "display_name": "Python [conda env:x]", "language": "R"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """{kind: (exit code, output, errors, executed copy)}: the kernels start at the same time."""
    folder = tmp_path_factory.mktemp("notebooks")
    processes = {}
    kinds = {"good": [HELLO], "ours": [HELLO, OURS, "never"], "foreign": [FOREIGN], "missing": []}
    kinds |= {"renamed": [PYTHON], "unnamed": [PYTHON]}  # the kernels in the metadata
    shadow = folder / "user" / "kernels" / "python3"  # searched before the environment's
    shadow.mkdir(parents=True)
    argv = ["/nowhere/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (shadow / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "user's", "language": "python"}))
    for kind, cells in kinds.items():
        code = {"cell_type": "code", "execution_count": None, "outputs": []}
        parameters = {**code, "metadata": {"tags": ["parameters"]}, "id": "p", "source": "name = 'nobody'"}
        rest = [{**code, "metadata": {}, "id": f"c{k}", "source": source} for k, source in enumerate(cells)]
        kernel = {} if kind == "unnamed" else {"kernelspec": OTHER_KERNEL if kind == "renamed" else KERNELSPEC}
        notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [parameters, *rest]}
        if cells:
            (folder / f"{kind}.ipynb").write_text(json.dumps(notebook))
        copy = f"out/{kind}.ipynb"
        command = [sys.executable, "-m", "ciss", "execute", f"{kind}.ipynb", copy, "-p", "name", "you"]
        variables = {**os.environ, "JUPYTER_DATA_DIR": str(folder / "user"), "JUPYTER_PREFER_ENV_PATH": "0"}
        environment = {"cwd": folder, "env": variables, "text": True}
        processes[kind] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment)
    found = {}
    for kind, process in processes.items():
        out, error = process.communicate(timeout=120)
        copy = folder / "out" / f"{kind}.ipynb"
        found[kind] = process.returncode, out, error, json.loads(copy.read_text()) if copy.is_file() else None
    return found


def test_what_cells_print_passes_through(executed):
    code, out, error, copy = executed["good"]
    assert code == 0
    assert out.splitlines() == ["hello you", "Executing is what I say", "{'all': 0.5}"]
    assert "Traceback" not in error
    assert copy["cells"][-1]["execution_count"] == 3


def test_our_errors_are_one_message(executed):
    code, out, error, copy = executed["ours"]
    assert code == 1
    assert out.splitlines()[0] == "hello you"
    lines = error.strip().splitlines()
    assert lines[-2:] == ["error: base: no such checkpoint. Train it: now", "(in out/ours.ipynb, cell 4)"]
    assert "Traceback" not in error and "papermill" not in error
    outputs = [
        output for cell in copy["cells"] for output in cell.get("outputs", []) if output["output_type"] == "error"
    ]
    assert [output["ename"] for output in outputs] == ["CheckpointError"], "the copy shows where"
    assert copy["cells"][-1]["execution_count"] is None, "what follows is not run"


def test_other_errors_come_with_their_traceback(executed):
    code, _, error, copy = executed["foreign"]
    assert code == 1
    assert "Traceback" in error and "ZeroDivisionError" in error
    lines = error.strip().splitlines()
    assert lines[-2] == "error: division by zero"
    assert len(lines) <= 1 + execute.TRACEBACK_LINES + 2, "the last lines; the executed copy has all of them"
    assert "\x1b" not in error, "no colours"
    (output,) = [output for cell in copy["cells"] for output in cell.get("outputs", []) if "traceback" in output]
    assert len("\n".join(output["traceback"]).splitlines()) > 2 * execute.TRACEBACK_LINES


def test_printed_lines_that_arrive_late(tmp_path, monkeypatch):
    """A cell that printed much has ended long before all of it has arrived, here slowed down to 5 seconds: nbclient's
    default is to give up after 4."""
    code = {"cell_type": "code", "execution_count": None, "outputs": [], "metadata": {}, "id": "a"}
    cell = {**code, "source": "for number in range(500):\n    print(number, flush=True)"}
    notebook, copy = tmp_path / "a.ipynb", tmp_path / "copy.ipynb"
    notebook.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}))
    arrived = PapermillNotebookClient.process_message

    def late(*arguments):
        time.sleep(0.01)
        return arrived(*arguments)

    monkeypatch.setattr(PapermillNotebookClient, "process_message", late)
    execute.execute(notebook, copy, {})
    (cell,) = json.loads(copy.read_text())["cells"]
    assert len("".join(line for output in cell["outputs"] for line in output["text"]).splitlines()) == 500


@pytest.mark.parametrize("kind", ["renamed", "unnamed", "good"])
def test_the_kernel_is_this_python(executed, kind):
    """Whatever kernel the metadata name, and whatever kernelspec python3 the user has."""
    code, out, error, copy = executed[kind]
    assert code == 0, error
    assert kind == "good" or out.strip() == sys.executable
    assert copy["metadata"]["kernelspec"] == KERNELSPEC


@pytest.mark.parametrize(
    "text", ["", "no notebook", "{}", '{"nbformat": 4, "nbformat_minor": 5, "cells": [], "metadata": 1}']
)
def test_what_is_no_notebook_is_one_message(text, tmp_path, monkeypatch):
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["execute", str(notebook), str(tmp_path / "copy.ipynb")])
    assert str(stopped.value).startswith(f"error: {notebook}: cannot be executed: ")
    assert str(stopped.value).count("\n") == 1


def test_a_misspelt_parameter_is_one_message_before_anything_runs(tmp_path):
    """It would be set and not used: the notebook would run its default, which is another configuration."""
    notebook, copy = paths.project() / "notebooks" / "3_increment.ipynb", tmp_path / "copy.ipynb"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["execute", str(notebook), str(copy), "-p", "confg", "params.yaml"])
    assert str(stopped.value) == f"error: {notebook}: no parameter 'confg'. Did you mean 'config'?"
    assert not copy.exists()


def test_the_parameters_of_every_notebook_are_read():
    for notebook in sorted((paths.project() / "notebooks").glob("*.ipynb")):
        assert "config" in execute.parameter_names(notebook), notebook


def test_a_kernel_that_does_not_start_is_one_message(tmp_path, monkeypatch):
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(
        SystemExit, match=f"^error: {notebook}: cannot be executed: FileNotFoundError: .*/nowhere/python"
    ):
        cli.main(["execute", str(notebook), str(tmp_path / "copy.ipynb")])


@pytest.fixture
def endless(tmp_path):
    """A notebook that says its process and sleeps, started; ended with the test."""
    cell = {"cell_type": "code", "execution_count": None, "outputs": [], "metadata": {}, "id": "a"}
    source = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [{**cell, "source": source}]}
    (tmp_path / "endless.ipynb").write_text(json.dumps(notebook))
    process = subprocess.Popen(
        [sys.executable, "-m", "ciss", "execute", "endless.ipynb", "copy.ipynb"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line.strip().isdigit(), process.communicate()
    yield process, psutil.Process(int(line))
    process.kill()
    process.communicate()


def gone(kernel: psutil.Process, seconds: float) -> bool:
    return not psutil.wait_procs([kernel], timeout=seconds)[1]


def test_control_c_ends_the_notebook_too(endless):
    process, kernel = endless
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - sent < 2, "nbclient alone takes some seconds"
    assert gone(kernel, 0)
    assert process.returncode == 130
    assert error == "\nStopped. The same command goes on after the last finished epoch.\n"


def test_a_killed_kernel_is_one_message(endless):
    process, kernel = endless
    kernel.kill()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: endless.ipynb: its process was killed, perhaps because the machine had no memory")
    assert "Traceback" not in error


def test_an_orphaned_kernel_ends_by_itself(endless):
    """Papermill is killed: its kernel notices within a second or two."""
    process, kernel = endless
    process.kill()
    process.wait()
    assert gone(kernel, 10)


def test_no_such_notebook(executed):
    code, _, error, copy = executed["missing"]
    assert (code, copy) == (1, None)
    assert error.strip() == "error: missing.ipynb: there is no such notebook."


def test_it_starts_light():
    """Every stage pays for what this imports, before its notebook imports anything: half a second, not two."""
    code = "import sys, ciss.study.execute; print({'torch', 'numpy', 'lark'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_every_error_of_ours_is_explained():
    """By name, as the kernel's errors arrive."""
    from ciss import distributed
    from ciss.analysis.compare.tables import ProvenanceError
    from ciss.store import files
    from ciss.training import loop

    others = [loop.DivergenceError, loop.MemoryShort, files.DiskFull, ProvenanceError]
    for error in (*loop.RUN_ERRORS, *others, distributed.WorkerError):
        assert error.__name__ in execute.EXPLAINED.split() or error is ValueError


def test_links_work_from_the_folder_of_the_copy(tmp_path):
    text = "[a](../docs/a.md#part), [b](b.ipynb), ![c](../c.png); [d](https://d.org/e), [e](#here)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    execute.move_links_of(notebook, tmp_path / "notebooks", tmp_path / "reports" / "shapes")
    moved = (
        "[a](../../docs/a.md#part), [b](../../notebooks/b.ipynb), ![c](../../c.png); [d](https://d.org/e), [e](#here)"
    )
    assert notebook.cells[0].source == moved
