"""Markdown of values, comments and docstrings."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[2]
BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table. Cells with a bar or a line break stay in their cell."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("\n", " ").replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def yaml(value: Any) -> str:
    """A value as in `params.yaml`, as code."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(yaml(part).strip('`') for part in value)}]"
    else:
        text = f"{value:g}" if isinstance(value, float) and value != int(value) else str(value)
    return f"`{text}`"


def kind(hint: Any) -> str:
    """The values that a type allows, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [limit for entry in arguments[1:] for limit in _limits(entry)]
        return " ".join([kind(arguments[0]), ", ".join(limits)]).strip()
    if origin is Literal:
        return ", ".join(yaml(value) for value in arguments)
    if origin in (UnionType, Union):
        return " or ".join("`null`" if part is NoneType else kind(part) for part in arguments)
    if origin in (tuple, list):
        parts = [part for part in arguments if part is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments:
            return f"list of {len(parts)}: {kind(parts[0])}"
        return f"list of {kind(parts[0])}"
    return {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}.get(hint, "section")


def _limits(entry: Any) -> list[str]:
    entries = entry.metadata if isinstance(entry, FieldInfo) else [entry]
    return [
        words.format(f"{getattr(part, name):,g}" if getattr(part, name) < 1e6 else f"{getattr(part, name):,}")
        for part in entries
        for name, words in BOUNDS.items()
        if getattr(part, name, None) is not None and isinstance(getattr(part, name), int | float)
    ]


def default(entry: Field) -> str:
    if entry.default is not MISSING and not isinstance(entry.default, FieldInfo):
        return yaml(entry.default)
    factory = entry.default.default_factory if isinstance(entry.default, FieldInfo) else entry.default_factory
    if factory in (MISSING, None):
        given = getattr(entry.default, "default", MISSING)
        return "required" if given is MISSING or type(given).__name__ == "PydanticUndefinedType" else yaml(given)
    return {dict: "`{}`", list: "`[]`"}.get(factory, "that of each key")


def described_fields(section: type) -> list[tuple[Field, Any, str]]:
    """The fields of a dataclass that can be set: field, type, and the comments that stand at it in the source."""
    hints = get_type_hints(section, include_extras=True)
    meanings: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        if parent.__module__.startswith("ciss"):
            meanings |= field_comments(inspect.getsource(parent))
    return [(entry, hints[entry.name], meanings.get(entry.name, "")) for entry in fields(section) if entry.init]


def field_comments(source: str) -> dict[str, str]:
    """For each field of a class: the comments above it, and those on its lines."""
    source = textwrap.dedent(source)
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while first - 1 in alone and not comments[first - 1].startswith("---"):
                first -= 1
            texts = [comments[line] for line in range(first, node.end_lineno + 1) if line in comments]
            found[node.target.id] = " ".join(texts)
    return found


def escaped(text: str) -> str:
    """Text whose signs are no markup, except backticks: `<` is no tag, and `$` opens no formula."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<$*_\[\]])", r"\\\1", part) for part in parts)


def docstring(thing: Callable | type) -> str:
    """A docstring as Markdown: its indented formulas are code, and its `Args:` a list of definitions."""
    lines, result = (inspect.getdoc(thing) or "").splitlines(), []
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if line not in ("Args:", "Returns:", "Raises:"):
            is_code = line.startswith("    ")
            result.append(line if is_code else escaped(line) if not line.startswith("* ") else f"* {escaped(line[2:])}")
            continue
        result += ["", f"**{line.rstrip(':')}**", ""]
        while position < len(lines) and (lines[position].startswith("    ") or not lines[position]):
            entry = lines[position][4:]
            position += 1
            name, colon, rest = entry.partition(": ")
            if colon and re.fullmatch(r"\w+(, \w+)*", name):
                result += ["", f"`{name}`", f": {escaped(rest)}"]
            elif entry:
                result.append(f"  {escaped(entry.strip())}")
        result.append("")
    return "\n".join(result)
