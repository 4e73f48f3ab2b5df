"""Stages depend on what code means: how it is written must not show in the reduction, every real edit must."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ciss.store import code as store_code
from ciss.store.code import _text, digest, reduce_notebook, reduce_source, write

CODE = '''
"""Module."""
import torch  # comment

RATE = 0.1


@torch.no_grad()
def step(x, *, rate=RATE, **rest):
    """Docstring."""
    # comment
    y = {"a": x + 1, **rest}
    return f"{y:>{3}} is {rate!r}"


class Empty:
    """Only a docstring."""
'''

SAME = {
    "comment": ("# comment", "# another comment"),
    "docstring": ('"""Docstring."""\n', '"""Another\n    docstring."""\n'),
    "no docstring": ('    """Docstring."""\n', ""),
    "pass for a docstring": ('"""Only a docstring."""', "pass"),
    "layout": ('{"a": x + 1, **rest}', "{\n        'a': (x\n +  1),\n        **rest,\n    }"),
    "quotes": ('f"{y:>{3}} is {rate!r}"', "f'{y:>{3}}' ' is ' f'{rate!r}'"),
    "blank lines": ("\n\n\n", "\n"),
}

OTHER = {
    "constant": ("0.1", "0.2"),
    "type of a constant": ("x + 1", "x + 1.0"),
    "operator": ("x + 1", "x - 1"),
    "decorator": ("@torch.no_grad()\n", ""),
    "default": ("rate=RATE", "rate=1"),
    "no default": ("rate=RATE", "rate"),
    "keyword": ("torch.no_grad()", "torch.no_grad(a=1)"),
    "keyword-only": ("x, *, rate", "x, rate"),
    "order in a dict": ('"a": x + 1, **rest', '**rest, "a": x + 1'),
    "format": (":>{3}", ":>{4}"),
    "conversion": ("!r", "!s"),
    "name": ("Empty", "Full"),
    "statement": ("class Empty", "RATE += 1\n\n\nclass Empty"),
    "block": ("    y = {", "    if x:\n        pass\n    y = {"),
}


@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_meaning_shows_and_writing_does_not(name):
    old, new = {**SAME, **OTHER}[name]
    assert old in CODE
    assert (store_code.reduce_source(CODE.replace(old, new)) == store_code.reduce_source(CODE)) is (name in SAME)


def test_none_in_a_list_keeps_its_place():
    assert reduce_source("def f(*, a, b=1): ...") != store_code.reduce_source("def f(*, a=1, b): ...")
    assert store_code.reduce_source("x = None") != store_code.reduce_source("x = ...")


VERSIONS = """
def f(x: T, *, a, b=1) -> None:
    'doc'
    if x: return f'{x:{a}}' f'{b=}' 'é🫨'
    else: pass
y = [{**z}, 0x123456789abcdef01, 1e400]
"""

REDUCED = r"""
FunctionDef(name='f', args=arguments(args=[arg(arg='x', annotation=Name(id='T'))],
 kwonlyargs=[arg(arg='a'), arg(arg='b')], kw_defaults=[None, Constant(value=1)]), body=
*If(test=Name(id='x'), body=
**Return(value=JoinedStr(values=[FormattedValue(value=Name(id='x'), conversion=-1,
 format_spec=JoinedStr(values=[FormattedValue(value=Name(id='a'), conversion=-1)])), Constant(value='b='),
 FormattedValue(value=Name(id='b'), conversion=114), Constant(value='\xe9\U0001fae8')]))
*)
, returns=Constant(value=None))
Assign(targets=[Name(id='y')], value=List(elts=[Dict(keys=[None], values=[Name(id='z')]),
 Constant(value=0x123456789abcdef01), Constant(value=inf)]))
"""


def test_the_text_is_the_same_under_every_python():
    """What `ast` adds, drops or cuts differently from version to version stays out: this text's hash is committed."""
    expected = REDUCED.lstrip().replace(",\n ", ", ").replace("*", " ")  # above wrapped, its indentation as stars
    assert store_code.reduce_source(VERSIONS) == expected


def test_pieces_of_a_format_string_are_joined():
    """Python 3.12 leaves empty pieces, for example after the width in `f"{x:{w}}"`."""
    pieces = [ast.Constant(""), ast.Constant("a"), ast.Constant("b"), ast.Constant("")]
    assert _text(ast.JoinedStr(pieces), "") == "JoinedStr(values=[Constant(value='ab')])"


def notebook(*cells: str, **changes) -> str:
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], **changes}
    return json.dumps({"nbformat": 4, "cells": [{**code, "source": text.splitlines(True)} for text in cells]})


