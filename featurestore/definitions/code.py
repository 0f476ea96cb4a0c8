"""Identity of a formula's code: where to import it from, and a digest of its text and of all that it reads.

What a function names is followed in the project's own modules by their source: functions, classes and constants as they are
written, through imports. What only the running process has, defaults and the variables that a function closes over, is taken by value.
Installed packages count by name and version. Nothing of it depends on the order of a hash, an address or what has run before.
"""

import ast
import dis
import hashlib
import importlib.util
import inspect
import logging
import pickle
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from toque.featurestore.errors import InvalidDefinition

_EXACT = (
    int,
    float,
    complex,
    str,
    bytes,
    bool,
    type(None),
    date,
    datetime,
    time,
    timedelta,
    Decimal,
    Fraction,
)
"""Types of values that are what their text says."""
_ARRAYS = {"numpy", "polars", "pyarrow", "pandas"}
_INSTALLED = tuple(str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "purelib", "platlib"))
_DEFINED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_digests: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # as they were when a process first asked
_logger = logging.getLogger(__name__)


def code_digest(transform: Callable[..., Any]) -> str:
    """Hash a function: `sha256:TEXT+READ`, its source text, and all that it reads beside it.

    A value that cannot be digested counts by its type, which is logged. Raises: InvalidDefinition if Python cannot find the text.
    """
    with suppress(KeyError, TypeError):  # of a value that cannot be in a dictionary
        return _digests[transform]
    try:
        text = textwrap.dedent(inspect.getsource(transform))
    except (OSError, TypeError) as error:
        raise InvalidDefinition(
            f"the source of {transform!r} cannot be read; define it in a module"
        ) from error
    reach = _Reach()
    reach.value("", transform)
    read = "\n".join(f"{name} = {reach.parts[name]}" for name in sorted(reach.parts))
    digest = f"sha256:{_sha256(text)}+{_sha256(read)[:32]}"
    with suppress(TypeError):
        _digests[transform] = digest
    return digest


def same_code(recorded: str, now: str) -> bool:
    """Whether a recorded digest is of this code; those of 0.1 were of the text alone."""
    return recorded == (now if "+" in recorded else now.partition("+")[0])


def code_reference(transform: Callable[..., Any]) -> str:
    """Reference `module:qualname` by which another process imports a function."""
    return f"{transform.__module__}:{getattr(transform, '__qualname__', type(transform).__qualname__)}"


def _sha256(text: str | bytes) -> str:
    return hashlib.sha256(
        text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    ).hexdigest()


