"""Documents of plain values: read from YAML 1.2, compared, and shown in messages."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

LARGEST_FILE = 8_000_000  # bytes; a study of a thousand runs has 100,000
LARGEST_DOCUMENT = 1_000_000  # values


class ConfigError(Exception):
    """A mistake in a parameter file: file, key or line, and what to do."""


def read_yaml(path: Path, yaml: YAML | None = None) -> Any:
    """A YAML 1.2 document. Raises ConfigError that names the file and, for a syntax error, the line."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file. Write one with: ciss plan shapes 4-2")
    data = path.read_bytes()
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{path}: {len(data)} bytes are no parameter file. Name another.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8: {error.reason}. Save the file as UTF-8.") from None
    return parse_yaml(text, str(path), yaml or safe_yaml())


def round_trip_yaml() -> YAML:
    """YAML 1.2 that keeps comments and quotes."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 200, True
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def safe_yaml() -> YAML:
    """A reader of plain values that refuses ambiguous numbers."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def parse_yaml(text: str, file: str, yaml: YAML) -> Any:
    """A document from its text. Raises ConfigError that names the line."""
    try:
        document = yaml.load(text)
        size = _size(document, {})
    except RecursionError:
        raise ConfigError(f"{file}: line 1: sections are nested too deeply. Correct the brackets and dashes.") from None
    except Exception as error:  # ruamel raises many kinds, also for mistakes of its own
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f"{mark.line + 1}, column {mark.column + 1}" if mark else "1"
        if position := getattr(error, "position", None):  # of a character that YAML does not allow
            line = str(text.count("\n", 0, position) + 1)
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
        first = plain(problem.partition("\n")[0])
        raise ConfigError(f"{file}: line {line}: not valid YAML: {first}. Correct this line.") from None
    if size > LARGEST_DOCUMENT:
        problem = f"with its aliases written out it has more than {LARGEST_DOCUMENT} values"
        raise ConfigError(f"{file}: line 1: {problem}. Use fewer aliases.")
    return document


def line_of(path: Path, key: str) -> int | None:
    """The line of a dotted key in a YAML file, or of the section that lacks it; None without such a section."""
    node = YAML(typ="safe", pure=True).compose(path)
    line = None
    for part in key.split("."):
        children = {}
        if isinstance(node, MappingNode):
            children = {str(name.value): (name, value) for name, value in node.value}
        elif isinstance(node, SequenceNode):
            children = {str(number): (value, value) for number, value in enumerate(node.value)}
        if part not in children:
            break
        first, node = children[part]
        line = first.start_mark.line + 1
    return line


class _Constructor(SafeConstructor):
    """ruamel's constructor. It names the line of each value that does not fit its tag, and refuses numbers that readers
    of YAML 1.1 and 1.2 understand differently: 010 and 1_6."""

    def construct_object(self, node, deep: bool = False) -> Any:
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            number = re.sub("^([-+]?)0+(?=[0-9])", r"\1", node.value.replace("_", ""))
            if number != node.value:
                advice = f"Write {number} for the number, '{node.value}' in quotes for text, or a decimal point"
                problem = f"{short(node.value)} has an underscore, a leading zero or a decimal comma. {advice}"
                raise MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            problem = f"{short(node.value)} ({plain(str(error).partition(chr(10))[0])})"
            raise MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _size(node: Any, known: dict[int, int]) -> int:
    """Values of a document whose aliases are written out. Raises RecursionError for a section within itself."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        children = node.values() if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def choose(word: str, known: Iterable[str]) -> str:
    """The nearest known word, or all of them: the end of an error message."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sorted(known)) or 'none'}."


def differences(found: Any, wanted: Any, key: str = "", word: str = "now") -> list[str]:
    """Keys that differ in two documents of plain values: "train.base.lr 0.1, now 0.05". Hashes have the key alone."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted}, key=str)
        return [d for k in keys for d in differences(found.get(k), wanted.get(k), f"{key}.{k}".lstrip("."), word)]
    if found == wanted:
        return []
    hashes = all(isinstance(value, str) and len(value) == 64 for value in (found, wanted))
    return [key if hashes else f"{key} {short(found)}, {word} {short(wanted)}"]


def short(value: Any) -> str:
    """A value in at most 60 characters."""
    if isinstance(value, int) and abs(value) >= 10**60:  # Python refuses to write the longest
        return "a number of more than 60 digits"
    text = plain(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(text: str) -> str:
    """Text in one line of at most 200 characters, special characters escaped."""
    text = text if len(text) <= 200 else f"{text[:98]}...{text[-99:]}"
    return text if text.isprintable() else repr(text)[1:-1]


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun: 1 run, 2 runs. `plural`: where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def size(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # rounds to 1000
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
