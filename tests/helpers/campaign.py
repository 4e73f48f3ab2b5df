"""Kills trainings at random moments, starts them again, and compares how they end with undisturbed ones.

    python -m tests.helpers.campaign --kills 100 --workers 2 --out build/campaign

In a repository of its own: the default benchmark's increments at smoke size, trained by three kinds of process in
turn: `ciss train`, papermill, `dvc repro`. Each is sent SIGKILL, at a moment drawn from the time it takes
undisturbed, its children left alive; then the same command runs again, and sometimes is killed again. In the end
weights, losses and results must be those of an undisturbed training, bit for bit, with nothing else left behind.

FOLDER/campaign.csv has a row a kill, FOLDER/campaign.json the summary, FOLDER/trial-N.txt what a trial printed that
went wrong. Exit status 1 if one did. Ctrl-C ends with what has been measured. Two cores, two workers: 25 minutes.
"""

import argparse
import csv
import json
import os
import platform
import queue
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

from tests.helpers.trials import (
    EPOCHS,
    PROCESSES,
    RUNS,
    Moment,
    Project,
    Session,
    Trial,
    carry_out,
    differences,
    prepare,
)

# Shares of kills that are aimed, because most of the whole time is start-up:
BETWEEN = 0.3  # in the half second after an epoch, any but the last
LAST = 0.1  # in the half second after the last epoch, when results are written
EARLY = 0.3  # of `dvc repro`: when its stage has just begun, so that the same command meets the orphan while it trains


