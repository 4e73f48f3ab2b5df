"""Which code a run or a stage of the pipeline depends on: `ciss source` in the root of the project.

Starting from what a stage runs, names are followed through the package, from function to function. `.source/` has one
file per stage, with one line per function, class and constant that it uses: its name, and a hash of its syntax tree.
A comment, a docstring, a moved or renamed file and a function that the stage does not use change no file. `dvc diff`
or `diff` of two versions names the changed definitions. The first line is one hash of all definitions and of which
uses which. It also changes when a name is imported from another place.

* Methods and data sets are imported by the names of their files. Of these files, a training depends on that of its
  method and on that of its data set, whose code `data/index` lists. Other stages depend on all files of such a folder.
* Trainings do not depend on modules with the line `AFFECTS_RESULTS = False`, nor on the figures of their notebook.
* A stage does not depend on the code of another stage that makes its inputs. It depends on these inputs.

Standard library only: importing this takes a fraction of importing torch.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from ciss import paths
from ciss.store.names import Definition, Group, Module, Package
from ciss.store.syntax import parse_cell

AFFECTS_RESULTS = False
Entry = tuple[str, str]  # a module and a name in it
TRAIN: Entry = ("ciss.training.loop", "train")
PROBE: Entry = ("ciss.inspection.probe", "probe")
OUTPUT_STAGES: dict[str, Entry] = {"check": ("ciss.runs.check", "check"), "probe": PROBE}  # by stage
STAGES: dict[str, Entry] = {  # those that run no notebook
    "check": ("ciss.study.plan_check", "check"),
    "shapes": ("ciss.data.sets.shapes", "write"),
    "probe": ("ciss.inspection.probe", "write"),
    "report": ("ciss.study.report.command", "main"),
    "copy_notebooks": ("ciss.study.copies", "main"),
}
EXECUTED = {"copy_notebooks": "[1456e]*.ipynb"}  # notebooks whose code such a stage depends on too
_FOLLOWING = threading.RLock()  # threads share a package, which is read and resolved as far as one of them needs it
TOTAL_LINE = "(together)"  # the first line of a listing


class Closure:
    """What some definitions use, directly and through others.

    `digest`: sha256 of their reduced code and of which uses which, without paths of files and modules.
    """

    def __init__(
        self,
        roots: Iterable[Definition],
        training: bool = False,
        boundaries: Iterable[Definition] = (),
        notebook_cells: Iterable[Definition] = (),
    ):
        """
        Args:
            roots: where to start.
            training: leave out modules that affect no result, and folders whose files are imported by name.
            boundaries: definitions that count by their name; what they use is left out.
            notebook_cells: definitions that count by their own code and by which of the others they use.
        """
        self._boundaries = set(boundaries)
        numbers: dict[Definition, int] = {}
        waiting = list(roots)[::-1]
        while waiting:
            definition = waiting.pop()
            dynamic = isinstance(definition, Group) and definition.dynamic
            left_out = training and (dynamic or "AFFECTS_RESULTS" in definition.module.bindings)
            if definition not in numbers and not left_out:
                numbers[definition] = len(numbers)
                waiting += self._uses(definition)[::-1]
        for cell in notebook_cells:
            numbers[cell] = len(numbers)
        total = hashlib.sha256()
        for definition in numbers:
            text = definition.name if definition in self._boundaries else definition.line
            uses = [numbers[used] for used in self._uses(definition) if used in numbers]
            total.update(f"{text} {uses}\n".encode())
        self.digest = total.hexdigest()
        listed = [d for d in numbers if d not in self._boundaries and not isinstance(d, Group)]
        self._locations = {d.line: f"{d.module.name}.{d.name}".removeprefix("ciss.") for d in listed}

    def _uses(self, definition: Definition) -> list[Definition]:
        return [] if definition in self._boundaries else definition.uses

    def locations(self) -> dict[str, str]:
        """Where each definition lies, such as "training.loop.train", by its line in the listing."""
        return self._locations

    def listing(self) -> str:
        """The digest, then one line per definition: its name and a hash of its code, sorted."""
        return "".join(f"{line}\n" for line in [f"{TOTAL_LINE} {self.digest}", *sorted(self.locations())])

    def differences(self, listing: str) -> list[str]:
        """Definitions that changed or are new since another listing, by location; removed ones by name."""
        first, *rest = listing.splitlines() or [""]
        locations = self.locations()
        new = sorted(locations.keys() - set(rest))
        removed = set(rest) - locations.keys()
        changed_names, removed_names = ({line.rpartition(" ")[0] for line in lines} for lines in (new, removed))
        if not new and not removed and first != f"{TOTAL_LINE} {self.digest}":
            return ["an import of another definition by the same name"]
        return [*(locations[line] for line in new), *sorted(removed_names - changed_names)]


@lru_cache(maxsize=256)
def training_code(package: Package, methods: tuple[str, ...] = (), dataset: str = "") -> Closure:
    """What a training depends on.

    Args:
        package: see `read`.
        methods: names of methods' files.
        dataset: the name of a data set; one of one's own has no file.
    """
    return _remembered(package, TRAIN, methods, dataset)


@lru_cache(maxsize=256)
def probe_code(package: Package, methods: tuple[str, ...], dataset: str) -> Closure:
    """What a probe depends on; see `training_code`. `methods`: those whose labels are judged."""
    return _remembered(package, PROBE, methods, dataset)


def _remembered(package: Package, entry: Entry, methods: tuple[str, ...], dataset: str) -> Closure:
    """The closure of a training or a probe, from a file of an earlier process if no code has changed since.

    Following the names takes each process half a second. The files lie in `.dvc/tmp`, which git and DVC ignore. Without
    this folder there is no file. Files of other code are removed.
    """
    temporary = paths.project() / ".dvc" / "tmp"
    key = hashlib.sha256(repr((entry, methods, dataset)).encode()).hexdigest()
    file = temporary / "ciss-code" / f"{package.digest}-{key}.json"
    with suppress(OSError, ValueError):
        closure = Closure([])
        closure.digest, closure._locations = json.loads(file.read_bytes())
        return closure
    with _FOLLOWING:
        closure = Closure(_roots(package, entry, methods, dataset), training=True)
    if temporary.is_dir():
        with suppress(OSError):  # the next process follows the names again
            file.parent.mkdir(exist_ok=True)
            for other in file.parent.glob("*"):
                if not other.name.startswith(package.digest):
                    other.unlink(missing_ok=True)
            _replace(file, json.dumps([closure.digest, closure._locations]).encode())
    return closure


def dataset_code(package: Package, dataset: str) -> Closure:
    """What the file of a data set defines and uses."""
    with _FOLLOWING:
        return Closure(_dataset(package, dataset), training=True)


def read(root: Path) -> Package:
    """The package in a project's folder, else the one that runs, as its files are now. Raises as `write`."""
    return _read(root if (root / "ciss").is_dir() else Path(__file__).resolve().parents[2])


