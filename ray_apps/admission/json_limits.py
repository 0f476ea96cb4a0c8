"""Bounds on the size and values of a JSON body, so that parsing it never keeps an event loop from others for long.

Parsers hold the interpreter for the whole body, and take time by the value rather than by the byte: a mebibyte of empty
lists takes as long as 50 MiB of text. The bounds are checked by counting bytes, which costs a hundredth of parsing.
"""

from __future__ import annotations

from typing import Final

from starlette.exceptions import HTTPException

MAX_JSON_BYTES: Final = 4 << 20
MAX_CONTAINERS: Final = 5_000
MAX_VALUES: Final = 200_000


def check_json_values(
    body: bytes,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    max_containers: int = MAX_CONTAINERS,
    max_values: int = MAX_VALUES,
) -> None:
    """Check that a JSON body has few enough values to be parsed on an event loop.

    max_containers: opening brackets and braces; max_values: commas; those inside of texts count too.
    Raises: HTTPException 413 with the remedy.
    """
    if len(body) > max_bytes:
        raise HTTPException(
            413, f"the body has {len(body)} bytes, at most {max_bytes} are taken here: pass data by reference"
        )
    containers, values = body.count(b"[") + body.count(b"{"), body.count(b",")
    if containers > max_containers or values > max_values:
        raise HTTPException(
            413,
            f"the body has {containers} lists and objects and {values} commas; at most {max_containers} and "
            f"{max_values} are taken at a time: send less, or pass data by reference",
        )
