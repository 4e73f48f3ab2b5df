"""`ciss bench`: how long the parts of a training step take, and how much memory they need.

Each case (a method on a network, with a size, a precision and a mode of compilation) has a process of its own, which
takes steps on command (`worker`). The processes of one network take turns, so that a disturbance of the machine meets
all methods alike. Nothing here imports torch.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from ciss import documents, paths
from ciss.documents import ConfigError, counted
from ciss.store.files import write_text
from ciss.study.bench import tables

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).resolve().parents[3]  # of the code that runs
MODES = {"off": (False, None), "on": (True, None), "reduce-overhead": (False, "reduce-overhead")}  # by --compile
ROUNDS = 5
THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_")  # variables that say how threads work and wait


class BenchError(Exception):
    """A case that cannot be measured. The message gives the reason."""


@dataclass(frozen=True)
class Case:
    """What is measured. None: as in the parameter file."""

    method: str
    encoder: str | None = None
    decoder: str | None = None
    image: int | None = None  # pixels of a side
    classes: tuple[int, ...] | None = None  # channels of each step, the base's with the background; the last are new
    batch: int | None = None  # images
    precision: str | None = None
    compile: str | None = None  # of MODES

    def order(self, parameters: Path) -> dict:
        """What `worker` reads."""
        compiled, mode = MODES[self.compile] if self.compile else (None, None)
        train = {"crop": self.image, "batch": self.batch, "precision": self.precision, "compile": compiled}
        common = {"parameters": str(parameters), "method": self.method, "classes": self.classes, "mode": mode}
        return {**common, "encoder": self.encoder, "decoder": self.decoder, "train": train}


@dataclass(frozen=True)
class Request:
    """The arguments of `ciss bench`. Several values of one: every combination is measured."""

    methods: list[str] | None = None  # None: those of the parameter file's chain
    encoder: list[str] | None = None
    decoder: list[str] | None = None
    image: list[int] | None = None
    classes: list[str] | None = None  # "141+10", "16+1+1"
    batch: list[int] | None = None
    precision: list[str] | None = None
    compile: list[str] | None = None
    rounds: int = ROUNDS
    output: str | None = None
    versus: str | None = None  # a git revision
    config: str = "params.yaml"

    def networks(self, parameters: Path) -> list[list[Case]]:
        """The cases, those of one network and size together. Raises ConfigError."""
        methods = self.methods or planned_methods(parameters)
        classes = [channels(text) for text in self.classes or []]
        choices = (self.encoder, self.decoder, self.image, classes, self.batch, self.precision, self.compile)
        combinations = product(*(values or [None] for values in choices))
        return [[Case(method, *combination) for method in methods] for combination in combinations]


def planned_methods(parameters: Path) -> list[str]:
    """Methods of the increments of a parameter file, in its order. Raises ConfigError."""
    chain = documents.read_yaml(parameters).get("chain") or {}
    methods = list(dict.fromkeys(run["method"] for run in chain.values()))
    if not methods:
        raise ConfigError(f"{parameters}: chain: there is no increment to measure. Name methods: --methods mib mbs")
    return methods


def channels(text: str) -> tuple[int, ...]:
    """ "141+10" -> (141, 10). Raises ConfigError."""
    counts = text.split("+")
    if len(counts) < 2 or not all(count.isdigit() and int(count) for count in counts) or int(counts[0]) < 2:
        problem = f"--classes: found {text!r}, but it should be channels of each step, background included"
        raise ConfigError(f"{problem}. Write 141+10, or 16+1+1+1+1+1.")
    return tuple(int(count) for count in counts)


class Worker:
    """The process that measures a case with the code in a folder."""

    def __init__(self, code: Path, order: dict):
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, see `close`
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": str(code)},
        )
        self._send(json.dumps(order))

    def answer(self) -> dict:
        """The next answer. Raises BenchError."""
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines() or [f"exit status {self._process.wait()}"]
            raise BenchError(lines[-1])
        measured = json.loads(line)
        if "error" in measured:
            raise BenchError(measured["error"])
        return measured

    def ask(self, command: str) -> dict:
        """Raises BenchError."""
        self._send(command)
        return self.answer()

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _send(self, line: str) -> None:
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise BenchError("the process ended") from error


def measure(cases: list[Case], codes: dict[str, Path], config: str, rounds: int) -> list[dict]:
    """Rows of results: one per case and version of the code. The processes take turns, in both directions.

    Args:
        codes: folders of the project by the name of the version: "new", and "old" of `--vs`.
        config: the parameter file, relative to each of these folders.
    """
    rows = [{"version": version, "case": asdict(case)} for case in cases for version in codes]
    with ExitStack() as stack:
        workers: list[tuple[dict, Worker]] = []
        for row in rows:
            order = Case(**row["case"]).order(parameter_file(config, codes[row["version"]]))
            worker = Worker(codes[row["version"]], order)
            stack.callback(worker.close)
            workers.append((row, worker))
        for number in range(rounds + 1):
            for row, worker in workers if number % 2 else workers[::-1]:
                if "error" in row:
                    continue
                try:
                    if number == 0:
                        row["built"] = worker.answer()
                        continue
                    for part, seconds in (worker.ask("step") | worker.ask("losses")).items():
                        row.setdefault("seconds", {}).setdefault(part, []).append(seconds)
                    if number == rounds:
                        row["bytes"] = worker.ask("memory")
                except BenchError as error:
                    row["error"] = str(error)
    return rows


def parameter_file(config: str, code: Path) -> Path:
    """The parameter file of a version of the code, which may know other keys; else that of the project."""
    own = code / config
    return own if own.is_file() else paths.project() / config


@contextmanager
def checked_out(revision: str) -> Iterator[tuple[str, Path]]:
    """The short name of a git revision and a temporary folder with its files. Raises BenchError."""
    try:
        name = git("rev-parse", "--short", "--verify", f"{revision}^{{commit}}")
    except BenchError as error:
        raise BenchError(f"--vs {revision}: {ROOT} has no such commit. {error}") from None
    with tempfile.TemporaryDirectory(prefix="ciss-bench-") as parent:
        folder = Path(parent) / name
        git("worktree", "add", "--detach", str(folder), name)
        try:
            yield name, folder
        finally:
            git("worktree", "remove", "--force", str(folder))


def git(*arguments: str) -> str:
    """What git prints for the code that runs. Raises BenchError."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        raise BenchError("there is no program git, which finds the code of another revision. Install it.") from None
    if done.returncode:
        raise BenchError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def revision() -> str:
    """The commit of the code that runs, "+" behind it where files differ from it; empty without git."""
    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "--", "ciss"))
    except BenchError:
        return ""


