"""Reads the pages of documentation: their blocks, inline code, headings and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNRUN = "<!-- imports only: "  # before a block of Python that needs a running platform; the rest says what
LANGUAGES = frozenset({"bash", "json", "python", "text", "toml", "yaml"})

_FENCE = re.compile(r"^```(\S*)\s*$")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_INDENTED_COMMAND = re.compile(
    r"^ {4,}(?:\$ |(?:toque|make|curl|ray|pip)(?: |$)|python3? -m )", flags=re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page: its language, content, and the line that its content begins on."""

    language: str
    text: str
    line: int
    runs: bool

    @property
    def file_name(self) -> str | None:
        """Name of the file that the block is the content of, as its first line `# name.py` says."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named.group(1) if named else None


@dataclass(frozen=True)
class Page:
    """One page of documentation."""

    path: Path

    @property
    def name(self) -> str:
        """Path below the repository, as in docs/functions.md."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        """The whole page."""
        return self.path.read_text()

    @property
    def words(self) -> int:
        """How many words `wc -w` counts."""
        return len(self.text.split())

    @cached_property
    def blocks(self) -> list[Block]:
        """The fenced blocks, in order. Raises: ValueError if the last fence is not closed."""
        return self._read[0]

    @cached_property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[list[Block], str]:
        blocks: list[Block] = []
        prose: list[str] = []
        inside: list[str] | None = None
        language, begun, runs = "", 0, True
        for number, line in enumerate(self.text.splitlines(), start=1):
            fence = _FENCE.match(line.strip() if inside is None else line.lstrip())
            if inside is None and fence:
                previous = next((each for each in reversed(prose) if each.strip()), "")
                language, begun, inside = fence.group(1), number + 1, []
                runs = not previous.startswith(UNRUN)
            elif inside is not None and fence and not fence.group(1):
                blocks.append(Block(language, "\n".join([*inside, ""]), begun, runs))
                inside = None
            elif inside is not None:
                inside.append(line)
            else:
                prose.append(line)
        if inside is not None:
            raise ValueError(f"{self.name}:{begun - 1}: the fence is not closed")
        return blocks, "\n".join(prose)

    @property
    def spans(self) -> list[str]:
        """The pieces of inline code."""
        return _SPAN.findall(self.prose)

    @property
    def links(self) -> list[str]:
        """Targets of the links that lead to this repository."""
        return [each for each in _LINK.findall(self.prose) if not re.match(r"[a-z]+:", each)]

    @cached_property
    def anchors(self) -> frozenset[str]:
        """The anchors that GitHub makes of the headings."""
        found: dict[str, int] = {}
        anchors = set()
        for heading in (
            match.group(1) for line in self.prose.splitlines() if (match := _HEADING.match(line))
        ):
            slug = re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")
            again = found.get(slug, 0)
            anchors.add(f"{slug}-{again}" if again else slug)
            found[slug] = again + 1
        return frozenset(anchors)

    @property
    def commands_outside_blocks(self) -> list[str]:
        """Commands in blocks that are only indented, which no check would see."""
        return _INDENTED_COMMAND.findall(self.prose)

    def broken_links(self) -> list[str]:
        """Links whose page does not exist or has no such heading."""
        broken = []
        for link in self.links:
            path, _, anchor = link.partition("#")
            target = Page((self.path.parent / path).resolve()) if path else self
            if not target.path.exists() or (
                anchor and target.path.suffix == ".md" and anchor not in target.anchors
            ):
                broken.append(link)
        return broken


def all_pages() -> list[Page]:
    """The README and every page of docs/."""
    return [Page(ROOT / "README.md"), *(Page(path) for path in sorted((ROOT / "docs").rglob("*.md")))]
