"""REPRODUCIBILITY.md names every method, with the numbers that `reports/published.yaml` has."""

import json
import re
from decimal import Decimal
from pathlib import Path

from ciss.analysis.compare.published import find, load
from ciss.methods import METHODS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "REPRODUCIBILITY.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")][
    1:
]
NAMES = {"lwf_mc": "lwf-mc", "*-ewf": "ewf", "*-memory": "ssul-m", "ridge": "cfsseg"}  # as published.yaml calls them
FAMILIES = {"-ewf": "*-ewf", "-M": "*-memory"}  # endings of names in tables; REPRODUCIBILITY.md has one row for each
CONVENTIONS = {"b": ("plop", "ssul"), "n": ("mib", "mbs")}


def test_every_method_has_one_row():
    names = [name for row in ROWS for name in re.findall("`([^`]+)`", row[0])]
    assert sorted(names) == sorted([*METHODS, "*-ewf", "*-memory"])


def test_papers_numbers_are_those_of_the_list():
    results = find(load(), "voc", "15-1", "overlapped")
    compared = 0
    for names, _, paper, *_ in ROWS:
        if match := re.fullmatch(r"([0-9.]+) ([bn])(?: \(\w+\))?", paper):
            name = re.findall("`([^`]+)`", names)[0]
            found = [r for r in results if r.method == NAMES.get(name, name) and r.convention in CONVENTIONS[match[2]]]
            assert Decimal(match[1]) in [result.all for result in found], (name, found)
            compared += 1
    assert compared == 15


def test_what_was_trained_is_in_the_reports():
    on_shapes = trained_in("reports/metrics.json", "reports/methods/trained/metrics.json")
    on_shapes |= trained_in("reports/methods/frozen_features/metrics.json", "reports/methods/dkd/metrics.json")
    on_voc8 = trained_in("reports/study/metrics.json", "reports/methods/voc8/metrics.json")
    for names, *_, shapes, voc8 in ROWS:
        for name in re.findall("`([^`]+)`", names):
            assert (shapes[0] == "✓") == (name in on_shapes), name
            assert (voc8[0] == "✓") == (name in on_voc8), name


def trained_in(*files: str) -> set[str]:
    """The methods of which a table of metrics.json has a row, as REPRODUCIBILITY.md calls them."""
    names = set()
    for file in files:
        for rows in json.loads((ROOT / file).read_text()).values():
            for row in rows:
                name = row.split(" (")[0]
                names.add(next((family for ending, family in FAMILIES.items() if name.endswith(ending)), name))
    return names
