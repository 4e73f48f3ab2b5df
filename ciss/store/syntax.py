"""Syntax trees as text, without how they are written: no comments, docstrings or formatting.

The text is the same under every supported Python, because its hash goes into `dvc.lock`: `ast.unparse` and `ast.dump`
change between versions, so the tree is walked here.
"""

import ast

AFFECTS_RESULTS = False  # see store/code


class Reference(ast.expr):
    """A name that stands for a definition of the package, by the name that it has where it is defined."""

    _fields = ("name",)


def reduce(body: list[ast.stmt], indent: str = "", displayed: bool = False) -> str:
    """One line a statement, without those that do nothing: docstrings, `pass`, constants that are not `displayed`."""
    lines = []
    for node in body:
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, ast.Pass) and (displayed or not constant):
            lines.append(f"{indent}{_text(node, indent)}\n")
    return "".join(lines)


def parse(code: str, path: str) -> list[ast.stmt]:
    """The statements of a file. Raises ValueError naming file and line."""
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{path}, line {line}: {getattr(error, 'msg', error)}") from None


def parse_cell(code: str, name: str) -> list[ast.stmt]:
    """The statements of a notebook's cell; magics and shell commands as calls of `magic`. Raises SyntaxError."""
    if code.startswith("%%"):  # a cell magic: the rest need not be Python
        return ast.parse(f"magic({code.strip()!r})").body
    try:
        return ast.parse(code).body
    except SyntaxError:  # line magics and shell commands are the only thing a cell may hold that a module may not
        return ast.parse("\n".join(_magic(line) for line in code.splitlines()), name).body


def _magic(line: str) -> str:
    command = line.strip()
    return line.replace(command, f"magic({command!r})") if command.startswith(("%", "!")) else line


def _text(node: object, indent: str) -> str:
    if isinstance(node, list):
        if node and isinstance(node[0], ast.stmt | ast.ExceptHandler | ast.match_case):
            block = reduce(node, indent + " ")
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
