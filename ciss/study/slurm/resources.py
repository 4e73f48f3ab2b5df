"""`cluster.yaml`: what the jobs of each benchmark ask of Slurm."""

import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ciss import paths, updates
from ciss.config import Config, ConfigError, Few, Name, Natural, Positive, Text, section, validate
from ciss.documents import read_yaml, round_trip_yaml
from ciss.study import places

HEAD = """\
# What the jobs of each benchmark ask of Slurm: ciss train --slurm
#   gpus, cpus, memory: of each node; memory in GB, null: the cluster's default
#   hours: of one try. A job that needs longer is queued again and continues after its last finished epoch.
#   partition, account: null: the cluster's default
#   setup: lines of shell before the training, for example "module load cuda"
#   options: further options of sbatch, for example {qos: long, constraint: a100}
"""
WRITE = "Write it with: ciss train --slurm --write"
ANOTHER = "Name another file, for example cluster.yaml."
LEAST_HOURS, LEAST_MEMORY = 1.0, 4.0  # GB; an estimate below asks for these
OWN_OPTIONS = ("comment", "dependency", "kill_on_invalid_dep", "requeue", "chdir", "array", "signal", "output", "error")


@section
class Resources:
    nodes: Few = 1
    gpus: Natural = 1
    cpus: Few = 4
    memory: Positive | None = 32.0
    hours: Annotated[float, Field(gt=0, le=8760)] = 24.0
    partition: Text | None = None
    account: Text | None = None
    setup: tuple[Text, ...] = ()
    options: dict[Name, Any] = Field(default_factory=dict)

    def processes(self, planned: int) -> int:
        """Processes on each node, one for each GPU; `planned` is the benchmark's `train.processes`, 1: not planned."""
        return max(1, self.gpus) if planned == 1 or self.gpus else planned // self.nodes


def read(file: Path, config: Config, benchmarks: Iterable[str]) -> dict[str, Resources]:
    """The resources of some benchmarks. Raises ConfigError, which names file and key."""
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file. {WRITE}")
    resources = validate(dict[Name, Resources], read_yaml(file) or {}, file.name, "")
    for name in benchmarks:
        if name not in resources:
            raise ConfigError(f"{file.name}: the section {name} is missing. {WRITE}")
        asked, planned = resources[name], config.benchmarks[name].train.processes
        total = asked.nodes * asked.processes(planned)
        if planned not in (1, total):
            text = f"{name}: nodes: {asked.nodes} with gpus: {asked.gpus} train in {total} processes"
            raise ConfigError(f"{file.name}: {text}, but train.processes is {planned}. Make them equal.")
        place = f"{file.name}: {name}: nodes: {asked.nodes}, gpus: {asked.gpus}: {config.file}: benchmarks.{name}"
        updates.require_divided(config.benchmarks[name].train.batch, total, place)
        if taken := [option for option in asked.options if option.replace("-", "_") in OWN_OPTIONS]:
            raise ConfigError(f"{file.name}: {name}.options.{taken[0]}: this command sets it itself. Remove it.")
    return resources


@dataclass(frozen=True)
class Needs:
    """What the longest run of a benchmark takes, as `ciss plan --estimate` has it. `memory`: bytes; None: not known."""

    hours: float
    memory: int | None
    device: str = ""  # that was measured
    gpu: bool = False  # whether it is one

    def resources(self) -> dict[str, float]:
        """Hours and GB to ask for: twice as much, because nodes differ, and at least one hour and 4 GB."""
        asked: dict[str, float] = {"hours": max(LEAST_HOURS, float(math.ceil(2 * self.hours)))}
        if self.memory is not None:
            asked["memory"] = max(LEAST_MEMORY, float(math.ceil(2 * self.memory / 1e9)))
        return asked

    def describe(self, processes: int) -> str:
        """Where the numbers come from.

        Args:
            processes: GPUs that the section asks for.
        """
        asked = self.resources()
        parts = [f"hours: {asked['hours']:g}, {_source(asked['hours'], 2 * self.hours, LEAST_HOURS)}"]
        if self.memory is not None:
            source = _source(asked["memory"], 2 * self.memory / 1e9, LEAST_MEMORY)
            parts.append(f"memory: {asked['memory']:g}, {source}")
        text = f"{'; '.join(parts)}. Measured on {self.device}."
        if not self.gpu:
            text += f" The section asks for gpus: {processes}, but no GPU was measured: reduce hours, or write gpus: 0."
        return text


def _source(asked: float, twice: float, least: float) -> str:
    """Whether an asked number is twice the estimate, rounded up, or the least that is asked for."""
    return "the least that is asked for" if twice < least and asked == least else "twice the estimate, rounded up"


def require_sections(file: Path, config_file: str) -> None:
    """Raises ConfigError if a file to write is a parameter file, or has anything but sections of resources.

    Args:
        config_file: the parameter file, relative to the project.
    """
    parameters = (paths.project() / config_file, paths.project() / "params.yaml")
    if file.resolve() in [other.resolve() for other in parameters]:
        raise ConfigError(f"{file.name} has parameters, so it cannot have resources for Slurm, too. {ANOTHER}")
    if file.exists() and not file.is_file():
        raise ConfigError(f"{file} is no file. {ANOTHER}")
    if file.is_file():
        try:
            validate(dict[Name, Resources], read_yaml(file) or {}, file.name, "")
        except ConfigError as error:
            problem = f"{file.name} has something other than resources for Slurm, and stays as it is."
            raise ConfigError(f"{problem} {ANOTHER} Or correct it:\n{error}") from None


def write(file: Path, config: Config, needs: dict[str, Needs] | None = None) -> list[str]:
    """Adds a section for each benchmark that has none. Keeps what is there. Returns the names of the new sections.

    Args:
        needs: of benchmarks with an estimate.
    """
    require_sections(file, config.file)
    yaml = round_trip_yaml()
    document = read_yaml(file, yaml) if file.is_file() else None
    head = "" if document else HEAD
    document = document or {}
    missing = [name for name in config.benchmarks if name not in document]
    for name in missing:
        train = config.benchmarks[name].train
        known = needs[name].resources() if needs and name in needs else {}
        asked = Resources(gpus=train.processes, cpus=max(4, train.threads * train.processes), **known)
        document[name] = asdict(asked)
        document[name]["setup"] = []
    text = io.StringIO()
    yaml.dump(document, text)
    places.write_text(file, head + text.getvalue())
    return missing
