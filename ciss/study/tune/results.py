"""What a tuning leaves beside Optuna's storage: `trials.csv` and figures."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ciss.analysis.figures.style import save, style
from ciss.analysis.tuning import figures, words
from ciss.analysis.tuning.tables import UNFINISHED, tuning_table
from ciss.store import files
from ciss.study.tune.trial import Trainer

if TYPE_CHECKING:  # Optuna is an extra
    from ciss.study.tune.search import Search

TABLE = "trials.csv"


def row(trainer: Trainer, search: "Search", number: int) -> dict:
    """A trial for `tuning_table`."""
    stored = search.trials()[number]
    state = stored.user_attrs.get("state", "complete") if stored.state.is_finished() else UNFINISHED
    scores = stored.user_attrs.get("scores", [])
    return {
        "benchmark": trainer.benchmark,
        "method": search.method,
        "seed": trainer.seed,
        "trial": number,
        "state": state,
        "steps": len(scores),
        "scores": scores,
        "coefficients": search.values(stored),
    }


def table(trainer: Trainer, searches: list["Search"]) -> pd.DataFrame:
    """The trials of all methods, see `tuning_table`."""
    return tuning_table(row(trainer, search, n) for search in searches for n in range(len(search.trials())))


def write(trainer: Trainer, searches: list["Search"]) -> None:
    """Writes the table and the figures, and prints the best trial of each method."""
    trials = table(trainer, searches)
    file = trainer.folder / TABLE
    files.write_text(file, trials.round(6).to_csv(index=False))
    draw(trainer.folder, trials, searches)
    print(words.summary(trials))
    print(f"{file}, and figures beside it.")


def draw(folder: Path, trials: pd.DataFrame, searches: list["Search"]) -> None:
    """Writes the figures."""
    style()
    captions = words.captions(trials)
    drawn = {"best_so_far": (_best(trials), captions["best_so_far"])}
    for search in searches:
        rows = trials[trials["method"] == search.method]
        slices = figures.slice_panels(rows, search.space)
        drawn[f"{search.method}_slices"] = (slices, f"{search.method}: {captions['slices']}")
        complete = int((rows["state"] == "complete").sum())
        bars, ax = plt.subplots(figsize=(5, 0.6 + 0.28 * max(3, len(search.space))))
        figures.importance_bars(ax, search.importances(), complete, search.method)
        drawn[f"{search.method}_importance"] = (bars, f"{search.method}: {captions['importance']}")
    save(folder, drawn)
    for figure, _ in drawn.values():
        plt.close(figure)


def _best(trials: pd.DataFrame) -> Figure:
    figure, ax = plt.subplots(figsize=(6, 3.2))
    figures.best_so_far(ax, trials)
    return figure
