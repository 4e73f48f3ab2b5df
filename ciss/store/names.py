"""Which definitions the code of a package uses: top-level statements, and the statements that their names refer to.

Names are followed through imports, `module.name`, and re-exports by the `__init__` of a folder. Standard library only.
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
PASSIVE = {*sys.stdlib_module_names, "pydantic", "torch"}  # packages whose decorators register nothing
DYNAMIC = ("importlib.import_module", "pkgutil.iter_modules", "pkgutil.walk_packages", "runpy.run_module")

Imported = tuple[str, str | None]  # a module and a name in it; None: the module itself
Target = tuple["Definition | Module | None", str]  # what a name refers to, and its own name; None: other packages' code


class Definition:
    """A top-level statement of a module: a function, a class, an assignment, or a statement with an effect.

    Attributes:
        name: the name that it defines, several with commas; "(statement)" where it defines none.
        line: its name, and a hash of its reduced code, in which names of the package are spelt as they are defined.
        uses: the definitions that its names refer to, in the order of the text, then the effects of its module.
    """

    def __init__(self, module: "Module", name: str, statements: list[ast.stmt], displayed: bool = False):
        self.module, self.name = module, name
        self.is_class = bool(statements) and isinstance(statements[0], ast.ClassDef)
        self._statements, self._displayed = statements, displayed

    @cached_property
    def _resolved(self) -> tuple[str, list["Definition"]]:
        resolver = _Resolver(self.module)
        tree = resolver.visit(ast.Module(self._statements, []))
        return reduce(tree.body, displayed=self._displayed), resolver.uses

    @cached_property
    def line(self) -> str:
        return f"{self.name} {hashlib.sha256(self._resolved[0].encode()).hexdigest()[:16]}"

    @property
    def assigned(self) -> ast.expr | None:
        """The value that an assignment gives to a name; None for other statements."""
        (node,) = self._statements if len(self._statements) == 1 else (None,)
        return node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None

    @cached_property
    def uses(self) -> list["Definition"]:
        return self._resolved[1] + self.module.always_used


class Group(Definition):
    """Several definitions: a module used as a whole or, `dynamic`, a folder whose files are imported by name."""

    def __init__(self, module: "Module", members: list[Definition], dynamic: bool = False):
        super().__init__(module, "(folder)" if dynamic else "(module)", [])
        self.uses = members
        self.dynamic = dynamic


class Module:
    """A file of the package. `name`: dotted; `is_folder`: it is the `__init__` of a folder."""

    def __init__(self, package: "Package", name: str, is_folder: bool = False):
        self.package = package
        self.name = name
        self.folder = name if is_folder else name.rpartition(".")[0]
        self.definitions: list[Definition] = []
        self.always_used: list[Definition] = []
        self.bindings: dict[str, list[Definition | Imported]] = {}

    def read(self, statements: list[ast.stmt]) -> None:
        for node in statements:
            if _does_nothing(node):
                continue
            names = bound_names([node], self.folder)
            if "*" in names:
                path = self.package.files.get(self.name, self.name)
                raise ValueError(f"{path}, line {node.lineno}: `import *` hides what is used. Import the names.")
            defined = [name for name, imports in names.items() if not all(imports)]
            definition = Definition(self, ",".join(defined) or "(statement)", [node])
            for name, imports in names.items():
                self.bindings.setdefault(name, []).extend(imported or definition for imported in imports)
            if isinstance(node, ast.Import | ast.ImportFrom):
                continue
            self.definitions.append(definition)
            if _has_effect(node, self):
                self.always_used.append(definition)

    def read_imports(self, statements: list[ast.stmt]) -> None:
        """Only the imports: the cells of a notebook are definitions and share their variables."""
        for name, imports in bound_names(statements, self.folder).items():
            self.bindings.setdefault(name, []).extend(filter(None, imports))

    @cached_property
    def whole(self) -> Group:
        return Group(self, self.definitions)

    @cached_property
    def other_files_of_folder(self) -> Group:
        """The other modules of its folder."""
        names = [name for name in sorted(self.package.files) if name.rpartition(".")[0] == self.folder]
        return Group(self, [self.package[name].whole for name in names if name != self.name], dynamic=True)

    def find(self, name: str) -> list[Target]:
        """What a name refers to; empty for an unknown name."""
        targets: list[Target] = []
        for binding in self.bindings.get(name, []):
            targets += [(binding, name)] if isinstance(binding, Definition) else self.package.find(*binding)
        submodule = f"{self.name}.{name}"
        return targets or ([(self.package[submodule], name)] if submodule in self.package.files else [])


class Package:
    """The modules of a package by dotted name. Each is parsed when it is first needed.

    Args:
        files: the text of every file by its path, such as "ciss/data/index.py".
    """

    def __init__(self, files: dict[str, str]):
        self.files = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
        self._texts = files
        self.digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        self._modules: dict[str, Module] = {}

    def __getitem__(self, name: str) -> Module:
        """Raises KeyError for an unknown name, ValueError naming file and line for a syntax error."""
        if name not in self._modules:
            path = self.files[name]
            module = self._modules[name] = Module(self, name, path.endswith("/__init__.py"))
            module.read(parse(self._texts[path], path))
        return self._modules[name]

    def find(self, module: str, name: str | None) -> list[Target]:
        """What an import refers to. A name that its module does not show stands for the whole module."""
        if module not in self.files:
            return [(None, f"{module}.{name}" if name else module)]
        if name is None:
            return [(self[module], module)]
        return self[module].find(name) or [(self[module].whole, name)]


class _Resolver(ast.NodeTransformer):
    """Replaces names by what they refer to. Collects the definitions among these in `uses`."""

    def __init__(self, module: Module):
        self.module = module
        self.uses: list[Definition] = []
        self._scopes: list[tuple[bool, dict[str, list[Imported | None]]]] = []  # whether of a class, names

    def visit_Import(self, node: ast.stmt) -> None:
        """Drops an import: what the code uses of it counts."""

    visit_ImportFrom = visit_Import

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._reference(self._look_up(node.id)) or node if isinstance(node.ctx, ast.Load) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        module = self._module(node.value)
        if module is None:
            return self.generic_visit(node)
        return self._reference(module.find(node.attr) or [(module.whole, node.attr)])

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """Drops what modules that affect no result add to a type: `Annotated[float, Range(0, 1)]` counts as float."""
        if dotted(node.value).rpartition(".")[2] == "Annotated" and isinstance(node.slice, ast.Tuple):
            kind, *metadata = node.slice.elts
            metadata = [entry for entry in metadata if not self._affects_nothing(entry)]
            if not metadata:
                return self.visit(kind)
            node.slice.elts = [kind, *metadata]
        return self.generic_visit(node)

    def _affects_nothing(self, node: ast.expr) -> bool:
        """Whether an expression is a call of a module with the line `AFFECTS_RESULTS = False`."""
        targets = self._look_up(node.func.id) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else []
        modules = [target.module for target, _ in targets if isinstance(target, Definition)]
        return any("AFFECTS_RESULTS" in module.bindings for module in modules)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        node = self.generic_visit(node)
        if dotted(node.func) in DYNAMIC:
            self.uses.append(self.module.other_files_of_folder)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.stmt:
        self._visit_fields(node, "decorator_list", "bases", "keywords")
        return self._visit_scope(node, bound_names(node.body, self.module.folder), "body", is_class=True)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        self._visit_fields(node, "decorator_list", "args", "returns")
        return self._visit_scope(node, _parameters(node) | bound_names(node.body, self.module.folder), "body")

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        self._visit_fields(node, "args")
        return self._visit_scope(node, _parameters(node), "body")

    def _visit_comprehension(self, node: ast.expr) -> ast.expr:
        names = bound_names([generator.target for generator in node.generators], self.module.folder)
        first = node.generators[0]
        iterable = self.visit(first.iter)  # in the enclosing scope
        first.iter = ast.Constant(None)
        node = self._visit_scope(node, names, "generators", "elt", "key", "value")
        first.iter = iterable
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def _visit_scope(self, node: ast.AST, names: dict, *fields: str, is_class: bool = False) -> ast.AST:
        self._scopes.append((is_class, names))
        self._visit_fields(node, *fields)
        self._scopes.pop()
        return node

    def _visit_fields(self, node: ast.AST, *fields: str) -> None:
        for field in fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                value[:] = self.generic_visit(ast.Module(value, [])).body
            elif isinstance(value, ast.AST):
                setattr(node, field, self.visit(value))

    def _look_up(self, name: str) -> list[Target]:
        """What a name refers to here; empty for a local variable and for Python's own names."""
        for depth, (is_class, names) in enumerate(reversed(self._scopes)):
            if name in names and not (is_class and depth):  # a method does not see the names of its class
                imports = filter(None, names[name])
                return [target for imported in imports for target in self.module.package.find(*imported)]
        return self.module.find(name)

    def _module(self, node: ast.expr) -> Module | None:
        """The module that an expression refers to, if it is one."""
        targets: list[Target] = []
        if isinstance(node, ast.Name):
            targets = self._look_up(node.id)
        elif isinstance(node, ast.Attribute) and (module := self._module(node.value)):
            targets = module.find(node.attr)
        return targets[0][0] if len(targets) == 1 and isinstance(targets[0][0], Module) else None

    def _reference(self, targets: list[Target]) -> ast.expr | None:
        """The expression for a name that has these targets, the first one's; None without targets."""
        definitions = [target.whole if isinstance(target, Module) else target for target, _ in targets]
        self.uses += filter(None, definitions)
        if not targets:
            return None
        name = definitions[0].name if isinstance(definitions[0], Group) else targets[0][1]
        return Reference(name) if definitions[0] else ast.Name(name, ast.Load())


