"""Versions of functions: digests of their code and of all code that it refers to.

The names that the code uses are followed: functions and classes of this project by their source, constants by
value, installed packages by name and version. A change in any code that a run could reach changes the digest;
a change in other code of the same module does not, nor does one of comments, docstrings or layout. Imports inside functions are followed by whole files, so
that a digest can be computed where those libraries are absent.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import ref

from toque.functions.runtime.declaration.code_text import code_text, tree_text
from toque.functions.runtime.declaration.late_imports import INSTALLED, late_modules
from toque.functions.runtime.reference import reference

_Texts = tuple[str, str]  # of code: without what no run depends on, and as it is written
_sources: dict[int, tuple[ref[Any], _Texts]] = {}  # by id, for as long as what has it lives
_PLAIN = (str, bytes, int, float, bool, type(None), tuple, frozenset)


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