@dataclass(slots=True)
class _Reach:
    """What a function reads, by name. seen: functions that stand there already, by their turn."""

    parts: dict[str, str] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)

    def value(self, where: str, value: Any) -> None:
        """Add a value of the running process. where: its name, such as `0.rate` of the first function."""
        kind = type(value)
        if isinstance(value, Enum):
            self.parts[where] = f"{kind.__qualname__}.{value.name} {value.value!r}"
        elif isinstance(value, _EXACT):
            self.parts[where] = f"{kind.__qualname__} {value!r}"
        elif isinstance(value, ModuleType):
            self.parts[where] = _library(value.__name__)
        elif isinstance(value, type):
            self.named(value.__module__, value.__qualname__.partition(".")[0])
            self.parts[where] = f"class {value.__module__}.{value.__qualname__}"
        elif isinstance(value, FunctionType):
            self.function(where, value)
        else:
            self.compound(where, value)

    def compound(self, where: str, value: Any) -> None:
        """Add a value that is made of others."""
        kind = type(value)
        if isinstance(value, MethodType | partial):
            self.children(where, kind, _members(value))
        elif isinstance(value, Mapping | list | tuple):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pairs = (
                {str(number): pair for number, pair in enumerate(items)}
                if isinstance(value, Mapping)
                else dict(items)
            )
            self.children(where, kind, pairs)
        elif isinstance(value, set | frozenset):
            self.children(where, kind, dict(enumerate(sorted(value, key=repr))))
        elif is_dataclass(value):
            self.children(where, kind, {each.name: getattr(value, each.name, None) for each in fields(value)})
            self.named(kind.__module__, kind.__qualname__.partition(".")[0])
        elif hasattr(value, "__wrapped__"):  # of functools, or another decorator's object
            self.children(where, kind, {"wrapped": value.__wrapped__})
        else:
            self.parts[where] = _opaque(where, value)

    def children(self, where: str, kind: type, values: Mapping[Any, Any]) -> None:
        self.parts[where] = f"{kind.__module__}.{kind.__qualname__} of {len(values)}"
        for name, each in values.items():
            self.value(f"{where}.{name}", each)

    def function(self, where: str, function: FunctionType) -> None:
        """Add a function: its code, defaults and what it closes over, and all that it names."""
        if not _ours(function.__module__):
            self.parts[where] = f"{function.__qualname__} of {_library(function.__module__)}"
            return
        if id(function) in self.seen:
            self.parts[where] = f"function {self.seen[id(function)]}"
            return
        number = self.seen[id(function)] = len(self.seen)
        self.parts[where] = f"function {number} {_text_of(function)}"
        defaults = dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
        for name, each in defaults.items():
            self.value(f"{number}.default {name}", each)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # of a cell that is empty yet
                self.value(f"{number}.{name}", cell.cell_contents)
        for path in _globals_of(function.__code__):
            self.path(function.__module__, path)
            value = function.__globals__.get(path[0])
            if path[0] in function.__globals__ and isinstance(
                value, _EXACT
            ):  # one that another module has set, or the environment
                self.parts[f"value {function.__module__}.{path[0]}"] = f"{type(value).__qualname__} {value!r}"
        for module in _imports_of(function.__code__, function.__globals__.get("__package__") or ""):
            self.file(module)

    def path(self, module: str, path: tuple[str, ...]) -> None:
        """Add what `a.b.c` names in a module: through modules of the project to what one of them binds."""
        for statement in _bound(module).get(path[0], ()):
            if len(path) > 1 and isinstance(statement, ast.Import | ast.ImportFrom):
                for target, name in _targets(module, statement, path[0]):
                    inner = target if name is None else f"{target}.{name}"
                    if _ours(inner) and (name is None or name not in _bound(target)):
                        self.path(inner, path[1:])
        self.named(module, path[0])

    def named(self, module: str, name: str) -> None:
        """Add what a module of the project binds to a name, and all that it is made of."""
        key = f"{module}:{name}"
        statements = _bound(module).get(name, ()) if _ours(module) else ()
        if key in self.parts or not statements:
            return
        written = [each for each in statements if not isinstance(each, ast.Import | ast.ImportFrom)]
        self.parts[key] = "\n".join(_normal(each) for each in written)
        for statement in statements:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                for target, inner in _targets(module, statement, name):
                    self.parts[f"{key} from {target}"] = (
                        f"{inner} of {target if _ours(target) else _library(target)}"
                    )
                    if _ours(target) and inner is not None:
                        self.named(target, inner)
                continue
            for path in _loaded(statement):
                self.path(module, path)
            self.imports(module, statement)

    def imports(self, module: str, tree: ast.AST) -> None:
        """Add the modules that code of a module imports when it runs."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for target, inner in _targets(module, node, None):
                    self.file(target)
                    if _ours(f"{target}.{inner}"):
                        self.file(f"{target}.{inner}")

    def file(self, module: str) -> None:
        """Add a module that is imported late, by its whole file and those that it imports."""
        key = f"file {module}"
        if key in self.parts:
            return
        tree = _tree(module) if _ours(module) else None
        self.parts[key] = _library(module) if tree is None else _sha256(_normal(tree))
        if tree is not None:
            self.imports(module, tree)


def _members(value: Any) -> dict[str, Any]:
    if isinstance(value, partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    return {"func": value.__func__, "self": value.__self__}


def _opaque(where: str, value: Any) -> str:
    """Name a value that has no text: arrays and tables by their bytes, all others by their type."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] in _ARRAYS and "random" not in kind.__module__:
        with suppress(Exception):  # what cannot be pickled is named
            return f"{name} {_sha256(pickle.dumps(value, protocol=4))}"
    if not callable(value):
        _logger.warning(
            "a formula reads %s, a %s, which cannot be digested: a change of it is not noticed; give it numbers, texts or arrays",
            where.rpartition(".")[2], name,
        )  # fmt: skip
    return f"{name} {getattr(value, '__qualname__', '')} of {_library(kind.__module__)}"


def _text_of(function: FunctionType) -> str:
    """Write a function's own code, without its decorators: what they made of it is a value."""
    try:
        text = textwrap.dedent(inspect.getsource(function.__code__))
    except (OSError, TypeError) as error:
        raise InvalidDefinition(
            f"the source of {function.__qualname__!r}, which a formula uses, cannot be read; define it in a module"
        ) from error
    try:
        (statement,) = ast.parse(text).body
    except (SyntaxError, ValueError):  # a lambda within a call
        return text
    if isinstance(statement, ast.FunctionDef):
        statement.decorator_list = []
    return _normal(statement)


