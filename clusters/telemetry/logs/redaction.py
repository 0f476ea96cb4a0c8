"""Masks credentials in text that goes into a log: tokens, passwords in URLs, headers and fields that carry secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

__all__ = ["MASK", "Mask", "redact"]

Mask = Callable[[str], str]
"""Replaces further secrets in a text, such as those that this process has given to functions."""

MASK: Final = "***"
_NAMES = (
    r"(?:[\w-]*(?:password|passwd|secret|token(?!s)|api[_-]?key|access[_-]?key|credential|signature)[\w-]*)"
)
_RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # Headers, as text or as the repr of bytes: the name stays, and of a pair the scheme goes with what follows.
    (
        re.compile(
            r"((?:proxy-)?authorization\\*[\"']?\s*[:=,]\s*(?:b(?=[\"']))?\\*[\"']?)(?:\w+\s+)?[^\s\"',;)}\]\\]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (
        re.compile(r"(cookie\\*[\"']?\s*[:=,]\s*(?:b(?=[\"']))?\\*[\"']?)[^\"'\n\\]+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer)\s+[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\btq_[0-9a-z]{1,32}_[A-Za-z0-9_-]{4,128}"), MASK),  # a token of the platform
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), MASK),  # a JWT
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), MASK),  # an AWS key id
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/@\"'<>]*@", re.IGNORECASE), rf"\1{MASK}@"),
    (
        re.compile(
            rf"\b({_NAMES}\\*[\"']?\s*[:=]\s*(?:b(?=[\"']))?\\*[\"']?)[^\s\"',;&)}}\]\\]{{4,}}", re.IGNORECASE
        ),
        rf"\1{MASK}",
    ),
)
_HINTS: Final = re.compile(
    r"auth|cookie|bearer|tq_|eyJ|AKIA|://|passw|secret|token|key|credential|signature", re.IGNORECASE
)


def redact(text: str, masks: Iterable[Mask] = ()) -> str:
    """Replace everything in `text` that looks like a credential by `***`; the rest stays readable.

    masks: applied first, for secrets that only their owner can tell.
    """
    for mask in masks:
        text = mask(text)
    if _HINTS.search(text) is None:  # of nearly every line: one search instead of seven
        return text
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
