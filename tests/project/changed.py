"""Test modules that a change can have broken, one a line: `python -m tests.project.changed [BASE]`, by default since `main`.

A test module counts if it, a helper of the tests that it imports, or a fixture that it takes from a `conftest.py`, imports a
changed module or one that imports such a module in turn, late imports and names in strings included. What is no module, such
as a template or a YAML file, counts as a change of all modules of its folder; a page is tested by `tests/docs`. Where the
installation, the Makefile or the conftest of all tests has changed, every test counts.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
OF_ALL = {"pyproject.toml", "Makefile", "tests/conftest.py", "requirements.lock", "requirements-torch.lock"}
OURS = re.compile(r"\b(?:toque|examples|tests)(?:\.\w+)+")


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
    tests = sorted(str(each.relative_to(ROOT)) for each in (ROOT / "tests").rglob("test_*.py"))
    if paths & OF_ALL:
        return tests
    broken = _importers(_modules_of(paths))
    pages = any(each.endswith(".md") for each in paths)
    return [
        each
        for each in tests
        if each in paths or (pages and each.startswith("tests/docs/")) or _needs(each) & (broken | paths)
    ]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout


def _modules_of(paths: Iterable[str]) -> set[str]:
    """Modules whose file is among the paths, or whose folder has one that is none."""
    found = set()
    for path in map(Path, paths):
        if path.suffix == ".py":
            found.add(_name(path))
        elif path.parts[0] not in {"tests", "docs"}:
            for folder in path.parents[:-1]:
                beside = {_name(each.relative_to(ROOT)) for each in (ROOT / folder).glob("*.py")}
                found |= beside
                if beside:
                    break
    return found


def _name(path: Path) -> str:
    """Name of the module of a file, relative to the root."""
    parts = path.with_suffix("").parts
    top = () if parts[0] in {"toque", "tests", "examples"} else ("toque",)
    return ".".join((*top, *parts)).removesuffix(".__init__")


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("toque", "examples")


def _importers(modules: Iterable[str]) -> set[str]:
    """The modules, and all that import one of them, directly or not."""
    graph, known = _graph(), set(modules)
    for each in set(modules) & graph.modules:
        known |= graph.find_downstream_modules(each)
    return known


def _needs(test: str) -> set[str]:
    """What a test module imports: modules of the product, the files of its helpers, and what those import."""
    found: set[str] = set()
    files = {test, *_conftests_of(test)}
    while files:
        file = files.pop()
        modules, helpers = _imports(file)
        found |= modules | {file}
        files |= helpers - found
    return found


@cache
def _imports(file: str) -> tuple[frozenset[str], frozenset[str]]:
    """Modules of the product, with the packages that they are in, and files of helpers that a file of the tests names."""
    modules, helpers = set(), set()
    for name in _names_in(file):
        parts = name.split(".")
        ways = [parts[:size] for size in range(2, len(parts) + 1)]
        if parts[0] == "tests":
            helpers |= {path for way in ways if (ROOT / (path := "/".join(way) + ".py")).exists()}
        else:
            modules |= {".".join(way) for way in ways}
    return frozenset(modules), frozenset(helpers)


def _names_in(file: str) -> Iterator[str]:
    """Names of modules, or of what is in one, that a file imports or has in a string."""
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from OURS.findall(node.value)


@cache
def _parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def _conftests_of(file: str) -> Iterator[str]:
    """The `conftest.py` above a file of which it takes a fixture, and each whose fixtures no test has to name."""
    text = (ROOT / file).read_text()
    for folder in (ROOT / file).relative_to(ROOT).parents[:-2]:
        conftest = str(folder / "conftest.py")
        if conftest == file or not (ROOT / conftest).exists():
            continue
        functions = [
            node
            for node in _parsed(conftest).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        fixtures = {
            node.name: " ".join(map(ast.unparse, node.decorator_list))
            for node in functions
            if node.decorator_list
        }
        if any("autouse=True" in how or re.search(rf"\b{name}\b", text) for name, how in fixtures.items()):
            yield conftest


def main() -> int:
    """Print the test modules that a change since a commit can have broken."""
    for each in affected_tests(changed_files(*sys.argv[1:] or ["main"])):
        print(each)  # noqa: T201  # read by make
    return 0


if __name__ == "__main__":
    sys.exit(main())
