"""Digests of code: of a function's own, and of all that it refers to, the same in every process.

`digests_of` is the version of a platform function. The names that its code uses are followed as this process has them: functions and
classes of the project by their source, constants by value, modules by their files. `formula_digest` is that of a function whose results
are stored by it, so it is closer: a module's attribute alone counts, not its file, a table with all statements that fill it, and
defaults and closed-over variables by value. Comments, docstrings, descriptions of fields and layout change neither, nor does other
code of the same module; of an installed package, name and version count.
A late import keeps a heavy library out of processes that know the function but do not run it, and the process that computes
the digest may not have the library. So imports inside functions are found in their byte code, and followed by whole files.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.util
import inspect
import logging
import pickle
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import dedent
from threading import RLock
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref

from toque.registry.errors import InvalidInput

_parsing = RLock()  # before Python 3.11.8, two threads that parse at once may both fail with a SystemError
_Texts = tuple[str, str]  # of code: without what no run depends on, and as it is written
_sources: dict[int, tuple[ref[Any], _Texts]] = {}  # by id, for as long as what has it lives
_PLAIN = (str, bytes, int, float, bool, type(None), tuple, frozenset)
_Exact = (
    int | float | complex | str | bytes | None | date | time | timedelta | Decimal | Fraction
)  # are what their text says
_ARRAYS = {"numpy", "polars", "pyarrow", "pandas"}
_SHOWN = {"title", "description", "examples"}  # of a pydantic field
_SITES = {"site-packages", "dist-packages"}  # on the path: an environment may find packages in another one's
_INSTALLED = tuple(
    {
        str(Path(place).resolve())
        for place in (
            *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
            *(place for place in sys.path if Path(place).name in _SITES),
        )
    }
)
_Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_logger = logging.getLogger(__name__)


def digest_of(target: Callable[..., Any], *, declared: str = "") -> str:
    """Compute the sha256 of all code reached from `target`, hex; `declared` adds what is not code."""
    return digests_of(target, declared=declared)[0]


def digests_of(target: Callable[..., Any], *, declared: str = "") -> tuple[str, str]:
    """Compute `digest_of`, and the same of the code as it is written, by which the release before named a version."""
    parts: dict[str, _Texts] = {"declared": (declared, declared)}
    _follow(target, parts)
    code, written = ("\n".join(f"{name}={parts[name][which]}" for name in sorted(parts)) for which in (0, 1))
    return _sha256(code), _sha256(written)


def formula_digest(formula: Callable[..., Any]) -> tuple[str, str]:
    """Compute the sha256 of a formula's text as it is written, and of all that it reads, hex.

    A value that cannot be digested counts by its type, which is logged. Raises: InvalidInput if Python cannot find the text.
    """
    text = _readable(formula, repr(formula))
    reach = _Reach()
    reach.parts[""] = reach.text("", formula)
    return _sha256(dedent(text)), _sha256(
        "\n".join(f"{name} = {reach.parts[name]}" for name in sorted(reach.parts))
    )


def reference(target: Callable[..., Any]) -> str:
    """Name `target` for all processes, as in "toque.functions.features.jobs:materialize".

    The module of `python -m project` is `__main__` in this process and "project" in every other.
    """
    module = target.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec else module
    return f"{module}:{getattr(target, '__qualname__', type(target).__qualname__)}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _follow(target: Any, parts: dict[str, _Texts]) -> None:
    name = reference(target)
    if name in parts:
        return
    parts[name] = _source(target)
    package = getattr(sys.modules.get(target.__module__), "__package__", None) or ""
    for code, names in _codes(target):
        parts |= {f"module {module}": texts for module, texts in late_modules(code, package).items()}
        for used in _names(code):
            if used in names:
                _follow_name(f"{name}.{used}", names[used], parts)


def _follow_name(name: str, value: Any, parts: dict[str, _Texts]) -> None:
    value = getattr(value, "body", value)  # a declared function stands for its body
    if isinstance(value, ModuleType):
        parts[f"module {value.__name__}"] = _module(value)
    elif isinstance(value, FunctionType | type):
        if _ours(sys.modules.get(value.__module__)):
            _follow(value, parts)
        else:
            parts[name] = (
                f"{value.__module__}.{value.__qualname__} {_loaded_version(value.__module__)}",
            ) * 2
    elif isinstance(value, _PLAIN):
        parts[name] = (_stable_text(value),) * 2


def _stable_text(value: Any) -> str:
    """Write a constant so that every process gives the same text: no order of hashes, no addresses."""
    value = getattr(value, "body", value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_stable_text, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_stable_text, value)))}}}"
    if isinstance(value, FunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__


def _codes(target: Any) -> Iterator[tuple[CodeType, dict[str, Any]]]:
    if isinstance(target, FunctionType):
        yield target.__code__, target.__globals__ | _cells(target)
        return
    for member in vars(target).values():
        plain = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(plain, FunctionType) and plain.__module__ == target.__module__:
            yield plain.__code__, plain.__globals__


def _cells(function: FunctionType) -> dict[str, Any]:
    """Return the variables that a function closes over, without those that have no value yet."""
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):
            cells[name] = cell.cell_contents
    return cells


def _names(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _source(target: Any) -> _Texts:
    """Read the source of a function or class, once: of a class it takes a parse of its whole module."""
    key = id(target)  # classes may be equal to each other
    if key not in _sources:
        try:
            source = _source_text(target)
            texts = code_text(source), source
        except (OSError, TypeError):  # typed at a prompt: the compiled code is all there is
            code = getattr(target, "__code__", None)
            texts = (f"{code.co_code.hex()} {code.co_consts!r}" if code else repr(target),) * 2
        _sources[key] = ref(target, lambda _: _sources.pop(key, None)), texts
    return _sources[key][1]


def _module(module: ModuleType) -> _Texts:
    if _ours(module):
        return _read(Path(str(module.__file__)), module.__name__)[0]
    return (_loaded_version(module.__name__),) * 2


def _ours(module: ModuleType | None) -> bool:
    path = getattr(module, "__file__", None)
    return bool(path) and not _is_installed(str(path))


@cache
def _is_installed(path: str) -> bool:
    return str(Path(path).resolve()).startswith(_INSTALLED)


def _loaded_version(module: str) -> str:
    package = sys.modules.get(module.partition(".")[0])
    return str(vars(package).get("__version__", "-")) if package else "-"  # asking for it makes some warn


@cache
def late_modules(code: CodeType, package: str) -> dict[str, _Texts]:
    """Map every module of this project that `code` imports, directly or not, to the sha256 of its code and of its file, hex.

    package: of the module that holds the code, for relative imports. Installed packages are left out: they
    need not be installed where the digest is computed.
    """
    imported = _imported(_imported_by(code, package), _file_of)
    return {module: texts for module, texts in imported if texts is not None}


def _imported(
    names: Iterable[str], file_of: Callable[[str], Path | None]
) -> Iterator[tuple[str, _Texts | None]]:
    """Yield the modules of these names and all that they import, with the digests of those that have a file."""
    seen: set[str] = set()
    pending = list(names)
    while pending:
        module = pending.pop()
        if module not in seen:
            seen.add(module)
            path = file_of(module)
            texts, imports = (None, ()) if path is None else _read(path, module)
            yield module, texts
            pending += imports


def _imported_by(code: CodeType, package: str) -> Iterator[str]:
    seen: list[dis.Instruction] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            level, names = seen[-2].argval, seen[-1].argval
            yield from _candidates(str(instruction.argval), int(level), names or (), package)
        # EXTENDED_ARG is a prefix, where a function has more than 255 names or constants
        if instruction.opname != "EXTENDED_ARG":
            seen.append(instruction)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imported_by(constant, package)


def _candidates(module: str, level: int, names: Iterable[str], package: str) -> list[str]:
    """List the module that an import names, and each name of it, which may be a module too."""
    if level:
        parents = package.split(".")
        module = ".".join([*parents[: len(parents) - level + 1], *([module] if module else [])])
    return [module, *(f"{module}.{name}" for name in names)]


def _parsed(source: str | bytes) -> ast.Module:
    with _parsing:
        return ast.parse(source)


def _source_text(target: Any) -> str:
    with _parsing:  # a class is looked for in the parsed module
        return inspect.getsource(target)


@cache
def _read(path: Path, module: str) -> tuple[_Texts, list[str]]:
    """Compute the digests of a source file, and list what it imports anywhere."""
    source = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = _parsed(source)
    names = list(_imports(_statements(tree), package))
    return (_sha256(tree_text(tree)), hashlib.sha256(source).hexdigest()), names


def _imports(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    """Yield the modules that statements import, or may."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _candidates(
                node.module or "", node.level, [alias.name for alias in node.names], package
            )


