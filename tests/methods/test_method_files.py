"""A method is a file in ciss/methods: found by its name, and named with file and line where it is broken."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ciss import methods
from ciss.config import ConfigError, parse
from ciss.methods import METHODS
from ciss.runs import check as runs_check
from ciss.runs.check import check

ROOT = Path(__file__).resolve().parents[2]
HEAD = "from ciss.methods.base import Method, coefficients\n\n\n"


def test_the_methods_in_their_order():
    files = {file.stem for file in (ROOT / "ciss/methods").glob("*.py")} - set(methods.NO_METHODS)
    assert type(METHODS) is dict and set(METHODS) == files and not methods.BROKEN
    assert list(METHODS)[:8] == ["finetune", "joint", "frozen", "mib", "plop", "gsc", "mbs", "gsc_mbs"]
    for name, kind in METHODS.items():
        assert kind.__module__ == f"ciss.methods.{name}" and getattr(methods, kind.__name__) is kind


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(text, name) -> what a file of this name and text defines."""
    monkeypatch.setattr(methods, "__path__", [str(tmp_path), *methods.__path__])

    def load(text: str, name: str = "distil"):
        (tmp_path / f"{name}.py").write_text(text)
        try:
            return methods._load(tmp_path / f"{name}.py")
        finally:
            sys.modules.pop(f"ciss.methods.{name}", None)
            vars(methods).pop(name, None)

    return load


def test_the_class_of_a_file(load):
    assert load(f"{HEAD}@coefficients\nclass Distil(Method):\n    weight: float = 1.0\n").__name__ == "Distil"
    helper = "@coefficients\nclass Helper(Method):\n    pass\n\n\n"
    assert load(f"{HEAD}{helper}@coefficients\nclass MyIdea(Helper):\n    pass\n", "my_idea").__name__ == "MyIdea"
    imported = "from ciss.methods.mib import MiB\n"
    assert load(f"{HEAD}{imported}\n\n@coefficients\nclass Distil(MiB):\n    pass\n").__name__ == "Distil"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\n\nWEIGHT = nothing\n", "distil.py, line 3: NameError: name 'nothing' is not defined"),
        ("import torch\nclass Distil(\n", "distil.py, line 2: SyntaxError: '(' was never closed"),
        ("\nimport no_such_package\n", "distil.py, line 2: ModuleNotFoundError: No module named 'no_such_package'"),
        ("import torch\n\ntorch.zeros(2) @ torch.zeros(3)\n", "distil.py, line 3: RuntimeError"),
        ("X = 1\n", "distil.py: needs one class derived from Method, or one named after the file; it has none."),
        (
            f"{HEAD}@coefficients\nclass A(Method):\n    pass\n\n\n@coefficients\nclass B(Method):\n    pass\n",
            "distil.py: needs one class derived from Method, or one named after the file; it has A, B.",
        ),
        (f"{HEAD}class Distil(Method):\n    pass\n", "distil.py: Distil needs the decorator @coefficients"),
    ],
)
def test_a_broken_file_is_named(load, text, message):
    with pytest.raises(ConfigError, match=re.escape(f"ciss/methods/{message}")) as caught:
        load(text)
    assert "\n" not in str(caught.value)


def test_a_broken_method_is_said_where_it_is_asked_for(project, monkeypatch):
    why = "ciss/methods/distil.py, line 3: NameError: name 'nothing' is not defined. Correct the file."
    monkeypatch.setitem(methods.BROKEN, "distil", why)
    assert METHODS["mib"] and runs_check.check(project.config) is None, "the others stay usable"
    project.document["methods"]["distil-mine"] = {}
    with pytest.raises(ConfigError, match=re.escape(f"params.yaml: methods.distil-mine: {why}")):
        check(parse(project.document))
    with pytest.raises(ConfigError, match=re.escape(why)):
        methods.method_class("distil-mine")
    with pytest.raises(ConfigError, match="there is no method 'mip'. Did you mean 'mib'?"):
        methods.method_class("mip")


def test_the_recipe_for_methods(tmp_path, tiny_data):
    """Executed literally: one file, then a plan and a training; and a broken file beside it breaks neither."""
    text = (ROOT / "docs" / "own_method.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"Write one file, `(ciss/methods/distil\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    shutil.copytree(ROOT / "ciss", tmp_path / "ciss", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / recipe[0]).write_text(recipe[1])
    (tmp_path / "ciss/methods/broken.py").write_text("import torch\nWEIGHT = nothing\n")
    variables = {**os.environ, "PYTHONPATH": str(tmp_path), "CISS_DATA": str(tiny_data), "OMP_NUM_THREADS": "1"}

    small = "holdout=4 model.width=8 train.base.epochs=1 train.increment.epochs=1 train.batch=4 train.threads=1".split()
    asked = re.search(r"ciss plan shapes (--methods[a-z\s]*distil)", text)[1].split()
    program = f"""
from ciss import cli, config
from ciss.training.loop import train_all
cli.main({["plan", "shapes", *asked, "--no-joint", "--set", *small]!r})
train_all(config.load(), ["shapes-s0-distil-1"])
cli.main(["plan", "shapes", "--methods", "broken"])
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    place = "ciss/methods/broken.py, line 2: NameError: name 'nothing' is not defined"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"error: --methods: {place}. Correct the file.")
    result = json.loads((tmp_path / "results/shapes/shapes-s0-distil-1/result.json").read_text())
    assert result["method"] == "distil" and result["coefficients"] == {"weight": 10.0}
    assert result["log"][-1]["loss/distillation"] > 0
