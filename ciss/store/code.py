"""Which code a run or a stage of the pipeline depends on: `ciss source` in the root of the project.

Starting from what a stage runs, names are followed through the package, from function to function. `.source/` has a
file for every stage, with a line for each function, class and constant that it reaches: its name, and a hash of its
syntax tree. A comment, a docstring, a moved or renamed file and a function that the stage does not use change no file.
A changed constant changes the files of the stages that use it, and `dvc diff` or `diff` of two versions names it. The
first line is a hash of everything together: it changes, too, when a name leads to another definition.

* Methods and data sets are imported by the names of their files. A training depends on its own method alone, and on
  its own data set, whose code `data/index` lists. Other stages depend on all files of a folder that they import so.
* Trainings do not depend on modules with the line `AFFECTS_RESULTS = False`, nor on what their notebook draws.
* A stage does not depend on the code that makes its inputs in another stage: it depends on these inputs.

Standard library only: it takes a fraction of importing torch.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ciss.store.names import Definition, Group, Module, Package
from ciss.store.syntax import parse_cell

AFFECTS_RESULTS = False
Place = tuple[str, str]  # a module and a name in it
TRAIN: Place = ("ciss.training.loop", "train")
PROBE: Place = ("ciss.inspection.probe", "probe")
MAKERS: dict[str, Place] = {"check": ("ciss.runs.check", "check"), "probe": PROBE}  # by stage
STAGES: dict[str, Place] = {  # those that run no notebook
    "check": ("ciss.study.plan_check", "check"),
    "shapes": ("ciss.data.sets.shapes", "write"),
    "probe": ("ciss.inspection.probe", "write"),
    "report": ("ciss.study.report.command", "main"),
}
TOGETHER = "(together)"  # the first line of a listing


class Closure:
    """What some definitions use, directly and through others.

    Attributes:
        definitions: in the order in which they are reached.
        digest: sha256 of what they say and of which uses which; of no name or place of a file.
    """

    def __init__(
        self,
        roots: Iterable[Definition],
        training: bool = False,
        stops: Iterable[Definition] = (),
        callers: Iterable[Definition] = (),
    ):
        """
        Args:
            roots: where to start.
            training: leave out what affects no result of a training, and folders that are imported by files' names.
            stops: definitions that are not followed.
            callers: definitions that count by their text and by what they use of the others.
        """
        self._stops = set(stops)
        numbers: dict[Definition, int] = {}
        waiting = list(roots)[::-1]
        while waiting:
            definition = waiting.pop()
            if definition not in numbers and not (training and _left_out(definition)):
                numbers[definition] = len(numbers)
                waiting += self._uses(definition)[::-1]
        numbers |= {caller: len(numbers) + k for k, caller in enumerate(callers)}
        total = hashlib.sha256()
        for definition in numbers:
            text = definition.name if definition in self._stops else definition.line
            uses = [numbers[each] for each in self._uses(definition) if each in numbers]
            total.update(f"{text} {uses}\n".encode())
        self.definitions = list(numbers)
        self.digest = total.hexdigest()

    def _uses(self, definition: Definition) -> list[Definition]:
        return [] if definition in self._stops else definition.uses

    def places(self) -> dict[str, str]:
        """Where each definition lies, such as "training.loop.train", by its line in the listing."""
        found = {}
        for definition in self.definitions:
            if definition not in self._stops and not isinstance(definition, Group):
                found[definition.line] = f"{definition.module.name}.{definition.name}".removeprefix("ciss.")
        return found

    def listing(self) -> str:
        """A line for each definition, its name and a hash of its text, by name; the first line is of everything."""
        return "".join(f"{line}\n" for line in [f"{TOGETHER} {self.digest}", *sorted(self.places())])

    def differences(self, listing: str) -> list[str]:
        """What another listing has with another text, or not at all, by its place; without a place: what is gone."""
        first, *rest = listing.splitlines() or [""]
        other, own = set(rest), self.places()
        changed = [own[line] for line in sorted(own) if line not in other]
        names = {line.rpartition(" ")[0] for line in own if line not in other}
        gone = {line.rpartition(" ")[0] for line in other if line not in own} - names
        if not changed and not gone and first != f"{TOGETHER} {self.digest}":
            return ["an import of another definition by the same name"]
        return [*changed, *sorted(gone)]


def _left_out(definition: Definition) -> bool:
    """Of trainings."""
    return not definition.module.affects_results or (isinstance(definition, Group) and definition.dynamic)


@lru_cache(maxsize=256)
def training_code(package: Package, methods: tuple[str, ...] = (), dataset: str = "") -> Closure:
    """What a training depends on.

    Args:
        package: see `read`.
        methods: names of methods' files.
        dataset: the name of a data set; one of one's own has no file.
    """
    return Closure(_roots(package, TRAIN, methods, dataset), training=True)


@lru_cache(maxsize=256)
def probe_code(package: Package, methods: tuple[str, ...], dataset: str) -> Closure:
    """What a probe depends on; see `training_code`. `methods`: those whose labels are judged."""
    return Closure(_roots(package, PROBE, methods, dataset), training=True)


def dataset_code(package: Package, dataset: str) -> Closure:
    """What a data set's own file says and uses."""
    return Closure(_dataset(package, dataset), training=True)


