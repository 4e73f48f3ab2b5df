"""What the code means, without how it is written: `ciss source` in the root of the project.

Writes `.source/`, a copy of every `ciss/**/*.py` and `notebooks/*.ipynb` reduced to its syntax tree: no comments,
docstrings or formatting, and of notebooks the code cells only. Pipeline stages depend on these files, so a reworded
docstring or a notebook run by hand never retrains, a changed constant does.

The text is the same under every supported Python, because its hash goes into `dvc.lock`: `ast.unparse` and `ast.dump`
change between versions, so the tree is walked here. Standard library only: it takes a fraction of importing torch.
"""

import ast
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


@functools.cache  # of every run's identity, again and again
def reduce_source(text: str) -> str:
    """The syntax tree of a module as text, one statement a line. Raises SyntaxError."""
    return _statements(ast.parse(text).body, "")


def reduce_notebook(text: str) -> str:
    """The syntax trees of a notebook's code cells. Raises SyntaxError; ValueError or KeyError on other JSON."""
    reduced = []
    for number, cell in enumerate(json.loads(text)["cells"], start=1):
        if cell["cell_type"] == "code" and (body := _cell("".join(cell["source"]), f"cell {number}")):
            # The one piece of metadata with a meaning: papermill injects its values after the cell with this tag.
            tag = " parameters" if "parameters" in cell["metadata"].get("tags", ()) else ""
            reduced.append(f"cell{tag}\n{body}")
    return "".join(reduced)


def write(root: Path) -> None:
    """Bring `root/.source` up to date: changed files are replaced, stale ones removed, equal ones left untouched.

    Nothing is written unless everything reduces. Raises ValueError with file and line; FileNotFoundError without ciss/.
    """
    target = root / ".source"
    sources = [*_modules(root / "ciss"), *sorted((root / "notebooks").glob("*.ipynb"))]
    wanted = {target / path.relative_to(root): _reduced(path) for path in sources}
    methods = target / "ciss" / "methods"
    for path in (path for path in list(wanted) if path.parent == methods):  # a stage depends on one method's file
        wanted[path] += b"".join(_reduced(other) for other in _siblings(root / path.relative_to(target)))
    for path, reduced in wanted.items():
        if not (path.is_file() and path.read_bytes() == reduced):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Never write into a file: it may be a link into DVC's cache, and a killed process must leave no half of it.
            scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            scratch.write_bytes(reduced)
            os.replace(scratch, path)
    for path in sorted(target.rglob("*"), reverse=True):  # children before their folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in wanted:
            path.unlink()


def digest(root: Path, paths: Iterable[str]) -> str:
    """SHA-256 of modules and folders, reduced, named relative to the package: `digest(root, ["engine.py", "losses"])`.

    Order and repetitions do not matter. Raises FileNotFoundError for a path that is not there, ValueError as `write`.
    """
    package = root / "ciss"
    total = hashlib.sha256()
    for file in sorted({file for path in paths for file in _modules(package / path)}):
        reduced = _reduced(file)
        total.update(f"{file.relative_to(package).as_posix()} {len(reduced)}\n".encode() + reduced)
    return total.hexdigest()


def _siblings(path: Path) -> list[Path]:
    """The modules beside one that it stands on, by its imports and by theirs, sorted; `base.py` is no news to any."""
    if path.stem == "__init__":
        return []
    package, beside = (
        f"{path.parent.parent.name}.{path.parent.name}",
        {file.stem: file for file in path.parent.glob("*.py")},
    )
    found, asked = {path}, [path]
    while asked:  # each once: two may import each other
        names = {name.removeprefix(f"{package}.") for name in _imports(asked.pop(), package)}
        new = {beside[name] for name in names & set(beside) - {"base"}} - found
        found |= new
        asked += new
    return sorted(found - {path})


def _imports(path: Path, package: str) -> Iterator[str]:
    """Dotted names that a module of a package imports; of `from a import b` also a.b, which may be a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8-sig"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = f"{above}.{node.module or ''}".strip(".")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _modules(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"no {path.name} in {path.absolute().parent}: run this in the root of the project")
    files = path.rglob("*.py") if path.is_dir() else [path]
    # Hidden: editors' copies, such as .ipynb_checkpoints.
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _reduced(path: Path) -> bytes:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return (reduce_notebook(text) if path.suffix == ".ipynb" else reduce_source(text)).encode()
    except SyntaxError as error:
        cell = f", {error.filename}" if path.suffix == ".ipynb" else ""
        raise ValueError(f"{path}{cell}, line {error.lineno}: {error.msg}") from error
    except (ValueError, KeyError) as error:  # not UTF-8, not JSON, not a notebook
        raise ValueError(f"{path} cannot be read: {error!r}") from error


def _cell(code: str, name: str) -> str:
    if code.startswith("%%"):  # a cell magic: the rest need not be Python
        return f" {code.strip()!a}\n"
    try:
        tree = ast.parse(code)
    except SyntaxError:  # line magics and shell commands are the only thing a cell may hold that a module may not
        tree = ast.parse("\n".join(_magic(line) for line in code.splitlines()), name)
    return _statements(tree.body, " ", displayed=True)


def _magic(line: str) -> str:
    command = line.strip()
    return line.replace(command, f"magic({command!r})") if command.startswith(("%", "!")) else line


def _statements(body: list, indent: str, displayed: bool = False) -> str:
    """One line a statement, without those that do nothing: docstrings, `pass`, constants that are not `displayed`."""
    lines = []
    for node in body:
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, ast.Pass) and (displayed or not constant):
            lines.append(f"{indent}{_text(node, indent)}\n")
    return "".join(lines)


def _text(node: object, indent: str) -> str:
    if isinstance(node, list):
        if node and isinstance(node[0], ast.stmt | ast.ExceptHandler | ast.match_case):
            block = _statements(node, indent + " ")
            return f"\n{block}{indent}" if block else ""
        # Inside a list None has a meaning: `**` in a dict, a keyword-only argument without default.
        return f"[{', '.join(_text(item, indent) for item in node)}]" if node else ""
    if not isinstance(node, ast.AST):
        # ascii: which characters repr escapes depends on the version's Unicode tables; hex: repr refuses huge integers.
        return hex(node) if type(node) is int and node.bit_length() > 64 else ascii(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.JoinedStr):
        fields["values"] = _merged(node.values)
    # Fields that only newer versions have are None or empty; ctx follows from the place; kind is the u of u"".
    shown = [(name, value) for name, value in fields.items() if value is not None or isinstance(node, ast.Constant)]
    texts = [(name, _text(value, indent)) for name, value in shown if name not in ("ctx", "kind")]
    return f"{type(node).__name__}({', '.join(f'{name}={text}' for name, text in texts if text)})"


def _merged(values: list) -> list:
    """The parts of an f-string, its pieces of text joined and empty ones dropped: versions cut them differently."""
    merged: list = []
    for value in values:
        if isinstance(value, ast.Constant) and merged and isinstance(merged[-1], ast.Constant):
            merged[-1] = ast.Constant(merged[-1].value + value.value)
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            merged.append(value)
    return merged
