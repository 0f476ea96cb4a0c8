"""Reference of the platform's functions, a page a room: `python -m tests.project.reference_pages` writes docs/reference anew."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toque.functions.runtime import catalog
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.ray_apps.function_schemas import Parameter, parameters, type_name

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
_LONGEST_DEFAULT = 60


def pages() -> dict[str, str]:
    """Text of each page by its file name."""
    rooms: defaultdict[str, list[DeclaredFunction]] = defaultdict(list)
    for each in catalog.discover():
        if each.reference.startswith("toque.functions."):
            rooms[re.split(r"[.:]", each.reference)[2]].append(each)
    return {f"{room}.md": _page(room, found) for room, found in sorted(rooms.items())} | {
        "README.md": _index(rooms)
    }


def _index(rooms: Mapping[str, list[DeclaredFunction]]) -> str:
    rows = [
        f"| [{room}]({room}.md) | {', '.join(f'[{each.name}]({room}.md#{each.name})' for each in found)} |"
        for room, found in sorted(rooms.items())
    ]
    text = (
        "# Functions of the platform\n\nWritten from the code. `toque functions NAME` shows one, `toque run NAME --json` calls it, and so "
        "does `POST /functions/NAME` where the page names a role for HTTP; [functions.md](../functions.md) tells how.\n\n"
    )
    return text + "\n".join(["| room | functions |", "|---|---|", *rows, ""])


def _page(room: str, found: list[DeclaredFunction]) -> str:
    parts = [f"# Functions: {room.replace('_', ' ')}\n\nWritten from the code; [all functions](README.md).\n"]
    kinds: dict[str, Any] = {}
    for each in found:
        parts += _function(each)
        kinds |= each.input_schema.get("$defs", {})
    kinds = {name: kind for name, kind in sorted(kinds.items()) if kind.get("properties")}
    if kinds:
        parts.append("## Types of arguments\n")
    for name, kind in kinds.items():
        parts += [
            f"### {name}\n",
            f"{_paragraphs(kind.get('description', ''))}\n",
            _table("field", parameters(kind)),
        ]
    return "\n".join(parts)


def _function(function: DeclaredFunction) -> Iterator[str]:
    yield f"## {function.name}\n"
    yield f"{_paragraphs(function.doc)}\n"
    called = f"HTTP, role `{function.role.value}`" if function.http else "Python, schedules and events"
    limit = "no time limit" if function.timeout_s is None else f"at most {function.timeout_s:g} s"
    yield f"Called by {called}; {limit}; returns {_cell(type_name(function.output_schema))}.\n"
    if found := parameters(function.input_schema):
        yield _table("argument", found)


def _table(what: str, rows: list[Parameter]) -> str:
    lines = [
        f"| `{each.name}` | {_cell(each.type)} | {_default(each)} | {_cell(each.description)} |"
        for each in rows
    ]
    return "\n".join([f"| {what} | type | default | meaning |", "|---|---|---|---|", *lines, ""])


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    text = parameter.default
    return "its own defaults" if len(text) > _LONGEST_DEFAULT else _cell(text)


def _paragraphs(doc: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in doc.split("\n\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
