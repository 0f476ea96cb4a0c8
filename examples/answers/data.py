"""Pages of the documentation, and the questions that its index asks of them: each names the page that answers it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pyarrow as pa

__all__ = ["DOCS", "documents", "questions"]

DOCS: Final = Path(__file__).parents[2] / "docs"
INDEX: Final = "README.md"
_ROW: Final = re.compile(r"^\| (?P<question>[^|]+\?) \| (?P<answers>.+) \|$", re.MULTILINE)
_PAGE: Final = re.compile(r"\]\((?P<page>[\w/.-]+\.md)")


def documents(folder: Path = DOCS) -> pa.Table:
    """Read the pages of the documentation, without the index that holds the questions."""
    pages = [each for each in sorted(folder.glob("*.md")) if each.name != INDEX]
    return pa.table({"document": [each.name for each in pages], "text": [each.read_text() for each in pages]})


def questions(folder: Path = DOCS) -> pa.Table:
    """Read the questions of the index, each with the pages that answer it."""
    names = {each.name for each in folder.glob("*.md")}
    found = [
        (row["question"], pages[0])
        for row in _ROW.finditer((folder / INDEX).read_text())
        if (pages := [each for each in _PAGE.findall(row["answers"]) if each in names])
    ]
    return pa.table({"question": [each for each, _ in found], "relevant": [page for _, page in found]})
