"""The house keeps its shape: one direction of import, no circles, small files and functions."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from ciss import paths

PACKAGE = paths.project() / "ciss"
# From the top to the bottom, as in the table of rooms in the design; a file imports from its own room or a lower one.
ROOMS = (
    "__main__",
    "cli",
    "study",
    "doctor",
    "analysis",
    "inspection",
    "analysis.figures",  # how masks are drawn, for all above
    "training",
    "runs",
    "methods",
    "losses",
    "labels",
    "models",
    "data",
    "store",
    "",  # the single files
)
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines
ALLOWED: dict[str, int] = {}  # lines of functions that are still longer; none is added, none grows
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((paths.project() / "tests").rglob("*.py"))


def name(file: Path) -> str:
    """Dotted, without the package's own: "data.index", and "data" of the folder's `__init__`."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name(file): file for file in FILES}


def room(module: str) -> str:
    """The longest beginning of a module's name that is a room; the single files have one together."""
    parts = module.split(".")
    beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((beginning for beginning in beginnings if beginning in ROOMS), "")


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the package that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by dots: name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {each if each.removeprefix("ciss.") in MODULES else node.module for each in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    inside = {each.removeprefix("ciss.") for each in found if each.startswith("ciss.")}
    return frozenset(inside & set(MODULES) - {module})


@pytest.mark.parametrize("module", [module for module in MODULES if module])  # `ciss` has `load`, which opens all rooms
def test_imports_go_down(module):
    own = ROOMS.index(room(module))
    upward = [other for other in imports(module) if ROOMS.index(room(other)) < own]
    assert not upward, f"{module} imports {upward} from a room above"


def test_every_folder_is_a_room():
    folders = {file.parent.name for file in PACKAGE.glob("*/*.py")}
    assert folders <= set(ROOMS)


def test_tests_have_the_rooms_of_the_package():
    folders = {file.relative_to(paths.project() / "tests").parts[0] for file in TESTS if file.name.startswith("test_")}
    top = {file.name for file in TESTS if file.parent.name == "tests"}
    assert folders - top <= set(ROOMS) | {"studies"}


def test_no_test_imports_another_test():
    """What tests share lies in `tests/helpers`, and in `tests/studies` for the matrix of studies."""
    imported = set()
    for file in TESTS:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    inside = {module for module in imported if re.search(r"(^|\.)(tests|test_\w+|conftest)(\.|$)", module)}
    assert not [module for module in inside if not re.match(r"tests\.(helpers|studies)\.(?!test_)", module)]
    assert "tests.helpers.project.environment" in inside


def test_no_module_imports_itself_through_others():
    left = {module: set(imports(module)) for module in MODULES}
    while free := [module for module, others in left.items() if not others & set(left)]:
        for module in free:
            del left[module]
    circle = {module: sorted(others & set(left)) for module, others in left.items()}
    assert not circle, f"these import one another, or what does: {circle}"


def test_what_the_test_of_imports_sees():
    assert {"runs.run", "store.files"} <= imports("training.loop")
    assert "data.sbd" in imports("data.fetch"), "inside a function"
    assert "data.index" in imports("data")
    assert (room("data.sets.voc"), room("analysis.figures.masks"), room("metrics")) == ("data", "analysis.figures", "")


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files_and_functions_are_small(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    assert file.name != "utils.py"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= ALLOWED.get(f"{name(file)}.{node.name}", LONGEST_FUNCTION), f"{node.name}: {lines} lines"


def test_no_allowance_is_left_over():
    """A function that has become short loses its allowance."""
    lengths = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{name(file)}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert {function: lengths.get(function) for function in ALLOWED} == ALLOWED


def literal_comparisons(source: str, literal: str) -> list[int]:
    """Lines that compare something with a literal: by an operator, a `match`, or the beginning or end of a text."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        compared = []
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            compared = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            compared = node.args if node.func.attr in ("startswith", "endswith") else []
        elements = [part for side in compared for part in (side, *getattr(side, "elts", ()))]
        lines += [node.lineno for part in elements if isinstance(part, ast.Constant) and part.value == literal]
    return lines


def test_joint_training_is_asked_by_a_property():
    """`run.joint`, `result["joint"]`, `Method.sees_all`: a method of another name may see all classes too."""
    sources = {file.name: file.read_text(encoding="utf-8") for file in FILES}
    for file in (paths.project() / "notebooks").glob("*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        sources[file.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = {name: literal_comparisons(source, "joint") for name, source in sources.items()}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ('m == "joint"', [1]),
        ('m not in ("mib", "joint")', [1]),
        ('m.startswith("joint")', [1]),
        ('match m:\n    case "joint":\n        pass', [2]),
        ('result["joint"] == True', []),
        ('names = ["joint"]', []),
        ('f("joint") == 1', []),
    ],
)
def test_what_the_test_of_comparisons_sees(line, lines):
    assert literal_comparisons(line, "joint") == lines
