"""Studies from the command line to the report, on tiny data sets: a covering set of what users can ask for.

python -m tests.studies --list     # the studies and what each covers
python -m tests.studies --jobs 2   # run those whose result is missing
"""
