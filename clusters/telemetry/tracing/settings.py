"""Settings of a process's traces, as its environment has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

__all__ = ["DEFAULT_SHARE", "TraceSettings"]

DEFAULT_SHARE, DEFAULT_SLOW_MS = 0.01, 500.0


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Which requests are kept, and where their spans go.

    share: of the requests that neither failed nor were slow, from 0 to 1. slow_s: from which duration on a request is slow.
    endpoint: base URL of a collector, "" for none. headers: sent to it, such as a key.
    """

    share: float = DEFAULT_SHARE
    slow_s: float = DEFAULT_SLOW_MS / 1e3
    endpoint: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Read the variables of the profile's section `traces`; None if there is neither an endpoint nor a share.

        Raises: ValueError, naming the variable.
        """
        endpoint = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
        share = environment.get("TOQUE_TRACE_SHARE")
        if not endpoint and not share:
            return None
        if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
            raise ValueError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint!r}: want the URL of a collector that takes OTLP over HTTP, as in "
                "http://collector:4318"
            )
        file = environment.get("TOQUE_TRACE_HEADERS_FILE")
        text = Path(file).read_text() if file else environment.get("OTEL_EXPORTER_OTLP_HEADERS") or ""
        slow_ms = _number("TOQUE_TRACE_SLOW_MS", environment.get("TOQUE_TRACE_SLOW_MS"), DEFAULT_SLOW_MS)
        chosen = _number("TOQUE_TRACE_SHARE", share, DEFAULT_SHARE)
        if not 0 <= chosen <= 1:
            raise ValueError(f"TOQUE_TRACE_SHARE={share}: the share of requests to keep is from 0 to 1")
        return cls(chosen, slow_ms / 1e3, endpoint, tuple(_headers(text)))


def _number(name: str, text: str | None, default: float) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        raise ValueError(f"{name}={text!r}: want a number") from None


def _headers(text: str) -> list[tuple[str, str]]:
    """Parse headers as OpenTelemetry writes them: `name=value`, by commas or lines, percent-encoded."""
    pairs = (item.partition("=") for item in text.replace("\n", ",").split(",") if item.strip())
    return [(unquote(name.strip()).lower(), unquote(value.strip())) for name, _, value in pairs]
