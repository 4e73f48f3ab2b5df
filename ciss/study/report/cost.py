"""What the methods of a study take, from `timings/`: sections of the page, and tables and a figure in `timings/`."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ciss.analysis.compare import cells
from ciss.analysis.compare.cost import cost_table, timings_table, was_busy
from ciss.analysis.compare.figures import cost_bars
from ciss.analysis.compare.latex import cost_tables
from ciss.analysis.rows import by_benchmark
from ciss.config import Config
from ciss.runs import live, timings
from ciss.store import files
from ciss.study.report.markup import render
from ciss.study.report.page import read_table

NOT_MEASURED = (
    "Seconds and memory: not measured here. They are known where the runs were trained, and come with no commit, clone "
    "or cache of DVC."
)

WATTS = 10  # of one busy core of a server, with its share of memory, cooling and power supply: an assumption

ENERGY = (
    f"Energy: an estimate, processor seconds times {WATTS} W. About what a core of a server takes, with its share "
    "of memory, cooling and power supply; nothing was metered. All rows together, without base steps: {total:.2g} kWh."
)

BUSY = (
    "The machine was busy: the upper quartile of an update is more than 1.5 times the lower one in some run, so other "
    "programs were at work. Do not compare these seconds."
)


def measure(root: Path, settings: Config) -> tuple[dict[str, pd.DataFrame], dict[str, list[str]]]:
    """What the ends of each family of benchmarks took: `timings_table` and the family's benchmarks, by its first one.

    Args:
        root: the folder that holds `reports/`, `results/` and `timings/`.
        settings: the parameters of the study.

    Raises: FileNotFoundError naming a table of `reports/compare` that is missing.
    """
    runs, methods = (read_table(root / "reports" / "compare" / f"{name}.csv") for name in ("runs", "methods"))
    times = {
        end: [measured(root, value.benchmark, run) for run in settings.path(end)]
        for end, value in settings.ends.items()
    }
    ends = timings_table(runs, times)
    members = methods.groupby("benchmark", sort=False)["benchmarks"].first().str.split().to_dict()
    return {name: ends[ends["benchmark"].isin(own)] for name, own in members.items()}, members


def measured(root: Path, benchmark: str, run: str) -> dict | None:
    """What a training took, with the seconds of its updates; None where it was not measured here."""
    timing = timings.read(root, benchmark, run)
    curve = live.read(live.folder(root, benchmark, run))
    # a study's parts have them in `timing`
    return timing and {"update_seconds": curve.update_seconds if curve and curve.result else [], **timing}


def write(folder: Path, ends: dict[str, pd.DataFrame], members: dict[str, list[str]]) -> None:
    """Writes `ends.csv`, `cost.csv`, `cost.tex` and `cost.png` to `folder`. `ends`, `members`: see `measure`."""
    if not ends:
        return
    costs = {name: cost_table(mine) for name, mine in ends.items()}
    figure, axes = plt.subplots(len(costs), 3, figsize=(9, 2.8 * len(costs)), squeeze=False)
    figure.tight_layout()
    for row, (name, costs_of_methods) in zip(axes, costs.items(), strict=True):
        cost_bars(row, costs_of_methods, name)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "cost.png")
    plt.close(figure)
    for name, rows in {"ends": pd.concat(ends.values()), "cost": by_benchmark(costs, members)}.items():
        files.write_text(folder / f"{name}.csv", rows.round(6).to_csv(index=False))
    files.write_text(folder / "cost.tex", cost_tables(costs))


def sections(ends: dict[str, pd.DataFrame]) -> list[str]:
    """The section on cost of each benchmark of the page, in its order. `ends`: see `measure`."""
    return [_section(mine) for mine in ends.values()]


def _section(ends: pd.DataFrame) -> str:
    costs = cost_table(ends)
    columns = {
        "training": "training_seconds",
        "preparation": "preparation_seconds",
        "base": "base_seconds",
        "processor": "processor_seconds",
    }
    texts = cells.formatted(costs, ["update_seconds"], 0, unit=1e-3).set_axis(["one update, ms"], axis=1)
    low, high = (
        cells.formatted(costs[[name]], [name], 0, unit=1e-3).iloc[:, 0] for name in ("update_low", "update_high")
    )
    texts["quartiles, ms"] = [f"{a} to {b}" if a else "" for a, b in zip(low, high, strict=True)]
    for head, column in columns.items():
        texts[f"{head}, s"] = cells.formatted(costs, [column], 1, unit=1)
    if _on_processors(ends):
        texts["energy, Wh"] = cells.formatted(costs, ["processor_seconds"], 1, unit=3600 / WATTS)
    texts["memory, MiB"] = cells.formatted(costs, ["peak_memory_mib"], 0, unit=1)
    texts["parameters"] = [f"{count:,.0f}" for count in costs["parameters"]]
    for head, column in {"update": "update", "memory": "memory", "param.": "parameters"}.items():
        texts[f"× {head}"] = [cells.number(value, digits=2) for value in costs[f"relative_{column}"]]
    return render("cost.html", texts=texts, notes=_notes(ends, costs), bars=_bars(costs))


def _notes(ends: pd.DataFrame, costs: pd.DataFrame) -> list[str]:
    """What the columns are, where the numbers were measured, and what is missing."""
    absent = "" if "finetune" in costs.index else ", which was not run here"
    notes = [
        "One update: the median over the epochs of the method's own steps, and its quartiles; each epoch counts with "
        "the mean of its updates, without scoring and saving. Training: seconds of the own steps, preparation (what "
        "passes over the data before them) among them, without the base step that they share (base). Processor: "
        "seconds of processor time of the own steps, reading images and scoring included; other programs that need the "
        "same cores can multiply them. Memory: the peak, of the GPU, or of the process on a CPU. ×: as a multiple of "
        f"finetune{absent}. Seconds of different devices cannot be compared."
    ]
    devices = ends["device"][ends["device"] != ""]
    if len(devices):
        notes.append(f"Measured on: {cells.distinct_values(devices)}.")
    if _on_processors(ends):
        notes.append(ENERGY.format(total=ends["processor_seconds"].sum() * WATTS / 3.6e6))
    if was_busy(ends):
        notes.append(BUSY)
    if not costs["measured"].any():
        return [*notes, NOT_MEASURED]
    if (costs["measured"] < costs["runs"]).any():
        number = int((costs["runs"] - costs["measured"]).sum())
        notes.append(f"Not measured here: {number} of {len(ends)} runs, which were trained elsewhere.")
    if ends["peak_memory_mib"][ends["training_seconds"].notna()].isna().any():
        notes.append("Peak memory was not measured: the system does not report it.")
    return notes


def _on_processors(ends: pd.DataFrame) -> bool:
    """Whether every run that was measured trained on a CPU: its energy follows from processor time."""
    devices = ends["device"][ends["device"] != ""]
    return len(devices) > 0 and bool(devices.str.endswith(" threads").all())


def _bars(costs: pd.DataFrame) -> plt.Figure:
    height = 0.7 + 0.32 * len(costs)
    figure, axes = plt.subplots(1, 3, figsize=(9, height))
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.62 / height, top=0.98, wspace=0.2)
    cost_bars(axes, costs)
    return figure
