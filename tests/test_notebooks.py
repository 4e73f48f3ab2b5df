"""The notebooks are thin, executed, and checked."""

import ast
import json
import re

import pytest

from ciss import paths
from ciss.study.execute import UNPRINTED

NOTEBOOKS = sorted((paths.project() / "notebooks").glob("*.ipynb"))
COPIES = paths.project() / "reports" / "notebooks"
CHECK = "# NBVAL_CHECK_OUTPUT"
TUTORIAL = "0_tutorial"  # no stage: it has many short cells, and compares its code with the package by assertions


def cells(notebook) -> list[dict]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_every_numbered_notebook_is_in_the_pipeline():
    text = (paths.project() / "dvc.yaml").read_text(encoding="utf-8")
    in_stages = set(re.findall(r"execute notebooks/(\S+)\.ipynb", text))
    numbered = {path.stem for path in NOTEBOOKS if path.stem[0].isdigit()}
    assert numbered == {TUTORIAL, *in_stages} and len(in_stages) >= 6


def test_parameters_are_a_cell_of_their_own(notebook):
    tagged = [cell for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    file = "notebooks/tutorial.yaml" if notebook.stem == TUTORIAL else "tests/smoke.yaml"
    assert f'config = "{file}"' in tagged[0]["source"]


def test_every_code_cell_was_executed(notebook):
    """nbval silently skips a cell without an execution count."""
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [out for cell in code for out in cell["outputs"] if out["output_type"] == "error"]


def test_a_checked_cell_prints(notebook):
    """nbval compares what it prints with the smoke copy. A cell never asserts: a legal study, of one epoch or one
    image, must not end at what the smoke copy shows."""
    checked = [cell for cell in cells(notebook) if cell["source"].startswith(CHECK)]
    assert checked
    for cell in checked:
        assert [out["output_type"] for out in cell["outputs"]] == ["stream"]
    if notebook.stem not in (TUTORIAL, "1_data"):  # assertions of the second hold for every index
        assert not [cell["source"] for cell in cells(notebook) if "assert " in cell["source"]]


def test_it_is_thin(notebook):
    """At most eleven cells of code, no function over ten lines. The tutorial: cells of about twenty lines."""
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert len(code) <= 11 or notebook.stem == TUTORIAL
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            assert cell["source"].count("\n") < 25 or notebook.stem != TUTORIAL or "import torch" in cell["source"]
            for node in ast.walk(ast.parse(cell["source"])):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 10


def test_they_explain(notebook):
    """The first lines say that the copy is small and where results are; each figure has a sentence on how to read it,
    and no sentence in bold claims what the data may contradict."""
    texts = ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "markdown"]
    assert "CI" in texts[0] and ("](" in texts[0] or "yourself" in texts[0])
    assert "\n## " in "\n" + "\n".join(texts[1:])
    claims = [claim for text in texts for claim in re.findall(r"\*\*([^*]+)\*\*", text) if claim.endswith(".")]
    assert set(claims) <= {"How to read it.", "GSC is a reconstruction here.", "Size."}
    drawn = [k for k, cell in enumerate(cells(notebook)) if '"image/png"' in json.dumps(cell.get("outputs", []))]
    for k in drawn:
        after = "".join("".join(cell["source"]) for cell in cells(notebook)[k + 1 : k + 3])
        assert "**How to read it.**" in after, f"cell {k}"


def test_links_exist(notebook):
    texts = ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", text)]
    missing = [link for link in links if not (notebook.parent / link).exists()]
    if not COPIES.is_dir():  # before the first `dvc repro`
        missing = [link for link in missing if "/reports/notebooks/" not in link]
    assert links and missing == []


def test_outputs_name_no_folder_of_a_machine(notebook):
    text = json.dumps([cell.get("outputs", []) for cell in cells(notebook)])
    assert "/home/" not in text
    assert str(paths.project()) not in text


def test_a_cell_that_trains_keeps_no_printed_line(notebook):
    """A training prints seconds, and other lines when it continues a stopped one."""
    for cell in cells(notebook):
        if cell["cell_type"] == "code" and re.search(r"loop\.(train|complete)\(", cell["source"]):
            assert UNPRINTED in cell["metadata"]["tags"]
            assert [output for output in cell["outputs"] if output["output_type"] == "stream"] == []
    assert not re.search(r"\d s left", notebook.read_text(encoding="utf-8"))
