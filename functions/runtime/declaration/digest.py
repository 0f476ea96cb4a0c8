"""Versions of functions: digests of their code and of all code that it refers to.

The names that the code uses are followed: functions and classes of this project by their source, constants by value,
installed packages by name and version. A change in any code that a run could reach changes the digest; a change in other
code of the same module does not, nor does one of comments, docstrings, descriptions of fields or layout.
A late import keeps a heavy library out of processes that know the function but do not run it, and the process that computes
the digest may not have the library. So imports inside functions are found in their byte code, and followed by whole files.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import ref

from toque.functions.runtime.reference import reference

_Texts = tuple[str, str]  # of code: without what no run depends on, and as it is written
_sources: dict[int, tuple[ref[Any], _Texts]] = {}  # by id, for as long as what has it lives
_PLAIN = (str, bytes, int, float, bool, type(None), tuple, frozenset)
_SHOWN = {"title", "description", "examples"}  # of a pydantic field
_SITES = {"site-packages", "dist-packages"}  # on the path: an environment may find packages in another one's
INSTALLED = tuple(
    {
        str(Path(each).resolve())
        for each in (
            *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
            *(place for place in sys.path if Path(place).name in _SITES),
        )
    }
)


def digest_of(target: Callable[..., Any], *, declared: str = "") -> str:
    """Compute the sha256 of all code reached from `target`, hex; `declared` adds what is not code."""
    return digests_of(target, declared=declared)[0]


def digests_of(target: Callable[..., Any], *, declared: str = "") -> tuple[str, str]:
    """Compute `digest_of`, and the same of the code as it is written, by which the release before named a version."""
    parts: dict[str, _Texts] = {"declared": (declared, declared)}
    _follow(target, parts)
    code, written = ("\n".join(f"{name}={parts[name][which]}" for name in sorted(parts)) for which in (0, 1))
    return _sha256(code), _sha256(written)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _follow(target: Any, parts: dict[str, _Texts]) -> None:
    name = reference(target)
    if name in parts:
        return
    parts[name] = _source(target)
    package = getattr(sys.modules.get(target.__module__), "__package__", None) or ""
    for code, names in _codes(target):
        parts |= {f"module {each}": text for each, text in late_modules(code, package).items()}
        for each in _names(code):
            if each in names:
                _follow_name(f"{name}.{each}", names[each], parts)


def _follow_name(name: str, value: Any, parts: dict[str, _Texts]) -> None:
    value = getattr(value, "body", value)  # a declared function stands for its body
    if isinstance(value, ModuleType):
        parts[f"module {value.__name__}"] = _module(value)
    elif isinstance(value, FunctionType | type):
        if _ours(sys.modules.get(value.__module__)):
            _follow(value, parts)
        else:
            parts[name] = (f"{value.__module__}.{value.__qualname__} {_version(value.__module__)}",) * 2
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
        cells = dict(zip(target.__code__.co_freevars, _contents(target), strict=False))
        yield target.__code__, target.__globals__ | cells
        return
    for member in vars(target).values():
        plain = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(plain, FunctionType) and plain.__module__ == target.__module__:
            yield plain.__code__, plain.__globals__


def _contents(target: FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in target.__closure__ or () if _filled(cell)]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # reading an empty cell raises
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _source(target: Any) -> _Texts:
    """Read the source of a function or class, once: of a class it takes a parse of its whole module."""
    key = id(target)  # classes may be equal to each other
    known = _sources.get(key)
    if known is not None:
        return known[1]
    text = _read_source(target)
    _sources[key] = ref(target, lambda _: _sources.pop(key, None)), text
    return text


def _read_source(target: Any) -> _Texts:
    try:
        source = inspect.getsource(target)
    except (OSError, TypeError):  # typed at a prompt: the compiled code is all there is
        code = getattr(target, "__code__", None)
        return (f"{code.co_code.hex()} {code.co_consts!r}" if code else repr(target),) * 2
    return code_text(source), source


def _module(module: ModuleType) -> _Texts:
    if _ours(module) and module.__file__:
        return _file_digests(module.__file__)
    return (_version(module.__name__),) * 2


@cache
def _file_digests(path: str) -> _Texts:
    source = Path(path).read_bytes()
    return _sha256(tree_text(ast.parse(source))), hashlib.sha256(source).hexdigest()


def _ours(module: ModuleType | None) -> bool:
    path = getattr(module, "__file__", None)
    return bool(path) and not _is_installed(str(path))


@cache
def _is_installed(path: str) -> bool:
    return str(Path(path).resolve()).startswith(INSTALLED)


def _version(module: str) -> str:
    return str(getattr(sys.modules.get(module.partition(".")[0]), "__version__", "-"))


@cache
def late_modules(code: CodeType, package: str) -> dict[str, tuple[str, str]]:
    """Map every module of this project that `code` imports, directly or not, to the sha256 of its code and of its file, hex.

    package: of the module that holds the code, for relative imports. Installed packages are left out: they
    need not be installed where the digest is computed.
    """
    found: dict[str, tuple[str, str]] = {}
    pending = list(_imported_by(code, package))
    while pending:
        module = pending.pop()
        if module in found:
            continue
        path = _file_of(module)
        if path is not None:
            digests, names = _read(path, module)
            found[module] = digests
            pending += names
    return found


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


def _candidates(module: str, level: int, names: Iterator[str] | tuple[str, ...], package: str) -> list[str]:
    """List the module that an import names, and each name of it, which may be a module too."""
    if level:
        parents = package.split(".")
        module = ".".join([*parents[: len(parents) - level + 1], *([module] if module else [])])
    return [module, *(f"{module}.{name}" for name in names)]


@cache
def _read(path: Path, module: str) -> tuple[tuple[str, str], tuple[str, ...]]:
    """Compute the digests of a source file, and list what it imports anywhere."""
    source = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    tree = ast.parse(source)
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = tuple(alias.name for alias in node.names)
            names += _candidates(node.module or "", node.level, imported, package)
    text = tree_text(tree).encode("utf-8", errors="surrogatepass")
    return (hashlib.sha256(text).hexdigest(), hashlib.sha256(source).hexdigest()), tuple(names)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk statements alone: an import is one, and expressions are nine in ten of the nodes."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        for field in ("body", "orelse", "handlers", "finalbody", "cases"):
            pending += getattr(node, field, ())


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
        if file.suffix == ".py" and file.is_file() and not str(file.resolve()).startswith(INSTALLED):
            return file
    return None


def code_text(source: str) -> str:
    """Write code anew, so that it is the same text however the source is commented, documented and laid out.

    source: of a module, or of one function or class, also an indented one. What cannot be parsed alone, such as a lambda within
    a call, stays as it is.
    """
    indented = source[:1].isspace()
    try:
        tree = ast.parse(f"if True:\n{source}" if indented else source)
    except (SyntaxError, ValueError):
        return source
    return tree_text(tree)


def tree_text(tree: ast.Module) -> str:
    """Write parsed code anew, as `code_text`; docstrings and descriptions stay where the code reads docstrings."""
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.Attribute | ast.Name) and _name(node) == "__doc__" for node in nodes):
        for node in nodes:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                _remove_docstring(node)
            elif isinstance(node, ast.Call):
                _remove_description(node)
    return ast.unparse(tree)


def _name(node: ast.Attribute | ast.Name) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id


def _remove_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        node.body[:1] = [] if len(node.body) > 1 or isinstance(node, ast.Module) else [ast.Pass()]


def _remove_description(node: ast.Call) -> None:
    """Remove from `Field(…)` what is only shown; the rest of it says which values are valid."""
    if isinstance(node.func, ast.Attribute | ast.Name) and _name(node.func) == "Field":
        node.keywords = [each for each in node.keywords if each.arg not in _SHOWN]
