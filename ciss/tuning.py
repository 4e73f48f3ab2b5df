"""Chooses coefficients on the hold-out: as many trials for every method, on a seed that is not reported.

    python -m ciss.plan voc8 --preset tuning    # a preset that spells out the trials, a variant each
    python -m ciss.tuning                       # trains what is missing, then writes reports/tuning.csv
    python -m ciss.tuning --only mib plop       # trains those alone; another terminal may train the rest

The validation images have no say.
"""

import argparse
import sys

from ciss import checkpoint, config, results, runs
from ciss.analysis import tuning_table
from ciss.engine import USER_ERRORS, train_all
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
        for end in settings.ends:
            path = settings.path(end)
            if options.only is None or code_of(settings.runs()[path[-1]].method) in options.only:
                train_all(settings, path)
        if options.only is None:
            write(settings)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on after the last finished epoch.")


def write(settings: config.Config) -> None:
    """`tuning.csv` of every benchmark, beside its other reports; says what is best."""
    for benchmark in settings.benchmarks:
        table = tuning_table(benchmark, results.ends(settings, [benchmark]))
        file = runs.report_folder(settings, benchmark) / "tuning.csv"
        checkpoint.write_text(file, table.to_csv(index=False, float_format="%.6f"))
        print(table.drop(columns=["benchmark", "coefficients"]).to_string(index=False, float_format="%.3f"))
        print(f"{file}: chosen on the hold-out: {', '.join(table[table['chosen']]['trial'])}")


if __name__ == "__main__":
    main()
