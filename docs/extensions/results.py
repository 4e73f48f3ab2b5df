"""Generated parts about methods: what was verified, differences, coefficients, results of ours and of papers."""

import csv
import html
import re
from collections.abc import Iterator
from functools import cache
from itertools import takewhile

from ciss.analysis.compare import published
from ciss.methods import METHODS, code_of
from extensions.reference import coefficients
from extensions.text import ROOT, docstring, table, yaml

SCORES = ("all", "old", "new", "forgetting")
# Kept tables of scores: where they come from, by the file.
TABLES = {
    "reports/compare/methods.csv": "shapes 4-2, one seed",
    "reports/methods/trained/methods.csv": "shapes 4-2, three seeds",
    "reports/methods/frozen_features/methods.csv": "shapes 4-2, three seeds, frozen statistics",
    "reports/methods/dkd/methods.csv": "shapes 4-2, three seeds, learning rate 0.005",
    "reports/methods/voc8/methods.csv": "voc8 4-1, one seed",
    "reports/study/methods.csv": "voc8 4-1, three seeds",
}
RENAMED = {"stage_ridge": "stage_ridge-first"}  # in `reports/methods`
PAPERS = {"lwf_mc": "lwf-mc", "ridge": "cfsseg"}  # names of methods in reports/published.yaml, where they differ
DATA_SETS = {"voc": "Pascal VOC 2012", "ade20k": "ADE20K", "cityscapes": "Cityscapes"}


def notebooks() -> str:
    """Table of contents of the executed notebooks; nothing before the first `dvc repro`."""
    names = sorted(file.stem for file in (ROOT / "reports" / "notebooks").glob("*.ipynb"))
    entries = "\n".join(f"../reports/notebooks/{name}" for name in names)
    head = "```{toctree}\n:caption: Notebooks of the default benchmark\n:titlesonly:\n\n"
    return f"{head}{entries}\n```\n" if names else ""


def method(name: str) -> str:
    """The end of a method's page."""
    parts = {
        "Known differences and variants": f"{_class_text(name)}\n\n{_presets(name)}",
        "What was verified": _verified(name),
        "Coefficients": _coefficients(name),
        "Results of this project": _ours(name),
        "Published results": _published(name),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text.strip())


def _class_text(name: str) -> str:
    method = METHODS[name]
    own = method.__doc__ or ""
    return "" if own.startswith(f"{method.__name__}(") else docstring(method)


def _presets(name: str) -> str:
    rows = [
        (f"`{name}-{preset}`", ", ".join(f"`{key}: {yaml(value).strip('`')}`" for key, value in values.items()))
        for preset, values in METHODS[name].presets.items()
    ]
    return table(["variant", "coefficients that differ"], rows) if rows else ""


def _coefficients(name: str) -> str:
    rows = coefficients(METHODS[name])
    return f"Keys of `methods.{name}` in `params.yaml`.\n\n{rows}" if len(rows.splitlines()) > 2 else ""


def _verified(name: str) -> str:
    """The method's row of REPRODUCIBILITY.md."""
    text = (ROOT / "REPRODUCIBILITY.md").read_text(encoding="utf-8")
    header, _, *rows = takewhile(lambda line: line.startswith("|"), text[text.index("| method |") :].splitlines())
    found = [row for row in rows if row.startswith(f"| `{name}`")]
    link = "[What was verified, and what was not](../../REPRODUCIBILITY.md) explains the columns."
    return "\n".join([header, re.sub(r"[^|]+", " --- ", header), *found, "", link]) if found else ""


def scores() -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of the kept tables, with the benchmark in words."""
    for file, benchmark in TABLES.items():
        with open(ROOT / file, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if file.startswith("reports/methods"):
                    row["method"] = RENAMED.get(row["method"], row["method"])
                yield benchmark, row


def _percent(row: dict[str, str], score: str) -> str:
    if not row[score]:
        return ""
    spread = row[f"{score}_std"]
    return f"{100 * float(row[score]):.1f}" + (f" ± {100 * float(spread):.1f}" if spread else "")


def _score_rows(name: str = "") -> list[list[str]]:
    return [
        [benchmark, row["method"], *(_percent(row, score) for score in SCORES)]
        for benchmark, row in scores()
        if not name or code_of(row["method"].partition(" ")[0]) == name
    ]


def _ours(name: str) -> str:
    rows = _score_rows(name)
    if not rows:
        return "This method is trained in tests only; no report has its scores yet."
    text = "mIoU in percent after the last step, on the whole validation set: mean ± sample deviation over seeds."
    return (
        f"{text} [How scores are computed](../concepts/scores.md).\n\n{table(['benchmark', 'method', *SCORES], rows)}"
    )


def _published(name: str) -> str:
    printed = PAPERS.get(name, name)
    rows = [
        [f"{DATA_SETS[result.dataset]} {result.protocol}", result.setting or "", *_numbers(result), result.convention]
        for result in papers_results()
        if result.method == printed and not result.flag
    ]
    text = "mIoU in percent, as printed. None of these numbers was made by this project. [All results](../results.md)."
    header = ["benchmark", "setting", "old", "new", "all", "convention"]
    return f"{text}\n\n{table(header, rows)}" if rows else ""


@cache
def papers_results() -> list[published.Result]:
    return published.load()


def _numbers(result: published.Result) -> list[str]:
    return ["" if getattr(result, score) is None else str(getattr(result, score)) for score in published.SCORES]


def ours() -> str:
    return table(["benchmark", "method", *SCORES], _score_rows())


def papers() -> str:
    """All published results, one table that `filter.js` filters. Rows whose numbers do not add up say so."""
    header = ["method", "data set", "protocol", "setting", "convention", "old", "new", "all", "backbone", "source"]
    lines = []
    for result in papers_results():
        source = " ".join(
            filter(
                None,
                [
                    result.source,
                    result.note and f"({result.note})",
                    result.flag and f"[does not add up: {result.flag}]",
                ],
            )
        )
        first = [result.method, DATA_SETS[result.dataset], result.protocol, result.setting or "", result.convention]
        cells = [*first, *_numbers(result), result.backbone or "", source]
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in header)
    return (
        '<div class="table-wrapper"><table class="docutils filtered" data-filters="1,2,3,4">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>\n"
    )
