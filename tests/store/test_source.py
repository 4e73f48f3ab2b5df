"""Which code a stage depends on: how it is written and where it lies must not show, every real edit must."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ciss import paths
from ciss.methods import METHODS
from ciss.store import code as store_code
from ciss.store import names
from ciss.store.code import Closure
from ciss.store.names import Package
from ciss.store.syntax import _text, parse_cell, reduce

ROOT = paths.project()


# --- syntax trees as text

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


def reduced(text: str) -> str:
    return reduce(ast.parse(text).body)


@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_only_meaning_counts(name):
    old, new = (SAME | OTHER)[name]
    assert old in CODE
    assert (reduced(CODE.replace(old, new)) == reduced(CODE)) is (name in SAME)
    everything = [closure({"ciss/a.py": text}, "a") for text in (CODE, CODE.replace(old, new))]
    assert (everything[0].digest == everything[1].digest) is (name in SAME)
    assert (everything[0].listing() == everything[1].listing()) is (name in SAME)


def test_none_in_a_list_keeps_its_place():
    assert reduced("def f(*, a, b=1): ...") != reduced("def f(*, a=1, b): ...")
    assert reduced("x = None") != reduced("x = ...")


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
    assert reduced(VERSIONS) == expected


def test_pieces_of_a_format_string_are_joined():
    """Python 3.12 leaves empty pieces, for example after the width in `f"{x:{w}}"`."""
    pieces = [ast.Constant(""), ast.Constant("a"), ast.Constant("b"), ast.Constant("")]
    assert _text(ast.JoinedStr(pieces), "") == "JoinedStr(values=[Constant(value='ab')])"


def test_magics_are_kept():
    assert "matplotlib inline" in reduce(parse_cell("%matplotlib inline\nif x:\n    !ls", "cell 1"))
    assert "not python" in reduce(parse_cell("%%bash\nthis is not python", "cell 1"))


# --- which definitions a name leads to


def closure(files: dict[str, str], module: str, name: str = "") -> Closure:
    """Of one definition of a module, or of all."""
    package = Package({"ciss/__init__.py": "", **files})
    named = [definition for definition, _ in package.find(f"ciss.{module}", name)]
    return Closure(named if name else package[f"ciss.{module}"].definitions)


def reached(files: dict[str, str], module: str = "a", name: str = "f") -> set[str]:
    """Dotted names of the definitions that one uses, itself left out."""
    return set(closure(files, module, name).locations().values()) - {f"{module}.{name}"}


RANGES = "AFFECTS_RESULTS = False\nclass Range: pass\n"


@pytest.mark.parametrize(
    ("annotation", "equal"),
    [
        ("Annotated[float, Range(0, 1)]", "float"),
        ("typing.Annotated[Annotated[int, Field(ge=1)], Range(0, 1)]", "Annotated[int, Field(ge=1)]"),
        ("Annotated[int, Field(ge=1), Range(0, 1)]", "Annotated[int, Field(ge=1)]"),
        ("Annotated[T | None, Range(0, 1)]", "T | None"),
    ],
)
def test_metadata_that_affects_no_result_is_left_out(annotation, equal):
    """A range of `ciss tune` beside a coefficient: with it, without it and with another one, the code is the same."""
    head = "import typing\nfrom typing import Annotated\nfrom pydantic import Field\n"
    head += "from ciss.ranges import Range\nT = int\n"
    digests = [
        closure({"ciss/ranges.py": RANGES, "ciss/a.py": f"{head}class A:\n    x: {text} = 1\n"}, "a", "A").digest
        for text in (annotation, annotation.replace("Range(0, 1)", "Range(2, 3)"), equal)
    ]
    assert len(set(digests)) == 1


def test_other_metadata_counts():
    """So does a range that affects results."""
    files = {"ciss/ranges.py": "class Range: pass\n"}
    head = "from typing import Annotated\nfrom ciss.ranges import Range\n"
    texts = [f"{head}class A:\n    x: Annotated[float, Range({high})] = 1\n" for high in (1, 2)]
    first, second = (closure({**files, "ciss/a.py": text}, "a", "A") for text in texts)
    assert first.digest != second.digest and "ranges.Range" in first.locations().values()


B = "def g(): return C\nC = 1\ndef other(): return g\n"

IMPORTS = {
    "from a module": ("from ciss.b import g\ndef f(): return g()", {"b.g", "b.C"}),
    "by another name": ("from ciss.b import g as h\ndef f(): return h()", {"b.g", "b.C"}),
    "a module": ("from ciss import b\ndef f(): return b.g()", {"b.g", "b.C"}),
    "a module by another name": ("import ciss.b as m\ndef f(): return m.g()", {"b.g", "b.C"}),
    "a dotted name": ("import ciss.b\ndef f(): return ciss.b.g()", {"b.g", "b.C"}),
    "relative": ("from . import b\nfrom .b import C\ndef f(): return b.g, C", {"b.g", "b.C"}),
    "inside a function": ("def f():\n    from ciss.b import g\n    return g()", {"b.g", "b.C"}),
    "for type checkers": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ciss.b import g\ndef f(x: g): ...",
        {"b.g", "b.C"},
    ),
    "passed on": ("from ciss.passing import g\ndef f(): return g()", {"b.g", "b.C"}),
    "a module passed on": ("from ciss.passing import inner\ndef f(): return inner.x", {"passing.inner.x"}),
    "a constant": ("from ciss.b import C\ndef f(): return C", {"b.C"}),
    "a decorator": ("from ciss.b import g\n@g\ndef f(): ...", {"b.g", "b.C"}),
    "a default": ("from ciss.b import C\ndef f(C=C): return 1", {"b.C"}),
    "a base class": ("from ciss.b import g\nclass f(g): ...", {"b.g", "b.C"}),
    "a method's body": ("from ciss.b import C\nclass f:\n    C = 2\n    def m(self): return C", {"b.C"}),
    "a module as a value": ("from ciss import b\ndef f(n): return getattr(b, n)", {"b.g", "b.C", "b.other"}),
    "a name that is not shown": ("from ciss.b import made\ndef f(): return made", {"b.g", "b.C", "b.other"}),
    "a parameter of that name": ("from ciss.b import g\ndef f(g): return g()", set()),
    "a variable of that name": ("from ciss.b import C\ndef f():\n    C = 1\n    return C", set()),
    "a variable of a comprehension": ("from ciss.b import C\ndef f(x): return [C for C in x]", set()),
    "a parameter of a lambda": ("from ciss.b import C\nf = lambda C: C", set()),
    "a name of the class": ("from ciss.b import C\nclass f:\n    C = 2\n    D = C", set()),
    "a global of that name": ("from ciss.b import C\ndef f():\n    global C\n    return C", {"b.C"}),
    "an iterable of that name": ("from ciss.b import C\ndef f(): return [C for C in C]", {"b.C"}),
    "an attribute": ("from ciss.b import g\ndef f(x): return x.g", set()),
    "unused": ("from ciss.b import g\ndef f(): return 1\ndef h(): return g()", set()),
    "itself": ("def f(): return f()", set()),
    "one another": ("def f(): return h()\ndef h(): return f()", {"a.h"}),
    "a statement with an effect": ("import x\nx.y()\nX = {}\nX[1] = 2\ndef f(): ...", {"a.(statement)", "a.X"}),
    "two ways to define": ("try:\n    import x\nexcept ImportError:\n    x = None\ndef f(): return x", {"a.x"}),
    "changed later": ("X = 1\nX += 1\ndef f(): return X", {"a.X"}),
    "registered by others' decorators": ("import x\n@x.register\ndef by_name(): ...\ndef f(): ...", {"a.by_name"}),
    "registered by an object": (
        "import x\napp = x.App()\n@app.add\ndef by_name(): ...\ndef f(): ...",
        {"a.by_name", "a.app"},
    ),
    "registered by a function": (
        "T = []\ndef add(g): T.append(g)\n@add\ndef by_name(): ...\ndef f(): ...",
        {"a.by_name", "a.add", "a.T"},
    ),
    "decorated by torch": ("import torch\n@torch.no_grad()\ndef by_name(): ...\ndef f(): ...", set()),
    "decorated by pydantic under a name": (
        "from pydantic.dataclasses import dataclass as d\nx = d(frozen=True)\n@x\nclass N: ...\ndef f(): ...",
        set(),
    ),
    "decorated by Python's own": ("from functools import cache\n@cache\ndef by_name(): ...\ndef f(): ...", set()),
    "the files of a folder": (
        "import importlib\ndef f(n): return importlib.import_module(n)",
        {"b.g", "b.C", "b.other"},
    ),
    "only when run": ("from ciss.b import g\ndef f(): ...\nif __name__ == '__main__':\n    g()", set()),
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_names_are_followed(kind):
    text, wanted = IMPORTS[kind]
    passing = {"ciss/passing/__init__.py": "from ciss.b import g\n", "ciss/passing/inner.py": "x = 1\n"}
    assert reached({"ciss/__init__.py": "", "ciss/a.py": text, "ciss/b.py": B, **passing}) == wanted


def test_a_whole_package_is_not_imported_at_once():
    with pytest.raises(ValueError, match=r"ciss/a.py, line 1: `import \*` hides what is used"):
        reached({"ciss/a.py": "from ciss.b import *\ndef f(): return g", "ciss/b.py": B})


TWO = {  # modules of one and the same name for two functions
    "ciss/a.py": "from ciss.b import g\nimport numpy as np\n\ndef f(): return g() + np.ones(1)\n",
    "ciss/b.py": "def g(): return C\n\nC = 1\n",
    "ciss/c.py": "def g(): return C\n\nC = 2\n",
}

G, NP = "from ciss.b import g", "import numpy as np"
F = f"{G}\n{NP}\n\ndef f(): return "
EDITS = {  # file, old, new, whether it counts
    "a module by another name": ("a", f"{F}g() + np.", f"{G}\nimport numpy\n\ndef f(): return g() + numpy.", False),
    "a name by another name": ("a", f"{F}g()", f"{G} as h\n{NP}\n\ndef f(): return h()", False),
    "a name or its module": ("a", f"{F}g()", f"from ciss import b\n{NP}\n\ndef f(): return b.g()", False),
    "another function of that name": ("a", "ciss.b", "ciss.c", True),
    "others' function of that name": ("a", "numpy as np", "torch as np", True),
    "a function beside it": ("b", "C = 1", "C = 1\n\ndef h(): return g()", False),
    "the order of definitions": ("b", "def g(): return C\n\nC = 1\n", "C = 1\n\ndef g(): return C\n", False),
    "a constant": ("b", "C = 1", "C = 3", True),
    "one of two names": ("b", "return C\n\nC = 1", "return D\n\nC, D = 1, 2", True),
    "a constant that is not used": ("c", "C = 2", "C = 3", False),
}


@pytest.mark.parametrize("kind", EDITS)
def test_what_counts_and_what_does_not(kind):
    name, old, new, counts = EDITS[kind]
    path = f"ciss/{name}.py"
    assert old in TWO[path]
    before, after = (closure(files, "a", "f") for files in (TWO, {**TWO, path: TWO[path].replace(old, new)}))
    assert (before.digest != after.digest) is counts
    assert (before.listing() != after.listing()) is counts


def test_definitions_that_use_one_another_count_by_how():
    """Both have the same two lines in their listings, connected in two ways."""
    one = {
        "ciss/a.py": "from ciss.b import x\nfrom ciss.c import x as y\ndef f(): return x, y",
        "ciss/b.py": "from ciss import c\ndef x(): return 1, c.x()",
        "ciss/c.py": "from ciss import b\ndef x(): return 2, b.x()",
    }
    other = {**one, "ciss/a.py": one["ciss/a.py"].replace("x, y", "y, x")}
    first, second = closure(one, "a", "f"), closure(other, "a", "f")
    assert first.listing().splitlines()[1:] == second.listing().splitlines()[1:]
    assert first.digest != second.digest
    assert second.differences(first.listing()) == ["an import of another definition by the same name"]
    assert first.differences(first.listing()) == []


def test_two_names_of_one_statement_are_told_apart():
    one = "A, B = 1, 2\ndef f(): return A"
    assert closure({"ciss/a.py": one}, "a", "f").digest != closure({"ciss/a.py": one[:-1] + "B"}, "a", "f").digest


def test_differences_are_named():
    before = closure(TWO, "a", "f")
    changed = closure({**TWO, "ciss/b.py": TWO["ciss/b.py"].replace("C = 1", "D = C = 3")}, "a", "f")
    assert changed.differences(before.listing()) == ["b.D,C", "C"], "the second is gone"
    moved = {"ciss/a.py": TWO["ciss/a.py"].replace("ciss.b", "ciss.d.e"), "ciss/d/e.py": TWO["ciss/b.py"]}
    assert closure(moved, "a", "f").listing() == before.listing()


def test_a_mistake_is_named_by_file_and_line():
    with pytest.raises(ValueError, match="ciss/a.py, line 2: "):
        closure({"ciss/a.py": "x = 1\nif x\n"}, "a")


# --- the stages of this project, on a copy of its code


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    for name in ("ciss", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    store_code.write(folder)
    return folder


@pytest.fixture
def root(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "project")
    return tmp_path / "project"


def listings(root: Path) -> dict[str, str]:
    files = [file for file in (root / ".source").rglob("*") if file.is_file()]
    return {file.relative_to(root / ".source").as_posix(): file.read_text() for file in files}


def written(root: Path) -> dict[str, str]:
    store_code.write(root)
    return listings(root)


def changed(root: Path) -> set[str]:
    """Files in `.source` that are others now."""
    before, after = listings(root), written(root)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def edit(root: Path, name: str, old: str, new: str) -> None:
    file = root / "ciss" / name
    text = file.read_text()
    assert old in text, f"{name} has no {old!r}"
    file.write_text(text.replace(old, new))


def rewrite_imports(root: Path, pairs: dict[str, str]) -> None:
    for file in [*(root / "ciss").rglob("*.py"), *(root / "notebooks").glob("*.ipynb")]:
        text = file.read_text()
        for old, new in pairs.items():
            text = text.replace(old, new)
        file.write_text(text)


NOTEBOOKS = {path.stem for path in (paths.project() / "notebooks").glob("[1-9]_*.ipynb")} - {"2_base", "3_increment"}
COARSE = {"check", "probe", "copy_notebooks", *NOTEBOOKS}  # stages that read whole folders
PAGE = {"report"}  # its figures give a new method the colour of the method that it is derived from


def trainings(*methods: str) -> set[str]:
    return {f"{notebook}/{method}" for notebook in ("2_base", "3_increment") for method in methods or METHODS}


def test_every_stage_has_its_file(root):
    assert set(written(root)) == {*NOTEBOOKS, "check", "shapes", "probe", "report", "copy_notebooks", *trainings()}
    assert changed(root) == set()


def test_a_file_that_is_moved_renamed_or_split_changes_nothing(root):
    """Into another folder, and from a module into a folder's `__init__`."""
    (root / "ciss/losses/pod.py").rename(root / "ciss/labels/pooled.py")
    (root / "ciss/metrics").mkdir()
    (root / "ciss/metrics.py").rename(root / "ciss/metrics/__init__.py")
    rewrite_imports(root, {"ciss.losses.pod": "ciss.labels.pooled"})
    # and a file that is split in two
    file = root / "ciss/losses/relations.py"
    text = file.read_text()
    at = text.index("def sharp_loss")
    head = "".join(line + "\n" for line in text[:at].splitlines() if line.startswith(("import ", "from ")))
    file.write_text(text[:at])
    (root / "ciss/losses/sharp.py").write_text(f"{head}\n\n{text[at:]}")
    edit(
        root,
        "losses/__init__.py",
        "relations import sharp_loss, soft",
        "sharp import sharp_loss\nfrom ciss.losses.relations import soft",
    )
    mean_entropy = "sharp import mean_entropy\nfrom ciss.losses.relations import"
    edit(root, "methods/gsc.py", "relations import Target, mean_entropy,", f"{mean_entropy} Target,")
    edit(root, "methods/gsc_mbs.py", "relations import mean_entropy,", mean_entropy)
    assert "def sharp_loss" in (root / "ciss/losses/sharp.py").read_text()
    assert changed(root) == set()