def draw(kills: int, runs: tuple[str, ...], seed: int, again: float) -> list[Trial]:
    """Trials with `kills` kills in all, the processes in turn. `again`: probability of a second kill in a trial."""
    chance, trials, left = random.Random(seed), [], kills
    while left:
        moments, process = [], PROCESSES[len(trials) % len(PROCESSES)]
        for _ in range(min(left, 1 + (chance.random() < again))):
            kind, seconds, text = chance.random(), chance.uniform(0, 0.5), ""
            if kind < LAST:
                text = f"epoch {EPOCHS}/{EPOCHS}"
            elif kind < LAST + BETWEEN:
                text = f"epoch {chance.randrange(1, EPOCHS)}/{EPOCHS}"
            elif process == "dvc" and kind > 1 - EARLY:
                text = "> python -m ciss execute"
            anywhere = Moment(share=chance.uniform(0, 1.03))
            moments.append(Moment(text=text, seconds=seconds) if text else anywhere)
        number = len(trials)
        run, switches = runs[number // len(PROCESSES) % len(runs)], [chance.random() < 0.5 for _ in range(2)]
        trials.append(Trial(number, process, run, tuple(moments), *switches))
        left -= len(moments)
    return trials


def measure(project: Project, process: str, run: str, stop: threading.Event) -> tuple[float, float, set[str]]:
    """Seconds, processor seconds and files of an undisturbed command, whose numbers must be the reference's."""
    trial = Trial(-1 - PROCESSES.index(process), process, run, (), alone=False)
    session = Session(project, trial, stop)
    project.clear(run, process)
    try:
        _, seconds, spent = session.launch(None)
        files = project.files(run)
        if wrong := differences(project, trial, {process: files}):
            raise SystemExit(f"{process}: differs undisturbed: {'; '.join(wrong)}")
    finally:
        session.end()
    project.restore(run)
    return seconds, spent, files


def campaign(trials: list[Trial], projects: list[Project], stop: threading.Event, out: Path) -> list[dict]:
    """Rows of all kills, in the order of trials; fewer after Ctrl-C."""
    free: queue.Queue[Project] = queue.Queue()
    for project in projects:
        free.put(project)

    def lend(function: Callable, *arguments):
        project = free.get()
        try:
            return function(project, *arguments)
        finally:
            free.put(project)

    rows: list[dict] = []
    with ThreadPoolExecutor(len(projects)) as pool:
        jobs = {p: pool.submit(lend, measure, p, trials[0].run, stop) for p in reversed(PROCESSES)}
        try:
            found = {process: jobs[process].result() for process in PROCESSES}
            times = ", ".join(f"{process} {seconds:.1f} s" for process, (seconds, *_) in found.items())
            print(f"undisturbed: {times}", flush=True)
            whole, expected = ({process: part[k] for process, part in found.items()} for k in (1, 2))
            jobs = {pool.submit(lend, carry_out, trial, whole, expected, stop, out): trial for trial in trials}
            for job in as_completed(jobs):
                rows += job.result()
                for row in job.result():
                    print(line(row, len(rows)), flush=True)
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(cancel_futures=True)
            print("stopped; what was measured is written", flush=True)
    rows.sort(key=lambda row: row["trial"])
    return [{"kill": number, **row} for number, row in enumerate(rows, start=1)]


def line(row: dict, done: int) -> str:
    end = "identical" if row["identical"] else f"WRONG: {row['wrong']}"
    when = f"{row['seconds']:5.1f} s, {row['landed']}, epochs finished: {row['epochs']}"
    orphan = f"; {row['orphan']}" if row["orphan"] else ""
    return f"{done:3d} {row['process']:9s} {row['run']:22s} {when}; {row['resumed']}{orphan}; {end}"


def summary(rows: list[dict], arguments: argparse.Namespace, seconds: float, projects: list[Project]) -> dict:
    timing = next((file for project in projects for file in project.folder.glob("timings/*/*.json")), None)
    ends = {row["trial"]: row["identical"] for row in rows}
    kinds = ("torch", "numpy", "dvc", "papermill", "ipykernel")
    # An epoch counts from its printed line; a kill between that and its state on disk costs it.
    lost = Counter(max(0, row["epochs"] - row["went_on_after"]) for row in rows if row["went_on_after"] >= 0)
    return {
        "kills": len(rows),
        "trials": len(ends),
        "identical ends": sum(ends.values()),
        "wrong": sorted({f"trial {row['trial']}: {row['wrong']}" for row in rows if not row["identical"]}),
        "kills by process": dict(Counter(row["process"] for row in rows)),
        "kills by phase": dict(Counter(row["landed"] for row in rows)),
        "kills by process and phase": dict(Counter(f"{row['process']}: {row['landed']}" for row in rows)),
        "after a kill": dict(Counter(row["resumed"] for row in rows)),
        "epochs trained again": dict(sorted(lost.items())),
        "trials that met an orphan": len({row["trial"] for row in rows if row["orphan"]}),
        "wall seconds": round(seconds, 1),
        "seed": arguments.seed,
        "workers": arguments.workers,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in kinds}},
        "device": json.loads(timing.read_text())["device"] if timing else None,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def main(arguments: list[str] | None = None, prepared: list[Project] | None = None) -> int:
    """The script; `prepared` projects spare it to make its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", type=int, default=1, help="projects side by side")
    parser.add_argument("--again", type=float, default=0.3, help="probability that a resumed command is killed too")
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS, metavar="RUN", help="default: all increments")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    started, rows, projects = time.perf_counter(), [], prepared or []
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        try:
            projects = projects or prepare(Path(folder), tuple(options.runs), options.workers)
            print(f"{len(options.runs)} runs trained undisturbed: {time.perf_counter() - started:.0f} s", flush=True)
            trials = draw(options.kills, tuple(options.runs), options.seed, options.again)
            rows = campaign(trials, projects, threading.Event(), options.out)
        finally:
            found = summary(rows, options, time.perf_counter() - started, projects)
            (options.out / "campaign.json").write_text(json.dumps(found, indent=1))
            if rows:
                with open(options.out / "campaign.csv", "w", newline="") as stream:
                    table = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
                    table.writeheader()
                    table.writerows(rows)
    print(json.dumps(found, indent=1))
    return int(found["identical ends"] < found["trials"])


if __name__ == "__main__":
    sys.exit(main())
