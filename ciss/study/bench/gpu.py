"""`ciss bench --gpu`: what is worth knowing about a GPU, in a few minutes.

Every part is a process of its own with a time limit, and its result is saved at once: a failure loses only itself.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psutil

from ciss import documents, paths
from ciss.study.bench import tables
from ciss.study.bench.command import ROOT, command_line, save

OUTPUT = "OUTPUT"  # stands for the file that a part writes
LEAST = 5.0  # seconds that a part needs at least
TRANSFORMER = ("--methods", "mbs", "--encoder", "vit_base_patch16_384")
CONVOLUTIONAL = ("--methods", "gsc", "--encoder", "resnet101")
SIZE = ("--image", "512", "--batch", "8", "--rounds", "3")


@dataclass(frozen=True)
class Part:
    """A command that writes a file, and its time limit in seconds."""

    name: str
    command: tuple[str, ...]
    limit: float


def parts(cards: int) -> list[Part]:
    """All parts, those first that say most in the shortest time."""
    few = ("--classes", "16+1")
    networks = {"ViT-B/16, mbs": (*TRANSFORMER, *few), "ResNet-101, gsc": (*CONVOLUTIONAL, *few)}
    many = (*CONVOLUTIONAL, "--classes", "141+10")
    chosen = [tests(120)]
    chosen += [steps(f"{name}, bfloat16", *options, "--precision", "bfloat16") for name, options in networks.items()]
    chosen += [module("repeated trainings", "ciss.study.bench.repeat", OUTPUT, limit=120)]
    if cards > 1:
        chosen += [module("NCCL", "ciss.study.bench.repeat", OUTPUT, "--processes", "2", limit=120)]
    for mode in ("on", "reduce-overhead"):
        for name, options in networks.items():
            changes = ("--precision", "bfloat16", "--compile", mode)
            chosen.append(steps(f"{name}, bfloat16, compile {mode}", *options, *changes, limit=150))
    for precision in ("float16", "float32"):
        for name, options in networks.items():
            chosen.append(steps(f"{name}, {precision}", *options, "--precision", precision))
    return [*chosen, steps("ResNet-101, gsc, 151 channels, bfloat16", *many, "--precision", "bfloat16")]


def steps(name: str, *options: str, limit: float = 90) -> Part:
    """Step times by `ciss bench`."""
    return module(name, "ciss", "bench", *SIZE, *options, "--output", OUTPUT, limit=limit)


def tests(limit: float) -> Part:
    """The tests that need a GPU. They need pytest, but none of its plugins."""
    files = sorted(file for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text("utf-8"))
    options = ("-o", "addopts=", "--import-mode=importlib", "-q", "-m", "gpu", f"--junitxml={OUTPUT}")
    return module("tests", "pytest", *options, *map(str, files), limit=limit)


def module(name: str, *command: str, limit: float) -> Part:
    return Part(name, (sys.executable, "-m", *command), limit)


def run_all(chosen: Iterable[Part], seconds: float, file: Path, card: dict) -> dict:
    """Runs parts one after the other, and writes FILE.json and FILE.md after each of them.

    Args:
        seconds: time for all parts together. Parts that do not fit are listed as such.
        card: what is known of the machine, by name.
    """
    ends = time.monotonic() + seconds
    result = {"command": command_line(), "machine": card, "parts": []}
    for part in chosen:
        left = ends - time.monotonic()
        if left < LEAST:
            part_result = {"name": part.name, "status": "no time left", "seconds": 0.0}
        else:
            print(f"{part.name} ...", file=sys.stderr, flush=True)
            part_result = run_part(part, min(part.limit, left))
        result["parts"].append(part_result)
        save(file, result, page(result))
    return result


def run_part(part: Part, seconds: float) -> dict:
    """The status of a part (ok, failed, stopped), its seconds, and what it wrote or, where it failed, last printed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ciss-bench-") as folder:
        file, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [word.replace(OUTPUT, str(file)) for word in part.command]
        with open(log, "w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            try:
                status = "failed" if process.wait(seconds) else "ok"
            except subprocess.TimeoutExpired:
                status = f"stopped after {seconds:.0f} s"
            finally:
                _kill_tree(process)
        part_result = {"name": part.name, "status": status, "seconds": time.monotonic() - started}
        if file.is_file():
            part_result["result"] = read(file)
        if status != "ok":
            part_result["output"] = log.read_text("utf-8", errors="replace").splitlines()[-15:]
        return part_result


def _kill_tree(process: subprocess.Popen) -> None:
    """Ends a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def read(file: Path) -> dict:
    """What a part wrote: JSON, or the results of pytest."""
    text = file.read_text("utf-8")
    if not text.startswith("<"):
        return json.loads(text)
    suite = ElementTree.fromstring(text)
    counts = {name: sum(int(s.get(name, 0)) for s in suite.iter("testsuite")) for name in ("tests", "skipped")}
    bad = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": [f"{case.get('classname')}.{case.get('name')}" for case in bad]}


def page(result: dict) -> str:
    """The results as Markdown."""
    card = result["machine"]
    lines = [f"# {card['device']}", "", "; ".join(f"{name} {value}" for name, value in card.items()), ""]
    lines += [f"    {result['command']}", ""]
    lines += tables.header(["part", "status", "seconds", "result"])
    rows, outputs = [], []
    for part in result["parts"]:
        part_result = part.get("result", {})
        measured = part_result.get("rows", [])
        rows += measured
        summary = "" if measured else "; ".join(f"{name}: {_plain(value)}" for name, value in part_result.items())
        lines.append(tables.line([part["name"], part["status"], f"{part['seconds']:.0f}", summary]))
        if part.get("output"):
            outputs += ["", f"## {part['name']}: {part['status']}", "", *(f"    {text}" for text in part["output"])]
    if rows:
        lines += ["", *tables.time_table(rows), "", tables.explained(rows), *tables.failures(rows)]
    return "\n".join([*lines, *outputs]) + "\n"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_plain(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe_card() -> dict | None:
    """The first GPU and the software, by name; None without a GPU."""
    import torch

    from ciss.training.evaluation import automatic_precision

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "cards": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "memory": documents.size(properties.total_memory),
        "automatic precision": str(automatic_precision(torch.device("cuda", 0))).removeprefix("torch."),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or torch.version.hip,
        "Python": platform.python_version(),
    }


def main(minutes: float, output: str | None) -> int:
    """Runs everything and prints the page. Returns the exit status: 1 if a part failed."""
    card = describe_card()
    if card is None:
        sys.exit("error: torch sees no GPU. `ciss doctor` says why. For the processor: ciss bench")
    name = re.sub("[^a-z0-9]+", "-", card["device"].lower()).strip("-")
    file = paths.project() / (output or f"reports/speed/gpu-{name}")
    result = run_all(parts(card["cards"]), 60 * minutes, file, card)
    print(page(result))
    return int(any(part["status"] != "ok" for part in result["parts"]))
