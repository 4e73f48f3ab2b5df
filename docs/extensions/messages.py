"""Every message with which a command refuses or stops, read from the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from extensions.text import ROOT

FUNCTIONS_OF_TENSORS = (
    "ciss/losses",
    "ciss/labels",
    "ciss/analysis",
    "ciss/metrics",
)  # their errors are for programmers
ROOMS = {  # headings, by the beginning of the file's path
    "ciss/data": "Data sets",
    "ciss/models": "Networks and weights",
    "ciss/study/slurm": "Slurm",
    "ciss/study": "Commands",
    "ciss/training": "Training",
    "ciss/runs": "Runs",
    "ciss/": "`params.yaml` and other files",
}


def messages() -> str:
    """A list for each part of the program. A word in capitals is what the program inserts."""
    found: dict[str, dict[str, None]] = {title: {} for title in ROOMS.values()}
    for file in sorted((ROOT / "ciss").rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if path.startswith(FUNCTIONS_OF_TENSORS):
            continue
        title = next(title for start, title in ROOMS.items() if path.startswith(start))
        found[title] |= dict.fromkeys(_of_file(file))
    blocks = []
    for title, texts in found.items():
        entries = [f"({anchor(text)})=\n```text\n{text}\n```\n" for text in sorted(texts)]
        blocks.append(f"### {title}\n\n" + "\n".join(entries))
    return "\n".join(blocks)


def anchor(text: str) -> str:
    """The place of a message: its first words."""
    return "message-" + "-".join(re.findall("[a-z0-9]+", text.lower())[:14])


def _of_file(file: Path) -> Iterator[str]:
    for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        assigned = _assigned_texts(function)
        for node in ast.walk(function):
            call = node.exc if isinstance(node, ast.Raise) else node
            if isinstance(call, ast.Call) and call.args and (call is not node or _is_error(call.func)):
                text = _template(call.args[-1], assigned)
                if len(re.findall("[a-z]{2,}", text)) > 3:  # more than an inserted text
                    yield text.strip()


def _assigned_texts(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Texts that a function assigns to a name once, which messages then insert."""
    nodes = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    pairs = [(target.id, node.value) for node in nodes for target in node.targets if isinstance(target, ast.Name)]
    names = [name for name, _ in pairs]
    texts = {name: value for name, value in pairs if isinstance(value, ast.JoinedStr | ast.Constant)}
    return {name: value for name, value in texts.items() if names.count(name) == 1 and _template(value, {})}


def _is_error(function: ast.expr) -> bool:
    name = ast.unparse(function).rpartition(".")[2]
    return name in ("exit", "DiskFull") or name.endswith("Error")


def _template(node: ast.expr, assigned: dict[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, assigned) for part in node.values)
    value = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(value, ast.Name) and value.id in assigned:
        return _template(assigned[value.id], {})
    if isinstance(node, ast.FormattedValue):
        return re.findall(r"\w+", ast.unparse(value))[-1].upper()
    return ""