def test_a_comment_a_function_beside_and_a_figure_change_nothing(root):
    edit(root, "training/loop.py", '"""The training loop', '"""A remark. The training loop')
    with open(root / "ciss/training/loop.py", "a") as file:
        file.write("\n\n# a comment\ndef helper():\n    return train\n")
    book = root / "notebooks/3_increment.ipynb"
    document = json.loads(book.read_text())
    document["cells"].insert(1, {"cell_type": "markdown", "metadata": {}, "source": "A claim."})
    document["cells"][3] |= {"execution_count": 99, "outputs": [], "metadata": {"tags": ["hide"]}}
    book.write_text(json.dumps(document))
    edit(root, "analysis/figures/training.py", "def loss_curve(ax", "def loss_curve(ax=None, *rest")
    # how a file is saved
    (root / "ciss/.ipynb_checkpoints").mkdir()
    (root / "ciss/.ipynb_checkpoints/loop.py").write_text("if")
    file = root / "ciss/training/log.py"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))  # as some editors on Windows write
    assert changed(root) == set()


@pytest.mark.parametrize(
    ("name", "old", "new", "wanted"),
    [
        ("training/log.py", "CHECK_EVERY = 50", "CHECK_EVERY = 51", trainings()),
        ("methods/mib.py", "10.0", "11.0", trainings("mib") | PAGE),
        ("methods/mbs.py", "= 0.7", "= 0.8", trainings("mbs", "gsc_mbs", "select") | PAGE),
        (
            "methods/finetune.py",
            "over_strips(",
            "normalisers(",
            trainings("finetune", "joint", "ncm", "ridge", "stage_ridge") | PAGE,
        ),
        ("methods/gsc.py", "0.3", "0.4", trainings("gsc") | PAGE),
        ("study/report/markup.py", 'format="svg"', 'format="png"', {"report"}),
        ("inspection/probe.py", "BINS = 10", "BINS = 11", {"probe"}),
        ("analysis/exploring/prototypes.py", "VOID = 255", "VOID = 254", {"copy_notebooks"}),
    ],
)
def test_an_edit_changes_what_reaches_it(root, name, old, new, wanted):
    """Of the stages that train, probe and draw the page; the analyses and what looks at data read whole folders."""
    edit(root, name, old, new)
    found = changed(root)
    assert found - COARSE == wanted - COARSE
    assert wanted <= found


