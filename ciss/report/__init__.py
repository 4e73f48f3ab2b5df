"""What the analyses leave, for reading: LaTeX tables and one page. Made from the files in `reports/` alone."""

from ciss.report.cells import CONVENTION, differences, every_difference, runs_words, score, shown, undefined_words
from ciss.report.latex import tables
from ciss.report.page import page, pictures

__all__ = [
    "CONVENTION",
    "differences",
    "every_difference",
    "page",
    "pictures",
    "runs_words",
    "score",
    "shown",
    "tables",
    "undefined_words",
]