def _statements(tree: ast.AST, *, stop: Any = ()) -> Iterator[Any]:
    """Walk statements alone, not into those of type `stop`: an import is one, and expressions are nine in ten of the nodes."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        for body in (
            ("body", "orelse", "handlers", "finalbody", "cases") if not isinstance(node, stop) else ()
        ):
            pending += getattr(node, body, ())


@cache
def _file_of(module: str) -> Path | None:
    """Find the source file of a module of this project; None if it is installed, built in, or not a module."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a top-level name, which imports nothing
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = [Path(base, *rest) for base in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in (folder / "__init__.py", folder.with_suffix(".py"))]
    if not rest and spec.origin is not None:
        files.append(Path(spec.origin))
    for file in files:
        if file.suffix == ".py" and file.is_file() and not _is_installed(str(file)):
            return file
    return None


def code_text(source: str) -> str:
    """Write code anew, so that it is the same text however the source is commented, documented and laid out.

    source: of a module, or of one function or class, also an indented one. What cannot be parsed alone, such as a lambda within
    a call, stays as it is.
    """
    indented = source[:1].isspace()
    try:
        tree = _parsed(f"if True:\n{source}" if indented else source)
    except (SyntaxError, ValueError):
        return source
    return tree_text(tree)


def tree_text(tree: ast.AST) -> str:
    """Write parsed code anew, as `code_text`; docstrings and descriptions stay where the code reads docstrings."""
    nodes = list(ast.walk(tree))
    for node in () if any(_name(node) == "__doc__" for node in nodes) else nodes:
        if isinstance(node, ast.Module | _Defined) and ast.get_docstring(node, clean=False) is not None:
            node.body[:1] = [] if len(node.body) > 1 or isinstance(node, ast.Module) else [ast.Pass()]
        elif isinstance(node, ast.Call) and _name(node.func) == "Field":  # the rest says what is valid
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _SHOWN]
    return ast.unparse(tree)


