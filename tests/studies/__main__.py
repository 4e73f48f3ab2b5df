"""Runs the covering set of studies, each from `ciss plan` to `report.html`.

    python -m tests.studies --list                     # the studies, and what each covers
    python -m tests.studies --jobs 2                   # run all whose result is missing
    python -m tests.studies --only preset-voc-gsc      # one of them

A finished study leaves NAME.json in the folder; the same command goes on with the missing ones, and with those that
were run with other code. The folder of a study that failed stays. Exit status 1 if one failed.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.studies import cover, study


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the studies and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these studies only")
    parser.add_argument("--jobs", type=int, default=2, help="studies side by side (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("build/studies"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="N", help="start no study after N s")
    options = parser.parse_args(arguments)
    if options.list:
        print(cover.describe())
        return 0
    chosen = {each.name: each for each in cover.studies()}
    if unknown := sorted(set(options.only or ()) - set(chosen)):
        parser.error(f"there is no study {unknown[0]!r}; --list names them")
    chosen = [each for name, each in chosen.items() if not options.only or name in options.only]
    try:
        results, left, seconds = run(chosen, options.folder.resolve(), options.jobs, options.seconds)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    failed = [result for result in results if result.failures]
    spent = sum(result.processor_seconds for result in results)
    print(
        f"{len(results)} of {len(chosen)} studies done, {len(failed)} failed, {left} not started; "
        f"{seconds:.0f} s now, {spent:.0f} processor seconds in all"
    )
    for result in failed:
        print(f"failed: {result.name}")
    return int(bool(failed) or left > 0)


def run(
    studies: list[cover.Study], folder: Path, jobs: int, seconds: float = float("inf")
) -> tuple[list[study.Result], int, float]:
    """Runs the studies without a result, the longest first. Returns all results, how many were not started, seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    code, started = study.code_hash(), time.perf_counter()
    known = {each.name: study.read_result(folder, each.name, code) for each in studies}
    results = [result for result in known.values() if result]
    for result in results:
        print(line(result, "done before"), flush=True)
    missing = sorted((each for each in studies if not known[each.name]), key=lambda each: -each.seconds())
    if missing:
        template = study.make_template(folder / f"template-{code}")
    left = 0

    def one(each: cover.Study) -> study.Result | None:
        if time.perf_counter() - started > seconds:
            return None
        return study.run(each, folder, code, template)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for job in as_completed([pool.submit(one, each) for each in missing]):
                if result := job.result():
                    results.append(result)
                    print(line(result), flush=True)
                else:
                    left += 1
        except KeyboardInterrupt:
            study.STOP.set()
            pool.shutdown(cancel_futures=True)
            raise
    return results, left, time.perf_counter() - started


def line(result: study.Result, note: str = "") -> str:
    """A study's result: seconds, and what failed."""
    end = "ok" if not result.failures else f"FAILED ({len(result.failures)})"
    times = f"{result.seconds:6.1f} s, {result.processor_seconds:6.1f} processor s"
    return "\n    ".join([f"{result.name}: {times}: {end} {note}".rstrip(), *result.failures])


if __name__ == "__main__":
    sys.exit(main())