def read(root: Path) -> Package:
    """The package in a project's folder, else the one that runs, as its files are now. Raises as `write`."""
    return _package(_files(root if (root / "ciss").is_dir() else Path(__file__).resolve().parents[2]))


def write(root: Path) -> None:
    """Bring `root/.source` up to date: changed files are replaced, stale ones removed, equal ones left untouched.

    Nothing is written unless everything can be read. Raises ValueError with file and line; FileNotFoundError without
    ciss/.
    """
    target = root / ".source"
    wanted = {target / name: closure.listing().encode() for name, closure in stages(root).items()}
    for path, content in wanted.items():
        if not (path.is_file() and path.read_bytes() == content):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Never write into a file: it may be a link into DVC's cache, and a killed process must leave no half of it.
            scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            scratch.write_bytes(content)
            os.replace(scratch, path)
    for path in sorted(target.rglob("*"), reverse=True):  # children before their folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in wanted:
            path.unlink()


def stages(root: Path) -> dict[str, Closure]:
    """What each stage depends on, by the name of its file in `.source`: of a notebook that trains one file a method.

    Raises as `write`.
    """
    package = _package(_files(root))
    train, makers = _named(package, TRAIN), {name: _named(package, place) for name, place in MAKERS.items()}
    stops = [train, *makers.values()]
    found = {}
    for name, place in STAGES.items():
        own = makers.get(name)
        found[name] = Closure([_named(package, place)], stops=[stop for stop in stops if stop is not own])
    for file in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        cells = _cells(package, file)
        if not any(train in cell.uses for cell in cells):
            found[file.stem] = Closure(cells, stops=stops)
            continue
        for method in _methods(package):
            roots = _roots(package, TRAIN, [method])
            found[f"{file.stem}/{method}"] = Closure(roots, training=True, callers=cells)
    return found


def _roots(package: Package, place: Place, methods: Iterable[str], dataset: str = "") -> list[Definition]:
    roots = [_named(package, place), *_dataset(package, dataset)]
    for method in methods:
        roots += _classes(package, method)
    return roots


def _methods(package: Package) -> list[str]:
    """The names of the methods' files."""
    folder = "ciss.methods."
    names = sorted(name.removeprefix(folder) for name in package.files if name.startswith(folder))
    return [name for name in names if name != "base"]


def _classes(package: Package, method: str) -> list[Definition]:
    """The classes of a method's file: one of them is the method."""
    return [definition for definition in package[f"ciss.methods.{method}"].definitions if definition.is_class]


def _dataset(package: Package, name: str) -> list[Definition]:
    module = f"ciss.data.sets.{name}"
    found = package.find(module, "DATASET") if module in package.files else []
    return [definition for definition, _ in found]


def _named(package: Package, place: Place) -> Definition:
    """Raises ValueError where the definition is not there."""
    ((found, _), *_) = package.find(*place)
    if not isinstance(found, Definition) or isinstance(found, Group):
        raise ValueError(f"{__name__}: there is no {'.'.join(place)}. Name its new place at the top of this file.")
    return found


def _cells(package: Package, file: Path) -> list[Definition]:
    """The code cells of a notebook. Raises ValueError naming file, cell and line."""
    module, cells = Module(package, file.stem, "", is_folder=False), []
    try:
        notebook = json.loads(file.read_text(encoding="utf-8-sig"))["cells"]
        code = [(number, cell) for number, cell in enumerate(notebook, start=1) if cell["cell_type"] == "code"]
        for number, cell in code:
            statements = parse_cell("".join(cell["source"]), f"cell {number}")
            # The one piece of metadata with a meaning: papermill injects its values after the cell with this tag.
            tag = ", parameters" if "parameters" in cell["metadata"].get("tags", ()) else ""
            cells.append(Definition(module, f"cell {len(cells) + 1}{tag}", statements, displayed=True))
            module.read_imports(statements)
    except SyntaxError as error:
        raise ValueError(f"{file}, cell {number}, line {error.lineno}: {error.msg}") from error
    except (ValueError, KeyError) as error:  # not UTF-8, not JSON, not a notebook
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    return cells


def _files(root: Path) -> tuple[tuple[str, str], ...]:
    """Path and text of every file of the package. Raises as `write`."""
    package = root / "ciss"
    if not package.is_dir():
        raise FileNotFoundError(f"no ciss in {root.absolute()}: run this in the root of the project")
    found = []
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(root)
        if any(part.startswith(".") for part in path.parts):  # editors' copies, such as .ipynb_checkpoints
            continue
        try:
            found.append((path.as_posix(), file.read_text(encoding="utf-8-sig")))
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error!r}") from error
    return tuple(found)


@lru_cache(maxsize=4)
def _package(files: tuple[tuple[str, str], ...]) -> Package:
    return Package(dict(files))
