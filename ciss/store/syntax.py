"""Syntax trees as text: without comments, docstrings and formatting.

The text is the same under every supported Python, because `dvc.lock` holds its hash. `ast.unparse` and `ast.dump`
change between versions, so this module walks the tree itself.
"""

import ast

AFFECTS_RESULTS = False  # see store/code


class Reference(ast.expr):
    """A name of the package, as its definition spells it."""

    _fields = ("name",)


def reduce(body: list[ast.stmt], indent: str = "", displayed: bool = False) -> str:
    """One line per statement, without docstrings, `pass` and, unless they are `displayed`, constants."""
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
    """The statements of a notebook's cell, with magics and shell commands as calls of `magic`. Raises SyntaxError."""
    if code.startswith("%%"):  # a cell magic: the rest need not be Python
        return ast.parse(f"magic({code.strip()!r})").body
    try:
        return ast.parse(code).body
    except SyntaxError:  # a cell may hold line magics and shell commands, a module may not
        lines = code.splitlines()
        for number, line in enumerate(lines):
            command = line.strip()
            if command.startswith(("%", "!")):
                lines[number] = line.replace(command, f"magic({command!r})")
        return ast.parse("\n".join(lines), name).body


def _text(node: object, indent: str) -> str:
    if isinstance(node, list):
        if node and isinstance(node[0], ast.stmt | ast.ExceptHandler | ast.match_case):
            block = reduce(node, indent + " ")
            return f"\n{block}{indent}" if block else ""
        # None has a meaning inside a list: `**` in a dict, a keyword-only argument without default.
        return f"[{', '.join(_text(item, indent) for item in node)}]" if node else ""
    if not isinstance(node, ast.AST):
        # ascii: which characters repr escapes depends on the version's Unicode tables; hex: repr refuses huge integers.
        return hex(node) if type(node) is int and node.bit_length() > 64 else ascii(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.JoinedStr):
        fields["values"] = _joined(node.values)
    # Fields of newer versions are None or empty. `ctx` follows from the position, `kind` is the u of u"".
    shown = [(name, value) for name, value in fields.items() if value is not None or isinstance(node, ast.Constant)]
    texts = [(name, _text(value, indent)) for name, value in shown if name not in ("ctx", "kind")]
    return f"{type(node).__name__}({', '.join(f'{name}={text}' for name, text in texts if text)})"


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The values of an f-string, with neighbouring texts joined and empty ones dropped. Python versions split them
    differently."""
    joined: list = []
    for value in values:
        if isinstance(value, ast.Constant) and joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(joined[-1].value + value.value)
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            joined.append(value)
    return joined
