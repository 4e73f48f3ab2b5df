"""How the command line is read: option values in a row, checks of values, and names for the shell's completion.

Nothing heavy is imported before a value is read.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

PACKAGE = Path(__file__).parent
PRESETS = sorted(file.stem for file in PACKAGE.glob("study/presets/*.yaml"))
DATA_SETS = [name for name in PRESETS if "-" not in name and name != "own"]
NO_METHODS = ("__init__", "base", "joint")  # joint training is planned without being named
METHODS = sorted(file.stem for file in PACKAGE.glob("methods/*.py") if file.stem not in NO_METHODS)


class Command(TyperCommand):
    """A command whose options of several values take them in a row, `--seeds 0 1 2`, or one by one."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, _one_by_one(args, several))

    def format_usage(self, ctx: typer.Context, formatter: Any) -> None:
        """On one line, however long: a wrong argument prints it above its message."""
        formatter.write(f"usage: {ctx.command_path} {' '.join(self.collect_usage_pieces(ctx))}\n")


def _one_by_one(arguments: list[str], several: set[str]) -> list[str]:
    """Repeats an option before each of its values; without any value it has the value ""."""
    result: list[str] = []
    option = None  # whose values follow
    for argument in arguments:
        if argument.startswith("-") and not argument[1:2].isdigit():
            if option and result[-1] == option:
                result.append("")
            option = argument if argument in several else None
            result.append(argument)
        elif option and result[-1] != option:
            result += [option, argument]
        else:
            result.append(argument)
    return [*result, ""] if option and result[-1] == option else result


def run_names() -> list[str]:
    """Names of the runs in `params.yaml`, for the shell's completion."""
    from ciss import config

    try:
        return list(config.load().runs())
    except (config.ConfigError, OSError):
        return []


def whole_number(text: str) -> int:
    """Reads an integer. Raises BadParameter."""
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise typer.BadParameter(f"{text[:60]!r} is not a whole number")
    return int(text)


def count(text: str) -> int:
    """Reads a number from 1 to 999. Raises BadParameter."""
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) < 1:
        raise typer.BadParameter(f"{text[:60]!r} is not a number from 1 to 999")
    return int(text)


def read_settings(values: list[str]) -> list[tuple[str, Any]]:
    """Reads values of `--set` as pairs of key and YAML value. Raises BadParameter."""
    from ciss.study.plan import ConfigError, parse_setting

    try:
        return [parse_setting(value) for value in values]
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None


def check_choice(option: str, value: str, known: Collection[str]) -> None:
    """Raises BadParameter with a near-miss hint for a value that is not known."""
    if value not in known:
        from ciss.documents import choose

        raise typer.BadParameter(f"there is no {value!r}. {choose(value, known)}", param_hint=option)
