"""Chooses coefficients on the hold-out: as many trials for every method, on a seed that is not reported.

    python -m ciss.plan voc8 --preset tuning    # a preset that spells out the trials, a variant each
    python -m ciss.tuning                       # trains what is missing, then writes reports/<benchmark>/tuning.csv
    python -m ciss.tuning --only mib plop       # trains those alone; once the base is there, another terminal the rest

The validation images have no say. That the seed is not reported is up to the file: plan trials without `--add`.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ciss.tuning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="params.yaml", help="parameter file (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="train the trials of these, and write nothing")
    options = parser.parse_args()
    try:
        settings = config.load(options.config)
        check(settings)
        train_all(settings, list(trials(settings, options.only)))
        if options.only is None:
            write(settings)
    except RUN_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished epoch.")


def trials(settings: Config, only: list[str] | None = None) -> dict[str, str]:
    """Last run of each trial -> its end. Ends of joint training are no trials.

    Raises ConfigError where trials could not be compared, before anything is trained.
    """
    for name, benchmark in settings.benchmarks.items():
        if not benchmark.holdout:
            raise ConfigError(
                f"{settings.file}: benchmarks.{name}.holdout: 0, so there are no images to choose by. Set it, "
                "for example to a tenth of the training images."
            )
    ends = {end.run: name for name, end in settings.ends.items() if end.run in settings.chain}
    if not ends:
        raise ConfigError(f"{settings.file}: ends: there is no trial, an end of the chain. Plan some.")
    codes = {run: code_of(settings.chain[run].method) for run in ends}
    for code in only or ():
        if code not in codes.values():
            raise ConfigError(
                f"--only: {settings.file} has no trial of {code!r}. {config.choose(code, {*codes.values()})}"
            )
    return {run: end for run, end in ends.items() if only is None or codes[run] in only}


def write(settings: Config) -> None:
    """Writes `tuning.csv` of every benchmark with trials beside its other reports, and prints the best trials."""
    ends_by_benchmark: dict[str, list[str]] = {}
    for end in trials(settings).values():
        ends_by_benchmark.setdefault(settings.ends[end].benchmark, []).append(end)
    for benchmark, ends in ends_by_benchmark.items():
        table = tuning_table(benchmark, {end: read_end(settings, end) for end in ends})
        file = report_folder(settings, benchmark) / "tuning.csv"
        files.write_text(file, table.round(6).to_csv(index=False))
        print(table.drop(columns=["benchmark", "coefficients"]).to_string(index=False, float_format="%.3f"))
        print(f"{file}: chosen on the hold-out: {', '.join(table[table['chosen']]['trial'])}")


if __name__ == "__main__":
    main()
