"""Test modules that a change can have broken, one a line: `python -m tests.project.changed [BASE]`, by default since `main`.

A test module counts if it, a helper of the tests that it imports, or a fixture that it takes from a `conftest.py`, imports a
changed module or one that imports such a module in turn, late imports and names in strings included. A name that a package
re-exports stands for the module that defines it, and not for all that the package imports; a package that is imported whole, or a
name that its `__init__` does not tell the origin of, stands for the whole package. What is no module, such as a template or a YAML
file, counts as a change of all modules of its folder; a page is tested by `tests/docs`. Where the installation, the Makefile or the
conftest of all tests has changed, every test counts. What a platform runs by the table of its functions alone (`catalog.PLATFORM`)
is left to the whole suite.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_ALL = {"pyproject.toml", "Makefile", "tests/conftest.py", "requirements.lock", "requirements-torch.lock"}
MODULE = re.compile(r"((?:toque|examples)(?:\.\w+){2,})(?::\w+)?")
OURS = re.compile(r"\b(?:toque|examples|tests)(?:\.\w+)+")
TABLE_OF_FUNCTIONS = "functions/runtime/catalog.py"


def changed_files(base: str) -> set[str]:
    """Paths that differ from the commit where this branch left `base`, those that git does not follow yet included."""
    left = _git("merge-base", base, "HEAD").strip()
    return {
        *_git("diff", "--name-only", left).split(),
        *_git("ls-files", "--others", "--exclude-standard").split(),
    }


def affected_tests(changed: Iterable[str]) -> list[str]:
    """Test modules that depend on one of the changed paths, sorted; all of them where what every test needs has changed."""
    paths = set(changed)
    tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
    if paths & OF_ALL:
        return tests
    broken = _with_neighbours(paths)
    pages = any(path.endswith(".md") for path in paths)
    return [
        test
        for test in tests
        if (pages and test.startswith("tests/docs/")) or not broken.isdisjoint(_closure(test))
    ]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout


def _with_neighbours(paths: Iterable[str]) -> set[str]:
    """The paths, and the modules of the nearest folder with modules above each that is no module itself."""
    broken = set(paths)
    for path in map(Path, paths):
        if path.suffix != ".py" and path.parts[0] not in {"tests", "docs"}:
            for folder in path.parents[:-1]:
                modules = {str(module.relative_to(ROOT)) for module in (ROOT / folder).glob("*.py")}
                broken |= modules
                if modules:
                    break
    return broken


def _closure(test: str) -> set[str]:
    """Files that a test module needs, itself included."""
    needed: set[str] = set()
    waiting = {(test, True)}
    seen: set[tuple[str, bool]] = set()
    while waiting:
        file, whole = waiting.pop()
        seen.add((file, whole))
        needed.add(file)
        if whole:
            waiting |= _imports(file) - seen
            if file.startswith("tests/"):
                waiting |= {(conftest, True) for conftest in _conftests_of(file)} - seen
    return needed


@cache
def _imports(file: str) -> frozenset[tuple[str, bool]]:
    """Files that a file imports or names, and whether each is needed with all that it imports itself."""
    return frozenset(origin for module, name in _names_in(file) for origin in _origins(module, name))


def _names_in(file: str) -> Iterator[tuple[str, str | None]]:
    """Modules that a file imports or has in a string, each with the name that it takes out of it."""
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and file != TABLE_OF_FUNCTIONS:
            if file.startswith("tests/"):  # code for another process, arguments of a command, a name to patch
                yield from map(_split, OURS.findall(node.value))
            elif match := MODULE.fullmatch(node.value):
                yield _split(match[1])


def _split(dotted: str) -> tuple[str, str | None]:
    """The longest module that a dotted name begins with, and the part behind it."""
    module, name = dotted, None
    while _file(module) is None and "." in module:
        module, _, name = module.rpartition(".")
    return module, name


def _file(module: str) -> str | None:
    """Path of a module of ours, relative to the root."""
    folder = module.removeprefix("toque.").replace(".", "/")
    return next((path for path in (f"{folder}.py", f"{folder}/__init__.py") if (ROOT / path).exists()), None)


@cache
def _origins(module: str, name: str | None) -> frozenset[tuple[str, bool]]:
    """Files behind a name of a module: those that hand it on as they are, and the one that defines it with its imports."""
    file = _file(module)
    if file is None:
        return frozenset()
    if name is not None and _file(f"{module}.{name}"):
        return _origins(f"{module}.{name}", None)
    source = _exports(file).get(name) if name else None
    if source is None:
        return frozenset({(file, True)})
    return _origins(*source) | {(file, False)}


@cache
def _exports(file: str) -> dict[str, tuple[str, str]]:
    """Module and name behind each name that the `__init__` of a package imports from a module of ours."""
    if not file.endswith("__init__.py"):
        return {}
    types = file + "i"
    nodes = [*ast.walk(_parsed(file)), *(ast.walk(_parsed(types)) if (ROOT / types).exists() else ())]
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and _file(node.module)
        for alias in node.names
    }


@cache
def _parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


@cache
def _conftests_of(file: str) -> frozenset[str]:
    """The `conftest.py` above a file of which it takes a fixture, and each whose fixtures no test has to name."""
    text = (ROOT / file).read_text()
    conftests = set()
    for folder in (ROOT / file).relative_to(ROOT).parents[:-2]:
        conftest = str(folder / "conftest.py")
        if conftest == file or not (ROOT / conftest).exists():
            continue
        fixtures = {
            node.name: " ".join(map(ast.unparse, node.decorator_list))
            for node in _parsed(conftest).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.decorator_list
        }
        if any("autouse=True" in how or re.search(rf"\b{name}\b", text) for name, how in fixtures.items()):
            conftests.add(conftest)
    return frozenset(conftests)


def main() -> int:
    """Print the test modules that a change since a commit can have broken."""
    for test in affected_tests(changed_files(*sys.argv[1:] or ["main"])):
        print(test)  # noqa: T201  # read by make
    return 0


if __name__ == "__main__":
    sys.exit(main())