def _name(node: ast.AST) -> str:
    return getattr(node, "attr", "") or getattr(node, "id", "")


@dataclass(slots=True)
class _Reach:
    """What a formula reads, by name. numbers: of the functions that stand there already."""

    parts: dict[str, str] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)

    def text(self, name: object, value: Any) -> str:
        """Write a value of the running process, and add what it reads."""
        kind = type(value)
        written: str | None = None
        if isinstance(value, Enum):
            written = f"{kind.__qualname__}.{value.name} {value.value!r}"
        elif isinstance(value, _Exact):
            written = f"{kind.__qualname__} {value!r}"
        elif isinstance(value, FunctionType):
            written = self.function(value)
        elif isinstance(value, ModuleType):
            self.late([value.__name__])
            written = f"module {value.__name__}"
        elif isinstance(value, type):
            self.name(value.__module__, value.__qualname__.split(".")[:1])
            written = f"class {value.__module__}.{value.__qualname__}"
        if written is not None:
            return written
        inner = _inner(value)
        if inner is None:
            return _opaque(name, value)
        if is_dataclass(value):
            self.name(kind.__module__, kind.__qualname__.split(".")[:1])
        texts = (f"{part}: {self.text(part, item)}" for part, item in inner)
        return f"{kind.__module__}.{kind.__qualname__}({', '.join(texts)})"

    def function(self, function: FunctionType) -> str:
        """Add a function: its code, defaults and what it closes over, and all that it names."""
        if not _of_project(function.__module__):
            return f"{function.__qualname__} of {_library(function.__module__)}"
        if id(function) not in self.numbers:
            number = self.numbers[id(function)] = len(self.numbers)
            source = _readable(code := function.__code__, f"{function.__qualname__!r}, which a formula uses,")
            defaults = dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
            values = [(f"default {name}", value) for name, value in defaults.items()]
            values += _cells(function).items()
            texts = [f"{name}: {self.text(name, value)}" for name, value in values]
            self.parts[f"function {number}"] = "\n".join((code_text(source), *texts))
            own = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
            for path in _paths(source, {*_names(code)} - own):
                self.name(function.__globals__.get("__name__", ""), path)
            self.late(_imported_by(code, function.__globals__.get("__package__") or ""))
        return f"function {self.numbers[id(function)]}"

    def name(self, module: str, path: list[str]) -> None:
        """Add what `a.b.c` names in a module of the project: its value, the statements that bind it, and what they read."""
        key, values = f"{module}:{path[0]}", vars(sys.modules.get(module, object))
        value = values.get(path[0])
        if isinstance(value, ModuleType) and path[1:] and _of_project(value.__name__):
            self.name(value.__name__, path[1:])
            return
        if key in self.parts or path[0] not in values or not _of_project(module):
            return
        self.parts[key] = ""  # met again while it is read
        texts = []
        if isinstance(value, _Exact | ModuleType):  # another module may have set it, or the environment
            texts.append(self.text(path[0], value))
        package = values.get("__package__") or ""
        for statement in _bound(module).get(path[0], ()):
            if isinstance(statement, ast.ImportFrom):
                (source,) = _candidates(statement.module or "", statement.level, (), package)
                original = [
                    alias.name for alias in statement.names if path[0] == (alias.asname or alias.name)
                ]
                texts.append(f"{original[0]} of {source if _of_project(source) else _library(source)}")
                self.name(source, original[:1])
            elif not isinstance(statement, ast.Import):
                texts.append(tree_text(statement))
                for inner in _paths(statement):
                    self.name(module, inner)
                self.late(_imports(ast.walk(statement), package))
        self.parts[key] = "\n".join(texts)

    def late(self, names: Iterable[str]) -> None:
        """Add modules that are imported late, and those that they import: by their whole files, or as installed packages."""
        for module, texts in _imported(names, _project_file):
            self.parts[f"file {module}"] = _library(module) if texts is None else texts[0]


