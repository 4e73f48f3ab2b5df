"""Files that a command is told to write: a folder, or a place without the right to write, gives one message."""

import os
from pathlib import Path

from ciss import paths
from ciss.config import ConfigError
from ciss.store import files


def require_file(file: str, option: str) -> None:
    """Raises ConfigError if a file, relative to the project, is a folder.

    Args:
        option: of the command that names the file.
    """
    if (paths.project() / file).is_dir():
        raise ConfigError(f"{option}: {file} is a folder. Name a file, for example {file.rstrip('/')}/new.yaml.")


def require_writable(file: str, option: str) -> None:
    """Raises ConfigError if a file, relative to the project, is a folder or cannot be written."""
    require_file(file, option)
    path = paths.project() / file
    folder = paths.existing_parent(path.parent)
    if not folder.is_dir():
        raise ConfigError(f"{option}: {file} cannot be written, because {folder} is no folder. Name another place.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option}: {file} cannot be written: no right to write into {folder}. Name another place.")


def write_text(file: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises ConfigError, which names the file and not the temporary one."""
    try:
        files.write_text(file, text)
    except files.DiskFull as error:
        raise ConfigError(str(error)) from None
    except (files.CheckpointError, OSError) as error:
        reason = error if isinstance(error, OSError) else error.__context__
        raise ConfigError(
            f"{file} cannot be written ({getattr(reason, 'strerror', None) or 'unknown reason'}). Name another place."
        ) from None