def test_edits_that_train_nothing_again(root):
    edit(root, "methods/__init__.py", '"finetune", "joint"', '"joint", "finetune"')
    edit(root, "training/progress.py", "unit=", "initial=0, unit=")
    edit(root, "data/sets/ade20k.py", "wall, building", "building, wall")
    edit(root, "doctor.py", "import warnings", "import os\nimport warnings")
    assert changed(root) <= COARSE | PAGE


def test_another_function_of_the_same_name(root):
    """Exactly the methods that use it."""
    text = (root / "ciss/losses/pod.py").read_text()
    (root / "ciss/losses/other.py").write_text(text)
    rewrite_imports(root, {"from ciss.losses.pod import": "from ciss.losses.other import"})
    edit(root, "losses/other.py", "def local_pod", "SCALE = 1\n\n\ndef local_pod")
    assert changed(root) == set(), "the same function"
    reaching = {name for name, text in written(root).items() if "\nlocal_pod " in text}
    assert trainings("plop") | trainings("gsc") <= reaching
    assert not reaching & {*trainings("mib"), *trainings("mbs"), *trainings("gsc_mbs"), *trainings("finetune")}
    edit(root, "losses/other.py", ".mean()", ".mean() * SCALE")
    assert changed(root) == reaching


def test_a_new_method_gets_a_file(root):
    edit(root, "methods/mib.py", "10.0", "10.0")
    shutil.copy(root / "ciss/methods/mib.py", root / "ciss/methods/mine.py")
    edit(root, "methods/mine.py", "class MiB", "class Mine")
    found = changed(root)
    assert trainings("mine") <= found
    assert not found & trainings()


