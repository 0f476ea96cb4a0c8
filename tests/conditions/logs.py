"""What happens to logs of events: they are trimmed, and messages come doubled, corrected, moved, reordered and late."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DELAYS_S = (0, 1, 5, 60, 600, 1800, 4000, -3)
"""From an event to when the log takes it; the last is of a producer whose clock is ahead. So events come in any order, and late."""
AMOUNTS = (1, 2.5, 0.1, 0.7, 999.25, 1e-9, 3, None)
LARGE_AMOUNTS = (*AMOUNTS, 1e6, 123_456_789.125, 1e15, 2.0**53, 1e-30)
BROKEN = b"{broken"


def fill(client: Any, key: str, first: int, last: int) -> None:
    """Append numbers to a Redis stream, one a millisecond from the first second on."""
    for n in range(first, last):
        client.xadd(key, {"event": json.dumps({"n": n})}, id=f"{1_000 + n}-0")


REDIS_LOSSES: Mapping[str, Callable[[Any, str], Any]] = {
    "cut by MAXLEN": lambda client, key: client.xtrim(key, maxlen=3, approximate=False),
    "cut by MINID": lambda client, key: client.xtrim(key, minid="1015-0", approximate=False),
    "cut to nothing": lambda client, key: client.xtrim(key, maxlen=0),
    "deleted": lambda client, key: client.delete(key),
    "deleted and made anew": lambda client, key: (client.delete(key), fill(client, key, 30, 33)),
    "made anew by a clock behind": lambda client, key: (client.delete(key), fill(client, key, -30, -27)),
}
"""What takes unread entries from a stream that `fill` gave 20, of which 5 were read."""
REDIS_TRIMS: Mapping[str, Callable[[Any, str], Any]] = {
    "before the last that was read": lambda client, key: client.xtrim(key, minid="1004-0", approximate=False),
    "all": lambda client, key: client.xtrim(key, maxlen=0),
    "one that was read": lambda client, key: client.xdel(key, "1002-0"),
    "the last that was read": lambda client, key: client.xdel(key, "1004-0"),
}
"""What takes entries from a stream that `fill` gave 5, of which all were read."""


def next_message(
    chance: random.Random, sent: Sequence[Mapping[str, Any]], fresh: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose what a producer sends next: `fresh`, something again, or corrected in its amount or its user, or poison."""
    kind = chance.random()
    again = dict(chance.choice(sent)) if sent else dict(fresh)
    if kind < 0.15:
        return again
    if kind < 0.25:
        return again | {"amount": chance.choice([5, 0.3])}
    if kind < 0.32:
        return again | {"user": fresh["user"]}
    if kind < 0.37:
        return dict(fresh) | {"amount": chance.choice(["x", -1])}
    return dict(fresh)
