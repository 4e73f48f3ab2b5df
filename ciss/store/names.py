"""Which definitions the code of a package uses: every top-level statement with the statements that its names lead to.

Names are followed through imports, `module.name`, and what a package's `__init__` passes on. Standard library only.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property

from ciss.store.syntax import Reference, parse, reduce

AFFECTS_RESULTS = False  # see store/code
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DYNAMIC = ("importlib.import_module", "pkgutil.iter_modules", "pkgutil.walk_packages", "runpy.run_module")

Imported = tuple[str, str | None]  # a module and a name in it; without a name the module itself
Target = tuple["Definition | Module | None", str]  # what a name stands for, and its own name; None: others' code


class Definition:
    """A top-level statement of a module: a function, a class, an assignment, or a statement with an effect.

    Attributes:
        name: the name that it defines, several with commas; "(statement)" where it defines none.
        text: what it says, without how it is written; names of the package as they are called where they are defined.
        uses: the definitions that its names lead to, in the order of the text, then its module's effects.
    """

    def __init__(self, module: "Module", name: str, statements: list[ast.stmt], displayed: bool = False):
        self.module, self.name = module, name
        self._statements, self._displayed = statements, displayed

    @cached_property
    def _reduced(self) -> tuple[str, list["Definition"]]:
        names = _Names(self.module)
        statements = [new for node in self._statements if (new := names.visit(node)) is not None]
        return reduce(statements, displayed=self._displayed), names.uses

    @property
    def is_class(self) -> bool:
        return isinstance(self._statements[0], ast.ClassDef)

    @property
    def text(self) -> str:
        return self._reduced[0]

    @cached_property
    def line(self) -> str:
        """Its name and a hash of its text."""
        return f"{self.name} {hashlib.sha256(self.text.encode()).hexdigest()[:16]}"

    @property
    def uses(self) -> list["Definition"]:
        return self._reduced[1] + self.module.effects


class Group(Definition):
    """Several definitions at once: a module that is used as a whole, or a folder that is imported by its files' names.

    `dynamic`: the latter.
    """

    def __init__(self, module: "Module", members: list[Definition], dynamic: bool = False):
        super().__init__(module, "(folder)" if dynamic else "(module)", [])
        self.members, self.dynamic = members, dynamic

    @property
    def uses(self) -> list[Definition]:
        return self.members


class Module:
    """A file of the package. `name`: dotted; `code`: its text."""

    def __init__(self, package: "Package", name: str, code: str, is_folder: bool):
        self.package, self.name, self.is_folder = package, name, is_folder
        self.code = code
        self.definitions: list[Definition] = []
        self.effects: list[Definition] = []
        self.bindings: dict[str, list[Definition | Imported]] = {}

    def read(self, statements: list[ast.stmt]) -> None:
        for node in statements:
            if _does_nothing(node):
                continue
            names = bound([node], self.folder)
            if "*" in names:
                path = self.package.files.get(self.name, self.name)
                raise ValueError(f"{path}, line {node.lineno}: `import *` hides what is used. Import the names.")
            own = [name for name, imports in names.items() if not all(imports)]
            definition = Definition(self, ",".join(own) or "(statement)", [node])
            for name, imports in names.items():
                self.bindings.setdefault(name, []).extend(each or definition for each in imports)
            if isinstance(node, ast.Import | ast.ImportFrom):
                continue
            self.definitions.append(definition)
            if _has_effect(node, self):
                self.effects.append(definition)

    def read_imports(self, statements: list[ast.stmt]) -> None:
        """Only these: of a notebook, whose cells are definitions and share their variables."""
        for name, imports in bound(statements, self.folder).items():
            self.bindings.setdefault(name, []).extend(each for each in imports if each)

    @property
    def folder(self) -> str:
        """The dotted name of the folder that it lies in; of a folder's `__init__` the folder itself."""
        return self.name if self.is_folder else self.name.rpartition(".")[0]

    @property
    def affects_results(self) -> bool:
        """Whether it lacks the line `AFFECTS_RESULTS = False`."""
        return "AFFECTS_RESULTS" not in self.bindings

    @cached_property
    def whole(self) -> Group:
        return Group(self, self.definitions)

    @cached_property
    def neighbours(self) -> Group:
        """The other modules of its folder."""
        inside = [name for name in sorted(self.package.files) if name.rpartition(".")[0] == self.folder]
        return Group(self, [self.package[name].whole for name in inside if name != self.name], dynamic=True)

    def find(self, name: str) -> list[Target]:
        """What a name stands for; nothing: it is unknown."""
        found: list[Target] = []
        for binding in self.bindings.get(name, []):
            found += [(binding, name)] if isinstance(binding, Definition) else self.package.find(*binding)
        inside = f"{self.name}.{name}"
        return found or ([(self.package[inside], name)] if inside in self.package.files else [])