def test_a_notebook_is_its_code():
    def reduced(*cells, **changes):
        return reduce_notebook(notebook(*cells, **changes))

    wanted = reduced("x = 1", "x + 1")
    assert reduced("x = 1  # comment", "x+1", execution_count=7, outputs=[{"text": "2"}]) == wanted
    assert reduced("x = 1", "# comment", "x + 1", metadata={"tags": ["hide"]}) == wanted
    text = json.loads(notebook("x = 1", "x + 1"))
    text["metadata"] = {"kernelspec": {}}
    text["cells"].insert(1, {"cell_type": "markdown", "metadata": {}, "source": "A claim."})
    assert store_code.reduce_notebook(json.dumps(text)) == wanted
    assert reduced("x = 2", "x + 1") != wanted
    assert reduced("x = 1", "x + 1\n'shown'") != wanted
    assert reduced("x = 1\nx + 1") != wanted  # the cells decide what is displayed
    assert reduced("x = 1", "x + 1", metadata={"tags": ["parameters"]}) != wanted  # papermill injects after this tag


def test_magics_are_kept():
    assert "matplotlib inline" in store_code.reduce_notebook(notebook("%matplotlib inline\nif x:\n    !ls"))
    assert "not python" in store_code.reduce_notebook(notebook("%%bash\nthis is not python"))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "ciss" / "losses").mkdir(parents=True)
    (tmp_path / "ciss" / "engine.py").write_text("x = 1\n")
    (tmp_path / "ciss" / "losses" / "sharp.py").write_text("y = 1\n")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "2_base.ipynb").write_text(notebook("z = 1"))
    return tmp_path


def written(root: Path) -> set[str]:
    return {path.relative_to(root / ".source").as_posix() for path in (root / ".source").rglob("*")}


def test_write_follows_the_tree(root):
    write(root)
    package = {"ciss", "ciss/training/loop.py", "ciss/losses", "ciss/losses/sharp.py"}
    assert written(root) == {*package, "notebooks", "notebooks/2_base.ipynb"}
    engine, sharp = root / ".source/ciss/training/loop.py", root / ".source/ciss/losses/sharp.py"
    os.utime(engine, (1, 1))
    os.link(sharp, root / "cache")  # as DVC's cache may be linked
    (root / "ciss/training/loop.py").write_text("x = 1  # unchanged\n")
    (root / "ciss/losses/sharp.py").write_text("y = 2\n")
    (root / "notebooks/2_base.ipynb").unlink()
    store_code.write(root)
    assert engine.stat().st_mtime == 1
    assert "value=2" in sharp.read_text()
    assert "value=1" in (root / "cache").read_text()
    assert written(root) == package


def test_a_mistake_is_named_and_nothing_is_written(root):
    (root / "ciss/training/loop.py").write_text("x = 1\nif x\n")
    command = [sys.executable, str(Path(store_code.__file__))]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert f"{root / 'ciss/training/loop.py'}, line 2: " in result.stderr
    assert not (root / ".source").exists()
    (root / "ciss/training/loop.py").write_text("x = 1\n")
    (root / "notebooks/2_base.ipynb").write_text(notebook("x = 1", "\nif x"))
    with pytest.raises(ValueError, match=r"2_base\.ipynb, cell 2, line 2: "):
        store_code.write(root)
    (root / "notebooks/2_base.ipynb").write_text("{}")
    with pytest.raises(ValueError, match=r"2_base\.ipynb"):
        store_code.write(root)
    with pytest.raises(FileNotFoundError, match="root of the project"):
        store_code.write(root / "ciss")


def test_digest(root):
    whole = digest(root, ["engine.py", "losses"])
    assert store_code.digest(root, ["losses/sharp.py", "losses", "engine.py"]) == whole
    assert store_code.digest(root, ["losses"]) != whole
    (root / "ciss/training/loop.py").write_text("# comment\nx = 1\n")
    assert store_code.digest(root, ["engine.py", "losses"]) == whole
    (root / "ciss/losses/sharp.py").rename(root / "ciss/losses/soft.py")  # the same code by another name
    assert store_code.digest(root, ["engine.py", "losses"]) != whole
    (root / "ciss/losses/.ipynb_checkpoints").mkdir()
    (root / "ciss/losses/.ipynb_checkpoints/soft.py").touch()
    (root / "ciss/losses/soft.py").write_bytes(b"\xef\xbb\xbfy = 1\r\n")  # as some editors on Windows write
    (root / "ciss/losses/soft.py").rename(root / "ciss/losses/sharp.py")
    assert store_code.digest(root, ["losses", "engine.py"]) == whole
    with pytest.raises(FileNotFoundError, match=r"missing\.py"):
        store_code.digest(root, ["missing.py"])
