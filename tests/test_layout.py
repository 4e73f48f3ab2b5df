"""The house keeps its shape: one direction of import, small files."""

import ast

import pytest

from ciss import paths

PACKAGE = paths.project() / "ciss"
# From the top to the bottom; a module imports from its own place or below, never from above.
ORDER = [
    "doctor",
    "plan",
    "plan_check",
    "predict",
    "explore",
    "explain",
    "probe",
    "tuning",
    "train",
    "engine",
    "batches",
    "execute",
    "progress",
    "report",
    "widgets",
    "analysis",
    "viz",
    "evaluation",
    "inference",
    "watch",
    "run_checks",
    "results",
    "runs",
    "methods",
    "losses",
    "pseudo_labels",
    "prototypes",
    "models",
    "data_notes",
    "data",
    "presets",
    "published",
    "protocol",
    "metrics",
    "checkpoint",
    "distributed",
    "config",
    "documents",
    "precision",
    "paths",
    "source",
]
FILES = sorted(PACKAGE.rglob("*.py"))


def place(module: str) -> str:
    return module.removeprefix("ciss.").split(".")[0]


def imports(file) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ciss":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ciss."):
            found.add(place(node.module))
        elif isinstance(node, ast.Import):
            found |= {place(alias.name) for alias in node.names if alias.name.startswith("ciss.")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_down(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not imports(file)
        return
    for other in imports(file):
        assert ORDER.index(other) >= ORDER.index(own), f"{own} imports {other}, which stands above it"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_are_small(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
    assert file.name != "utils.py"
