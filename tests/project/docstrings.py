"""Check that every docstring's first sentence can stand alone: `python -m tests.project.docstrings`, exit code 1 if one cannot.

A reader who opens a file first sees that line only. So it has at least five words, and does not lean on a sentence before it by
opening with a pronoun or "The same".
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("clusters", "kernels", "registry", "featurestore", "functions", "ray_apps", "load", "examples")
FEWEST_WORDS = 5
LEANS = re.compile(r"(It is|It has|Those|The same|As of|What of|Who)\b")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def first_sentence(docstring: str) -> str:
    """The text up to the first end of a sentence or empty line."""
    return re.split(r"(?<=[.?!])\s|\n\s*\n", docstring.strip())[0].replace("\n", " ")


def fault(docstring: str) -> str | None:
    """What is wrong with a docstring's first sentence; None if nothing is."""
    sentence = first_sentence(docstring)
    if LEANS.match(sentence):
        return f"opens with {LEANS.match(sentence)[0]!r}"  # type: ignore[index]  # it has just matched
    if len(sentence.split()) < FEWEST_WORDS:
        return f"has under {FEWEST_WORDS} words"
    return None


def faults(source: str, path: str) -> Iterator[str]:
    """One line for each docstring of a module that cannot stand alone."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, Documented)
            and (docstring := ast.get_docstring(node))
            and (why := fault(docstring))
        ):
            line = 1 if isinstance(node, ast.Module) else node.lineno
            yield f"{path}:{line}: docstring {why}: {first_sentence(docstring)!r}; say what this does or is"


def main() -> int:
    """Print the faults of the whole tree; returns the exit code."""
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    found = [line for file in files for line in faults(file.read_text(), str(file.relative_to(ROOT)))]
    for line in found:
        print(line)  # noqa: T201  # a linter's output
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
