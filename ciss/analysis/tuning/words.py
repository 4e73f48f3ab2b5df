"""Captions of the figures of a tuning, and the line that a trial prints."""

import pandas as pd

from ciss.analysis.tuning.tables import finished_trials
from ciss.documents import counted

ENDED = "Hollow, under the line: pruned, diverged or refused, so without a comparable score."
FEW = 10  # complete trials, below which an importance says little


def conditions(trials: pd.DataFrame) -> str:
    """What the scores of a table are of. `trials`: `tuning_table`."""
    first = trials.iloc[0]
    counts = finished_trials(trials)
    numbers = ", ".join(f"{method} {count}" for method, count in counts.items())
    unequal = "" if trials["comparable"].all() else " The numbers of trials differ, so do not compare the methods."
    return (
        f"{first['benchmark']}, seed {first['seed']}, one class order; mIoU on the hold-out set, all classes so far, "
        f"mean over the incremental steps, in percent. Trials: {numbers}.{unequal} One seed: small differences may be "
        "chance, and the score of the best of many trials is too high."
    )


def captions(trials: pd.DataFrame) -> dict[str, str]:
    """Caption by figure."""
    shared = conditions(trials)
    return {
        "best_so_far": f"The best complete trial so far. {ENDED} {shared}",
        "importance": (
            "Importance of each coefficient: its share of the variance between the complete trials (fANOVA, a random "
            f"forest). With fewer than {FEW} complete trials it says little. {shared}"
        ),
        "slices": (
            "Score of each trial against each coefficient. Star: the published values; square: the chosen trial; "
            f"dot: any other complete trial. {ENDED} {shared}"
        ),
    }


def percent(score: float) -> str:
    """57.4, or "none" without a score."""
    return "none" if score != score else f"{100 * score:.1f}"


def trial_line(trial: dict, wanted: int) -> str:
    """What is printed after a trial. `trial`: see `tuning_table`; `wanted`: the number of trials asked for."""
    scores = [score["all"] for score in trial["scores"]]
    mean = sum(scores) / len(scores) if scores else float("nan")
    state = trial["state"] if trial["state"] == "complete" else f"{trial['state']} after step {trial['steps']}"
    values = ", ".join(f"{name} {value}" for name, value in trial["coefficients"].items())
    return f"{trial['method']}: trial {trial['trial']} of {wanted}, {state}: {percent(mean)} %; {values}"


def summary(trials: pd.DataFrame) -> str:
    """The published and the chosen trial of each method, and a warning if the numbers of trials differ."""
    lines = [f"{trials.iloc[0]['benchmark']}, seed {trials.iloc[0]['seed']}, mIoU on the hold-out set in percent:"]
    counts = finished_trials(trials)
    for method, rows in trials.groupby("method", sort=False):
        published, best = rows.iloc[0], rows[rows["chosen"]]
        line = f"  {method}, {counted(counts[method], 'trial')}: published {percent(published['mean'])}"
        if len(best):
            line += f", best {percent(best.iloc[0]['mean'])} (trial {best.iloc[0]['trial']})"
        lines.append(line)
    if not trials["comparable"].all():
        most = max(counts.values())
        fewer = " ".join(method for method, count in counts.items() if count < most)
        lines.append(f"Not comparable: the numbers of trials differ. Run: ciss tune {fewer} --trials {most}")
    return "\n".join(lines)