def _parameters(node: ast.FunctionDef | ast.Lambda) -> dict[str, list[None]]:
    return {argument.arg: [None] for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}


def bound_names(nodes: Iterable[ast.AST], folder: str) -> dict[str, list[Imported | None]]:
    """Names that code binds in its own scope, with the origins of imports, and None for a binding without import."""
    names: dict[str, list[Imported | None]] = {}
    outer: set[str] = set()
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Global | ast.Nonlocal):
            outer |= set(node.names)
        for name, imported in _bindings(node, folder):
            names.setdefault(name, []).append(imported)
        if isinstance(node, COMPREHENSIONS):  # only its `:=` bind outside of it
            waiting += [child for child in ast.walk(node) if isinstance(child, ast.NamedExpr)]
        elif not isinstance(node, SCOPES):
            waiting += list(ast.iter_child_nodes(node))[::-1]
    return {name: imports for name, imports in names.items() if name not in outer}


def _bindings(node: ast.AST, folder: str) -> Iterator[tuple[str, Imported | None]]:
    """What one node binds, without its children."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.MatchMapping(rest=str(name)):
            yield name, None
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, None
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name, None
        case ast.Import():
            for alias in node.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or module, (module, None)
        case ast.ImportFrom():
            above = folder.rsplit(".", node.level - 1)[0] if node.level else ""
            module = f"{above}.{node.module or ''}".strip(".")
            for alias in node.names:
                yield alias.asname or alias.name, (module, alias.name)


def dotted(node: ast.expr) -> str:
    """ "a.b" for the expression a.b; empty for other kinds of expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _does_nothing(node: ast.stmt) -> bool:
    """Whether an import of the module skips it: a text, or the block under `if __name__ == "__main__"`."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and dotted(node.test.left) == "__name__"


def _has_effect(node: ast.stmt | ast.ExceptHandler, module: Module) -> bool:
    """Whether a statement may do more than bind its names. All definitions of its module then use it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return any(_may_register(decorator, module) for decorator in node.decorator_list)
    if isinstance(node, ast.Assign):
        return not all(isinstance(target, ast.Name | ast.Tuple) for target in node.targets)
    if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
        children = ast.iter_child_nodes(node)
        return any(_has_effect(child, module) for child in children if isinstance(child, ast.stmt | ast.ExceptHandler))
    return not isinstance(node, ast.AnnAssign | ast.Import | ast.ImportFrom | ast.Pass)


def _may_register(decorator: ast.expr, module: Module) -> bool:
    """Whether a decorator may add its function to a table, from which code uses it without its name.

    Those of PASSIVE packages do not, also where the package gives them a name of its own: `x = dataclass(...)`.
    """
    name = dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
    first = name.partition(".")[0]
    target, origin = (module.find(first) or [(None, first)])[0]
    if isinstance(target, Definition):
        value = target.assigned
        return value is None or _may_register(value, target.module)
    return target is not None or "register" in name or origin.partition(".")[0] not in PASSIVE
