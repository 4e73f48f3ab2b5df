"""Chooses coefficients on the hold-out set: equally many trials for every method, on a seed that is not reported."""

import sys

from ciss import config
from ciss.analysis.compare.tuning import tuning_table
from ciss.config import Config, ConfigError
from ciss.methods import code_of
from ciss.runs.check import check
from ciss.runs.results import read_end
from ciss.runs.run import report_folder
from ciss.store import files
from ciss.training.loop import RUN_ERRORS, train_all


def main(config_file: str, only: list[str] | None) -> None:
    """Trains the trials that are missing and writes their tables. Exits with a message if it cannot.

    Args:
        config_file: the parameter file.
        only: methods whose trials are trained, without writing a table; None: all.
    """
    try:
        settings = config.load(config_file)
        check(settings)
        train_all(settings, list(trials(settings, only)))
        if only is None:
            write(settings)
    except RUN_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished epoch.")


def trials(settings: Config, only: list[str] | None = None) -> dict[str, str]:
    """Last run of each trial -> its end. Ends of joint training are no trials.

    Raises ConfigError for trials that cannot be compared, before anything is trained.
    """
    for name, benchmark in settings.benchmarks.items():
        if not benchmark.holdout:
            remedy = "Set it, for example to a tenth of the training images."
            raise ConfigError(
                f"{settings.file}: benchmarks.{name}.holdout: 0, so there are no images to choose by. {remedy}"
            )
    ends = {end.run: name for name, end in settings.ends.items() if end.run in settings.chain}
    if not ends:
        raise ConfigError(f"{settings.file}: ends: no end of the chain is a trial. Plan some.")
    codes = {run: code_of(settings.chain[run].method) for run in ends}
    for code in only or ():
        if code not in codes.values():
            hint = config.choose(code, {*codes.values()})
            raise ConfigError(f"--only: {settings.file} has no trial of {code!r}. {hint}")
    return {run: end for run, end in ends.items() if only is None or codes[run] in only}


def write(settings: Config) -> None:
    """Writes `tuning.csv` among the reports of every benchmark with trials, and prints the best trials."""
    ends_by_benchmark: dict[str, list[str]] = {}
    for end in trials(settings).values():
        ends_by_benchmark.setdefault(settings.ends[end].benchmark, []).append(end)
    for benchmark, ends in ends_by_benchmark.items():
        table = tuning_table(benchmark, {end: read_end(settings, end) for end in ends})
        file = report_folder(settings, benchmark) / "tuning.csv"
        files.write_text(file, table.round(6).to_csv(index=False))
        print(table.drop(columns=["benchmark", "coefficients"]).to_string(index=False, float_format="%.3f"))
        print(f"{file}: chosen on the hold-out: {', '.join(table[table['chosen']]['trial'])}")