class Package:
    """The modules of a package by dotted name, each parsed when it is asked for.

    Args:
        files: the text of every file by its path, such as "ciss/data/index.py".
    """

    def __init__(self, files: dict[str, str]):
        self.files = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
        self._texts = files
        self._modules: dict[str, Module] = {}

    def __getitem__(self, name: str) -> Module:
        """Raises KeyError for an unknown name, ValueError naming file and line for a syntax error."""
        if name not in self._modules:
            path = self.files[name]
            module = self._modules[name] = Module(self, name, self._texts[path], path.endswith("/__init__.py"))
            module.read(parse(module.code, path))
        return self._modules[name]

    def find(self, module: str, name: str | None) -> list[Target]:
        """What an import stands for. A name that its module does not show stands for the whole module."""
        if module not in self.files:
            return [(None, f"{module}.{name}" if name else module)]
        if name is None:
            return [(self[module], module)]
        return self[module].find(name) or [(self[module].whole, name)]


class _Names(ast.NodeTransformer):
    """Replaces names by what they stand for, and collects the definitions among these in `uses`."""

    def __init__(self, module: Module):
        self.module, self.uses = module, []
        self._scopes: list[tuple[bool, dict[str, list[Imported | None]]]] = []  # whether of a class, names

    def visit_Import(self, node: ast.stmt) -> None:
        """An import counts by what is used of it."""

    visit_ImportFrom = visit_Import

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._replaced(self._look_up(node.id)) or node if isinstance(node.ctx, ast.Load) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        module = self._module(node.value)
        if module is None:
            return self.generic_visit(node)
        return self._replaced(module.find(node.attr) or [(module.whole, node.attr)])

    def visit_Call(self, node: ast.Call) -> ast.expr:
        node = self.generic_visit(node)
        if dotted(node.func) in DYNAMIC:
            self.uses.append(self.module.neighbours)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.stmt:
        self._visit_fields(node, "decorator_list", "bases", "keywords")
        return self._visit_inside(node, bound(node.body, self.module.folder), "body", is_class=True)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        self._visit_fields(node, "decorator_list", "args", "returns")
        return self._visit_inside(node, self._parameters(node) | bound(node.body, self.module.folder), "body")

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        self._visit_fields(node, "args")
        return self._visit_inside(node, self._parameters(node), "body")

    def _visit_comprehension(self, node: ast.expr) -> ast.expr:
        names = bound([part.target for part in node.generators], self.module.folder)
        first = node.generators[0]
        outer = self.visit(first.iter)  # in the scope around
        first.iter = ast.Constant(None)
        node = self._visit_inside(node, names, "generators", "elt", "key", "value")
        first.iter = outer
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def _visit_inside(self, node: ast.AST, names: dict, *fields: str, is_class: bool = False) -> ast.AST:
        self._scopes.append((is_class, names))
        self._visit_fields(node, *fields)
        self._scopes.pop()
        return node

    def _visit_fields(self, node: ast.AST, *fields: str) -> None:
        for field in fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                value[:] = [new for part in value if (new := self.visit(part)) is not None]
            elif isinstance(value, ast.AST):
                setattr(node, field, self.visit(value))

    @staticmethod
    def _parameters(node: ast.FunctionDef | ast.Lambda) -> dict[str, list[None]]:
        return {part.arg: [None] for part in ast.walk(node.args) if isinstance(part, ast.arg)}

    def _look_up(self, name: str) -> list[Target]:
        """What a name stands for here; nothing: a local variable, or one of Python's own."""
        for depth, (is_class, names) in enumerate(reversed(self._scopes)):
            if name in names and not (is_class and depth):  # a method does not see the names of its class
                imports = [each for each in names[name] if each]
                return [target for each in imports for target in self.module.package.find(*each)]
        return self.module.find(name)

    def _module(self, node: ast.expr) -> Module | None:
        """The module that an expression stands for, if it is one."""
        if isinstance(node, ast.Name):
            targets = self._look_up(node.id)
        elif isinstance(node, ast.Attribute) and (module := self._module(node.value)):
            targets = module.find(node.attr)
        else:
            return None
        return targets[0][0] if len(targets) == 1 and isinstance(targets[0][0], Module) else None

    def _replaced(self, targets: list[Target]) -> ast.expr | None:
        """What stands in the text for targets of a name; None where there are none."""
        replaced = None
        for target, name in targets:
            if target is None:
                replaced = replaced or ast.Name(name, ast.Load())
                continue
            definition = target.whole if isinstance(target, Module) else target
            self.uses.append(definition)
            replaced = replaced or Reference(definition.name if isinstance(definition, Group) else name)
        return replaced