def run(request: Request) -> dict:
    """Measures all cases. Returns the document that `tables` shows. Raises BenchError and ConfigError."""
    networks = request.networks(parameter_file(request.config, ROOT))
    codes, names = {"new": ROOT}, {"new": revision()}
    with ExitStack() as stack:
        if request.versus:
            names["old"], codes["old"] = stack.enter_context(checked_out(request.versus))
        rows: list[dict] = []
        for number, cases in enumerate(networks, start=1):
            methods = counted(len(cases), "method")
            print(f"measuring network {number} of {len(networks)}: {methods}", file=sys.stderr, flush=True)
            rows += measure(cases, codes, request.config, request.rounds)
    built = next((row["built"] for row in rows if "built" in row), {})
    machine = {"device": built.get("device"), "torch": built.get("torch"), "python": platform.python_version()}
    machine["variables"] = {name: value for name, value in os.environ.items() if name.startswith(THREADS)}
    return {"command": command_line(), "machine": machine, "code": names, "rounds": request.rounds, "rows": rows}


def main(request: Request) -> int:
    """Prints the table and writes it. Returns the exit status: 1 if a case could not be measured."""
    try:
        file = output_file(request.output) if request.output else None
        result = run(request)
    except (BenchError, ConfigError, FileNotFoundError) as error:  # outside a project, too
        sys.exit(f"error: {error}")
    if all("error" in row for row in result["rows"]):
        sys.exit("\n".join(["error: no case could be measured:", *tables.reasons(result["rows"])]))
    text = tables.page(result)
    print(text)
    if file:
        save(file, result, text)
    return int(any("error" in row for row in result["rows"]))


def output_file(name: str) -> Path:
    """The file of `--output`, whose folder is made before anything is measured. Raises BenchError."""
    file = paths.project() / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"--output {name}: cannot make its folder. Name another. {error}") from None
    if not os.access(file.parent, os.W_OK):
        raise BenchError(f"--output {name}: {file.parent} cannot be written to. Name another folder.")
    return file


def save(file: Path, result: dict, text: str) -> None:
    """Writes FILE.json and FILE.md. FILE may already end in one of them."""
    file = file.with_suffix("") if file.suffix in (".json", ".md") else file
    write_text(file.with_name(f"{file.name}.json"), tables.compact(result))
    write_text(file.with_name(f"{file.name}.md"), text)


def command_line() -> str:
    return " ".join(["ciss", *sys.argv[1:]])
