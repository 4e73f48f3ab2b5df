"""Chooses coefficients on the hold-out: as many trials for every method, on a seed that is not reported.

    python -m ciss.plan voc8 --preset tuning    # a preset that spells out the trials, a variant each
    python -m ciss.tuning                       # trains what is missing, then writes reports/<benchmark>/tuning.csv
    python -m ciss.tuning --only mib plop       # trains those alone; once the base is there, another terminal the rest

The validation images have no say. That the seed is not reported is up to the file: plan trials without `--add`.
"""

import argparse
import sys

from ciss import checkpoint, config, results, runs
from ciss.analysis import tuning_table
from ciss.config import Config, ConfigError
from ciss.engine import RUN_ERRORS, train_all
from ciss.methods import code_of


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ciss.tuning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="params.yaml", help="parameter file (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="train the trials of these, and write nothing")
    options = parser.parse_args()
    try:
        settings = config.load(options.config)
        runs.check(settings)
        train_all(settings, _trials(settings, options.only))
        if options.only is None:
            write(settings)
    except RUN_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished epoch.")


def _trials(settings: Config, only: list[str] | None) -> list[str]:
    """Last runs of the trials. Raises ConfigError where they could not be compared, before anything is trained."""
    for name, benchmark in settings.benchmarks.items():
        if not benchmark.holdout:
            raise ConfigError(
                f"{settings.file}: benchmarks.{name}.holdout: 0, so there is nothing to choose by. Set it."
            )
    codes = {end.run: code_of(settings.runs()[end.run].method) for end in settings.ends.values()}
    trials = {run: code for run, code in codes.items() if run in settings.chain}
    for code in only or ():
        if code not in trials.values():
            raise ConfigError(
                f"--only: {settings.file} has no trial of {code!r}. {config.choose(code, {*trials.values()})}"
            )
    if not trials:
        raise ConfigError(f"{settings.file}: ends: there is no trial, an end of the chain. Plan some.")
    return [run for run, code in trials.items() if only is None or code in only]


def write(settings: Config) -> None:
    """`tuning.csv` of every benchmark, beside its other reports; says what is best."""
    for benchmark in settings.benchmarks:
        table = tuning_table(benchmark, results.ends(settings, [benchmark]))
        file = runs.report_folder(settings, benchmark) / "tuning.csv"
        checkpoint.write_text(file, table.round(6).to_csv(index=False))
        print(table.drop(columns=["benchmark", "coefficients"]).to_string(index=False, float_format="%.3f"))
        print(f"{file}: chosen on the hold-out: {', '.join(table[table['chosen']]['trial'])}")


if __name__ == "__main__":
    main()