def _globals_of(code: CodeType) -> Iterator[tuple[str, ...]]:
    """Yield the global names that code reads, each with the attributes that follow it."""
    path: tuple[str, ...] = ()
    for instruction in dis.get_instructions(code):
        if path and instruction.opname in {"LOAD_ATTR", "LOAD_METHOD"}:
            path = (*path, str(instruction.argval))
        elif instruction.opname not in {"EXTENDED_ARG", "CACHE", "PUSH_NULL"}:
            if path:
                yield path
            path = (str(instruction.argval),) if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"} else ()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _imports_of(code: CodeType, package: str) -> Iterator[str]:
    """Yield the modules that code imports when it runs."""
    stack: list[Any] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            base = _absolute(str(instruction.argval), int(stack[-2] or 0), package)
            yield from (base, *(f"{base}.{name}" for name in stack[-1] or () if _ours(f"{base}.{name}")))
        if instruction.opname != "EXTENDED_ARG":
            stack.append(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports_of(constant, package)


def _absolute(name: str, level: int, package: str) -> str:
    if not level:
        return name
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - level + 1], *([name] if name else [])])


def _targets(
    module: str, statement: ast.Import | ast.ImportFrom, bound: str | None
) -> Iterator[tuple[str, str | None]]:
    """Yield the module, and the name in it, that an import binds to a name (None: to any)."""
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            if bound in {None, alias.asname or alias.name.partition(".")[0]}:
                yield (alias.name if alias.asname or bound is None else alias.name.partition(".")[0]), None
        elif bound in {None, alias.asname or alias.name}:
            path = _path(module)
            package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
            yield _absolute(statement.module or "", statement.level, package), alias.name


def _loaded(statement: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield the names that a statement reads, each with the attributes that follow it."""
    for node in ast.walk(statement):
        base: ast.AST = node
        names: list[str] = []
        while isinstance(base, ast.Attribute):
            names = [base.attr, *names]
            base = base.value
        if isinstance(base, ast.Name) and isinstance(base.ctx, ast.Load):
            yield base.id, *names


@cache
def _bound(module: str) -> Mapping[str, list[ast.stmt]]:
    """Statements of a module's own level by the names that they bind or change."""
    found: dict[str, list[ast.stmt]] = {}
    tree = _tree(module)
    pending: list[Any] = [] if tree is None else tree.body[::-1]
    while pending:
        statement = pending.pop()
        children = () if isinstance(statement, _DEFINED) else ast.iter_child_nodes(statement)
        inner = [each for each in children if isinstance(each, ast.stmt | ast.ExceptHandler | ast.match_case)]
        pending += inner[::-1]
        for name in _binds(statement) if not inner else ():
            found.setdefault(name, []).append(statement)
    return found


def _binds(statement: ast.stmt) -> set[str]:
    if isinstance(statement, _DEFINED):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {each.asname or each.name.partition(".")[0] for each in statement.names}
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        targets = (
            [statement.value.func] if isinstance(statement.value.func, ast.Attribute) else []
        )  # RATES.update(…)
    names = set()
    for target in targets:
        for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
            base: ast.expr = part
            while isinstance(base, ast.Attribute | ast.Subscript | ast.Starred):
                base = base.value
            names |= {base.id} if isinstance(base, ast.Name) else set()
    return names


@cache
def _tree(module: str) -> ast.Module | None:
    path = _path(module)
    with suppress(OSError, SyntaxError, ValueError):
        return None if path is None else ast.parse(path.read_bytes())
    return None


@cache
def _path(module: str) -> Path | None:
    """Find the source of a module; of one that is imported without asking for it again."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is None and module not in sys.modules:
        with suppress(ImportError, ValueError, AttributeError):
            spec = importlib.util.find_spec(module)
            loaded = None if spec is None else spec.origin
    return Path(loaded) if loaded and loaded.endswith(".py") else None


@cache
def _ours(module: str) -> bool:
    """Whether a module is of the project: a file that no package brought."""
    top = module.partition(".")[0]
    if top == "toque" and not module.startswith("toque.examples"):
        return False
    if top not in {module, "toque"} and not _ours(top) and _path(top) is not None:
        return False  # to look for a part of a package would import it
    path = _path(module)
    return (
        path is not None
        and not str(path.resolve()).startswith(_INSTALLED)
        and "site-packages" not in path.parts
    )


@cache
def _library(module: str) -> str:
    """Name an installed package with its version; the standard library's is that of Python, and Toque's says nothing of a formula."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "toque":
        return top
    try:
        return f"{top} {version(top)}"
    except PackageNotFoundError:
        return f"{top} {getattr(sys.modules.get(top), '__version__', '-')}"


def _normal(node: ast.AST) -> str:
    """Write code anew without what changes nothing: comments, layout, docstrings."""
    node = ast.parse(ast.unparse(node))
    for each in ast.walk(node):
        body = getattr(each, "body", None)
        if isinstance(each, ast.Module | _DEFINED) and body and _is_text(body[0]):
            body[:1] = [] if len(body) > 1 or isinstance(each, ast.Module) else [ast.Pass()]
    return ast.unparse(node)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