def test_a_new_data_set_trains_nothing_again(root):
    before = {name: store_code.dataset_code(store_code.read(root), name).listing() for name in ("voc", "shapes")}
    text = (root / "ciss/data/sets/voc.py").read_text()
    (root / "ciss/data/sets/mine.py").write_text(text.replace("aeroplane", "airship"))
    found = changed(root)
    assert "1_data" in found
    assert not found & {*trainings(), "shapes", "report"}
    package = store_code.read(root)
    assert {name: store_code.dataset_code(package, name).listing() for name in before} == before
    mine = store_code.dataset_code(package, "mine")
    assert mine.listing() != before["voc"]
    assert "data.sets.mine.NAMES" in mine.locations().values()
    codes = {name: store_code.training_code(package, ("gsc",), name).digest for name in ("voc", "voc8", "mine", "own")}
    assert codes["voc"] == codes["voc8"]
    assert len(set(codes.values())) == 3, "a run depends on its own data set"


def test_a_cell_counts_by_its_code(root):
    book = root / "notebooks/3_increment.ipynb"
    document = json.loads(book.read_text())
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    for key, value in (("source", "1 + 1"), ("metadata", {"tags": ["parameters"]})):
        before = code[-1][key]
        code[-1][key] = value
        book.write_text(json.dumps(document))
        assert changed(root) == {f"3_increment/{method}" for method in METHODS}
        code[-1][key] = before
    book.write_text(json.dumps(document))
    assert changed(root) == {f"3_increment/{method}" for method in METHODS}