def bound(nodes: Iterable[ast.AST], folder: str) -> dict[str, list[Imported | None]]:
    """Names that code binds in its own scope, with what they are imported from, None for what is not imported."""
    names: dict[str, list[Imported | None]] = {}
    outside: set[str] = set()
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Global | ast.Nonlocal):
            outside |= set(node.names)
        for name, imported in _binds(node, folder):
            names.setdefault(name, []).append(imported)
        if isinstance(node, COMPREHENSIONS):  # of which only `:=` binds around it
            waiting += [part for part in ast.walk(node) if isinstance(part, ast.NamedExpr)]
        elif not isinstance(node, SCOPES):
            waiting += list(ast.iter_child_nodes(node))[::-1]
    return {name: imports for name, imports in names.items() if name not in outside}


def _binds(node: ast.AST, folder: str) -> Iterator[tuple[str, Imported | None]]:
    """What one node binds by itself."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            yield name, None
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, None
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name, None
        case ast.MatchMapping(rest=str(name)):
            yield name, None
        case ast.Import():
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or whole, (whole, None)
        case ast.ImportFrom():
            above = folder.rsplit(".", node.level - 1)[0] if node.level else ""
            module = f"{above}.{node.module or ''}".strip(".")
            for alias in node.names:
                yield alias.asname or alias.name, (module, alias.name)


def dotted(node: ast.expr) -> str:
    """ "a.b" of the expression a.b; nothing of others."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _does_nothing(node: ast.stmt) -> bool:
    """When a module is imported: a text, or what stands under `if __name__ == "__main__"`."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    test = node.test if isinstance(node, ast.If) else None
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def _has_effect(node: ast.stmt, module: Module) -> bool:
    """Whether a statement may do more than bind its names: then it counts with all else of its module."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return any(_may_register(decorator, module) for decorator in node.decorator_list)
    if isinstance(node, ast.Assign):
        return not all(isinstance(target, ast.Name | ast.Tuple) for target in node.targets)
    if isinstance(node, ast.If | ast.Try):
        return any(_has_effect(part, module) for part in _inner_statements(node))
    return not isinstance(node, ast.AnnAssign | ast.Import | ast.ImportFrom | ast.Pass)


def _inner_statements(node: ast.If | ast.Try) -> list[ast.stmt]:
    inner = [*node.body, *node.orelse, *getattr(node, "finalbody", [])]
    for handler in getattr(node, "handlers", []):
        inner += handler.body
    return inner


def _may_register(decorator: ast.expr, module: Module) -> bool:
    """Whether a decorator may put what it decorates somewhere else, from where it is used without its name. Those of
    the standard library do not."""
    name = dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
    first = name.partition(".")[0]
    ((target, origin), *_) = module.find(first) or [(None, first)]
    return target is not None or origin.partition(".")[0] not in sys.stdlib_module_names
