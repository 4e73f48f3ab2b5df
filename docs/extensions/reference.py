"""Generated references: the commands, the keys of `params.yaml`, and the Python functions."""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from ciss import cli, config
from ciss.data.stored import Memory
from ciss.ranges import declared
from extensions.text import default, described_fields, docstring, escaped, kind, table, yaml

INTERNAL = "For dvc.yaml: "  # how the help of such commands begins


def commands() -> str:
    """Every command with its help, arguments and options."""
    group = typer.main.get_command(cli.app)
    named = {f"ciss {name}": command for name, command in group.commands.items() if name != "data"}
    named |= {f"ciss data {name}": command for name, command in group.commands["data"].commands.items()}
    order = sorted(named, key=lambda name: named[name].help.startswith(INTERNAL))
    return "\n".join(_command(name, named[name]) for name in order)


def _command(name: str, command: TyperCommand) -> str:
    text, *examples = command.help.split("\b\n")
    rest = ""
    if examples:
        example, _, rest = examples[0].partition("\n\n")
        text += f"```console\n{example.strip()}\n```\n"
    rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
    options = table(["argument or option", "meaning", "default"], rows)
    text = text.replace(command.help.split("\b\n")[0], escaped(command.help.split("\b\n")[0]), 1)
    return f"## {name}\n\n{text}\n\n{escaped(rest)}\n\n{options if rows else ''}\n"


def _parameter(parameter: Any) -> tuple[str, str, str]:
    option = parameter.param_type_name == "option"
    names = " / ".join([*parameter.opts, *parameter.secondary_opts]) if option else parameter.metavar
    values = f" {parameter.metavar}" if option and parameter.metavar and not parameter.is_flag else ""
    value = parameter.default
    needed = "required" if parameter.required else ""
    shown = "" if value in (None, False, "", ()) or callable(value) else yaml(getattr(value, "value", value))
    return f"`{names}{values}`", escaped(parameter.help or ""), needed or shown


def keys() -> str:
    """Every key of `params.yaml`, a table for each section. The last one is the coefficient `memory` of all methods."""
    every = [*sections(config.Config, ""), ("methods.NAME.memory", Memory)]
    return "\n".join(_section(name, section) for name, section in every)


def sections(section: type, name: str) -> Iterator[tuple[str, type]]:
    """A section and those within it, by their place: `benchmarks.NAME.train`."""
    yield name, section
    for key, hint in get_type_hints(section).items():
        if inner := _inner(hint):
            several = get_origin(hint) is dict
            yield from sections(inner, ".".join(filter(None, [name, key, "NAME" * several])))


def _inner(hint: Any) -> type | None:
    if get_origin(hint) in (dict, UnionType):
        return next((part for part in map(_inner, get_args(hint)) if part), None)
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _section(name: str, section: type) -> str:
    rows = [
        (f"`{entry.name}`", default(entry), kind(hint), escaped(meaning))
        for entry, hint, meaning in described_fields(section)
    ]
    title = f"`{name}`" if name else "The file"
    own = inspect.getdoc(section) or ""
    text = "" if own.startswith(f"{section.__name__}(") else docstring(section)
    return f"## {title}\n\n{text}\n\n{table(['key', 'default', 'values', 'meaning'], rows)}\n"


def coefficients(method: type) -> str:
    """The coefficients of a method's class, as a table."""
    ranges = declared(method)
    rows = []
    for entry, hint, meaning in described_fields(method):
        tried = ranges.get(entry.name)
        rows.append((f"`{entry.name}`", default(entry), kind(hint), str(tried) if tried else "", escaped(meaning)))
    return table(["coefficient", "default", "values", "`ciss tune` tries", "meaning"], rows)


def functions(module: str) -> str:
    """The public functions and classes of a module: those in `__all__`, or all without an underscore."""
    room = importlib.import_module(module)
    names = getattr(room, "__all__", None) or [
        name
        for name, value in vars(room).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module
    ]
    return "\n".join(_entry(module, name, getattr(room, name)) for name in names)


def _entry(module: str, name: str, thing: Any) -> str:
    if not inspect.isclass(thing):
        return _described("function", f"{module}.{name}", thing)
    members = [
        _described("method", member, value)
        for member, value in vars(thing).items()
        if not member.startswith("_") and inspect.isfunction(value)
    ]
    rows = _fields(thing) if is_dataclass(thing) else []
    attributes = table(["attribute", "type", "meaning"], rows) if rows else ""
    return _described("class", f"{module}.{name}", thing, "\n".join([attributes, *members]))


def _fields(thing: type) -> list[tuple[str, str, str]]:
    rows = [(entry.name, _short(inspect.formatannotation(hint)), text) for entry, hint, text in described_fields(thing)]
    return [(f"`{name}`", f"`{hint}`", escaped(text)) for name, hint, text in rows]


def _short(signature: str) -> str:
    """Types without their modules."""
    return re.sub(r"\b(?:torch|numpy|collections\.abc|typing|pathlib|ciss(?:\.\w+)+)\.", "", signature)


def _described(role: str, name: str, thing: Any, inner: str = "") -> str:
    """A directive of Sphinx's Python domain. Its fence is longer than those inside."""
    fence = ":::" if role == "method" else "::::"
    listed = inspect.isclass(thing) and (is_dataclass(thing) or issubclass(thing, Exception))
    signature = "" if listed else _short(str(inspect.signature(thing)))
    signature = signature.replace("(self, ", "(").replace("(self)", "()")
    own = inspect.getdoc(thing) or ""
    text = "" if own.startswith(f"{name.rpartition('.')[2]}(") else docstring(thing)
    return f"{fence}{{py:{role}}} {name}{signature}\n\n{text}\n\n{inner}\n{fence}\n"


def one_class(path: str) -> str:
    """A class by its path, with its own public methods: `ciss.methods.base.Method`."""
    module, _, name = path.rpartition(".")
    return _entry(module, name, getattr(importlib.import_module(module), name))
