"""Share of names that are words of our dialect: `python -m tests.project.dialect` measures it, and fails if it rose.

A name is one that code binds: a variable, an argument, an attribute, a function, a class; each counts once for each scope that
binds it. The words are those of which a reader learns nothing: `each` what, `found` where, `given` by whom.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIALECT = frozenset(
    {
        "each",
        "found",
        "given",
        "made",
        "wanted",
        "kept",
        "held",
        "told",
        "asked",
        "known",
        "used",
        "owed",
        "at",
        "to",
    }
)
MOST = 0.0472
"""Share of dialect names that there may be. It only falls: lower it to what the program prints after a room was renamed."""
_WORST = 15


def bound_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module binds, once for each function, class or module in which they are bound."""
    scope: set[str] = set()
    inner: list[ast.AST] = []
    nodes = list(ast.iter_child_nodes(tree))
    while nodes:
        node = nodes.pop()
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                scope.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()):
                scope.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                scope.add(name)
            case _:
                pass
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            inner.append(node)
        else:
            nodes.extend(ast.iter_child_nodes(node))
    yield from scope
    for scope_node in inner:
        yield from bound_names(scope_node)


def measure() -> tuple[int, Counter[str]]:
    """Count all names of the rooms, and the dialect ones of each file."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    total, dialect = 0, Counter[str]()
    for file in listed.stdout.splitlines():
        if file.startswith("tests/"):
            continue
        for name in bound_names(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            total += 1
            dialect[file] += name.strip("_") in DIALECT
    return total, dialect


def main() -> int:
    """Print the share and the worst files; returns 1 if the share is above `MOST`."""
    total, dialect = measure()
    share = dialect.total() / total
    for file, count in dialect.most_common(_WORST):
        sys.stdout.write(f"{count:5} {file}\n")
    sys.stdout.write(
        f"{dialect.total():,} of {total:,} names are words of the dialect: {share:.2%}, at most {MOST:.2%}\n"
    )
    if share > MOST:
        sys.stdout.write(
            "the share rose: name things by their nouns, as `invocation`, `match`, `argument`, `record`\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