def test_write_follows_the_tree(root):
    base, data = root / ".source/2_base/mib", root / ".source/1_data"
    os.utime(data, (1, 1))
    os.link(base, root / "cache")  # as DVC's cache may be linked
    kept = base.read_text()
    edit(root, "methods/mib.py", "10.0", "11.0")
    (root / "ciss/methods/plop.py").unlink()
    rewrite_imports(root, {"ciss.methods.plop": "ciss.methods.mib", "PLOP": "MiB"})
    (root / "notebooks/2_base.ipynb").rename(root / "notebooks/explore.ipynb")
    store_code.write(root)
    assert data.stat().st_mtime == 1
    assert (root / "cache").read_text() == kept
    assert not base.parent.exists() and not (root / ".source/3_increment/plop").exists()


def test_a_mistake_is_named_and_nothing_is_written(root):
    shutil.rmtree(root / ".source")
    edit(root, "training/log.py", "CHECK_EVERY = 50", "CHECK_EVERY = 50\nif x")
    command = [sys.executable, "-m", "ciss", "source"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "ciss/training/log.py, line " in result.stderr
    assert not (root / ".source").exists()
    edit(root, "training/log.py", "\nif x", "")
    book = root / "notebooks/2_base.ipynb"
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    book.write_text(json.dumps({"cells": [{**cell, "source": "x = 1"}, {**cell, "source": ["\n", "if x"]}]}))
    with pytest.raises(ValueError, match=r"2_base\.ipynb, cell 2, line 2: "):
        store_code.write(root)
    book.write_text("{}")
    with pytest.raises(ValueError, match=r"2_base\.ipynb"):
        store_code.write(root)
    with pytest.raises(FileNotFoundError, match="root of the project"):
        store_code.write(root / "notebooks")
    (root / "ciss/inspection/probe.py").write_text("")
    with pytest.raises(ValueError, match=r"there is no ciss\.inspection\.probe\.probe"):
        store_code.write(root)


def test_it_needs_no_torch():
    code = (
        "import sys; from ciss.store import code; code.stages(code.Path()); print({'torch', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_threads_that_ask_at_once_get_the_same_closure(tmp_path, monkeypatch):
    """`ciss train --jobs 2` asks for the code of two runs at once, and both threads read the same modules."""
    shutil.copytree(ROOT / "ciss", tmp_path / "ciss", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    methods = ["mib", "plop", "gsc", "mbs"]

    def digest(method: str) -> str:
        return store_code.training_code(store_code.read(tmp_path), (method,), "shapes").digest

    expected = [digest(method) for method in methods]
    store_code.training_code.cache_clear()
    store_code._package.cache_clear()
    original = names.parse
    monkeypatch.setattr(names, "parse", lambda *file: (time.sleep(0.01), original(*file))[1])
    with ThreadPoolExecutor(len(methods)) as pool:
        assert list(pool.map(digest, methods)) == expected


def test_a_closure_is_remembered_for_the_same_code_alone(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "ciss", tmp_path / "ciss", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)

    def listing() -> str:
        store_code.training_code.cache_clear()
        return store_code.training_code(store_code.read(tmp_path), ("mib",), "shapes").listing()

    expected = listing()
    assert not (tmp_path / ".dvc").exists(), "nothing is written without DVC's folder"
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    assert listing() == expected
    (file,) = (tmp_path / ".dvc" / "tmp" / "ciss-code").iterdir()
    monkeypatch.setattr(store_code, "_roots", lambda *_: pytest.fail("the names are followed again"))
    assert listing() == expected
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    file.write_text("half of")
    assert listing() == expected, "a damaged file is written again"
    assert listing() == expected
    metrics = tmp_path / "ciss" / "metrics.py"
    metrics.write_text(metrics.read_text().replace("/ (matrix.sum(dim=1)", "/ (1 + matrix.sum(dim=1)"))
    assert listing() != expected
    assert not file.exists(), "files of other code are removed"
