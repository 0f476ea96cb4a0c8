"""Imports inside functions: found in their byte code and followed by file, without importing anything.

A late import keeps a heavy library out of every process that knows the function but does not run it. Its
version must still show in the function's digest, and the process that computes the digest may not have the
library.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType

from toque.functions.runtime.declaration.code_text import tree_text

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
        if (
            instruction.opname != "EXTENDED_ARG"
        ):  # a prefix, where a function has more than 255 names or constants
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