def write(root: Path) -> None:
    """Bring `root/.source` up to date: replace changed files, remove stale ones, leave equal ones untouched.

    Nothing is written unless everything can be read. Raises ValueError with file and line; FileNotFoundError without
    ciss/.
    """
    target = root / ".source"
    contents = {target / name: closure.listing().encode() for name, closure in stages(root).items()}
    for path, content in contents.items():
        if not (path.is_file() and path.read_bytes() == content):
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, content)
    for path in sorted(target.rglob("*"), reverse=True):  # children before their folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in contents:
            path.unlink()


def _replace(path: Path, content: bytes) -> None:
    """Replaces the file: it may be a link into DVC's cache, and a killed process must not leave half of it."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.write_bytes(content)
    os.replace(scratch, path)


def stages(root: Path) -> dict[str, Closure]:
    """What each stage depends on, by the name of its file in `.source`. A notebook that trains has a file per method.

    Raises as `write`.
    """
    package = _read(root)
    train = _definition(package, TRAIN)
    makers = {name: _definition(package, entry) for name, entry in OUTPUT_STAGES.items()}
    boundaries = {train, *makers.values()}
    closures = {}
    for name, entry in STAGES.items():
        roots = [_definition(package, entry)]
        for file in sorted((root / "notebooks").glob(EXECUTED[name])) if name in EXECUTED else ():
            roots += _cells(package, file)
        closures[name] = Closure(roots, boundaries=boundaries - {makers.get(name)})
    for file in sorted((root / "notebooks").glob("[1-9]*.ipynb")):
        cells = _cells(package, file)
        if not any(train in cell.uses for cell in cells):
            closures[file.stem] = Closure(cells, boundaries=boundaries)
            continue
        for module in sorted(package.files):
            folder, _, method = module.rpartition(".")
            if folder == "ciss.methods" and method not in ("base", "hosts"):
                roots = _roots(package, TRAIN, [method])
                closures[f"{file.stem}/{method}"] = Closure(roots, training=True, notebook_cells=cells)
    return closures


def _roots(package: Package, entry: Entry, methods: Iterable[str], dataset: str = "") -> list[Definition]:
    roots = [_definition(package, entry), *_dataset(package, dataset)]
    for method in methods:  # one of the classes of its file is the method
        roots += [definition for definition in package[f"ciss.methods.{method}"].definitions if definition.is_class]
    return roots


def _dataset(package: Package, name: str) -> list[Definition]:
    module = f"ciss.data.sets.{name}"
    return [definition for definition, _ in package.find(module, "DATASET")] if module in package.files else []


def _definition(package: Package, entry: Entry) -> Definition:
    """Raises ValueError where the package lacks the definition."""
    definition, _ = package.find(*entry)[0]
    if not isinstance(definition, Definition) or isinstance(definition, Group):
        raise ValueError(f"{__name__}: there is no {'.'.join(entry)}. Name its new place at the top of this file.")
    return definition


def _cells(package: Package, file: Path) -> list[Definition]:
    """The code cells of a notebook. Raises ValueError naming file, cell and line."""
    module = Module(package, file.stem)
    cells = []
    try:
        for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8-sig"))["cells"], start=1):
            if cell["cell_type"] != "code":
                continue
            statements = parse_cell("".join(cell["source"]), f"cell {number}")
            # The one tag with a meaning: papermill injects its values after the cell with this tag.
            tag = ", parameters" if "parameters" in cell["metadata"].get("tags", ()) else ""
            cells.append(Definition(module, f"cell {len(cells) + 1}{tag}", statements, displayed=True))
            module.read_imports(statements)
    except SyntaxError as error:
        raise ValueError(f"{file}, cell {number}, line {error.lineno}: {error.msg}") from error
    except (ValueError, KeyError) as error:  # not UTF-8, not JSON, not a notebook
        raise ValueError(f"{file} cannot be read: {error!r}") from error
    return cells


def _read(root: Path) -> Package:
    """The package in a folder. Raises as `write`."""
    folder = root / "ciss"
    if not folder.is_dir():
        raise FileNotFoundError(f"no ciss in {root.absolute()}: run this in the root of the project")
    texts = []
    for file in sorted(folder.rglob("*.py")):
        path = file.relative_to(root)
        if any(part.startswith(".") for part in path.parts):  # editors' copies, such as .ipynb_checkpoints
            continue
        try:
            texts.append((path.as_posix(), file.read_text(encoding="utf-8-sig")))
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error!r}") from error
    return _package(tuple(texts))


_package = lru_cache(maxsize=4)(lambda texts: Package(dict(texts)))  # parses the same texts once
