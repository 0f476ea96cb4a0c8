"""Markdown that people and models wrote, as safe HTML: no tags of theirs, no address but http, https and mailto."""

from __future__ import annotations

from typing import Final

from markdown_it import MarkdownIt
from markupsafe import Markup

_LONGEST: Final = 30_000  # characters
_MARKS: Final = "[*_~`"
_MOST_MARKS: Final = 2_000
_LONGEST_PLAIN: Final = 500_000
_PARSER = MarkdownIt("js-default", {"html": False, "linkify": False}).disable("image")
_PARSER.validateLink = lambda url: url.startswith(("https://", "http://", "mailto:"))  # type: ignore[method-assign]


def render_markdown(text: str) -> Markup:
    """Render Markdown to HTML in which every tag is the renderer's own; a text that is too long for it is shown as it stands.

    Brackets and emphases that do not match take time by the square of their number.
    """
    if len(text) > _LONGEST or sum(map(text.count, _MARKS)) > _MOST_MARKS:
        shown = text[:_LONGEST_PLAIN]
        return Markup("<pre>{}</pre>").format(
            shown if shown == text else f"{shown}…\n({len(text):,} characters)"
        )
    return Markup(_PARSER.render(text))  # noqa: S704  # escaped by the parser, which knows no HTML here
