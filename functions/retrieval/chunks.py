"""Cuts a document into chunks along its headings and paragraphs. Pure.

A chunk's key is the digest of its document's name and its text, so that one whose text did not change is the same wherever it stands,
and needs no new vector.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Chunk", "chunks_of"]

_HEADING: Final = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$")
_FENCE: Final = re.compile(r"^\s*(?:```|~~~)")
_DIGEST: Final = 32


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document. key: by which it is known; heading: those that it stands under, from the first to the last."""

    key: str
    document: str
    heading: str
    text: str


def chunks_of(document: str, text: str, *, max_length: int = 1_200) -> list[Chunk]:
    """Cut the text of a document, in Markdown or plain, into chunks of at most `max_length` characters.

    Paragraphs under one heading share a chunk as long as they fit; blocks of code are kept whole; what is longer by itself is cut
    where words end. A text that stands twice under the same heading is one chunk.
    """
    found: dict[str, Chunk] = {}
    for heading, paragraphs in _sections(text):
        for piece in _packed(paragraphs, max_length):
            digest = hashlib.sha256(f"{document}\0{heading}\0{piece}".encode()).hexdigest()[:_DIGEST]
            found.setdefault(digest, Chunk(digest, document, heading, piece))
    return list(found.values())


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """Headings that are in force, joined, and the paragraphs under them."""
    path: dict[int, str] = {}
    paragraphs: list[str] = []
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        found = None if fenced else _HEADING.match(line)
        if _FENCE.match(line):
            fenced = not fenced
        if found is None and (fenced or line.strip()):
            lines.append(line)
            continue
        if lines:
            paragraphs.append("\n".join(lines))
            lines = []
        if found is not None:
            if paragraphs:
                yield " > ".join(path.values()), paragraphs
                paragraphs = []
            level = len(found[1])
            path = {each: title for each, title in path.items() if each < level} | {level: found[2]}
    if lines:
        paragraphs.append("\n".join(lines))
    if paragraphs:
        yield " > ".join(path.values()), paragraphs


def _packed(paragraphs: list[str], most: int) -> Iterator[str]:
    held = ""
    for paragraph in paragraphs:
        for piece in _cut(paragraph, most):
            if held and len(held) + 2 + len(piece) > most:
                yield held
                held = ""
            held = f"{held}\n\n{piece}" if held else piece
    if held:
        yield held


def _cut(text: str, most: int) -> Iterator[str]:
    """Cut a text that is too long where a line or word ends, if it has such a place."""
    while len(text) > most:
        at = max(text.rfind("\n", 1, most + 1), text.rfind(" ", 1, most + 1))
        at = at if at > 0 else most
        yield text[:at].rstrip()
        text = text[at:].lstrip()
    if text:
        yield text
