"""The command line: several values after one option, and names for the shell's completion. Imports nothing heavy."""

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
    """A command whose options take several values at once, `--seeds 0 1 2`, or one by one."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        return super().parse_args(ctx, repeat_options(args, several))

    def format_usage(self, ctx: typer.Context, formatter: Any) -> None:
        """Writes the usage on one line, which stands above the message of a wrong argument."""
        formatter.write(f"usage: {ctx.command_path} {' '.join(self.collect_usage_pieces(ctx))}\n")


def repeat_options(arguments: list[str], several: set[str]) -> list[str]:
    """Repeats an option before each of its values. An option without a value gets the value ""."""
    result: list[str] = []
    option = None  # the one whose values follow
    for argument in [*arguments, "-"]:
        if argument.startswith("-") and not argument[1:2].isdigit():
            if option and result[-1] == option:
                result.append("")
            option = argument if argument in several else None
        elif option and result[-1] != option:
            result.append(option)
        result.append(argument)
    return result[:-1]


def run_names() -> list[str]:
    """Names of the runs in `params.yaml`, for the shell's completion."""
    from ciss import config

    try:
        return list(config.load().runs())
    except (config.ConfigError, OSError):
        return []