def _inner(value: Any) -> Iterable[tuple[object, Any]] | None:
    """Return the parts of a value that is made of others, by name or number."""
    if isinstance(value, Mapping):
        return enumerate(value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value if isinstance(value, list | tuple) else sorted(value, key=repr))
    names: Iterable[str] = ()
    if isinstance(value, MethodType | partial):
        names = ("__func__", "__self__") if isinstance(value, MethodType) else ("func", "args", "keywords")
    elif is_dataclass(value):
        names = [part.name for part in fields(value)]
    elif hasattr(value, "__wrapped__"):  # of functools, or another decorator's object
        names = ["__wrapped__"]
    else:
        return None
    return [(name, getattr(value, name, None)) for name in names]


def _opaque(name: object, value: Any) -> str:
    """Name a value that has no text: arrays and tables by their bytes, all others by their type."""
    module, kind = type(value).__module__, f"{type(value).__module__}.{type(value).__qualname__}"
    if module.partition(".")[0] in _ARRAYS and "random" not in module:
        with suppress(Exception):  # what cannot be pickled is named
            return f"{kind} {hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()}"
    if not callable(value):
        _logger.warning(
            "a formula reads %s, a %s, which cannot be digested: a change of it is not noticed; give it numbers, texts or arrays",
            name, kind,
        )  # fmt: skip
    return f"{kind} {getattr(value, '__qualname__', '')} of {_library(module)}"


def _readable(target: Any, named: str) -> str:
    try:
        return _source_text(target)
    except (OSError, TypeError) as error:
        raise InvalidInput(f"the source of {named} cannot be read; define it in a module") from error


def _paths(source: str | ast.AST, names: Collection[str] | None = None) -> Iterator[list[str]]:
    """Yield the names that code reads, or those of `names`, with the attributes that follow them."""
    try:
        tree = _parsed(dedent(source)) if isinstance(source, str) else source
    except (SyntaxError, ValueError):  # a lambda within a call
        yield from ([name] for name in names or ())
        return
    pending = [tree]
    while pending:
        node = base = pending.pop()
        path: list[str] = []
        while isinstance(base, ast.Attribute):
            path.insert(0, base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            pending += ast.iter_child_nodes(node)
        elif isinstance(base.ctx, ast.Load) and (names is None or base.id in names):
            yield [base.id, *path]


@cache
def _bound(module: str) -> Mapping[str, list[ast.stmt]]:
    """Statements of a module's own level by the names that they bind or change."""
    bound: dict[str, list[ast.stmt]] = {}
    tree = _parsed(Path(str(sys.modules[module].__file__)).read_bytes())
    for statement in _statements(tree, stop=_Defined):
        changed = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            changed = [getattr(statement.value.func, "value", None)]  # RATES.update(…)
        names = {node.id for part in changed if part for node in ast.walk(part) if isinstance(node, ast.Name)}
        if isinstance(statement, _Defined):
            names = {statement.name}
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names = {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
        for name in names:
            bound.setdefault(name, []).append(statement)
    return bound


def _of_platform(module: str) -> bool:
    return module.partition(".")[0] == "toque" and not module.startswith("toque.examples")


def _of_project(module: str) -> bool:
    """Whether a module is code of a formula's project: not installed, and not Toque's, which says nothing of a formula."""
    return not _of_platform(module) and _ours(sys.modules.get(module))


def _project_file(module: str) -> Path | None:
    return None if _of_platform(module) else _file_of(module)


@cache
def _library(module: str) -> str:
    """Name an installed package with its version; the standard library's is that of Python."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "toque" or _file_of(top) is not None:
        return top
    try:
        return f"{top} {version(top)}"
    except PackageNotFoundError:
        return f"{top} {_loaded_version(top)}"
