"""The process that trains one run: its command, how to stop it, and the message of its failure."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, wait
from contextlib import suppress

SIGKILL = getattr(signal, "SIGKILL", None)  # Windows has none
ERROR = re.compile(r"^(?:process \d+ of \d+ on \S+: )?error: ", re.MULTILINE)  # the start of a training's message
LAST_LINES = 20  # of stderr, for a process that ends without a message


class RunFailed(Exception):
    """Why a run failed."""


def command(config_file: str, name: str, *torchrun: str) -> list[str]:
    """The command that trains a run.

    Args:
        torchrun: its options, for a run in several processes: "--standalone", "--nproc-per-node=2".
    """
    launcher = ["-u", "-m", "torch.distributed.run", *torchrun] if torchrun else []
    return [sys.executable, *launcher, "-m", "ciss", "train", name, "--config", config_file]


def start(arguments: list[str], device: str | None) -> subprocess.Popen:
    """Starts a command, whose stderr is read by `wait_for`. Raises RunFailed.

    Args:
        device: value of CUDA_VISIBLE_DEVICES; None: the machine's own setting.
    """
    environment = {**os.environ, **({} if device is None else {"CUDA_VISIBLE_DEVICES": device})}
    # In a session of its own, a process does not get the terminal's Ctrl-C besides ours.
    options = {"stderr": subprocess.PIPE, "text": True, "errors": "replace", "start_new_session": True}
    try:
        return subprocess.Popen(arguments, env=environment, **options)
    except OSError as error:
        raise RunFailed(f"its process could not be started: {error}") from None


def wait_for(process: subprocess.Popen, name: str) -> None:
    """Waits for the process of a run. Raises RunFailed if it fails."""
    stderr = process.communicate()[1].strip()
    if process.returncode:
        raise RunFailed(failure(name, process.returncode, stderr))


def interrupt(process: subprocess.Popen) -> None:
    """Ends a process as Ctrl-C does. Windows has no such signal for a single process."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)


def interrupt_all(processes: dict[str, subprocess.Popen], jobs: Iterable[Future]) -> None:
    """Interrupts processes until there are none, and waits for the jobs that remove them from the dict."""
    while processes:  # a second Ctrl-C changes nothing
        with suppress(KeyboardInterrupt):
            for process in list(processes.values()):
                interrupt(process)
            wait(jobs)


def failure(name: str, status: int, stderr: str) -> str:
    """Why the process of a run failed.

    Args:
        status: its exit status, or minus the number of the signal that ended it.
    """
    if status > 0:
        return message(stderr).removeprefix(f"{name}: ") or f"exit status {status}"
    advice = "; is there memory enough?" if -status == SIGKILL else ""
    return f"its process was killed ({signal.strsignal(-status) or -status}){advice} {last_lines(stderr)}".strip()


def message(stderr: str) -> str:
    """The last error message of a training; without one the last traceback, or the last lines."""
    if messages := list(ERROR.finditer(stderr)):
        return stderr[messages[-1].end() :]
    _, head, traceback = stderr.rpartition("Traceback (most recent call last):")
    return head + traceback if head else last_lines(stderr)


def last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-LAST_LINES:])
