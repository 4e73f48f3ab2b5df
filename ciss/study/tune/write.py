"""`ciss tune --write`: the coefficients of the chosen trials into the parameter file. Comments stay."""

import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ruamel.yaml.comments import CommentedMap

from ciss import config, documents, paths
from ciss.config import ConfigError
from ciss.methods import method_class
from ciss.ranges import plain
from ciss.store import files
from ciss.study.tune import results
from ciss.study.tune.published import coefficients
from ciss.study.tune.trial import Trainer

if TYPE_CHECKING:  # Optuna is an extra
    from ciss.study.tune.search import Search


def require_choice(searches: list["Search"]) -> None:
    """Raises ConfigError for methods without a complete trial."""
    if missing := [
        search.method for search in searches if not any(trial.value is not None for trial in search.trials())
    ]:
        names = " ".join(missing)
        raise ConfigError(f"--write: no complete trial of {names}. Train some first: ciss tune {names} --trials 20")


def chosen(file: str, trainer: Trainer, searches: list["Search"]) -> None:
    """Writes all coefficients of the chosen trials into `methods.NAME`, and prints what changed.

    Args:
        file: the parameter file, relative to the project.

    Raises ConfigError if the file would not be valid.
    """
    path = paths.project() / file
    document = config.read_yaml(path, documents.round_trip_yaml())
    trials = results.table(trainer, searches)
    benchmark = trainer.settings.benchmarks[trainer.benchmark]
    lines = []
    for search in searches:
        for number in trials[(trials["method"] == search.method) & trials["chosen"]]["trial"]:
            wanted = coefficients(search.method, benchmark, search.values(search.trials()[number]))
            changed = _change(document.setdefault("methods", CommentedMap()), search.method, wanted)
            values = ", ".join(f"{name} {value}" for name, value in changed.items()) or "nothing changes"
            lines.append(f"{file}: methods.{search.method}, trial {number}: {values}")
    buffer = io.StringIO()
    documents.round_trip_yaml().dump(document, buffer)
    try:
        config.parse(documents.parse_yaml(buffer.getvalue(), file, documents.safe_yaml()), file)
    except ConfigError as error:
        raise ConfigError(f"--write: {error}") from None
    files.write_text(path, buffer.getvalue())
    print("\n".join(lines))


def _change(sections: CommentedMap, method: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Gives a section the wanted coefficients. Returns those that it had not, written out or by default."""
    if method not in sections:
        sections[method] = CommentedMap()
        sections[method].fa.set_flow_style()
    section = sections[method]
    defaults = {name: plain(value) for name, value in asdict(method_class(method)()).items()}
    changed = {name: value for name, value in wanted.items() if section.get(name, defaults[name]) != value}
    section.update(changed)
    return changed
