"""W3C Trace Context: the position of a span in a trace, as the header `traceparent` carries it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

__all__ = ["TraceContext", "new_span_id", "new_trace_id"]

_HEADER: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Span of another process that this one's work belongs to. sampled: whether that process keeps it."""

    trace_id: str
    span_id: str
    sampled: bool

    @classmethod
    def parse(cls, header: bytes | str | None) -> TraceContext | None:
        """Parse a `traceparent`; None without one, and for one that the standard tells to ignore.

        Source: W3C Trace Context, level 1, section 3.2.
        """
        if header is None:
            return None
        found = _HEADER.fullmatch(header.encode("latin-1", "replace") if isinstance(header, str) else header)
        if found is None or (found[1] == b"00" and found[5] is not None):
            return None
        return cls(found[2].decode(), found[3].decode(), bool(int(found[4], 16) & _SAMPLED))

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"


def new_trace_id() -> str:
    """Make an id for a trace that begins here: 32 random hexadecimal digits."""
    return os.urandom(16).hex()


def new_span_id() -> str:
    """Make an id for a span: 16 random hexadecimal digits, not all zero."""
    return f"{int.from_bytes(os.urandom(8), 'big') or 1:016x}"
